"""Layers in stages: the numbers of one device, and weights that stay put."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yi_jax.models import attention, kv_cache, transformer
from yi_jax.models import config as config_lib
from yi_jax.sharding import collectives, pipeline, rules
from yi_jax.sharding import mesh as meshes
from yi_jax.training import cross_entropy, run_config, train_step
from yi_jax.training import state as train_state

_RULES = rules.STRATEGIES['pipeline'].rules
_SHARED = (config_lib.LayerSpec('sliding', 5), config_lib.LayerSpec(kv_from=0))
_ROWS, _LENGTH = 8, 16


def _config(**changes):
  small = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    scan_layers=True,
  )
  return config_lib.get_preset('tiny', **small | changes)


def _mesh(**sizes):
  count = math.prod(sizes.values())
  return meshes.make_mesh(sizes, jax.devices()[:count])


@functools.cache
def _batch():
  """Packed rows: two segments of unequal lengths, then padding."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 96, (_ROWS, _LENGTH + 1), dtype=np.int32)
  place = np.arange(_LENGTH)
  second = place >= rng.integers(3, 12, (_ROWS, 1))
  padding = place >= rng.integers(13, 17, (_ROWS, 1))
  starts = np.where(second, second.argmax(1, keepdims=True), 0)
  segments = np.where(padding, 0, 1 + second)
  return dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=segments.astype(np.int32),
    positions=(place - starts).astype(np.int32),
    loss_weights=(rng.random(segments.shape) * ~padding).astype(np.float32),
  )


def _loss(config, params, batch, **injected):
  out = transformer.Transformer(config).apply(
    {'params': params},
    batch['tokens'],
    segment_ids=batch['segment_ids'],
    positions=batch['positions'],
    logits=False,
    **injected,
  )
  kernel = transformer.output_kernel(config, params)
  targets, weights = batch['targets'], batch['loss_weights']
  loss, _ = cross_entropy.cross_entropy(out.hidden, kernel, targets, weights)
  return loss / weights.sum()


@functools.cache
def _on_one_device(config):
  """Returns parameters, larger than fresh ones, and loss and gradients."""
  params = transformer.init_params(config, jax.random.key(0))
  params = jax.tree.map(lambda x: 3 * x, params)
  whole = functools.partial(_loss, config, attention_fn=attention.reference)
  want = jax.jit(jax.value_and_grad(whole))(params, _batch())
  return jax.device_get((params, want))


@pytest.mark.parametrize(
  ('sizes', 'microbatches', 'changes'),
  [
    (dict(stage=4), 8, dict(tie_word_embeddings=True, remat='full')),
    (dict(data=2, stage=2), 4, dict(layer_pattern=_SHARED)),
    (dict(fsdp=2, stage=2), 2, {}),
    (dict(tensor=2, stage=2), 4, dict(tie_word_embeddings=True)),
  ],
  ids=lambda x: (
    '-'.join(f'{k}{v}' for k, v in x.items() if k in meshes.AXES)
    if isinstance(x, dict)
    else str(x)
  ),
)
def test_stages_equal_one_device_and_keep_their_weights(
  sizes, microbatches, changes
):
  config = _config(**changes)
  params, want = _on_one_device(config.replace(remat='none'))
  mesh = _mesh(**sizes)
  cut = rules.shardings(mesh, transformer.param_axes(config), params, _RULES)
  layers_fn = pipeline.layers_fn(
    mesh, microbatches, attention.reference, _RULES
  )
  staged = functools.partial(
    _loss,
    config,
    layers_fn=layers_fn,
    constrain=rules.constrainer(mesh, _RULES),
  )
  step = (
    jax.jit(
      jax.value_and_grad(staged),
      in_shardings=(cut, rules.batch_sharding(mesh, _RULES)),
      out_shardings=(rules.replicated(mesh), cut),
    )
    .lower(params, _batch())
    .compile()
  )
  batch = jax.device_put(_batch(), rules.batch_sharding(mesh, _RULES))
  got = step(jax.device_put(params, cut), batch)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

  # Between stages goes the stream, and no stage sees another's weights.
  sent = collectives.collectives(step.as_text(), mesh)
  assert ('collective-permute', ('stage',)) in [(c.kind, c.axes) for c in sent]
  gathered = [c for c in sent if c.kind == 'all-gather' and 'stage' in c.axes]
  weights = sum(x.nbytes for x in jax.tree.leaves(params['layers']))
  assert sum(c.bytes for c in gathered) < weights / mesh.size / 4


def _toy(stages, microbatches, grad=False):
  """Two repeats a stage whose order matters; returns a compiled call."""

  def run(params, x, context, attend, constrain):
    del attend, constrain

    def repeat(x, weight):
      x = x * weight + context['shift'] * context['scale']
      return x, {'mean': 1 + jnp.mean(x)}

    return jax.lax.scan(repeat, x, params)

  mesh = _mesh(stage=stages)
  layers = pipeline.layers_fn(mesh, microbatches, attention.reference, _RULES)

  def straight(params, x, context):
    return run(params, x, context, None, None)

  def staged(params, x, context):
    return layers(run, params, x, context)

  rng = np.random.default_rng(0)
  weights = rng.random((2 * stages, 1, 1, 4), np.float32)
  x = rng.random((16, 3, 4), np.float32)
  shift = rng.random((16, 3, 4), np.float32)
  arguments = weights, x, dict(shift=shift, scale=np.float32(2))
  if grad:

    def total(weights, x, context):
      return jnp.sum(staged(weights, x, context)[0] ** 2)

    return mesh, arguments, straight, jax.grad(total, argnums=(0, 1))
  return mesh, arguments, straight, staged


@pytest.mark.parametrize(
  ('stages', 'microbatches'), [(2, 2), (2, 8), (4, 4), (4, 16)]
)
def test_every_row_meets_every_stage_once_with_what_belongs_to_it(
  stages, microbatches
):
  _, arguments, straight, staged = _toy(stages, microbatches)
  want, want_aux = straight(*arguments)
  got, got_aux = jax.jit(staged)(*arguments)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # One number a repeat: its mean over microbatches, none over idle ticks.
  np.testing.assert_allclose(got_aux['mean'], want_aux['mean'], rtol=1e-6)


@pytest.mark.parametrize('grad', [False, True])
def test_a_tick_sends_a_microbatch_on_and_another_back(grad):
  mesh, arguments, _, staged = _toy(4, 8, grad)
  text = jax.jit(staged).lower(*arguments).compile().as_text()
  sent = [
    c
    for c in collectives.collectives(text, mesh)
    if c.kind == 'collective-permute'
  ]
  ticks, microbatch = 8 + 4 - 1, arguments[1].nbytes // 8
  assert sum(c.bytes for c in sent) <= (1 + grad) * ticks * 2 * microbatch
  assert sum(c.bytes for c in sent) >= (1 + grad) * (ticks - 1) * 2 * microbatch


def test_stages_are_what_is_furthest_apart():
  mesh = meshes.make_mesh(dict(data=2, stage=2))
  ids = [[device.id for device in row] for row in mesh.devices.reshape(2, 2)]
  assert ids == [[0, 2], [1, 3]]  # data down, stages across


def test_stages_wait_less_with_more_microbatches():
  assert pipeline.bubble(1, 1) == 0
  assert pipeline.bubble(4, 4) == 3 / 7
  assert pipeline.bubble(4, 12) == 3 / 15


@pytest.mark.parametrize(
  ('sizes', 'microbatches', 'rows', 'changes', 'message'),
  [
    (dict(stage=4), 1, 8, {}, r'microbatches \(1\) .* multiple of mesh.stage'),
    (dict(stage=2), 3, 6, {}, 'with 8 each stage waits 11%'),
    (dict(data=2), 2, 8, {}, 'use optimizer.accumulate_steps'),
    (dict(stage=2), 4, 8, dict(scan_layers=False), 'scan_layers=True'),
    (
      dict(stage=4),
      4,
      8,
      dict(layer_pattern=_SHARED),
      r'stage \(4\) must divide the 2 repeats .* 4 / 2 layers',
    ),
    (dict(data=2, stage=2), 4, 12, {}, 'take a multiple of 8 rows'),
  ],
)
def test_what_cannot_be_laid_out_is_refused(
  sizes, microbatches, rows, changes, message
):
  with pytest.raises(ValueError, match=message):
    pipeline.check(_config(**changes), _mesh(**sizes), microbatches, rows)


@pytest.mark.parametrize('scan', [True, False])
def test_stages_are_for_stacked_layers_without_a_cache(scan):
  config = _config(scan_layers=scan)
  cache = kv_cache.init(config, 1, 8) if scan else None
  with pytest.raises(ValueError, match='stacked layers and takes no cache'):
    jax.eval_shape(
      lambda params: transformer.Transformer(config).apply(
        {'params': params},
        jnp.zeros((1, 4), jnp.int32),
        cache=cache,
        layers_fn=lambda run, params, x, context: (x, {}),
      ),
      transformer.abstract_params(config),
    )


def _run(**mesh):
  config = run_config.defaults()
  config['model']['overrides'] |= dataclasses.asdict(_config())
  config['data'].update(
    length=_LENGTH, batch_tokens=_ROWS * _LENGTH, vocabulary_size=96
  )
  config['mesh'].update(fsdp=1, **mesh)
  return run_config.resolve(config)


def test_a_run_trains_in_two_stages_and_each_stores_its_share():
  run, mesh = _run(microbatches=4), _mesh(stage=2)
  step = train_step.make(run, mesh, attention_fn=attention.reference)
  update = step.lower().compile()
  params, (want, want_grads) = _on_one_device(run.model)
  state = train_state.fresh(run, mesh, 0, params)
  state, metrics = update(state, train_step.put_batch(_batch(), step.batch))
  np.testing.assert_allclose(metrics['loss'], want, rtol=1e-5)
  norm = optax.global_norm(want_grads)
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)

  sent = collectives.collectives(update.as_text(), mesh)
  ticks = 4 + 2 - 1
  (moved,) = [c.count for c in sent if c.kind == 'collective-permute']
  assert moved == 2 * ticks + 2 * ticks  # forwards, and the gradient's
  weights = jax.tree.leaves((state.params, state.opt_state))
  stored = sum(x.addressable_shards[0].data.nbytes for x in weights)
  # All but the final norm is cut.
  half = sum(x.nbytes for x in weights) / 2
  np.testing.assert_allclose(stored, half, rtol=1e-3)


def test_a_run_that_cannot_be_laid_out_is_refused_before_compiling():
  with pytest.raises(ValueError, match=r'mesh.microbatches \(2\) must be'):
    train_step.make(_run(microbatches=2), _mesh(stage=4))
