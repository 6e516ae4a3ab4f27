"""Quality: what tells good from bad is learned, and told honestly."""

import numpy as np
import pytest

from yi_jax.curation import documents, linear, quality

_TRAINING = {
  'good': {'en': ['calm_0', 'calm_1'], 'zh': ['zh_calm']},
  'bad': {'en': ['loud_0', 'loud_1'], 'zh': ['zh_loud']},
  'bits': 14,
}


@pytest.fixture(scope='module')
def stage(made_up_sources, tmp_path_factory):
  """A trained stage."""
  folder = tmp_path_factory.mktemp('quality')
  one = quality.Quality({'model': str(folder / 'model'), 'training': _TRAINING})
  one.train(folder)
  return one


def _batch(texts, language='en'):
  return documents.Batch(
    ids=[str(n) for n in range(len(texts))],
    texts=list(texts),
    languages=[language] * len(texts),
  )


def test_good_and_bad_of_a_new_subject_are_told_apart(stage, subject):
  calm = subject(2, 5, 99)
  loud = [text.replace('.', ' WOW!!!') for text in calm]
  batch = stage.process(_batch(calm + loud))
  scores = batch.scores['quality']
  assert scores[:5].min() > 0.5 > scores[5:].max()
  chinese = subject(0, 2, 99, chinese=True)
  loud = [text.replace('。', '哈哈！！') for text in chinese]
  scores = stage.process(_batch(chinese + loud, 'zh')).scores['quality']
  assert scores[:2].min() > scores[2:].max()


def test_what_is_below_the_threshold_goes_and_says_why(stage, subject):
  texts = subject(0, 3, 5)
  loud = texts[0].replace('.', ' WOW!!!')
  one = quality.Quality({**stage.settings, 'thresholds': {'en': 0.5}})
  batch = one.process(_batch([*texts, loud]))
  assert batch.removed == ['', '', '', 'quality.low']
  score = batch.scores['quality'][3]
  assert batch.trails[3] == [('quality', f'removed by low: {score:.3f} < 0.5')]


def test_languages_without_a_model_stay_without_a_score(stage):
  batch = stage.process(_batch(['Bonjour !!! WOW!!!'], 'fr'))
  assert batch.removed == ['']
  assert np.isnan(batch.scores['quality'][0])


def test_a_score_does_not_depend_on_the_batch(stage, subject):
  texts = subject(1, 4, 6)
  together = stage.process(_batch(texts)).scores['quality']
  alone = [stage.process(_batch([t])).scores['quality'][0] for t in texts]
  np.testing.assert_array_equal(together, alone)
  assert stage.process(_batch([''])).scores['quality'].shape == (1,)


def test_the_card_has_a_source_that_was_left_out(stage):
  metrics = stage.card()['metrics']
  assert metrics['AUC, en'] > 0.95
  apart = metrics['AUC of a source that training has not seen']
  # The only source of a side cannot be left out: none of Chinese is here.
  assert [row['without'] for row in apart] == [
    'calm_0', 'calm_1', 'loud_0', 'loud_1'
  ]  # fmt: skip
  assert all(row['AUC'] > 0.9 for row in apart)
  assert metrics['Scores of held-out documents'][0]['side'] == 'good'
  assert stage.card()['data'][0]['held out'] > 0


def test_wrong_configs_are_told():
  with pytest.raises(ValueError, match='quality.thresholds.en is 2'):
    quality.Quality({'thresholds': {'en': 2}})
  with pytest.raises(ValueError, match='same languages'):
    quality.Quality({'training': {'bad': {'en': ['x']}}})


def test_the_area_is_the_share_of_pairs_in_order():
  values = np.array([0.1, 0.4, 0.35, 0.8, 0.4])
  labels = np.array([False, False, True, True, True])
  # Pairs (bad, good): 0.1 is below all three; 0.4 ties one, loses to one.
  assert linear.area(values, labels) == pytest.approx((3 + 0 + 1 + 0.5) / 6)
  assert np.isnan(linear.area(values, labels | True))


def test_groups_and_sides_weigh_the_same():
  labels = np.array([True, True, True, False])
  weights = linear.balanced(['a', 'a', 'b', 'c'], labels)
  np.testing.assert_allclose(weights, [0.25, 0.25, 0.5, 1])


def test_rows_have_length_one_and_know_case_and_marks():
  features = linear.Features(bits=16)
  rows = features.rows(['Wow! 12', 'wow 34', 'wow 12', ''])
  norms = np.sqrt(rows.multiply(rows).sum(1)).A1
  np.testing.assert_allclose(norms, [1, 1, 1, 0], atol=1e-6)
  words_only = linear.Features(bits=16, words=1, characters=0).rows(
    ['Wow!', 'wow']
  )
  assert (words_only[0] != words_only[1]).nnz == 0
  assert (rows[0] != rows[2]).nnz > 0
