"""Beam's side of the stages that see all documents.

What moves is tables of hashes (see `tables`), cut by a key into partitions: an
element of a shuffle is (partition, packed table) with thousands of rows, so
Beam's cost an element vanishes. What a stage decided about documents comes
back to their batches through a multimap, one entry a batch.

Every exchange counts the rows it was given and those that arrived. `lost` tells
where they differ, on whatever runner.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms import window
from apache_beam.utils import windowed_value

from yi_jax.curation import documents, tables

Reduce = Callable[[tables.Table], Iterable[tables.Table]]

_BYTES = 4 << 20  # of tables, after which a worker sends what it has gathered

# Namespaces of the counters of rows; their names are those of the exchanges.
_SENT, _ARRIVED = 'rows sent', 'rows arrived'


def _count(namespace: str, name: str, table: tables.Table) -> None:
  if table:
    counter = beam.metrics.Metrics.counter(namespace, name)
    counter.inc(tables.rows(table))


def lost(counters: Mapping[tuple[str, str], int]) -> dict[str, tuple[int, int]]:
  """Returns exchange -> rows that did not arrive and rows sent, where any did.

  Args:
    counters: (namespace, name) -> value, of a pipeline that is done.
  """
  found = collections.Counter()
  for (namespace, name), value in counters.items():
    if namespace in (_SENT, _ARRIVED):
      found[name] += value if namespace == _SENT else -value
  return {
    name: (missing, counters[_SENT, name])
    for name, missing in sorted(found.items())
    if missing > 0
  }


class _Split(beam.DoFn):
  """Gathers tables and cuts them by the partitions of a key."""

  def __init__(self, name: str, key: str, partitions: int) -> None:
    self._name, self._key, self._partitions = name, key, partitions

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
    _count(_SENT, self._name, gathered)
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
    PCollection of (partition, packed table), several for each partition;
    `gather` of the same name takes them.
  """
  split = beam.ParDo(_Split(name, key, partitions))
  return rows | name >> split.with_output_types(tuple[int, bytes])


def exchange(rows: Any, name: str, key: str, partitions: int) -> Any:
  """Brings rows of equal keys together: (partition, packed tables)."""
  sent = send(rows, name, key, partitions)
  return sent | f'{name}: group' >> beam.GroupByKey()


def gather(packed: Iterable[bytes], name: str) -> tables.Table:
  """Returns the rows of packed tables as one; {} for none.

  Args:
    packed: tables that one exchange brought together.
    name: of the exchange.
  """
  table = tables.concatenate(map(tables.unpack, packed))
  _count(_ARRIVED, name, table)
  return table


class _Rounds(_Split):
  """Applies a function to a partition and cuts the outcome by the key again."""

  def __init__(
    self, before: str, name: str, key: str, partitions: int, function: Reduce
  ) -> None:
    super().__init__(name, key, partitions)
    self._before, self._function = before, function

  def process(
    self, element: tuple[int, Iterable[bytes]]
  ) -> Iterator[tuple[int, bytes]]:
    for table in self._function(gather(element[1], self._before)):
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

  grouped, last = exchange(rows, name, key, partitions), name
  for number, function in enumerate(functions[:-1], 1):
    step = f'{name}: step {number}'
    again = beam.ParDo(_Rounds(last, step, key, partitions, function))
    grouped = (
      grouped
      | step >> again.with_output_types(tuple[int, bytes])
      | f'{name}: group {number}' >> beam.GroupByKey()
    )
    last = step

  def work(element: tuple[int, Iterable[bytes]]) -> Iterable[tables.Table]:
    return functions[-1](gather(element[1], last))

  return grouped | f'{name}: reduce' >> beam.FlatMap(work)


@dataclasses.dataclass(frozen=True)
class ByBatch:
  """Rows that `visit` brings to the batches they are about.

  Attributes:
    name: of the exchange.
    rows: place -> packed tables, a side input.
  """

  name: str
  rows: beam.pvalue.AsMultiMap


def to_batches(rows: Any, name: str, partitions: int) -> ByBatch:
  """Returns rows by their column `place`, for one `visit`."""
  last = f'{name}: by batch'

  def by_place(
    element: tuple[int, Iterable[bytes]],
  ) -> Iterator[tuple[int, bytes]]:
    table = gather(element[1], name)
    _count(_SENT, last, table)
    order = np.argsort(table['place'], kind='stable')
    table = tables.take(table, order)
    starts = tables.first_of_runs(table['place'])
    ends = [*starts[1:], len(order)]
    for begin, end in zip(starts, ends, strict=True):
      part = {k: v[begin:end] for k, v in table.items()}
      yield int(part['place'][0].astype('int64')), tables.pack(part)

  grouped = exchange(rows, name, 'place', partitions)
  split = beam.FlatMap(by_place).with_output_types(tuple[int, bytes])
  return ByBatch(last, beam.pvalue.AsMultiMap(grouped | last >> split))


def visit(
  batches: Any,
  name: str,
  rows: ByBatch,
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
    return function(batch, gather(found[key], rows.name))

  return batches | name >> beam.FlatMap(work, rows.rows)
