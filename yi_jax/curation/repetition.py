"""How much of a document repeats itself (Gopher, arXiv:2112.11446, table A1).

Works on items of any sort, words of English or characters of Chinese, given as
numbers. An n-gram can occur twice only where the (n-1)-gram at its place does,
so that each n looks at what the one before has left: most documents have
nothing left at five.
"""

import collections
from collections.abc import Sequence

import numpy as np

# Of the polynomial that hashes n-grams, modulo 2**64: odd, and no pattern.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Repeats:
  """Repeated n-grams of one document."""

  def __init__(self, items: np.ndarray, lengths: np.ndarray) -> None:
    """Takes the items in order.

    Args:
      items: a number for each item, equal where the items are; uint64[n].
      lengths: characters of each; int[n].
    """
    self._items = items
    self._ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    everywhere = np.arange(len(items))
    self._levels = {1: (everywhere, everywhere, items)}

  def top(self, n: int) -> int:
    """Returns the characters of the most frequent n-gram, all its places.

    Its words count with one space between them; of several as frequent, the
    one that occurs first. Overlapping places count each.

    Args:
      n: 2 or more.
    """
    if len(self._items) < n:
      return 0
    places, groups, _ = self._level(n)
    if not len(places):
      return int(self._ends[n]) + n - 1  # all occur once: the first
    count = np.bincount(groups)
    first = places[np.argmax(count[groups] == count.max())]
    size = self._ends[first + n] - self._ends[first]
    return int((size + n - 1) * count.max())

  def duplicated(self, n: int) -> int:
    """Returns the characters in n-grams that occurred before.

    Reads from the beginning; after a repeated n-gram goes on behind it, so
    that no character counts twice.

    Args:
      n: 2 or more.
    """
    places, groups, _ = self._level(n)
    seen, position, characters = set(), 0, 0
    starts = self._ends[places].tolist()
    ends = self._ends[np.minimum(places + n, len(self._items))].tolist()
    for place, group, start, end in zip(
      places.tolist(), groups.tolist(), starts, ends, strict=True
    ):
      if place < position:
        continue
      if group in seen:
        characters += end - start
        position = place + n
      else:
        seen.add(group)
    return characters

  def _level(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the n-grams that occur more than once.

    Returns:
      Places in order, the number of the group of equal ones, and their hashes.
    """
    if n not in self._levels:
      places, _, hashes = self._level(n - 1)
      inside = places <= len(self._items) - n
      places, hashes = places[inside], hashes[inside]
      hashes = hashes * _FACTOR + self._items[places + (n - 1)]
      self._levels[n] = _repeated(places, hashes)
    return self._levels[n]


def _repeated(
  places: np.ndarray, hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what of these occurs more than once; places stay in order."""
  order = np.argsort(hashes)
  ordered = hashes[order]
  same = ordered[1:] == ordered[:-1]
  if not same.any():
    nothing = order[:0]
    return nothing, nothing, hashes[:0]
  member = np.zeros(len(order), bool)
  member[1:] = same
  group = np.cumsum(~member)
  member[:-1] |= same
  groups = np.zeros(len(order), np.int64)
  groups[order] = group
  kept = np.zeros(len(order), bool)
  kept[order] = member
  return places[kept], groups[kept], hashes[kept]


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
  """Returns how many parts repeat an earlier one, and their characters.

  Example: duplicates(['a', 'bc', 'bc', 'bc']) == (2, 4)
  """
  if len(set(parts)) == len(parts):
    return 0, 0
  times = collections.Counter(parts)
  return (
    len(parts) - len(times),
    sum(len(part) * (count - 1) for part, count in times.items()),
  )
