"""A few conversations of a task: as many as asked, whole, the same ones."""

import numpy as np
import pytest

from yi_jax.data import chat_samples

_LENGTH = 40


def _rows(order, sizes):
  """Returns rows of two conversations each, with padding behind."""
  rows = []
  for index in range(0, len(order), 2):
    row = {
      'tokens': np.zeros(_LENGTH, np.int32),
      'targets': np.zeros(_LENGTH, np.int32),
      'positions': np.zeros(_LENGTH, np.int32),
      'segment_ids': np.zeros(_LENGTH, np.int32),
      'loss_weights': np.zeros(_LENGTH, np.float32),
      'row_id': np.int64((7 << 32) + index),
    }
    at = 0
    for segment, number in enumerate(order[index : index + 2], 1):
      size = sizes[number]
      here = slice(at, at + size)
      row['tokens'][here] = 100 * number + np.arange(size)
      row['targets'][here] = 100 * number + np.arange(1, size + 1)
      row['positions'][here] = np.arange(size)
      row['segment_ids'][here] = segment
      row['loss_weights'][here] = np.arange(size) % 3 == 1
      at += size
    rows.append(row)
  return rows


def _conversations(rows):
  """Returns {number: its tokens, targets, positions and weights}."""
  found = {}
  for row in rows:
    for segment in range(1, row['segment_ids'].max() + 1):
      inside = row['segment_ids'] == segment
      number = int(row['tokens'][inside][0]) // 100
      assert number not in found
      found[number] = [
        row[name][inside].tolist()
        for name in ('tokens', 'targets', 'positions', 'loss_weights')
      ]
    assert not row['loss_weights'][row['segment_ids'] == 0].any()
  return found


@pytest.fixture
def sizes():
  return np.random.default_rng(0).integers(3, 20, 30).tolist()


def test_they_are_whole_the_fewer_among_the_more_and_none_twice(sizes):
  rows = _rows(range(30), sizes)
  everything = _conversations(rows)
  before = {}
  for count in (1, 5, 16, 30):
    taken = chat_samples.take(rows, count, 'en_math_x')
    found = _conversations(taken)
    assert len(found) == count
    assert before.keys() <= found.keys()
    assert all(found[number] == everything[number] for number in found)
    used = sum(len(tokens) for tokens, *_ in found.values())
    assert len(taken) * _LENGTH < 2 * used + _LENGTH  # packed
    before = found


def test_the_packing_does_not_choose(sizes):
  one = chat_samples.take(_rows(range(30), sizes), 8, 'en_math_x')
  other = chat_samples.take(_rows(range(29, -1, -1), sizes), 8, 'en_math_x')
  assert _conversations(one) == _conversations(other)


def test_long_ones_are_not_preferred():
  sizes = [18] * 40 + [3] * 40  # as best fit puts them
  taken = chat_samples.take(_rows(range(80), sizes), 20, 'en_math_x')
  long = sum(number < 40 for number in _conversations(taken))
  assert 4 <= long <= 16


def test_new_rows_have_ids_of_their_own(sizes):
  rows = _rows(range(30), sizes)
  ids = [int(r['row_id']) for r in chat_samples.take(rows, 30, 'en_math_x')]
  assert len(set(ids)) == len(ids) > 1
  assert max(ids) < 0


def test_fewer_than_asked_are_told(sizes):
  with pytest.raises(ValueError, match='asks for 31 .*en_math_x, which has 30'):
    chat_samples.take(_rows(range(30), sizes), 31, 'en_math_x')
