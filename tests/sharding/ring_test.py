"""Ring attention equals plain attention, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import attention
from yi_jax.sharding import attention as sharded_attention
from yi_jax.sharding import mesh as mesh_lib
from yi_jax.sharding import ring, rules


def test_each_device_has_an_early_and_a_late_chunk():
  assert ring.zigzag(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
  assert ring.zigzag(6, 3).tolist() == [0, 5, 1, 4, 2, 3]
  assert ring.zigzag(5, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  ('length', 'devices', 'want'),
  [
    (200_000, 1, 200_000),
    (200_000, 8, 204_800),
    (30, 4, 32),
    (5000, 4, 5000),
    (16_384, 4, 16_384),
  ],
)
def test_rows_are_padded_to_chunks_and_long_chunks_to_blocks(
  length, devices, want
):
  assert ring.padded(length, devices) == want


def test_each_device_has_the_same_work_in_every_round():
  order = ring.zigzag(64, 4).reshape(4, 16)
  work = np.array(
    [[(k[None] <= q[:, None]).sum() for k in order] for q in order]
  )
  for distance in range(1, 4):
    share = [work[i, (i - distance) % 4] for i in range(4)]
    assert max(share) == min(share)


def _arrays(length, heads, kv_heads, ids, seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  rows = len(ids)
  q, cotangent = jax.random.normal(keys[0], (2, rows, length, heads, 8))
  k, v = jax.random.normal(keys[1], (2, rows, length, kv_heads, 8))
  return q, k, v, jnp.asarray(ids, jnp.int32), cotangent


def _both(attend, arrays, window, order):
  """Returns the output and the gradients, tokens in their own order."""
  q, k, v, ids, cotangent = (x[:, order] for x in arrays)

  @jax.jit
  def run(q, k, v, ids):
    mask = attention.Mask(q_segments=ids, kv_segments=ids, window=window)
    out, pull = jax.vjp(lambda *x: attend(*x, mask), q, k, v)
    return out, *pull(cotangent)

  back = np.argsort(order)
  return [x[:, back] for x in run(q, k, v, ids)]


def _segments(length, *rows):
  """Returns ids of rows given as the lengths of their segments; 0 pads."""
  ids = np.zeros((len(rows), length), int)
  for row, lengths in zip(ids, rows, strict=True):
    start = 0
    for number, size in enumerate(lengths, 1):
      row[start : start + size] = number
      start += size
  return ids


@pytest.mark.parametrize(
  ('sizes', 'length', 'heads', 'kv_heads', 'window', 'block', 'segments'),
  [
    # Boundaries off those of chunks and blocks; padding at the end. Blocks of
    # 48 tokens, three a chunk, the last one not full.
    (dict(context=4), 1032, 4, 2, None, 64, ((3, 700, 199), (1031, 1))),
    # Several blocks a chunk, the last one not full.
    (dict(context=4), 152, 3, 1, 21, 8, ((5, 90, 40), (1, 150))),
    (dict(context=2, fsdp=2), 68, 4, 2, 33, 8, ((17, 30), (40, 28))),
    (dict(context=2, tensor=2), 68, 4, 1, None, 16, ((17, 30), (40, 28))),
  ],
)
def test_ring_attention_equals_the_reference(
  sizes, length, heads, kv_heads, window, block, segments, monkeypatch
):
  monkeypatch.setattr(ring, '_BLOCK', block)
  mesh = mesh_lib.make_mesh(sizes)
  arrays = _arrays(length, heads, kv_heads, _segments(length, *segments))
  attend = sharded_attention.sharded(
    attention.reference, mesh, rules.strategy('context', mesh.shape).rules
  )
  order = ring.zigzag(length, sizes['context'])
  got = _both(attend, arrays, window, order)
  want = _both(attention.reference, arrays, window, np.arange(length))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_answers_to_one_prompt_do_not_see_each_other():
  mesh = mesh_lib.make_mesh(dict(context=4))
  groups = np.repeat([[0, 1, 2]], [11, 30, 23], axis=1)
  arrays = _arrays(64, 2, 1, groups)
  attend = sharded_attention.sharded(attention.reference, mesh, rules.CONTEXT)

  def run(attend, order):
    q, k, v, ids, _ = (x[:, order] for x in arrays)
    mask = attention.Mask(q_groups=ids, kv_groups=ids)
    return jax.jit(lambda: attend(q, k, v, mask))()[:, np.argsort(order)]

  want = run(attention.reference, np.arange(64))
  got = run(attend, ring.zigzag(64, 4))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_sums_are_float32_where_the_inputs_are_bfloat16():
  mesh = mesh_lib.make_mesh(dict(context=4))
  arrays = _arrays(256, 2, 1, _segments(256, (256,)))
  want = _both(attention.reference, arrays, None, np.arange(256))[0]
  narrow = [x.astype(jnp.bfloat16) for x in arrays[:3]]
  attend = sharded_attention.sharded(attention.reference, mesh, rules.CONTEXT)
  order = ring.zigzag(256, 4)
  got = _both(attend, (*narrow, arrays[3], narrow[0]), None, order)[0]
  assert got.dtype == jnp.bfloat16
  assert np.abs(got.astype(jnp.float32) - want).mean() < 3e-3


def test_nothing_of_length_squared_is_ever_held():
  length = 16_384
  mesh = mesh_lib.make_mesh(dict(context=4))
  attend = sharded_attention.sharded(attention.reference, mesh, rules.CONTEXT)

  def loss(q, k, v, ids):
    mask = attention.Mask(q_segments=ids, kv_segments=ids)
    return attend(q, k, v, mask).sum()

  shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
  grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  memory = grad.lower(shape, shape, shape, ids).compile().memory_analysis()
  # One device's part of [T, T] would be 16,384 * 4,096 * 4 bytes.
  assert memory.temp_size_in_bytes < length * 4096 * 4 / 16


def test_a_cache_is_refused():
  mask = attention.Mask(q_positions=jnp.zeros((1, 8), jnp.int32))
  x = jnp.zeros((1, 8, 1, 8))
  with pytest.raises(ValueError, match='without a cache'):
    ring.attend(x, x, x, mask, 'context', 4)
