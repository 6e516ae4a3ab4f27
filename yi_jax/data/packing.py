"""Packs documents into rows of one length, losing and repeating nothing.

The documents of a task are one stream, EOS d1 EOS d2 EOS ..., and row i is
stream[i * L : (i + 1) * L + 1]: the last token of a row is the first of the
next, as the one is only a target and the other only an input. So every token
of every document, its first and its closing EOS included, is a target exactly
once; only the very first EOS is none. A segment begins at each separator; a
document that does not end in its row goes on in the next one as segment 1.
Where documents shall see each other, a row is one segment instead.

  L = 4, documents [5, 6] and [7, 8, 9, 10], EOS 2
  tokens       2 5 6 2 7      7 8 9 10 2
  segments     1 1 1 2        1 1 1 1

No row but the last has padding (token 0, segment 0).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_BLOCK = 1 << 16  # tokens gathered before rows are cut


def pack(
  documents: Iterable[Sequence[int]], length: int, eos_id: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the rows of a stream of documents; see `Packer`."""
  packer = Packer(length, eos_id)
  for document in documents:
    yield from packer.add(document)
  yield from packer.finish()


class Packer:
  """Cuts one stream into rows.

  Rows are dicts of tokens int32[L + 1] and segment_ids int32[L] (1..; 0 is
  padding).
  """

  def __init__(self, length: int, eos_id: int, separate: bool = True) -> None:
    """Begins a stream.

    Args:
      length: L, tokens a row takes as input.
      eos_id: the separator.
      separate: whether each document is a segment; else each row is one.

    Raises:
      ValueError: if length is not positive.
    """
    if length < 1:
      raise ValueError(f'rows need at least one token, not {length}')
    self._length, self._separate = length, separate
    self._separator = np.array([eos_id], np.int32)
    # What is not in a row yet; starts marks the separators among the tokens.
    self._tokens = [self._separator]
    self._starts = [np.full(1, separate)]
    self._size = 1

  def add(self, document: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """Yields rows, many at a time or none, when a document (ids) is added."""
    starts = np.zeros(len(document) + 1, bool)
    starts[-1] = self._separate
    self._tokens += [np.asarray(document, np.int32), self._separator]
    self._starts.append(starts)
    self._size += len(starts)
    if self._size > max(_BLOCK, self._length):
      yield from self._cut()

  def finish(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields the last rows; the very last may have padding."""
    yield from self._cut()
    inputs = self._size - 1  # that still have a target, fewer than L
    if inputs:
      length = self._length
      segments = np.cumsum(self._starts[0][:inputs])
      segments += segments[0] == 0
      row = {
        'tokens': np.zeros(length + 1, np.int32),
        'segment_ids': np.zeros(length, np.int32),
      }
      row['tokens'][: inputs + 1] = self._tokens[0]
      row['segment_ids'][:inputs] = segments
      yield row

  def _cut(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields the full rows and keeps the rest."""
    tokens = np.concatenate(self._tokens)
    starts = np.concatenate(self._starts)
    count = (self._size - 1) // self._length
    used = count * self._length
    self._tokens, self._starts = [tokens[used:]], [starts[used:]]
    self._size -= used
    yield from _rows(tokens, starts, self._length, count)


def _rows(
  tokens: np.ndarray, starts: np.ndarray, length: int, count: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the first full rows of a stream; starts marks its separators."""
  segments = np.cumsum(
    starts[: count * length].reshape(count, length), 1, dtype=np.int32
  )
  # A row that begins inside a document begins with segment 1 too.
  segments += segments[:, :1] == 0
  for row in range(count):
    first = row * length
    yield {
      'tokens': tokens[first : first + length + 1],
      'segment_ids': segments[row],
    }


def positions(segment_ids: np.ndarray) -> np.ndarray:
  """Returns int32[L] positions that restart in each segment, 0 in padding."""
  index = np.arange(len(segment_ids), dtype=np.int32)
  begins = np.zeros_like(index)
  changed = segment_ids[1:] != segment_ids[:-1]
  begins[1:] = np.where(changed, index[1:], 0)
  return (index - np.maximum.accumulate(begins)) * (segment_ids > 0)
