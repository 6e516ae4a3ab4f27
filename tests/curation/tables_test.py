"""Tables: rows stay whole, and the best copy is the same in any order."""

import numpy as np
import pytest

from yi_jax.curation import documents, tables


def _ragged(rng, count):
  sizes = rng.integers(0, 4, count)
  return {
    'number': rng.integers(0, 50, count).astype(np.uint64),
    'sizes': sizes,
    'values': np.arange(int(sizes.sum())),
  }


def _rows(table):
  ends = np.cumsum(table['sizes'])
  return sorted(
    (int(number), *map(int, table['values'][end - size : end]))
    for number, size, end in zip(
      table['number'], table['sizes'], ends, strict=True
    )
  )


def test_parts_hold_the_rows_of_the_whole_with_their_values():
  table = _ragged(np.random.default_rng(0), 200)
  parts = dict(tables.split(table, 'number', 7))
  assert len(parts) > 3
  assert _rows(tables.concatenate(parts.values())) == _rows(table)
  homes = [set(part['number']) for part in parts.values()]
  assert sum(map(len, homes)) == len(set(table['number']))
  again = tables.unpack(tables.pack(table))
  assert _rows(again) == _rows(table)


def test_unique_keeps_one_row_of_each_key():
  table = _ragged(np.random.default_rng(1), 300)
  kept = tables.unique(table, 'number')
  assert list(kept['number']) == sorted(set(table['number']))
  assert set(_rows(kept)) <= set(_rows(table))


@pytest.mark.parametrize(
  ('qualities', 'texts', 'best'),
  [
    ([0.1, 0.9, 0.5], ['aaa', 'a', 'aa'], 1),  # the quality decides,
    ([0.5, 0.5, np.nan], ['a', 'aaa', 'aaaaa'], 1),  # then the length;
    ([-2.0, -1.0, np.nan], ['a', 'a', 'a'], 1),  # unknown is below all
    ([-0.5, 0.0, -0.0], ['a', 'a', 'aa'], 2),
    (None, ['a', 'aaa', 'aa'], 1),
  ],
)
def test_the_better_copy_has_the_larger_rank(qualities, texts, best):
  batch = documents.Batch(ids=['x', 'y', 'z'], texts=texts)
  if qualities:
    batch.scores['quality'] = np.array(qualities, np.float32)
  assert np.argmax(tables.ranks(batch, range(3))) == best


def test_of_equal_copies_the_same_one_stays_in_any_order():
  ids = [f'source/{i}' for i in range(40)]
  batch = documents.Batch(ids=ids, texts=['same'] * 40, place=(1, 2))
  rows = tables.about(batch, range(40))
  rows['key'] = np.repeat(np.array([3, 7], np.uint64), 20)
  wanted = None
  for seed in range(5):
    order = np.random.default_rng(seed).permutation(40)
    found = tables.choose(tables.take(rows, order), ('key',))
    kept = found['number'][found['first']]
    assert list(found['copies']) == [20] * 40
    assert set(found['kept']) == set(kept)
    assert len(kept) == 2
    wanted = kept if wanted is None else wanted
    np.testing.assert_array_equal(kept, wanted)
  assert len(set(tables.numbers(ids))) == 40


def test_places_are_told_apart():
  places = [(0, 0), (0, 1), (1, 0), (-1, -1)]
  found = {tables.place(documents.Batch(place=place)) for place in places}
  assert len(found) == 4
