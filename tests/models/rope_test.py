"""RoPE: what attention relies on, and equality with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize('theta', [1e4, 5e6, 1e7])
def test_equals_transformers_up_to_200_000(peer, theta):
  x = np.random.default_rng(0).normal(size=(1, 600, 2, 128))
  near, far = np.arange(300), np.arange(199_700, 200_000)
  positions = np.concatenate([near, far])[None]
  want = peer('rope.py', x=x.astype('f4'), positions=positions, theta=theta)
  cos, sin = rope.rotations(jnp.asarray(positions), 128, theta)
  got = _rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions), theta)
  angles = np.arctan2(sin[0, :, 0], cos[0, :, 0])
  want_angles = np.arctan2(want['sin'][0, :, :64], want['cos'][0, :, :64])
  off = np.abs(np.angle(np.exp(1j * (angles - want_angles))))
  # float32 resolves only 0.016 radian there: 1e-3 means the same rounding.
  assert off.max() < 1e-3
  np.testing.assert_allclose(got, want['turned'], atol=2e-3)


def test_an_odd_head_dim_is_refused_by_name():
  with pytest.raises(ValueError, match='head_dim must be even, not 15'):
    rope.rotation_speeds(15, 1e4)
