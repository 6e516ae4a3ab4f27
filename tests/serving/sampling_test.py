"""Sampling: the formulas, transformers itself, and what is really drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.serving import sampling

# Every setting alone, and mixes of them: one row each.
_MIXES = {
  'temperature': [1.0, 0.5, 1.0, 1.0, 1.0, 0.7, 2.0, 1.0, 0.3],
  'top_k': [0, 0, 5, 0, 0, 40, 1, 400, 3],
  'top_p': [1.0, 1.0, 1.0, 0.9, 1.0, 0.8, 0.95, 0.01, 0.999],
  'repetition_penalty': [1.0, 1.0, 1.0, 1.0, 1.3, 1.1, 1.0, 1.0, 0.8],
}
_ROWS = len(_MIXES['top_k'])


def _random(seed, rows=_ROWS, size=333):
  draw = np.random.default_rng(seed)
  scores = draw.normal(size=(rows, size)).astype(np.float32) * 3
  return scores, draw.random((rows, size)) < 0.2


def _formulas(scores, seen, temperature, top_k, top_p, repetition_penalty):
  """One row, as transformers' processors are written: sort, cut, put back."""
  scores = scores.astype(np.float64)
  lowered = np.where(
    scores > 0, scores / repetition_penalty, scores * repetition_penalty
  )
  scores = np.where(seen, lowered, scores) / temperature
  if top_k:
    kth = np.sort(scores)[-min(top_k, len(scores))]
    scores = np.where(scores < kth, -np.inf, scores)
  if top_p < 1:
    ascending = np.argsort(scores)
    weights = np.exp(scores[ascending] - scores.max())
    below = np.cumsum(weights / weights.sum())
    gone = below <= 1 - top_p
    gone[-1] = False
    scores[ascending[gone]] = -np.inf
  return scores


@jax.jit
def _warped(scores, seen, settings):
  scores = sampling.penalize(scores, seen, settings.repetition_penalty)
  return sampling.warp(scores, settings)


def _assert_same_distribution(got, want):
  np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
  got, want = (
    np.exp(x - x.max(axis=-1, keepdims=True))
    for x in (np.asarray(got, np.float64), np.asarray(want, np.float64))
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-30)


def test_each_row_is_filtered_by_its_own_settings():
  scores, seen = _random(0)
  settings = sampling.make_settings(_ROWS, _ROWS, **_MIXES)
  want = [
    _formulas(scores[i], seen[i], **{k: v[i] for k, v in _MIXES.items()})
    for i in range(_ROWS)
  ]
  _assert_same_distribution(_warped(scores, seen, settings), np.stack(want))


def test_transformers_filters_alike(peer):
  scores, seen = _random(1)
  settings = sampling.make_settings(_ROWS, _ROWS, **_MIXES)
  theirs = peer('sampling.py', scores=scores, seen=seen, **_MIXES)
  _assert_same_distribution(_warped(scores, seen, settings), theirs['warped'])


@pytest.mark.parametrize('seed', range(3))
def test_a_threshold_keeps_what_sorting_keeps(seed):
  # Many sizes of filter on scores of every sign and magnitude.
  scores, _ = _random(seed, rows=64, size=50)
  scores *= np.logspace(-6, 6, 64, dtype=np.float32)[:, None]
  top_k = np.arange(64) % 51
  kept = np.isfinite(sampling.keep_top_k(jnp.asarray(scores), top_k))
  np.testing.assert_array_equal(
    kept.sum(axis=1), np.where(top_k == 0, 50, top_k)
  )
  lowest = np.where(kept, scores, np.inf).min(axis=1)
  highest = np.where(kept, -np.inf, scores).max(axis=1)
  assert np.all(lowest > highest)


def test_ties_at_the_threshold_stay():
  scores = jnp.array([[1.0, 3.0, 2.0, 2.0, 0.0]])
  kept = sampling.keep_top_k(scores, jnp.array([2]))
  assert np.isfinite(kept).tolist() == [[False, True, True, True, False]]


def test_the_smallest_top_p_keeps_the_best_token_alone():
  scores, _ = _random(2)
  kept = np.isfinite(
    sampling.keep_top_p(jnp.asarray(scores), jnp.full(_ROWS, 1e-9))
  )
  assert np.all(kept.sum(axis=1) == 1)
  np.testing.assert_array_equal(kept.argmax(axis=1), scores.argmax(axis=1))


def _softmax(scores):
  weights = np.exp(np.asarray(scores, np.float64) - np.max(scores))
  return weights / weights.sum()


@pytest.mark.parametrize('size', [5, 256, 700])
def test_evenly_spread_numbers_give_each_token_its_share(size):
  scores, _ = _random(size, rows=1, size=size)
  many = 4000
  numbers = (np.arange(many, dtype=np.float32) + 0.5) / many
  drawn = sampling.pick(jnp.tile(scores, (many, 1)), jnp.asarray(numbers))
  counts = np.bincount(drawn, minlength=size)
  # Not a matter of chance: a share of the numbers falls to each token.
  np.testing.assert_allclose(counts, many * _softmax(scores[0]), atol=1.01)


def test_a_removed_token_is_never_drawn():
  # Weights that add up badly, and nothing behind them or between blocks.
  scores = np.full((2, 600), sampling.REMOVED, np.float32)
  scores[:, 250:300] = np.linspace(-9, 9, 50)
  for number in (0.0, 1e-7, 0.3, 0.999999, np.nextafter(np.float32(1), 0)):
    drawn = sampling.pick(jnp.asarray(scores), jnp.full(2, number, jnp.float32))
    assert np.all((drawn >= 250) & (drawn < 300)), number


def test_rounding_draws_no_removed_token():
  # Numbers next to where one block of the vocabulary ends and another begins:
  # without care, one in ten lands on a removed token between them.
  rows, blocks, width = 2000, 4, 256
  draw = np.random.default_rng(0)
  scores = np.full((rows, blocks, width), sampling.REMOVED, np.float32)
  scores[:, :, 100:150] = draw.normal(size=(rows, blocks, 50)) * 2
  ends = np.cumsum(np.exp(scores).sum(axis=2), axis=1)
  for block in range(blocks):
    share = (ends[:, block] / ends[:, -1]).astype(np.float32)
    numbers = np.nextafter(share, np.float32(0))
    drawn = sampling.pick(
      jnp.asarray(scores.reshape(rows, -1)), jnp.asarray(numbers)
    )
    assert np.all((drawn % width >= 100) & (drawn % width < 150))


def test_draws_follow_the_filtered_distribution():
  many = 6000
  scores, _ = _random(3, rows=1, size=40)
  settings = sampling.make_settings(
    many, many, temperature=4.0, top_k=12, top_p=0.95, seed=[7] * many
  )
  # One row at many of its steps: same key, another number of draws.
  drawn = jax.jit(sampling.choose)(
    jnp.tile(scores, (many, 1)),
    jnp.zeros((many, 40), bool),
    jnp.arange(many),
    settings,
  )
  counts = np.bincount(drawn, minlength=40)
  want = many * _softmax(
    _formulas(scores[0], np.zeros(40, bool), 4.0, 12, 0.95, 1.0)
  )
  possible = want > 0
  assert counts[~possible].sum() == 0
  chi_square = np.sum((counts - want)[possible] ** 2 / want[possible])
  # Mean f and variance 2f for f degrees of freedom.
  freedom = possible.sum() - 1
  assert freedom > 5
  assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_rows_with_one_seed_draw_apart_and_with_equal_seeds_alike():
  scores, seen = _random(4, rows=1)
  scores, seen = (jnp.tile(x, (64, 1)) for x in (scores, seen))
  draws = jnp.zeros(64, jnp.int32)

  def chosen(seed):
    settings = sampling.make_settings(64, 64, temperature=2.0, seed=seed)
    return np.asarray(sampling.choose(scores, seen, draws, settings))

  assert len(set(chosen(5))) > 10
  assert len(set(chosen([5] * 64))) == 1
  assert chosen([5] * 64)[0] == chosen(5)[0]
  assert not np.array_equal(chosen(5), chosen(6))


def test_greedy_rows_take_the_best_whatever_the_others_do():
  scores, seen = _random(5, rows=4)
  settings = sampling.make_settings(
    4, 4, temperature=[0.0, 5.0, 0.0, 5.0], repetition_penalty=[1, 1, 50, 1]
  )
  chosen = sampling.choose(scores, seen, jnp.zeros(4, jnp.int32), settings)
  assert chosen[0] == scores[0].argmax()
  punished = _formulas(scores[2], seen[2], 1.0, 0, 1.0, 50)
  assert chosen[2] == punished.argmax()
  assert chosen.dtype == jnp.int32


def test_next_to_temperature_0_the_best_is_drawn():
  scores, seen = _random(6)
  settings = sampling.make_settings(_ROWS, _ROWS, temperature=1e-38)
  chosen = sampling.choose(
    scores * 10, seen, jnp.zeros(_ROWS, jnp.int32), settings
  )
  np.testing.assert_array_equal(chosen, scores.argmax(axis=1))


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    (dict(temperature=-1), 'temperature must be 0 or more, not -1'),
    (dict(temperature=math.nan), 'temperature must be 0 or more, not nan'),
    (dict(top_k=1.5), 'top_k must be a whole number from 0, not 1.5'),
    (dict(top_p=[0.5, 0.0]), 'top_p must be above 0 and up to 1, not 0.0'),
    (dict(top_p=1.1), 'top_p must be above 0 and up to 1, not 1.1'),
    (dict(repetition_penalty=0), 'repetition_penalty must be above 0, not 0'),
    (dict(seed=[1, -1]), 'seed must be a whole number from 0, not -1'),
    (dict(seed=[1, 2, 3]), 'one for each of the 2 prompts, not [1, 2, 3]'),
  ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    sampling.make_settings(2, 2, **setting)
  assert message in str(error.value)
