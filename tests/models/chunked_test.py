"""Attention to a long cache equals plain attention, whatever is in the cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import attention, chunked

_T, _S, _N, _K, _H, _BLOCK = 20, 50, 4, 2, 8, 16


_attend = jax.jit(functools.partial(chunked.chunked, block=_BLOCK))
_plain = jax.jit(attention.cached)


def _cache(held, **marks):
  """Queries after `held` tokens a row, the last of row 0 being padding."""
  draw = np.random.default_rng(0)
  B = len(held)
  q, k, v = (
    jnp.asarray(draw.normal(size=(B, *shape)), jnp.float32)
    for shape in ((_T, _N, _H), (_S, _K, _H), (_S, _K, _H))
  )
  held = np.array(held)[:, None]
  q_positions = held + np.arange(_T)
  q_positions[0, -1] = -1
  slots = np.arange(_S)[None]
  kv_positions = np.where(slots < held + _T, slots, -1)
  mask = attention.Mask(
    q_positions=jnp.asarray(q_positions),
    kv_positions=jnp.asarray(kv_positions),
    **marks,
  )
  return q, k, v, mask


@pytest.mark.parametrize('held', [[0, 30], [9, 25]])
@pytest.mark.parametrize('window', [None, 6])
def test_equals_plain_attention(held, window):
  q, k, v, mask = _cache(held, window=window)
  found, wanted = _attend(q, k, v, mask), _plain(q, k, v, mask)
  real = np.asarray(mask.q_positions) >= 0
  np.testing.assert_allclose(found[real], wanted[real], atol=1e-5)


def test_empty_slots_are_not_read():
  q, k, v, mask = _cache([5, 7])
  # Poison beyond the block that holds the newest token.
  k, v = (x.at[:, 32:].set(jnp.nan) for x in (k, v))
  found = _attend(q, k, v, mask)
  assert np.all(np.isfinite(found[1]))
  assert np.all(np.isfinite(found[0, :-1]))


def test_nothing_of_queries_times_slots_is_made():
  q, k, v = (
    jax.ShapeDtypeStruct((1, length, heads, _H), jnp.float32)
    for length, heads in ((512, _N), (65_536, _K), (65_536, _K))
  )
  places = [
    jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (512, 65_536)
  ]

  def attend(q, k, v, q_positions, kv_positions):
    mask = attention.Mask(q_positions=q_positions, kv_positions=kv_positions)
    return chunked.chunked(q, k, v, mask)

  text = str(jax.make_jaxpr(attend)(q, k, v, *places))
  sizes = []
  for shape in text.split('f32[')[1:]:
    numbers = shape.split(']')[0].split(',')
    sizes.append(np.prod([int(n) for n in numbers if n] or [1]))
  assert max(sizes) <= 65_536 * _K * _H  # the keys themselves


def test_an_order_by_index_is_refused():
  q, k, v, _ = _cache([0])
  with pytest.raises(ValueError, match='needs the positions of a cache'):
    chunked.chunked(q, k, v, attention.Mask())
