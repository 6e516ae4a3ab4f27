"""A few conversations of a task, without packing its rows anew.

Rows are packed once and hold all conversations, the longest first. Of a task
that a run limits (`data.samples`) those with the smallest hashes of their ids
are taken: the same ones however the rows were packed, of every length, and 16
of them are among 64. They are put into new rows in memory, best fit, so that a
batch of few conversations has as many tokens as one of many.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from yi_jax.data import chat_packing

_FIELDS = ('tokens', 'targets', 'positions', 'loss_weights')
# Rows made here have negative ids, and nothing on disk has.
_Row = dict[str, np.ndarray]


def take(rows: chat_packing.Rows, count: int, task: str) -> Sequence[_Row]:
  """Returns rows that hold exactly so many conversations of others.

  All rows are read once: 0.3 s for five thousand conversations.

  Args:
    rows: of conversations, as `rows.RowReader` gives them.
    count: of conversations.
    task: name, for the message.

  Raises:
    ValueError: if there are fewer conversations.
  """
  found = []
  for index in range(len(rows)):
    row = rows[index]
    for span in _spans(row['segment_ids']):
      digest = hashlib.blake2b(row['tokens'][span].tobytes(), digest_size=8)
      found.append((digest.digest(), index, span.start, span.stop))
  if len(found) < count:
    raise ValueError(
      f'data.samples asks for {count:,} conversations of {task}, which has '
      f'{len(found):,} to train on; lower it, or leave it unset for all'
    )
  chosen = sorted(found)[:count]
  pieces = []
  for _, index, start, stop in chosen:
    row = rows[index]
    pieces.append({name: row[name][start:stop] for name in _FIELDS})
  length = len(rows[0]['tokens'])
  first = int(rows[0]['row_id']) >> 32 << 32
  groups = chat_packing.best_fit([stop - a for *_, a, stop in chosen], length)
  return [
    _joined([pieces[i] for i in group], length, ~(first + number))
    for number, group in enumerate(groups)
  ]


def _spans(segment_ids: np.ndarray) -> Iterator[slice]:
  """Yields where each conversation of a row lies."""
  edges = np.flatnonzero(np.diff(segment_ids, prepend=0, append=0))
  for start, stop in zip(edges[:-1], edges[1:], strict=True):
    yield slice(int(start), int(stop))


def _joined(pieces: Sequence[_Row], length: int, row_id: int) -> _Row:
  """Returns a row of conversations, one behind the other."""
  row = {
    name: np.zeros(length, array.dtype) for name, array in pieces[0].items()
  }
  row['segment_ids'] = np.zeros(length, np.int32)
  row['row_id'] = np.int64(row_id)
  at = 0
  for number, piece in enumerate(pieces, 1):
    end = at + len(piece['tokens'])
    for name, array in piece.items():
      row[name][at:end] = array
    row['segment_ids'][at:end] = number
    at = end
  return row
