"""Batches of documents: what removing, changing and storing them leaves."""

import numpy as np
import pytest

from yi_jax.curation import documents


def _batch(count=4):
  return documents.Batch(
    ids=[f'web/{i}' for i in range(count)],
    texts=[f'text {i} 世界 \U0001f600' for i in range(count)],
    sources=['web'] * count,
    metadata=[{'n': i, '键': '值'} for i in range(count)],
  )


def test_the_first_rule_that_removes_a_document_is_the_one_that_counts():
  batch = _batch()
  batch.remove(1, 'rules', 'gopher.words', '3 < 50')
  batch.remove(1, 'quality', 'low', 'later')
  batch.change(2, 'pii', 'hidden', '2 e-mail')
  assert batch.removed == ['', 'rules.gopher.words', '', '']
  assert batch.trails[1] == [('rules', 'removed by gopher.words: 3 < 50')]
  assert batch.texts[2] == 'hidden'
  assert batch.trails[2] == [('pii', '2 e-mail')]
  assert batch.alive() == [0, 2, 3]


def test_documents_do_not_share_trails_or_metadata():
  batch = documents.Batch(ids=['a', 'b'], texts=['', ''])
  batch.note(0, 'stage', 'noted')
  batch.metadata[0]['key'] = 1
  assert batch.trails[1] == []
  assert batch.metadata[1] == {}


def test_a_column_of_another_length_is_refused():
  with pytest.raises(ValueError, match='2 ids and 1 texts'):
    documents.Batch(ids=['a', 'b'], texts=['x'])
  with pytest.raises(ValueError, match='1 ids and 2 quality'):
    documents.Batch(ids=['a'], texts=['x'], scores={'quality': np.zeros(2)})


def test_arrow_keeps_everything_but_unknown_scores():
  batch = _batch()
  batch.remove(0, 'a', 'b', 'why')
  batch.note(3, 'c', 'seen')
  batch.score('quality')[:] = [0.25, np.nan, np.inf, -1]
  batch.score('perplexity')[2] = 7
  batch.score('unknown')
  back = documents.from_arrow(batch.to_arrow())
  for name in ('ids', 'texts', 'urls', 'sources', 'languages', 'removed'):
    assert getattr(back, name) == getattr(batch, name)
  assert back.trails == batch.trails
  assert back.metadata == batch.metadata
  assert sorted(back.scores) == ['perplexity', 'quality']
  for name, values in back.scores.items():
    np.testing.assert_array_equal(values, batch.scores[name])
    assert values.dtype == np.float32


def test_arrow_slices_keep_their_own_scores():
  batch = _batch(6)
  batch.score('x')[:] = np.arange(6)
  batch.score('y')[3] = 30
  back = documents.from_arrow(batch.to_arrow()[2:5])
  np.testing.assert_array_equal(back.scores['x'], [2, 3, 4])
  np.testing.assert_array_equal(back.scores['y'], [np.nan, 30, np.nan])


@pytest.mark.parametrize('scored', [False, True])
def test_a_batch_without_documents_goes_through_arrow(scored):
  batch = documents.Batch()
  if scored:
    batch.score('x')
  assert len(documents.from_arrow(batch.to_arrow())) == 0


def test_joining_what_was_selected_gives_the_batch_back():
  batch = _batch(5)
  batch.score('x')[:] = np.arange(5)
  first, second = batch.select([0, 1]), batch.select([2, 3, 4])
  second.score('y')[0] = 9
  joined = documents.concatenate([first, second])
  assert joined.ids == batch.ids
  np.testing.assert_array_equal(joined.scores['x'], np.arange(5))
  np.testing.assert_array_equal(
    joined.scores['y'], [np.nan, np.nan, 9, np.nan, np.nan]
  )
  assert batch.select([4, 0]).ids == ['web/4', 'web/0']


def test_draws_are_even_and_depend_on_seed_and_id():
  draws = np.array([documents.draw(1, f'a/{i}') for i in range(4_000)])
  others = np.array([documents.draw(2, f'a/{i}') for i in range(4_000)])
  counts = np.histogram(draws, bins=10, range=(0, 1))[0]
  assert counts.min() > 320
  assert abs(np.corrcoef(draws, others)[0, 1]) < 0.06
