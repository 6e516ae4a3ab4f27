"""Every implementation equals the plain oracle, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import attention, blockwise, kernels


def _inputs(length, heads, kv_heads, head_dim=16, batch=2):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
  q, k, v = (
    jax.random.normal(a, b) for a, b in zip(keys[:3], shapes, strict=True)
  )
  return q, k, v, jax.random.normal(keys[3], q.shape)


def _segments(length, batch=2):
  ids = jax.random.randint(jax.random.key(1), (batch, length), 1, 4)
  return jnp.sort(ids, axis=1)


def _assert_equal(got_fn, mask, length, heads, kv_heads, atol=2e-5):
  q, k, v, cotangent = _inputs(length, heads, kv_heads)

  @functools.partial(jax.jit, static_argnums=0)
  def run(fn, *inputs):
    out, pull = jax.vjp(lambda *x: fn(*x, mask), *inputs)
    return out, *pull(cotangent)

  names = ('out', 'q', 'k', 'v')
  want, got = run(attention.reference, q, k, v), run(got_fn, q, k, v)
  for name, a, b in zip(names, got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=atol, err_msg=name)


@pytest.mark.parametrize('length', [1, 64, 131])
@pytest.mark.parametrize('window', [None, 7, 90])
@pytest.mark.parametrize(('heads', 'kv_heads'), [(4, 4), (4, 2)])
def test_unrolled_blocks_equal_reference(length, window, heads, kv_heads):
  ids = _segments(length)
  mask = attention.Mask(q_segments=ids, kv_segments=ids, window=window)
  attend = functools.partial(blockwise.blockwise, block=32)
  _assert_equal(attend, mask, length, heads, kv_heads)


@pytest.mark.parametrize('length', [70, 131])
@pytest.mark.parametrize('window', [None, 9])
@pytest.mark.parametrize('segments', [True, False])
def test_looped_blocks_equal_reference(length, window, segments):
  ids = _segments(length) if segments else None
  mask = attention.Mask(q_segments=ids, kv_segments=ids, window=window)
  attend = functools.partial(blockwise.blockwise, block=4)
  _assert_equal(attend, mask, length, 4, 2)


@pytest.mark.parametrize('block', [4, 32])
def test_prefix_groups_share_only_the_prefix(block):
  # A prompt of 40 tokens, then two answers that must not see each other.
  groups = jnp.asarray([[0] * 40 + [1] * 45 + [2] * 45] * 2)
  mask = attention.Mask(q_groups=groups, kv_groups=groups)
  attend = functools.partial(blockwise.blockwise, block=block)
  _assert_equal(attend, mask, 130, 4, 2)
  # The second answer is what it would be without the first one.
  q, k, v, _ = _inputs(130, 4, 2)
  alone = [jnp.concatenate([x[:, :40], x[:, 85:]], 1) for x in (q, k, v)]
  want = attention.reference(*alone, attention.Mask())[:, 40:]
  got = attend(q, k, v, mask)[:, 85:]
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('block', [4, 32])
def test_positions_of_a_cache_decide_the_order(block):
  # Slots in shuffled order, some empty: as one sorted row without them.
  q, k, v, _ = _inputs(80, 4, 2)
  order = jax.random.permutation(jax.random.key(3), 80)
  positions = jnp.broadcast_to(jnp.where(order < 70, order, -1), (2, 80))
  q = q[:, :70]
  mask = attention.Mask(
    q_positions=jnp.broadcast_to(jnp.arange(70), (2, 70)),
    kv_positions=positions,
  )
  got = blockwise.blockwise(q, k[:, order], v[:, order], mask, block=block)
  want = attention.reference(q, k[:, :70], v[:, :70], attention.Mask())
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('window', [None, 40])
def test_splash_equals_reference_in_interpret_mode(window):
  ids = _segments(200)
  mask = attention.Mask(q_segments=ids, kv_segments=ids, window=window)
  attend = functools.partial(kernels.splash, interpret=True)
  _assert_equal(attend, mask, 200, 4, 2, atol=1e-4)


@pytest.mark.parametrize(
  ('length', 'want'),
  [(200, 256), (4096, 4096), (4100, 4608), (200_000, 200_192)],
)
def test_rows_are_padded_to_whole_tiles_large_ones_where_they_are_long(
  length, want
):
  assert kernels.padded(length) == want


@pytest.mark.parametrize('window', [None, 40])
def test_the_call_into_jax_nn_equals_reference(window):
  # cuDNN itself needs a GPU; masks, windows and scale are tested through the
  # XLA implementation of the same jax.nn call.
  ids = _segments(128)
  mask = attention.Mask(q_segments=ids, kv_segments=ids, window=window)
  attend = functools.partial(kernels.through_jax_nn, implementation='xla')
  _assert_equal(attend, mask, 128, 4, 2)


@pytest.mark.parametrize('name', ['splash', 'cudnn'])
def test_a_kernel_refuses_a_mask_it_does_not_know(name):
  q, k, v, _ = _inputs(128, 4, 2)
  places = jnp.zeros((2, 128), jnp.int32)
  mask = attention.Mask(q_positions=places, kv_positions=places)
  with pytest.raises(ValueError, match="use 'blockwise'"):
    attention.get(name)(q, k, v, mask)


def test_an_unknown_name_suggests_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'blockwise'"):
    attention.get('blokwise')


def test_memory_is_linear_in_length():
  """No [T, T] array: doubling the length doubles the temporaries."""

  def temporaries(length):
    x = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)

    def loss(q, k, v):
      mask = attention.Mask()
      return blockwise.blockwise(q, k, v, mask, block=128).sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    return step.memory_analysis().temp_size_in_bytes

  short, long = temporaries(8192), temporaries(16_384)
  assert long < 2.2 * short
  assert long < 16_384**2  # a quarter of one float32 [T, T]
