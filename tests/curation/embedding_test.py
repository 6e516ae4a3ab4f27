"""Documents as points: terms by hand, axes as NumPy's own SVD finds them."""

import numpy as np
import pytest

from yi_jax.curation import embedding


def _texts(count=60, seed=0):
  rng = np.random.default_rng(seed)
  words = [
    ['river', 'boat', 'fish', 'water', 'shore', 'sail', 'net'],
    ['stone', 'wall', 'tower', 'gate', 'brick', 'roof', 'arch'],
    ['春眠', '不觉', '晓处', '处闻', '啼鸟'],
  ]
  texts = []
  for i in range(count):
    chosen = rng.choice(words[i % 3], 12)
    texts.append(('，' if i % 3 == 2 else ' ').join(chosen))
  return texts


def test_terms_are_words_and_pairs_of_chinese_characters():
  counts = embedding.terms(['He reads 看书报', '', 'a 7 2x 看', '看 书'])
  assert np.diff(counts.indptr).tolist() == [4, 0, 0, 0]
  wanted = counts[0].indices
  names = embedding.spellings(['He reads 看书报'], wanted)
  assert set(names.values()) == {'he', 'reads', '看书', '书报'}
  again = embedding.spellings(['HE he He', 'nothing else'], wanted)
  assert list(again.values()) == ['he']


def test_weights_are_tf_idf():
  texts = ['tea tea milk', 'tea milk cup', 'tea milk cup', 'cup tea', 'rare']
  model = embedding.fit(embedding.terms(texts), 2, 0)
  weights = model.weights(embedding.terms(texts)).toarray()
  column = {
    name: int(np.searchsorted(model.columns, key))
    for key, name in embedding.spellings(texts, model.columns).items()
  }
  assert set(column) == {'tea', 'milk', 'cup'}  # of three texts or more
  tea, milk = (1 + np.log(2)) * np.log(5 / 4), np.log(5 / 3)
  norm = np.hypot(tea, milk)
  assert weights[0, column['tea']] == pytest.approx(tea / norm, rel=1e-5)
  assert weights[0, column['milk']] == pytest.approx(milk / norm, rel=1e-5)
  assert not weights[4].any()


def test_axes_are_the_first_singular_vectors():
  counts = embedding.terms(_texts())
  model = embedding.fit(counts, 4, 7)
  weights = model.weights(counts).toarray().astype(np.float64)
  _, values, rows = np.linalg.svd(weights, full_matrices=False)
  assert model.axes.shape == (weights.shape[1], 4)
  kept = np.linalg.norm(weights @ model.axes) ** 2
  assert kept == pytest.approx((values[:4] ** 2).sum(), rel=1e-4)
  np.testing.assert_allclose(model.axes.T @ model.axes, np.eye(4), atol=1e-5)
  first = rows[0] * np.sign(rows[0][np.abs(rows[0]).argmax()])
  np.testing.assert_allclose(model.axes[:, 0], first, atol=1e-3)
  assert (model.axes[np.abs(model.axes).argmax(0), range(4)] > 0).all()


def test_points_have_length_one_and_do_not_know_their_neighbours():
  texts = [*_texts(), 'xyzzy']
  model = embedding.fit(embedding.terms(texts), 5, 0)
  points = model.points(texts)
  lengths = np.linalg.norm(points, axis=1)
  np.testing.assert_allclose(lengths[:-1], 1, atol=1e-6)
  assert lengths[-1] == 0
  for i in (0, 17, 60):
    np.testing.assert_array_equal(model.points(texts[i : i + 1])[0], points[i])
  own = points[:60].reshape(20, 3, -1)
  assert (own[0, 0] @ own[:, 0].T).min() > (own[0, 0] @ own[:, 1].T).max()


def test_a_sample_without_common_terms_is_refused():
  counts = embedding.terms(['one two', 'three four'])
  with pytest.raises(ValueError, match='stands in 3 of the 2 sampled'):
    embedding.fit(counts, 2, 0)


def lengths(texts):
  return np.array([[len(text), 1] for text in texts], np.float64)


def integers(texts):
  return np.ones((len(texts), 2), int)


def infinite(texts):
  return np.full((len(texts), 2), np.inf)


def test_encoders_are_found_by_name_and_checked():
  encoder = embedding.load_encoder(f'{__name__}:lengths', 'clusters.encoder')
  points = embedding.encode(encoder, ['aaa', 'a'], 'clusters.encoder')
  np.testing.assert_allclose(points[0], np.array([3, 1]) / np.sqrt(10))
  assert points.dtype == np.float32
  for name, message in (
    ('no_such_module_:f', 'clusters.encoder .*No module'),
    (f'{__name__}:nothing', 'is no function: give'),
    ('plain', 'clusters.encoder'),
  ):
    with pytest.raises(ValueError, match=message):
      embedding.load_encoder(name, 'clusters.encoder')
  for function, message in (
    (integers, r'gave int64\[2, 2\]'),
    (infinite, 'not finite'),
    (lambda texts: np.ones(2), r'gave float64\[2\] for 2 texts'),
  ):
    with pytest.raises(ValueError, match=message):
      embedding.encode(function, ['a', 'b'], 'clusters.encoder')
