"""Exact copies: the best one stays, whatever the batches."""

import numpy as np
import pytest

from yi_jax.curation import documents, exact, tables


def _batches(cut):
  texts = ['one', 'two', 'one', ' one\n', 'One', 'two', 'three', '', '']
  quality = [0.1, 0.5, 0.9, 0.3, 0.0, 0.5, 0.2, 0.0, 0.0]
  whole = documents.Batch(
    ids=[f's/{i}' for i in range(9)],
    texts=texts,
    scores={'quality': np.array(quality, np.float32)},
  )
  made = []
  for number, begin in enumerate(range(0, 9, cut)):
    batch = whole.select(range(begin, min(begin + cut, 9)))
    batch.place = (0, number)
    made.append(batch)
  return made


@pytest.mark.parametrize('cut', [2, 9])
def test_the_best_copy_stays_and_says_so(through_beam, cut):
  done = documents.concatenate(
    through_beam(exact.Exact({'partitions': 3}), _batches(cut))
  )
  removed = dict(zip(done.ids, done.removed, strict=True))
  assert {k for k, v in removed.items() if v == 'exact.duplicate'} >= {
    's/0',
    's/3',
  }
  kept = [i for i, rule in removed.items() if not rule]
  # Of two and two alike, the one whose id has the smaller hash.
  by_hash = sorted(done.ids, key=lambda i: tables.numbers([i])[0])
  alike = min(('s/1', 's/5'), key=by_hash.index)
  empty = min(('s/7', 's/8'), key=by_hash.index)
  assert kept == sorted(['s/2', 's/4', 's/6', alike, empty])
  note = done.trails[2][0][1]
  group = f'3 exact copies, {tables.numbers(["s/2"])[0]:016x}'
  assert note == f'kept as the best of {group}'
  assert done.trails[0] == [('exact', f'removed by duplicate: one of {group}')]
  assert done.trails[4] == []


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'partition': 3}, "no key 'partition'; did you mean 'partitions'"),
    ({'partitions': 0}, 'exact.partitions is a whole number of at least 1'),
    ({'partitions': 2.5}, 'not 2.5'),
  ],
)
def test_a_wrong_section_is_refused(config, message):
  with pytest.raises(ValueError, match=message):
    exact.Exact(config)
