"""Stacked and unrolled parameters are the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import layout, transformer

_LIGHTNING = (
  config_lib.LayerSpec('sliding', 3),
  config_lib.LayerSpec(),
  config_lib.LayerSpec(kv_from=1),
)


def _model(pattern, scan_layers=True):
  config = config_lib.get_preset(
    'tiny',
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2 * len(pattern),
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    layer_pattern=pattern,
    scan_layers=scan_layers,
    initializer_range=0.3,
  )
  return config, transformer.init_params(config, jax.random.key(0))


def _assert_equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(
  scope='module',
  params=[(config_lib.LayerSpec(),), _LIGHTNING],
  ids=['dense', 'pattern'],
)
def model(request):
  return _model(request.param)


def test_logits_stay_the_same(model):
  tokens = jnp.arange(14).reshape(2, 7)

  def logits(config, params):
    out = transformer.Transformer(config).apply({'params': params}, tokens)
    return out.logits

  unrolled = layout.unroll(*model)
  assert not unrolled[0].scan_layers
  np.testing.assert_allclose(logits(*unrolled), logits(*model), atol=1e-5)


def test_unrolled_has_the_names_and_shapes_of_an_unrolled_model(model):
  config, params = layout.unroll(*model)
  wanted = transformer.abstract_params(config)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


def test_there_and_back_is_the_same(model):
  config, params = layout.stack(*layout.unroll(*model))
  assert config == model[0]
  _assert_equal(params, model[1])
  unrolled = layout.unroll(*model)
  again = layout.unroll(*layout.stack(*unrolled))
  assert again[0] == unrolled[0]
  _assert_equal(again[1], unrolled[1])


def test_what_is_laid_out_already_is_not_touched(model):
  assert layout.stack(*model)[1] is model[1]
  unrolled = layout.unroll(*model)
  assert layout.unroll(*unrolled)[1] is unrolled[1]


def test_numpy_arrays_stay_in_host_memory_and_unroll_without_copies():
  config, params = _model((config_lib.LayerSpec(),))
  params = jax.tree.map(np.asarray, params)
  unrolled, layers = layout.unroll(config, params)
  kernel = layers['layers']['1']['mlp']['up_proj']['kernel']
  assert np.shares_memory(kernel, params['layers']['mlp']['up_proj']['kernel'])
  stacked = layout.stack(unrolled, layers)[1]
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(stacked))
