"""The cache: pieces of any size, with padding, say what one pass says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import attention, kv_cache, transformer
from yi_jax.models import config as config_lib

_PATTERNS = {
  'full': (config_lib.LayerSpec(),),
  'shared': (
    config_lib.LayerSpec('sliding', 4),
    config_lib.LayerSpec(),
    config_lib.LayerSpec('sliding', 4, kv_from=0),
    config_lib.LayerSpec(kv_from=1),
  ),
}
_LENGTH = 15


@functools.cache
def _model(pattern):
  """A model, and its logits and cache for new tokens, compiled."""
  specs = _PATTERNS[pattern]
  config = config_lib.get_preset(
    'tiny',
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=len(specs),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    layer_pattern=specs,
    scan_layers=False,
    initializer_range=0.3,
  )
  params = transformer.init_params(config, jax.random.key(0))

  @jax.jit
  def apply(cache, tokens, segments=None):
    out = transformer.Transformer(config).apply(
      {'params': params},
      tokens,
      segment_ids=segments,
      cache=cache,
      # An empty cache takes any kernel, here the default one.
      attention_fn=attention.cached
      if cache and cache.lengths is not None
      else None,
    )
    return out.logits, out.cache

  return config, apply


def _tokens(rows):
  return np.random.default_rng(rows).integers(9, 61, (rows, _LENGTH))


@pytest.mark.parametrize('pattern', _PATTERNS)
@pytest.mark.parametrize(
  'pieces',
  [(1,) * _LENGTH, (9, 1, 1, 1, 3), (2, 7, 6)],
  ids=['one by one', 'prompt first', 'pieces'],
)
def test_pieces_say_what_one_pass_says(pattern, pieces):
  config, apply = _model(pattern)
  tokens = _tokens(2)
  whole, _ = apply(None, tokens)
  cache, start = kv_cache.init(config, 2, 20), 0
  for i, width in enumerate(pieces):
    # Every second piece has padding on its right.
    piece = np.full((2, width + i % 2), 5)
    piece[:, :width] = tokens[:, start : start + width]
    segments = np.ones_like(piece)
    segments[:, width:] = 0
    logits, cache = apply(cache, piece, segments)
    want = whole[:, start : start + width]
    np.testing.assert_allclose(logits[:, :width], want, atol=1e-4)
    start += width
  assert cache.lengths.tolist() == [_LENGTH] * 2


@pytest.mark.parametrize('pattern', _PATTERNS)
@pytest.mark.parametrize('rows', [1, 3])
def test_rows_of_different_length_go_on_side_by_side(pattern, rows):
  config, apply = _model(pattern)
  tokens = _tokens(rows)
  whole, _ = apply(None, tokens)
  lengths = np.array([3, 9, 1])[:rows]
  segments = (np.arange(9) < lengths[:, None]).astype(int)
  cache = kv_cache.init(config, rows, _LENGTH)
  _, cache = apply(cache, tokens[:, :9], segments)
  every = np.arange(rows)
  for step in range(6):
    # The first row rests at every second step, and nothing of it changes.
    real = np.ones(rows, int)
    real[0] = step % 2
    logits, cache = apply(cache, tokens[every, lengths][:, None], real[:, None])
    for row in np.flatnonzero(real):
      want = whole[row, lengths[row]]
      np.testing.assert_allclose(logits[row, 0], want, atol=1e-4)
    lengths += real
    np.testing.assert_array_equal(cache.lengths, lengths)


@pytest.mark.parametrize('pattern', _PATTERNS)
@pytest.mark.parametrize('held', [2, 7])
def test_a_cache_that_grows_goes_on(pattern, held):
  config, apply = _model(pattern)
  tokens = _tokens(2)
  whole, _ = apply(None, tokens)
  _, cache = apply(kv_cache.init(config, 2, held), tokens[:, :held])
  cache = kv_cache.grow(config, cache, _LENGTH)
  wanted = kv_cache.init(config, 2, _LENGTH)
  assert _shapes(cache) == _shapes(wanted)
  logits, _ = apply(cache, tokens[:, held:])
  np.testing.assert_allclose(logits, whole[:, held:], atol=1e-4)


def _shapes(cache):
  return [
    {name: x.shape for name, x in layer.items()}
    for layer in cache.layers.values()
  ]


def test_layers_keep_what_they_need():
  config, _ = _model('shared')
  cache = kv_cache.init(config, 3, 10, 'bfloat16')
  ring = {'k': (3, 2, 8, 4), 'v': (3, 2, 4, 8)}
  full = {'k': (3, 2, 8, 10), 'v': (3, 2, 10, 8)}
  assert _shapes(cache) == [ring, full, {}, {}]
  assert kv_cache.length(cache) == 10
  kinds = {x.dtype for x in jax.tree.leaves(cache.layers)}
  assert kinds == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('window', [None, 6])
@pytest.mark.parametrize('queries', [1, 3])
def test_attending_to_a_cache_is_attention(window, queries):
  draw = np.random.default_rng(0)
  q = draw.normal(size=(2, queries, 6, 8)).astype(np.float32)
  k, v = draw.normal(size=(2, 2, 11, 3, 8)).astype(np.float32)
  places = np.stack([np.arange(11), np.arange(11) - 4])
  mask = attention.Mask(
    q_positions=jnp.array([[8], [5]]) + jnp.arange(queries),
    kv_positions=jnp.maximum(places, -1),
    window=window,
  )
  want = attention.reference(q, k, v, mask)
  np.testing.assert_allclose(attention.cached(q, k, v, mask), want, atol=1e-5)
