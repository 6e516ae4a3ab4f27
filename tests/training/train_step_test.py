"""The update: every way to cut a batch gives the same one; bad ones do not."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

_SMALL = {
  'vocab_size': 96,
  'hidden_size': 32,
  'intermediate_size': 64,
  'num_hidden_layers': 1,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 32,
}


def _run(rows=8, model=None, spike_factor=10.0, **settings):
  config = run_config.defaults()
  config['model']['overrides'] = {**_SMALL, **(model or {})}
  config['data'].update(length=16, batch_tokens=16 * rows, vocabulary_size=96)
  config['train']['spike_factor'] = spike_factor
  config['optimizer'].update(warmup_steps=0, learning_rate=1e-2, **settings)
  return run_config.resolve(config)


def _rows(rows=8, seed=0):
  """Returns a packed batch whose rows carry very unequal weight."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 96, (rows, 17))
  second = np.arange(16) >= 10
  weights = rng.random((rows, 16)) * (np.arange(rows)[:, None] % 4)
  return {
    'tokens': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segment_ids': np.tile(1 + second, (rows, 1)),
    'positions': np.tile(np.arange(16) - 10 * second, (rows, 1)),
    'loss_weights': weights.astype(np.float32),
    'row_id': np.arange(rows),
  }


@functools.cache
def _mesh(**sizes):
  count = math.prod(sizes.values())
  return meshes.make_mesh(sizes, jax.devices()[:count])


@functools.cache
def _step(run, mesh):
  """Compiling is what takes time here, so each program is made once."""
  return train_step.make(run, mesh)


@functools.cache
def _weights(model):
  key = jax.random.key(0)
  return jax.device_get(transformer.init_params(model, key))


def _fresh(run, mesh):
  places = train_state.shardings(run, mesh).params
  # A copy, as the state is donated.
  params = jax.tree.map(np.copy, _weights(run.model))
  return train_state.fresh(run, mesh, 0, jax.device_put(params, places))


def _updates(run, mesh, batches):
  """Returns the final state and the metrics of each update, as numpy."""
  step, state, seen = _step(run, mesh), _fresh(run, mesh), []
  for batch in batches:
    batch = train_step.put_batch(batch, step.batch)
    state, metrics = step.update(state, batch)
    seen.append(jax.device_get(metrics))
  return jax.device_get(state), seen


def _assert_same(left, right, rtol=2e-4, atol=2e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    left,
    right,
  )


@pytest.fixture(scope='module')
def whole():
  """Three updates on one device, in one piece."""
  batches = [_rows(seed=seed) for seed in range(3)]
  return batches, *_updates(_run(), _mesh(), batches)


def test_pieces_with_unequal_weights_make_the_same_update(whole):
  batches, state, seen = whole
  pieces, seen_in_pieces = _updates(_run(accumulate_steps=4), _mesh(), batches)
  _assert_same(pieces.params, state.params)
  _assert_same(seen_in_pieces, seen)


def test_pieces_on_several_devices_make_the_same_update(whole):
  # In one piece: tests/sharding/strategies_test.py.
  batches, state, seen = whole
  run = _run(accumulate_steps=2)
  elsewhere, seen_elsewhere = _updates(run, _mesh(data=2, fsdp=2), batches)
  _assert_same(elsewhere.params, state.params)
  _assert_same(seen_elsewhere, seen)


def test_fsdp_cuts_parameters_and_moments():
  abstract = train_state.abstract(_run(), _mesh(fsdp=4))
  for tree in (abstract.params, abstract.opt_state.mu):
    kernel = tree['layers']['0']['mlp']['gate_proj']['kernel']
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 64)


def test_the_loss_is_the_mean_over_weighted_tokens(whole):
  batches, _, seen = whole
  weight = batches[0]['loss_weights'].sum()
  np.testing.assert_allclose(seen[0]['weight'], weight, rtol=1e-5)
  # Fresh weights know nothing: about the entropy of 96 equally likely tokens.
  assert abs(seen[0]['loss'] - np.log(96)) < 0.1


def test_repeating_a_batch_is_learned():
  batch = _rows()
  _, seen = _updates(_run(), _mesh(), [batch] * 30)
  losses = [metrics['loss'] for metrics in seen]
  assert losses[-1] < losses[0] - 1


def test_only_trainable_parameters_move_and_only_they_have_gradients():
  pattern, model = 'layers/1/.*|norm/scale', {'num_hidden_layers': 2}
  run = _run(model=model, trainable=pattern, weight_decay=0.0)
  before = _weights(run.model)
  state, _ = _updates(run, _mesh(), [_rows()])
  after = state.params
  for frozen in ('embed_tokens', 'lm_head'):
    _assert_same(after[frozen], before[frozen], 0, 0)
  _assert_same(after['layers']['0'], before['layers']['0'], 0, 0)
  assert not np.array_equal(after['norm']['scale'], before['norm']['scale'])
  moments = state.opt_state.mu
  assert set(moments) == {'layers', 'norm'}
  assert set(moments['layers']) == {'1'}

  # Nor is anything differentiated that would only be thrown away.
  flops = [
    _step(each, _mesh()).lower().cost_analysis()['flops']
    for each in (run, _run(model=model))
  ]
  assert flops[0] < 0.8 * flops[1]


def test_an_update_that_is_not_finite_changes_nothing():
  run = _run(accumulate_steps=4)
  good, bad = _rows(), _rows(seed=1)
  bad['loss_weights'][3, 2] = np.inf
  once, _ = _updates(run, _mesh(), [good])
  state, seen = _updates(run, _mesh(), [good, bad, bad])
  _assert_same(state.params, once.params, 0, 0)
  _assert_same(state.opt_state, once.opt_state, 0, 0)
  assert [metrics['bad'] for metrics in seen] == [0, 1, 2]
  assert (state.step, state.guard.skipped) == (3, 2)


def test_a_batch_without_weight_moves_nothing_but_by_decay():
  batch = _rows()
  batch['loss_weights'][:] = 0
  run = _run(trainable='norm/scale', weight_decay=0.0)
  before = _weights(run.model)
  state, seen = _updates(run, _mesh(), [batch])
  _assert_same(state.params, before, 0, 0)
  assert seen[0]['loss'] == 0


def _of_ones_own(params, batch):
  weight = jnp.sum(batch['loss_weights'])
  nll = jnp.sum(params['lm_head']['kernel'] ** 2) * weight
  return nll, {'nll': nll, 'weight': weight}


@pytest.mark.parametrize('clip_norm', [0.0, 0.1])
def test_any_objective_is_clipped_by_the_norm_of_its_mean(clip_norm):
  # With a huge eps Adam is plain descent: its step shows the gradient.
  run = _run(clip_norm=clip_norm, weight_decay=0.0, betas=(0.0, 0.0), eps=1.0)
  step = train_step.make(run, _mesh(), objective=_of_ones_own)
  state, metrics = step.update(
    _fresh(run, _mesh()), train_step.put_batch(_rows(), step.batch)
  )
  kernel = np.float64(_weights(run.model)['lm_head']['kernel'])
  norm = np.linalg.norm(2 * kernel)
  np.testing.assert_allclose(metrics['loss'], np.sum(kernel**2), rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
  grad = 2 * kernel * (clip_norm / norm if clip_norm else 1)
  want = kernel - 1e-2 * grad / (np.abs(grad) + 1)
  np.testing.assert_allclose(state.params['lm_head']['kernel'], want, rtol=1e-4)


def test_the_update_overwrites_the_state_in_place():
  run = _run(model={'hidden_size': 256, 'intermediate_size': 1024})
  step = train_step.make(run, _mesh(), objective=_of_ones_own)
  memory = step.lower().compile().memory_analysis()
  size = sum(x.size * 4 for x in jax.tree.leaves(step.state.params))
  assert memory.alias_size_in_bytes > 3 * size
  assert memory.temp_size_in_bytes < 0.1 * size


@pytest.mark.parametrize(
  ('sizes', 'changes', 'message'),
  [
    ({'data': 4}, {'rows': 6}, '6 rows a step .* 4 devices'),
    ({'fsdp': 4}, {'accumulate_steps': 4}, '4 microbatches'),
  ],
)
def test_rows_that_cannot_be_divided_are_refused(sizes, changes, message):
  with pytest.raises(ValueError, match=message):
    train_step.make(_run(**changes), _mesh(**sizes))


def test_a_large_model_lowers_from_shapes_alone():
  config = run_config.defaults()
  config['model']['preset'] = 'yi_34b'
  config['data'].update(length=4096, batch_tokens=4 * 4096)
  step = train_step.make(run_config.resolve(config), _mesh(fsdp=2, tensor=2))
  assert 'stablehlo' in step.lower().as_text()[:100_000]


def test_a_yi_6b_step_holds_the_logits_of_a_chunk_at_most():
  """The whole compiled step, cut over fsdp and tensor, one layer deep."""
  config = run_config.defaults()
  config['model']['preset'] = 'yi_6b'
  config['model']['overrides'] |= dict(num_hidden_layers=1, remat='full')
  config['data'] |= dict(length=4096, batch_tokens=8 * 4096)
  run = run_config.resolve(config)
  mesh = meshes.make_mesh(dict(fsdp=2, tensor=2))
  compiled = train_step.make(run, mesh).lower().compile()
  arrays = [
    [int(size) for size in dims.split(',')]
    for dims in re.findall(r'f32\[([\d,]+)\]', compiled.as_text())
  ]
  # [rows, positions, vocabulary]: V may be cut over the tensor axis.
  logits = [a for a in arrays if len(a) == 3 and a[-1] in (32_000, 64_000)]
  assert logits
  assert max(math.prod(a) for a in logits) <= 8 * 128 * 64_000
  flat = [a for a in arrays if len(a) == 2 and a[-1] in (32_000, 64_000)]
  assert max(a[0] for a in flat) <= 4096  # the kernel, not 32,768 positions
