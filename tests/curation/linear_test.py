"""Linear classifiers: features by hand, the optimum, and what they tell."""

import numpy as np
import pytest

from yi_jax.curation import linear

_SHAPE = {'bits': 12, 'longest': 2, 'characters': 0}


def _texts(count, seed=0):
  """Returns texts of three kinds, one of them Chinese, and the kinds."""
  rng = np.random.default_rng(seed)
  words = [[f'{k}{a}{b}' for a in 'abcd' for b in 'xyz'] for k in 'pq']
  words.append([chr(0x4E00 + k) for k in range(12)])
  kinds = rng.integers(0, 3, count)
  texts = []
  for kind in kinds:
    own = rng.choice(words[kind], 10)
    shared = rng.choice(['the', 'of', 'and'], 5)
    texts.append(('' if kind == 2 else ' ').join([*own, *shared]))
  return texts, kinds


def test_counts_are_those_of_words_and_pairs():
  texts = ['a b a', '', '看书 a b', 'a']
  counts = linear.ngram_counts(texts, 20, 2, 0)
  # a, b, ab, ba; nothing; 看 书 a b and their three pairs; a.
  assert np.diff(counts.indptr).tolist() == [4, 0, 7, 1]
  assert counts.sum(1).ravel().tolist() == [[5, 0, 7, 1]]
  alone = linear.ngram_counts(['a'], 20, 1, 0).indices[0]
  assert counts[:, alone].toarray().ravel().tolist() == [2, 0, 1, 1]
  cut = linear.ngram_counts(['a b c d'], 20, 1, 3)
  assert cut.nnz == 2


def test_rows_have_length_one_and_do_not_know_their_neighbours():
  texts = ['one two two', '', 'three', '看书 看报']
  rows = linear.features(texts, 16, 2, 0)
  lengths = np.sqrt(rows.multiply(rows).sum(1)).ravel()
  np.testing.assert_allclose(lengths, [[1, 0, 1, 1]], atol=1e-6)
  for i, text in enumerate(texts):
    alone = linear.features([text], 16, 2, 0)
    assert (alone != rows[i]).nnz == 0


def test_weights_are_at_the_optimum_of_balanced_classes():
  texts, kinds = _texts(60)
  keep = (kinds != 0) | (np.arange(60) < 20)  # fewer of one class
  texts, kinds = [t for t, k in zip(texts, keep, strict=True) if k], kinds[keep]
  rows = linear.features(texts, **_SHAPE)
  penalty = 1e-3
  model = linear.train(
    rows, kinds, 'abc', penalty=penalty, iterations=2000, **_SHAPE
  )

  def loss(weights, bias):
    logits = rows @ weights + bias
    logits = logits - logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = -logs[np.arange(len(kinds)), kinds]
    mean = np.mean([own[kinds == k].mean() for k in range(3)])
    return mean + penalty / 2 * (weights**2).sum()

  weights = model.weights.astype(np.float64)
  best = loss(weights, model.bias)
  used = np.flatnonzero(weights.any(1))
  rng = np.random.default_rng(0)
  for size in (0.3, 0.03):
    for _ in range(5):
      step = np.zeros_like(weights)
      step[used] = rng.normal(0, size, (len(used), 3))
      assert loss(weights + step, model.bias) > best - 1e-6
  assert loss(weights * 0.97, model.bias) > best
  assert loss(weights * 1.03, model.bias) > best


def test_a_saved_classifier_says_the_same(tmp_path):
  texts, kinds = _texts(90)
  rows = linear.features(texts, **_SHAPE)
  model = linear.train(rows, kinds, ['x', 'y', 'z'], penalty=1e-4, **_SHAPE)
  model.save(tmp_path / 'model.npz')
  again = linear.load(tmp_path / 'model.npz')
  unseen, truth = _texts(90, seed=1)
  said = again.probabilities(unseen)
  np.testing.assert_array_equal(said, model.probabilities(unseen))
  np.testing.assert_array_equal(said[7], again.probabilities(unseen[7:8])[0])
  assert again.labels == ('x', 'y', 'z')
  assert np.mean(said.argmax(1) == truth) > 0.95
  np.testing.assert_allclose(said.sum(1), 1, atol=1e-4)


def test_a_class_without_texts_is_refused():
  rows = linear.features(['a b', 'c d'], **_SHAPE)
  with pytest.raises(ValueError, match="no text to train the class 'ads'"):
    linear.train(rows, np.array([0, 0]), ['n', 'ads'], penalty=1, **_SHAPE)


def test_area_counts_pairs():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 8, 60).astype(float)
  positive = rng.random(60) < 0.4
  pairs = [
    (a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]
  ]
  assert linear.area(scores, positive) == pytest.approx(np.mean(pairs))


def test_figures_by_class():
  found = linear.confusion(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 2)
  assert found.tolist() == [[2, 1], [0, 1]]
  first, second = linear.by_class(found, ['a', 'b'])
  assert (first['precision'], first['recall']) == (1, 0.6667)
  assert (second['precision'], second['recall']) == (0.5, 1)
  assert second['f1'] == 0.6667
