"""Feeds batches: row n of a run is f(seed, n) and depends on nothing else.

grain shuffles the rows of each task, in another order each epoch, and repeats
them; the mixture takes the next row of a task in turn, at its rate. So the
order does not depend on the batch size, on the number of hosts or on how often
a run was interrupted, and a run opens at row 8,000,000 as fast as at row 0. The
one number to remember is `rows_consumed`.
"""

import bisect
import queue
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

# Rates are rounded to this share of the whole, for exact integer arithmetic.
_PARTS = 1_000_000

Rates = Mapping[str, float]


class Rows(Protocol):
  """What the loader reads, such as `rows.RowReader`."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class Loader(Iterator[dict[str, np.ndarray]]):
  """Iterator of batches, made ahead on a thread.

  A batch is a dict of arrays [B, ...], B rows of this process: tokens, targets,
  segment_ids, positions int32[B, L], loss_weights float32[B, L], row_id
  int64[B], and what else the rows have.
  """

  def __init__(
    self,
    readers: Mapping[str, Rows],
    rates: Rates | Sequence[tuple[int, Rates]],
    *,
    batch_size: int,
    seed: int,
    rows_consumed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    skipped: Sequence[tuple[int, int]] = (),
  ) -> None:
    """Opens the mixture at a row of the run.

    Args:
      readers: task -> rows.
      rates: task -> share of the rows; 0 leaves a task out. Or stages, pairs
        of the run's first row and the rates from there on, the first at 0: each
        task goes on where the stage before left it.
      batch_size: rows a step over all processes.
      seed: of the order.
      rows_consumed: rows of the run already used, over all processes.
      process_index: which part of a batch to read.
      process_count: into how many equal parts a batch is cut.
      prefetch: batches made ahead.
      skipped: ranges (first, end) of rows that this run leaves out, rising and
        apart; see `place`. They are not among those consumed.

    Raises:
      ValueError: if a rate is negative or names a task without rows, or a batch
        cannot be cut equally.
    """
    if batch_size < 1 or batch_size % process_count:
      raise ValueError(
        f'a batch of {batch_size} rows cannot be cut into {process_count} '
        'equal parts'
      )
    if prefetch < 1:
      raise ValueError('prefetch is at least 1 batch')
    stages = [(0, rates)] if isinstance(rates, Mapping) else list(rates)
    order = _Order(stages, readers)
    # Tasks of the same length must not share their order.
    seeds = {
      name: (seed * 1_000_003 + zlib.crc32(name.encode())) % (1 << 32)
      for name in order.names
    }
    self._rows = grain.MapDataset.select_from_datasets(
      [
        grain.MapDataset.source(readers[name]).shuffle(seed=seed).repeat()
        for name, seed in seeds.items()
      ],
      order,
    )
    self._batch_size, self._skipped = batch_size, list(skipped)
    local = batch_size // process_count
    self._offsets = range(process_index * local, (process_index + 1) * local)
    self.rows_consumed = rows_consumed
    self._queue = queue.Queue(maxsize=prefetch)
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._fill, args=(rows_consumed,), daemon=True, name='loader'
    )
    self._thread.start()

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch.

    Raises:
      whatever reading it raised.
    """
    if self._stop.is_set():
      raise StopIteration
    item = self._queue.get()
    if isinstance(item, Exception):
      self.close()
      raise item
    self.rows_consumed += self._batch_size
    return item

  def close(self) -> None:
    """Ends the thread; the iterator is exhausted then."""
    self._stop.set()
    while self._thread.is_alive():
      try:  # it may be waiting for room
        self._queue.get_nowait()
      except queue.Empty:
        self._thread.join(timeout=0.01)

  def __enter__(self) -> 'Loader':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _fill(self, first: int) -> None:
    """Puts batches, or the error that ended them, into the queue."""
    try:
      while not self._stop.is_set():
        batch = [
          self._rows[place(first + offset, self._skipped)]
          for offset in self._offsets
        ]
        self._put({name: _stack(name, batch) for name in batch[0]})
        first += self._batch_size
    except Exception as error:
      self._put(error)

  def _put(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue


def place(row: int, skipped: Sequence[tuple[int, int]]) -> int:
  """Returns where in the order the row-th row lies that is not left out.

  place(5, [(4, 8)]) is 9: of 0 1 2 3 8 9 it is the last.

  Args:
    row: from 0.
    skipped: ranges (first, end), rising and apart.
  """
  for first, end in skipped:
    if row >= first:
      row += end - first
  return row


def leave_out(
  skipped: Sequence[tuple[int, int]], first: int, end: int
) -> list[tuple[int, int]]:
  """Returns ranges of rows to leave out with some more, rising and apart.

  leave_out([(4, 8)], 2, 6) is [(2, 4), (4, 8), (8, 10)]: rows 2, 3, 8 and 9 are
  those that were read as the third to the sixth.

  Args:
    skipped: ranges (first, end) of the order that are left out already.
    first: first row to leave out too, counted without those.
    end: the row after the last.
  """
  runs: list[tuple[int, int]] = []
  for row in range(first, end):
    found = place(row, skipped)
    if runs and runs[-1][1] == found:
      runs[-1] = (runs[-1][0], found + 1)
    else:
      runs.append((found, found + 1))
  return sorted([*skipped, *runs])


class _Order(grain.transforms.DatasetSelectionMap):
  """Which task, and which of its rows, row n of a run is."""

  def __init__(
    self, stages: Sequence[tuple[int, Rates]], readers: Mapping[str, Rows]
  ) -> None:
    firsts = [first for first, _ in stages]
    if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)):
      raise ValueError(f'stages begin at row 0 and rise, not {firsts}')
    for _, rates in stages:
      _check_rates(rates, readers)
    used = {k for _, rates in stages for k, rate in rates.items() if rate > 0}
    self.names = sorted(used)
    self._firsts = firsts
    self._parts = [self._integer_rates(rates) for _, rates in stages]
    # Rows of each task that the stages before have used.
    self._used = [[0] * len(self.names)]
    for stage, first in enumerate(firsts[1:]):
      counts = _counts(first - firsts[stage], self._parts[stage])
      before = self._used[-1]
      self._used.append([a + b for a, b in zip(before, counts, strict=True)])

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, n: int) -> tuple[int, int]:
    stage = bisect.bisect_right(self._firsts, n) - 1
    n -= self._firsts[stage]
    before = _counts(n, self._parts[stage])
    after = _counts(n + 1, self._parts[stage])
    for task, (b, a) in enumerate(zip(before, after, strict=True)):
      if a != b:
        return task, self._used[stage][task] + b
    raise AssertionError('counts of n rows sum to n')

  def _integer_rates(self, rates: Rates) -> list[int]:
    total = sum(rates.values())
    shares = (rates.get(name, 0) / total for name in self.names)
    # No task that has a rate may vanish by rounding.
    return [max(round(s * _PARTS), int(s > 0)) for s in shares]


def _counts(n: int, parts: Sequence[int]) -> list[int]:
  """Returns how many of the first n rows each task gives.

  The first task gets all but a rounded-down share for the others, which is
  divided among them the same way. Rounded-down shares of n and n + 1 differ by
  0 or 1, so each row adds one to exactly one task.
  """
  counts, left = [], sum(parts)
  for part in parts:
    others = n * (left - part) // left if left else 0
    counts.append(n - others)
    n, left = others, left - part
  return counts


def _check_rates(rates: Rates, readers: Mapping[str, Rows]) -> None:
  for name, rate in rates.items():
    if rate < 0:
      raise ValueError(f'the rate of {name} is negative: {rate}')
    if rate > 0 and not len(readers.get(name, ())):
      raise ValueError(
        f'{name} has a rate but no rows; prepare it, or set its rate to 0'
      )
  if not any(rates.values()):
    raise ValueError('all rates are 0: there is nothing to read')


def _stack(name: str, rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
  try:
    return np.stack([row[name] for row in rows])
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'the tasks of one mixture need the same arrays of the same shape; '
      f'{name} differs: {error}'
    ) from error
