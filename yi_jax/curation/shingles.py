"""Texts as arrays of hashes: words, n-grams, and where they stand.

A text is a row of units: runs of letters, digits and marks are words, and each
Chinese character or kana is a unit by itself, whatever the language is said to
be. Case, full-width forms, punctuation and space do not count. All of it is
arithmetic on arrays of code points: a unit's hash is a polynomial in its
characters modulo 2**64, an n-gram's one in its units (Karp and Rabin 1987).
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from yi_jax.curation import tables

_PIECE = 1 << 16  # characters hashed at a time: the arrays stay in cache
_BLOCK = 1 << 19  # characters, above which `blocks` begins another block
_PLANES = 0x20000  # code points with a case; those above are Han, or no text
# Odd, so that it has an inverse modulo 2**64; otherwise arbitrary.
_CHARACTER_BASE = 0x9E3779B97F4A7C15
_UNIT_BASE = 0xD1342543DE82EF95
_NONE, _WORD, _SINGLE, _DIGIT = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Units:
  """The units of some texts, one text after the other.

  Attributes:
    hashes: uint64[U].
    starts: int32[U], first character in its text.
    ends: int32[U], the character after its last.
    single: bool[U], whether it is a character that stands for itself.
    number: bool[U], whether it begins with a digit.
    offsets: int64[texts + 1]; those of text i are offsets[i]:offsets[i + 1].
  """

  hashes: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  single: np.ndarray
  number: np.ndarray
  offsets: np.ndarray


def blocks(texts: Sequence[str]) -> Iterator[tuple[int, Units]]:
  """Yields (index of the first text, units) for a few texts at a time.

  It bounds the memory: a text of 50 million characters is a block by itself.
  """
  begin = size = 0
  for i, text in enumerate(texts):
    if size and size + len(text) > _BLOCK:
      yield begin, units(texts[begin:i])
      begin, size = i, 0
    size += len(text)
  if size:
    yield begin, units(texts[begin:])


def units(texts: Sequence[str]) -> Units:
  """Returns the units of texts.

  Example: 'Don’t 看书!' has the units don, t, 看, 书.
  """
  found = []
  group, size = [], 0
  for i, text in enumerate(texts):
    for begin, end in _pieces(text):
      if size + end - begin + len(group) > _PIECE:
        found.append(_units(texts, group))
        group, size = [], 0
      group.append((i, begin, end))
      size += end - begin
  found.append(_units(texts, group))
  columns = map(np.concatenate, zip(*found, strict=True))
  owners, hashes, starts, ends, single, number = columns
  counts = np.bincount(owners, minlength=len(texts))
  offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
  return Units(hashes, starts, ends, single, number, offsets)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
  """Yields slices of at most _PIECE characters that cut no word if possible."""
  begin = 0
  while len(text) - begin > _PIECE:
    low, high = begin + _PIECE // 2, begin + _PIECE
    end = max(text.rfind(' ', low, high), text.rfind('\n', low, high)) + 1
    yield begin, end or high
    begin = end or high
  if begin < len(text):
    yield begin, len(text)


def _units(
  texts: Sequence[str], group: Sequence[tuple[int, int, int]]
) -> tuple[np.ndarray, ...]:
  """Returns the owner and the columns of the units of slices."""
  if not group:
    empty = np.zeros(0, np.int64)
    return (
      *(empty, empty.astype(np.uint64), empty.astype(np.int32)),
      *(empty.astype(np.int32), empty.astype(bool), empty.astype(bool)),
    )
  joined = '\n'.join(texts[i][begin:end] for i, begin, end in group)
  codes = np.frombuffer(joined.encode('utf-32-le', 'surrogatepass'), np.uint32)
  kinds, values = _characters()
  kind = kinds[codes]
  single = kind == _SINGLE
  word = (kind != _NONE) & ~single
  begins, finishes = word.copy(), word.copy()
  begins[1:] &= ~word[:-1]
  finishes[:-1] &= ~word[1:]
  starts = np.flatnonzero(begins | single)
  ends = np.flatnonzero(finishes | single) + 1
  powers, inverses = _powers()
  sums = np.zeros(len(codes) + 1, np.uint64)
  np.cumsum(values[codes] * powers[: len(codes)], out=sums[1:])
  hashes = tables.mix((sums[ends] - sums[starts]) * inverses[starts])
  owner, begin, end = np.array(group, np.int64).T
  first = np.cumsum(end - begin + 1) - (end - begin + 1)
  piece = np.searchsorted(first, starts, 'right') - 1
  shift = (begin - first)[piece]
  return (
    owner[piece],
    hashes,
    (starts + shift).astype(np.int32),
    (ends + shift).astype(np.int32),
    single[starts],
    kind[starts] == _DIGIT,
  )


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
  """Returns the kind, uint8, and the value, uint64, of each code point."""
  kinds = np.zeros(0x110000, np.uint8)
  folded = np.arange(0x110000, dtype=np.uint64)
  for code in range(_PLANES):
    character = chr(code)
    category = unicodedata.category(character)[0]
    if category in 'LMN':
      kinds[code] = _DIGIT if category == 'N' else _WORD
      same = unicodedata.normalize('NFKC', character).lower()
      if len(same) == 1:  # full-width letters and capitals
        folded[code] = ord(same)
  # Ideographs, their repetition mark and zero; kana; ideographs beyond.
  for first, last in (
    *((0x3005, 0x3007), (0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF)),
    *((0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
  ):
    kinds[first : last + 1] = _SINGLE
  kinds[0x3006] = _WORD
  # Where NFKC makes a Han character of another sign, it stands for itself.
  kinds[(kinds != _NONE) & (kinds[folded] == _SINGLE)] = _SINGLE
  values = tables.mix(folded + np.uint64(_CHARACTER_BASE))
  values[kinds == _NONE] = 0
  return kinds, values


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
  """Returns the powers of the base and of its inverse, uint64[_PIECE + 1]."""
  found = []
  for base in (_CHARACTER_BASE, pow(_CHARACTER_BASE, -1, 1 << 64)):
    factors = np.full(_PIECE + 1, base, np.uint64)
    factors[0] = 1
    found.append(np.cumprod(factors))
  return found[0], found[1]


def ngrams(
  hashes: np.ndarray, offsets: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the hashes of the n-grams of each text.

  A text of fewer units, but some, has one n-gram: all of it.

  Args:
    hashes: uint64[U], see `Units`.
    offsets: int64[texts + 1].
    n: units an n-gram.

  Returns:
    uint64[S] and int64[texts + 1].
  """
  counts = np.diff(offsets)
  if np.any((counts > 0) & (counts < n)):
    filled = np.where(counts > 0, np.maximum(counts, n), 0)
    padded = np.zeros(int(filled.sum()), np.uint64)
    begins = np.cumsum(filled) - filled
    padded[tables.ranges(begins, counts)] = hashes[offsets[0] : offsets[-1]]
    hashes, counts = padded, filled
    offsets = np.concatenate([[0], np.cumsum(counts)])
  found = np.where(counts > 0, counts - n + 1, 0)
  if not found.any():
    return np.zeros(0, np.uint64), np.zeros(len(found) + 1, np.int64)
  kept = tables.ranges(offsets[:-1], found)
  return windows(hashes, n)[kept], np.concatenate([[0], np.cumsum(found)])


def wholes(found: Units) -> np.ndarray:
  """Returns one hash of all units of each text, uint64[texts]."""
  counts = np.diff(found.offsets)
  # Powers begin anew in each text: the hash is that of its own units alone.
  factors = np.full(int(counts.max(initial=0)) + 1, _UNIT_BASE, np.uint64)
  factors[0] = 1
  powers = np.cumprod(factors)
  steps = tables.ranges(np.zeros(len(counts), np.int64), counts)
  sums = np.zeros(len(found.hashes) + 1, np.uint64)
  np.cumsum(found.hashes * powers[steps], out=sums[1:])
  totals = sums[found.offsets[1:]] - sums[found.offsets[:-1]]
  return tables.mix(totals ^ tables.mix(counts.astype(np.uint64)))


def windows(hashes: np.ndarray, n: int) -> np.ndarray:
  """Returns the hashes of all runs of n of U hashes, uint64[U - n + 1].

  By doubling, so that n = 50 costs eight passes, not fifty.
  """
  if len(hashes) < n:
    return np.zeros(0, np.uint64)
  result, length = None, 0  # of runs of `length`
  power, size = hashes, 1  # of runs of `size`, a power of two
  rest = n
  while rest:
    if rest & 1:
      result = power if result is None else _append(result, length, power, size)
      length += size
    rest >>= 1
    if rest:
      power = _append(power, size, power, size)
      size *= 2
  return tables.mix(result[: len(hashes) - n + 1])


def _append(
  left: np.ndarray, length: int, right: np.ndarray, size: int
) -> np.ndarray:
  """Returns hashes of runs of length + size from those of their two parts."""
  base = np.uint64(pow(_UNIT_BASE, size, 1 << 64))
  count = len(right) - length
  return left[:count] * base + right[length:]
