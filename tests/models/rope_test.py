"""RoPE: what attention relies on, and equality with transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import rope


def _rotate(x, positions, theta):
  return rope.rotate(x, rope.rotations(positions, x.shape[-1], theta))


@pytest.mark.parametrize('theta', [1e4, 5e6, 1e7])
def test_scores_depend_only_on_distance(theta):
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 4, 64))

  def score(position_q, position_k):
    turned_q = _rotate(q, jnp.array([[position_q]]), theta)
    return jnp.sum(turned_q * _rotate(k, jnp.array([[position_k]]), theta))

  np.testing.assert_allclose(score(17, 3), score(4017, 4003), rtol=1e-3)


def test_a_larger_base_keeps_far_positions_closer():
  x = jnp.ones((1, 1, 1, 64))

  def score(theta):
    return jnp.sum(_rotate(x, jnp.array([[64]]), theta) * x)

  assert score(1e7) > score(1e4)


_SCALINGS = {
  'linear': dict(rope_type='linear', factor=4.0),
  'dynamic': dict(rope_type='dynamic', factor=2.0),
  'yarn': dict(
    rope_type='yarn', factor=16.0, original_max_position_embeddings=4096
  ),
  'yarn_all': dict(
    rope_type='yarn',
    factor=40.0,
    original_max_position_embeddings=8192,
    beta_fast=16.0,
    beta_slow=2.0,
    attention_factor=0.8,
  ),
}


@pytest.mark.parametrize(
  ('theta', 'scaling'),
  [
    *((theta, None) for theta in (1e4, 5e6, 1e7)),
    *((5e6, name) for name in _SCALINGS),
    (1e4, 'yarn'),
  ],
)
def test_equals_transformers_up_to_200_000(peer, theta, scaling):
  x = np.random.default_rng(0).normal(size=(1, 600, 2, 128))
  near, far = np.arange(300), np.arange(199_700, 200_000)
  positions = np.concatenate([near, far])[None]
  settings = _SCALINGS.get(scaling, dict(rope_type='default'))
  want = peer(
    'rope.py',
    x=x.astype('f4'),
    positions=positions,
    rope=json.dumps(dict(settings, rope_theta=theta)),
  )
  if scaling == 'dynamic':  # there it is the config's length
    settings = dict(settings, original_max_position_embeddings=4096)
  ours = config_lib.RopeScaling(**settings) if scaling else None
  turns = rope.rotations(jnp.asarray(positions), 128, theta, ours)
  got = rope.rotate(jnp.asarray(x, jnp.float32), turns)
  cos, sin = turns
  angles = np.arctan2(sin[0, :, 0], cos[0, :, 0])
  want_angles = np.arctan2(want['sin'][0, :, :64], want['cos'][0, :, :64])
  off = np.abs(np.angle(np.exp(1j * (angles - want_angles))))
  # float32 resolves only 0.016 radian there: 1e-3 means the same rounding.
  # The base of 'dynamic' is itself a power in float32, an ulp apart.
  assert off.max() < (5e-3 if scaling == 'dynamic' else 1e-3)
  np.testing.assert_allclose(
    got, want['turned'], atol=2e-2 if scaling else 2e-3
  )


def test_a_row_within_the_trained_length_is_not_stretched_by_dynamic():
  scaling = config_lib.RopeScaling('dynamic', 4.0, 64)
  for length, same in ((64, True), (65, False)):
    positions = jnp.arange(length)[None]
    plain = rope.rotations(positions, 32, 1e4)[1]
    found = rope.rotations(positions, 32, 1e4, scaling)[1]
    assert bool(jnp.array_equal(plain, found)) == same


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(rope_type='llama3'), "no rope_type 'llama3'"),
    (dict(rope_type='linear', factor=0.5), 'at least 1'),
    (dict(rope_type='yarn', factor=4.0), 'needs original_max_position_embed'),
    (
      dict(
        rope_type='yarn',
        factor=4.0,
        original_max_position_embeddings=64,
        beta_fast=1.0,
      ),
      'beta_fast must exceed beta_slow',
    ),
  ],
)
def test_a_stretching_that_makes_no_sense_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    config_lib.RopeScaling(**fields)


def test_an_odd_head_dim_is_refused_by_name():
  with pytest.raises(ValueError, match='head_dim must be even, not 15'):
    rope.rotation_speeds(15, 1e4)
