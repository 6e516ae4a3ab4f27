"""Tables of hashes: what the stages that see all documents send to each other.

A table is a dict of columns: NumPy arrays with one entry a row. It may have a
ragged column too: `values` holds the pieces of all rows one after the other,
`sizes` says how many belong to each row.

Documents are known by `number`, a 64-bit hash of their id, and by the `place`
of their batch; which of several copies is the best is one comparable integer,
`rank`. So a row about a document takes a few tens of bytes, and the outcome
depends neither on how batches are cut nor on the order they come in.
"""

import hashlib
import pickle
from collections.abc import Iterable, Sequence

import numpy as np

from yi_jax.curation import documents

Table = dict[str, np.ndarray]


def mix(x: np.ndarray) -> np.ndarray:
  """Returns uint64 hashes of uint64 numbers, one to one (splitmix64's end)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def numbers(ids: Sequence[str]) -> np.ndarray:
  """Returns the numbers of documents, uint64[n]: hashes of their ids."""
  digests = b''.join(
    hashlib.blake2b(key.encode('utf-8', 'replace'), digest_size=8).digest()
    for key in ids
  )
  return np.frombuffer(digests, '<u8').astype(np.uint64)


def place(batch: documents.Batch) -> np.uint64:
  """Returns where a batch lies, as one number."""
  shard, number = (part & 0xFFFFFFFF for part in batch.place)
  return np.uint64(shard << 32 | number)


def ranks(batch: documents.Batch, indices: Sequence[int]) -> np.ndarray:
  """Returns how good documents are as copies: the larger is the better one.

  The quality decides (unknown is the worst), then the length. Where both are
  equal, whoever compares takes the smaller number, that is the hash of the id.

  Args:
    batch: with scores['quality'], or without: then the length decides.
    indices: of the documents.

  Returns:
    uint64[n]: the order of the float in the high half, characters in the low.
  """
  indices = list(indices)
  quality = batch.scores.get('quality', np.zeros(len(batch), np.float32))
  quality = quality[indices].astype(np.float32) + np.float32(0)  # no -0
  bits = np.nan_to_num(quality, nan=-np.inf).view(np.uint32)
  # Bits of floats sort as numbers once negative ones are turned around.
  negative = bits >> np.uint32(31) == 1
  order = np.where(negative, ~bits, bits | np.uint32(1 << 31))
  lengths = [min(len(batch.texts[i]), 0xFFFFFFFF) for i in indices]
  return order.astype(np.uint64) << np.uint64(32) | np.array(lengths, np.uint64)


def about(batch: documents.Batch, indices: Sequence[int]) -> Table:
  """Returns number, place and rank of documents of a batch."""
  return {
    'number': numbers([batch.ids[i] for i in indices]),
    'place': np.full(len(indices), place(batch), np.uint64),
    'rank': ranks(batch, indices),
  }


def rows(table: Table) -> int:
  """Returns the number of rows."""
  return len(next(v for k, v in table.items() if k != 'values'))


def take(table: Table, index: np.ndarray) -> Table:
  """Returns some rows, by their indices or a boolean mask, in that order."""
  taken = {k: v[index] for k, v in table.items() if k != 'values'}
  if 'values' in table:
    sizes = table['sizes'].astype(np.int64)
    begins = np.cumsum(sizes) - sizes
    taken['values'] = table['values'][ranges(begins[index], sizes[index])]
  return taken


def ranges(begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """Returns the indices of runs, one after the other.

  Example: begins [5, 20], sizes [3, 2] -> [5, 6, 7, 20, 21].
  """
  before = np.cumsum(sizes) - sizes
  return np.repeat(begins - before, sizes) + np.arange(int(sizes.sum()))


def concatenate(tables: Iterable[Table]) -> Table:
  """Returns the rows of several tables of the same columns; {} for none."""
  tables = list(tables)
  if not tables:
    return {}
  return {k: np.concatenate([t[k] for t in tables]) for k in tables[0]}


def split(
  table: Table, key: str, partitions: int
) -> Iterable[tuple[int, Table]]:
  """Yields (partition, rows) for the partitions that the keys of rows hash to.

  Args:
    table: rows.
    key: name of a uint64 column.
    partitions: how many there are.
  """
  homes = partition(table[key], partitions)
  order = np.argsort(homes, kind='stable')
  starts = first_of_runs(homes[order])
  for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
    yield int(homes[order[begin]]), take(table, order[begin:end])


def partition(keys: np.ndarray, partitions: int) -> np.ndarray:
  """Returns the partitions of uint64 keys, int64[n] below `partitions`."""
  return (mix(keys) % np.uint64(partitions)).astype(np.int64)


def first_of_runs(*columns: np.ndarray) -> np.ndarray:
  """Returns the indices of sorted rows that differ from the row before."""
  count = len(columns[0])
  new = np.zeros(count, bool)
  new[:1] = True
  for column in columns:
    new[1:] |= column[1:] != column[:-1]
  return np.flatnonzero(new)


def unique(table: Table, *keys: str) -> Table:
  """Returns one row for each combination of keys, sorted by them."""
  columns = [table[key] for key in keys]
  order = np.lexsort(columns[::-1])
  kept = first_of_runs(*[column[order] for column in columns])
  return take(table, order[kept])


def choose(table: Table, keys: Sequence[str], *ties: str) -> Table:
  """Finds groups of copies and the best of each.

  Args:
    table: with columns rank and number, and those named.
    keys: columns that are equal in a group.
    ties: columns that decide after rank and number, the smaller one first.

  Returns:
    The rows of the groups of two or more, in order of groups and best first,
    with columns `kept` (the number of the group's best row), `first` (whether
    the row is that one) and `copies` (rows of the group).
  """
  columns = [table[key] for key in keys]
  worse = [table[tie] for tie in ties[::-1]]
  order = np.lexsort([*worse, table['number'], ~table['rank'], *columns[::-1]])
  starts = first_of_runs(*[column[order] for column in columns])
  sizes = np.diff(np.append(starts, len(order)))
  found = take(table, order)
  found['kept'] = np.repeat(found['number'][starts], sizes)
  found['first'] = np.zeros(len(order), bool)
  found['first'][starts] = True
  found['copies'] = np.repeat(sizes, sizes)
  return take(found, found['copies'] > 1)


def pack(table: Table) -> bytes:
  """Returns a table as bytes for a shuffle."""
  return pickle.dumps(table, protocol=5)


def unpack(content: bytes) -> Table:
  """Returns what `pack` was given."""
  return pickle.loads(content)
