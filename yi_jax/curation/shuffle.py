"""Beam's side of the stages that see all documents.

What moves is tables of hashes (see `tables`), cut by a key into partitions: an
element of a shuffle is (partition, packed table) with thousands of rows, so
Beam's cost an element vanishes. What a stage decided about documents comes
back to their batches through a multimap, one entry a batch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms import window
from apache_beam.utils import windowed_value

from yi_jax.curation import documents, tables

Reduce = Callable[[tables.Table], Iterable[tables.Table]]

_BYTES = 4 << 20  # of tables, after which a worker sends what it has gathered


class _Split(beam.DoFn):
  """Gathers tables and cuts them by the partitions of a key."""

  def __init__(self, key: str, partitions: int) -> None:
    self._key, self._partitions = key, partitions

  def start_bundle(self) -> None:
    self._gathered, self._size = [], 0

  def process(self, table: tables.Table) -> Iterator[tuple[int, bytes]]:
    if not table or not tables.rows(table):
      return
    self._gathered.append(table)
    self._size += sum(column.nbytes for column in table.values())
    if self._size >= _BYTES:
      yield from self._flush()

  def finish_bundle(self) -> Iterator[Any]:
    stamp, windows = window.MIN_TIMESTAMP, [window.GlobalWindow()]
    for element in self._flush():
      yield windowed_value.WindowedValue(element, stamp, windows)

  def _flush(self) -> Iterator[tuple[int, bytes]]:
    gathered = tables.concatenate(self._gathered)
    self._gathered, self._size = [], 0
    if gathered:
      for home, part in tables.split(gathered, self._key, self._partitions):
        yield home, tables.pack(part)


def send(rows: Any, name: str, key: str, partitions: int) -> Any:
  """Cuts rows by a key.

  Args:
    rows: PCollection of tables.
    name: of the transform.
    key: uint64 column; rows with equal keys are in one partition.
    partitions: the keys are cut into.

  Returns:
    PCollection of (partition, packed table), several for each partition.
  """
  split = beam.ParDo(_Split(key, partitions))
  return rows | name >> split.with_output_types(tuple[int, bytes])


def exchange(rows: Any, name: str, key: str, partitions: int) -> Any:
  """Brings rows of equal keys together: (partition, packed tables)."""
  sent = send(rows, f'{name}: split', key, partitions)
  return sent | f'{name}: group' >> beam.GroupByKey()


def gather(packed: Iterable[bytes]) -> tables.Table:
  """Returns the rows of packed tables as one; {} for none."""
  return tables.concatenate(map(tables.unpack, packed))


class _Rounds(_Split):
  """Applies a function to a partition and cuts the outcome by the key again."""

  def __init__(self, key: str, partitions: int, function: Reduce) -> None:
    super().__init__(key, partitions)
    self._function = function

  def process(
    self, element: tuple[int, Iterable[bytes]]
  ) -> Iterator[tuple[int, bytes]]:
    for table in self._function(gather(element[1])):
      yield from super().process(table)


def reduce(
  rows: Any,
  name: str,
  key: str,
  partitions: int,
  *functions: Reduce,
) -> Any:
  """Applies functions to all rows of a partition at a time.

  Args:
    rows: PCollection of tables.
    name: of the transform.
    key: uint64 column; rows with equal keys are in one partition.
    partitions: the keys are cut into.
    *functions: must not depend on the order of the rows. Between one and the
      next, rows are brought together by the key anew.

  Returns:
    PCollection of the tables that the last function returns.
  """

  def work(element: tuple[int, Iterable[bytes]]) -> Iterable[tables.Table]:
    return functions[-1](gather(element[1]))

  grouped = exchange(rows, name, key, partitions)
  for number, function in enumerate(functions[:-1], 1):
    again = beam.ParDo(_Rounds(key, partitions, function))
    grouped = (
      grouped
      | f'{name}: step {number}' >> again.with_output_types(tuple[int, bytes])
      | f'{name}: group {number}' >> beam.GroupByKey()
    )
  return grouped | f'{name}: reduce' >> beam.FlatMap(work)


def to_batches(rows: Any, name: str, partitions: int) -> Any:
  """Returns rows by their column `place`, as a side input for `visit`."""

  def by_place(
    element: tuple[int, Iterable[bytes]],
  ) -> Iterator[tuple[int, bytes]]:
    table = gather(element[1])
    order = np.argsort(table['place'], kind='stable')
    table = tables.take(table, order)
    starts = tables.first_of_runs(table['place'])
    ends = [*starts[1:], len(order)]
    for begin, end in zip(starts, ends, strict=True):
      part = {k: v[begin:end] for k, v in table.items()}
      yield int(part['place'][0].astype('int64')), tables.pack(part)

  grouped = exchange(rows, name, 'place', partitions)
  split = beam.FlatMap(by_place).with_output_types(tuple[int, bytes])
  return beam.pvalue.AsMultiMap(grouped | f'{name}: by batch' >> split)


def visit(
  batches: Any,
  name: str,
  rows: Any,
  function: Callable[[documents.Batch, tables.Table], Iterable[Any]],
) -> Any:
  """Applies a function to each batch and the rows about it.

  Args:
    batches: PCollection of batches.
    name: of the transform.
    rows: result of `to_batches`.
    function: of a batch and its rows; {} where there are none.

  Returns:
    PCollection of what the function returns.
  """

  def work(batch: documents.Batch, found: Any) -> Iterable[Any]:
    key = int(tables.place(batch).astype('int64'))
    return function(batch, gather(found[key]))

  return batches | name >> beam.FlatMap(work, rows)
