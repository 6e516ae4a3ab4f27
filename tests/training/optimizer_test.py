"""AdamW against its formula, and which parameters it touches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yi_jax.models import config as model_config
from yi_jax.models import transformer
from yi_jax.training import optimizer, run_config


def _settings(**changes):
  settings = run_config.resolve(run_config.defaults()).optimizer
  return dataclasses.replace(settings, **changes)


def _params(**overrides):
  config = model_config.get_preset('tiny', **overrides)
  return transformer.abstract_params(config)


def test_three_updates_equal_the_formula():
  settings = _settings(weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
  rng = np.random.default_rng(0)
  params = {'kernel': np.float32(rng.normal(size=(3, 4)))}
  tree = {'layer': {k: jnp.asarray(v) for k, v in params.items()}}
  moments = optimizer.moments(settings)
  state = moments.init(tree)
  want = np.float64(params['kernel'])
  mean, square = np.zeros_like(want), np.zeros_like(want)
  for step in range(1, 4):
    grad = np.float32(rng.normal(size=(3, 4)))
    _, state = moments.update({'layer': {'kernel': grad}}, state)
    direction = optimizer.direction(settings, state, tree)
    tree = jax.tree.map(lambda p, d: p - 0.01 * d, tree, direction)
    mean = 0.9 * mean + 0.1 * grad
    square = 0.95 * square + 0.05 * np.float64(grad) ** 2
    unbiased = mean / (1 - 0.9**step)
    spread = np.sqrt(square / (1 - 0.95**step))
    want = want - 0.01 * (unbiased / (spread + 1e-8) + 0.1 * want)
  np.testing.assert_allclose(tree['layer']['kernel'], want, rtol=1e-5)


def test_the_direction_is_the_one_optax_returns():
  params = {'a': {'kernel': jnp.ones((2, 3))}, 'b': {'scale': jnp.ones(3)}}
  settings = _settings(weight_decay=0.3)
  adamw = optax.adamw(
    1.0,
    *settings.betas,
    eps=settings.eps,
    weight_decay=0.3,
    mask=optimizer.decays,
  )
  theirs, ours = adamw.init(params), optimizer.moments(settings).init(params)
  for step in range(3):
    grads = jax.tree.map(lambda x: jnp.sin(x + step), params)  # noqa: B023
    want, theirs = adamw.update(grads, theirs, params)
    _, ours = optimizer.moments(settings).update(grads, ours)
    got = optimizer.direction(settings, ours, params)
    jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, -w, rtol=1e-6), got, want
    )


@pytest.mark.parametrize('scan_layers', [True, False])
def test_only_matrices_of_the_layers_and_the_output_decay(scan_layers):
  params = _params(scan_layers=scan_layers, attention_bias=True)
  decays = optimizer.decays(params)
  got = {
    jax.tree_util.keystr(path, simple=True, separator='/'): flag
    for path, flag in jax.tree_util.tree_leaves_with_path(decays)
  }
  assert got['lm_head/kernel']
  assert not got['embed_tokens/embedding']
  assert not got['norm/scale']
  layer = 'layers/' if scan_layers else 'layers/0/'
  assert got[f'{layer}self_attn/q_proj/kernel']
  assert got[f'{layer}mlp/down_proj/kernel']
  assert not got[f'{layer}self_attn/q_proj/bias']
  assert not got[f'{layer}input_layernorm/scale']


def test_split_and_merge_are_inverse_and_halves_are_disjoint():
  params = _params()
  trained, frozen = optimizer.split(params, '.*/self_attn/.*')
  assert 'embed_tokens' not in trained
  assert 'self_attn' not in frozen['layers']['0']
  assert optimizer.merge(trained, frozen) == params


def test_frozen_parameters_cost_no_optimizer_memory():
  params = _params()

  def size(tree):
    return sum(
      leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )

  trained, _ = optimizer.split(params, 'layers/0/.*')
  state = jax.eval_shape(optimizer.moments(_settings()).init, trained)
  # Two moments of what is trained, and one counter.
  assert size(state) == 2 * size(params['layers']['0']) + 4


def test_clipping_scales_down_to_the_limit_and_never_up():
  assert float(optimizer.clip_scale(jnp.float32(4.0), 1.0)) == 0.25
  assert float(optimizer.clip_scale(jnp.float32(0.5), 1.0)) == 1.0
  assert float(optimizer.clip_scale(jnp.float32(4.0), 0.0)) == 1.0


def test_the_settings_are_the_keys_of_a_run():
  names = {field.name for field in dataclasses.fields(optimizer.Settings)}
  # Two keys only say how the learning rate follows the batch.
  rule = {'scale_with_batch', 'reference_batch_tokens'}
  assert names | rule == set(run_config.defaults()['optimizer'])
  assert not names & rule
