"""The loader: row n of a run is f(seed, n), however it is read."""

import collections
import threading

import numpy as np
import pytest

from yi_jax.data import loader

_RATES = {'a': 0.5, 'b': 0.3, 'c': 0.2}


class _Table:
  """Rows that know their task and number."""

  def __init__(self, task, size):
    self._task, self._size = task, size

  def __len__(self):
    return self._size

  def __getitem__(self, index):
    if index >= self._size:
      raise IndexError(index)
    return {
      'tokens': np.full(4, index, np.int32),
      'row_id': np.int64(self._task * 1000 + index),
    }


# grain's shuffle is slow below some fifty rows, so there are more.
_READERS = {'a': _Table(0, 50), 'b': _Table(1, 64), 'c': _Table(2, 80)}


def _rows(count, rates=None, readers=None, **arguments):
  """Returns the row ids of the next batches, `count` rows of this process."""
  options = {'batch_size': 4, 'seed': 3, **arguments}
  found = []
  with loader.Loader(readers or _READERS, rates or _RATES, **options) as rows:
    for batch in rows:
      found += batch['row_id'].tolist()
      if len(found) >= count:
        return found[:count]
  return None


def test_the_order_does_not_depend_on_the_batch_size():
  want = _rows(96)
  assert _rows(96, batch_size=12) == want
  assert _rows(96, batch_size=32, prefetch=5) == want


def test_processes_share_each_batch_in_order():
  want = np.array(_rows(96, batch_size=12)).reshape(8, 12)
  for count in (2, 3, 4):
    parts = [
      np.array(
        _rows(96 // count, batch_size=12, process_index=i, process_count=count)
      ).reshape(8, 12 // count)
      for i in range(count)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, 1), want)


def test_resuming_at_a_row_equals_skipping_to_it():
  want = _rows(400, batch_size=40)
  for first in (4, 100, 204):
    assert _rows(40, rows_consumed=first) == want[first : first + 40]
  # A batch may grow on the way.
  assert _rows(48, rows_consumed=100, batch_size=16) == want[100:148]


def test_rows_consumed_counts_what_was_handed_out_not_what_is_ready():
  with loader.Loader(
    _READERS, _RATES, batch_size=8, seed=0, rows_consumed=16, prefetch=4
  ) as rows:
    assert rows.rows_consumed == 16
    next(rows)
    next(rows)
    assert rows.rows_consumed == 32


def test_each_epoch_has_every_row_once_in_another_order():
  ids = _rows(1000, {'a': 1, 'b': 1}, batch_size=100)
  first = [i for i in ids if i < 1000]
  epochs = [first[50 * k : 50 * (k + 1)] for k in range(4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(50))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert epochs[0] != sorted(epochs[0])


def test_rates_are_kept_from_the_beginning():
  ids = np.array(_rows(2000, batch_size=200)) // 1000
  for n in (20, 200, 2000):
    counts = np.bincount(ids[:n], minlength=3)
    np.testing.assert_allclose(counts, [0.5 * n, 0.3 * n, 0.2 * n], atol=2)


def test_a_rare_task_is_not_rounded_away():
  many = {'a': _Table(0, 900), 'b': _Table(1, 64)}
  ids = np.array(_rows(3000, {'a': 1, 'b': 1 / 1000}, many, batch_size=300))
  assert (ids // 1000 == 1).sum() in (2, 3)


def test_seeds_and_tasks_have_orders_of_their_own():
  same = {'a': _Table(0, 60), 'b': _Table(1, 60)}
  ids = _rows(120, {'a': 1, 'b': 1}, same)
  a = [i for i in ids if i < 1000]
  b = [i - 1000 for i in ids if i >= 1000]
  assert sorted(a) == sorted(b) == list(range(60))
  assert a != b
  assert _rows(120, {'a': 1, 'b': 1}, same, seed=4) != ids


def test_stages_change_the_rates_and_go_on_where_each_task_was():
  stages = [(0, {'a': 1, 'b': 1}), (40, {'a': 3, 'c': 1}), (200, {'c': 1})]
  ids = _rows(300, stages, batch_size=50)
  assert ids[:40] == _rows(40, {'a': 1, 'b': 1})
  tasks = [i // 1000 for i in ids]
  assert collections.Counter(tasks[40:200]) == {0: 120, 2: 40}
  assert set(tasks[200:]) == {2}
  # 20 + 120 rows of a: two epochs of 50 and 40 rows without a repetition.
  a = [i for i in ids if i < 1000]
  assert sorted(a[:50]) == sorted(a[50:100]) == list(range(50))
  assert len(set(a[100:])) == 40
  assert _rows(60, stages, rows_consumed=180) == ids[180:240]


def test_opening_far_on_reads_only_what_it_gives():
  reads = collections.Counter()

  class Counting(_Table):
    def __getitem__(self, index):
      reads['rows'] += 1
      return super().__getitem__(index)

  readers = {'a': Counting(0, 50), 'b': Counting(1, 64), 'c': Counting(2, 80)}
  _rows(4, readers=readers, rows_consumed=8_000_000, prefetch=1)
  assert reads['rows'] <= 16


def test_an_error_while_reading_reaches_the_caller_and_ends_the_iterator():
  class Broken(_Table):
    def __getitem__(self, index):
      if index == 13:
        raise OSError('the disk is gone')
      return super().__getitem__(index)

  rows = loader.Loader({'a': Broken(0, 20)}, {'a': 1}, batch_size=2, seed=0)
  with pytest.raises(OSError, match='the disk is gone'):
    collections.deque(rows, maxlen=0)
  with pytest.raises(StopIteration):
    next(rows)


def test_closing_ends_the_thread():
  before = set(threading.enumerate())
  rows = loader.Loader(_READERS, _RATES, batch_size=2, seed=0)
  next(rows)
  assert set(threading.enumerate()) - before
  rows.close()
  assert not set(threading.enumerate()) - before
  assert list(rows) == []


@pytest.mark.parametrize(
  ('rates', 'options', 'message'),
  [
    ({'a': 1, 'd': 1}, {}, 'd has a rate but no rows'),
    ({'a': 1, 'empty': 1}, {}, 'empty has a rate but no rows'),
    ({'a': -1}, {}, 'the rate of a is negative'),
    ({'a': 0}, {}, 'all rates are 0'),
    ({'a': 1}, {'batch_size': 6, 'process_count': 4}, 'batch of 6 rows cannot'),
    ({'a': 1}, {'prefetch': 0}, 'prefetch is at least 1'),
    ([(5, {'a': 1})], {}, r'stages begin at row 0 and rise, not \[5\]'),
  ],
)
def test_what_cannot_be_read_is_refused_at_once(rates, options, message):
  readers = {**_READERS, 'empty': _Table(3, 0)}
  with pytest.raises(ValueError, match=message):
    loader.Loader(readers, rates, **{'batch_size': 4, 'seed': 0, **options})


def test_tasks_of_different_arrays_do_not_mix():
  class Wide(_Table):
    def __getitem__(self, index):
      return {**super().__getitem__(index), 'tokens': np.zeros(9, np.int32)}

  readers = {'a': _Table(0, 9), 'b': Wide(1, 9)}
  rows = loader.Loader(readers, {'a': 1, 'b': 1}, batch_size=4, seed=0)
  with pytest.raises(ValueError, match='same arrays of the same shape; tokens'):
    next(rows)


def test_rows_that_are_left_out_are_stepped_over():
  places = [loader.place(row, [(2, 4), (4, 5), (7, 9)]) for row in range(6)]
  assert places == [0, 1, 5, 6, 9, 10]


@pytest.mark.parametrize(
  ('skipped', 'first', 'end', 'want'),
  [
    ([], 2, 6, [(2, 6)]),
    ([(4, 8)], 2, 6, [(2, 4), (4, 8), (8, 10)]),
    ([(0, 3)], 1, 2, [(0, 3), (4, 5)]),
  ],
)
def test_what_was_read_can_be_left_out(skipped, first, end, want):
  ranges = loader.leave_out(skipped, first, end)
  assert ranges == want
  # The same rows follow as would have followed.
  before = [loader.place(row, skipped) for row in range(20)]
  after = [loader.place(row, ranges) for row in range(20 - (end - first))]
  assert after == before[:first] + before[end:]
