"""Attention cut over a mesh equals attention on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import attention, blockwise
from yi_jax.sharding import attention as sharded_attention
from yi_jax.sharding import mesh as mesh_lib


@pytest.mark.parametrize(
  ('sizes', 'kv_heads'),
  [
    (dict(data=2, tensor=2), 2),
    (dict(tensor=4), 2),  # fewer key/value heads than devices
    (dict(fsdp=4), 4),
  ],
)
def test_every_mesh_equals_one_device(sizes, kv_heads):
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (4, 70, 4, 8))
  k, v = jax.random.normal(keys[1], (2, 4, 70, kv_heads, 8))
  ids = jnp.sort(jax.random.randint(keys[2], (4, 70), 1, 3), axis=1)
  cotangent = jax.random.normal(keys[3], q.shape)
  mesh = mesh_lib.make_mesh(sizes)
  attend = sharded_attention.sharded(blockwise.blockwise, mesh)

  def run(attend):
    @jax.jit
    def both(q, k, v, ids):
      mask = attention.Mask(q_segments=ids, kv_segments=ids, window=33)
      out, pull = jax.vjp(lambda *x: attend(*x, mask), q, k, v)
      return out, *pull(cotangent)

    return both(q, k, v, ids)

  want, got = run(attention.reference), run(attend)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_one_device_is_not_wrapped():
  mesh = mesh_lib.make_mesh(dict(fsdp=-1), jax.devices()[:1])
  attend = sharded_attention.sharded(attention.reference, mesh)
  assert attend is attention.reference
