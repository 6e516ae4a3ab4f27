"""What tuning adds to training: adapters, noise, conversations in one row."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax import app, convert, train
from yi_jax.checkpoints import hf, peft
from yi_jax.data import prepared
from yi_jax.models import config as model_config
from yi_jax.models import lora, transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.training import (
  checkpointing,
  cross_entropy,
  faults,
  objectives,
  run_config,
  train_step,
  weights,
)
from yi_jax.training import state as train_state

_MODEL = model_config.get_preset(
  'tiny',
  vocab_size=96,
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=64,
)


@pytest.fixture(scope='module')
def params():
  return jax.device_get(transformer.init_params(_MODEL, jax.random.key(0)))


def _chats(count=5, length=32, seed=0):
  """Returns rows of one conversation each, and one row of all of them."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(4, 12, count)
  packed = {
    name: np.zeros((1, 64), np.float32 if name == 'loss_weights' else np.int32)
    for name in (
      'tokens',
      'targets',
      'segment_ids',
      'positions',
      'loss_weights',
    )
  }
  alone, at = [], 0
  for number, size in enumerate(sizes, 1):
    ids = rng.integers(3, 96, size + 1)
    row = {name: np.zeros((1, length), x.dtype) for name, x in packed.items()}
    for rows, first, segment in ((row, 0, 1), (packed, at, number)):
      here = slice(first, first + size)
      rows['tokens'][0, here] = ids[:-1]
      rows['targets'][0, here] = ids[1:]
      rows['segment_ids'][0, here] = segment
      rows['positions'][0, here] = np.arange(size)
      rows['loss_weights'][0, here] = np.arange(size) % 3 != 0
    alone.append(row)
    at += size
  return alone, packed


def test_packed_conversations_learn_what_they_learn_alone(params):
  alone, packed = _chats()

  @jax.jit
  def gradients(batch):
    return jax.value_and_grad(
      lambda p: objectives.next_token(p, batch, _MODEL), has_aux=True
    )(params)

  sums = [gradients(row) for row in alone]
  (want, _), want_grads = functools.reduce(
    lambda a, b: jax.tree.map(jnp.add, a, b), sums
  )
  (found, aux), grads = gradients(packed)
  np.testing.assert_allclose(found, want, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    grads,
    want_grads,
  )
  assert aux['weight'] == sum(r['loss_weights'].sum() for r in alone)


def test_masked_tokens_have_no_gradient(params):
  _, packed = _chats()
  weights_ = packed['loss_weights'].copy()
  masked = (weights_ == 0) & (packed['segment_ids'] > 0)
  assert masked.any()

  def loss(moved):
    output = transformer.Transformer(_MODEL).apply(
      {'params': params},
      packed['tokens'],
      segment_ids=packed['segment_ids'],
      positions=packed['positions'],
      logits=False,
    )
    kernel = transformer.output_kernel(_MODEL, params)
    return cross_entropy.cross_entropy(
      output.hidden + moved, kernel, packed['targets'], weights_
    )[0]

  grads = jax.grad(loss)(jnp.zeros((1, 64, 32)))
  assert not grads[masked].any()
  assert grads[weights_ > 0].any(axis=-1).all()


def test_noise_is_uniform_and_as_large_as_the_segment_asks_for():
  alpha, width = 5.0, 256
  segments = np.zeros((2, 64), np.int32)
  segments[0, :10], segments[0, 10:50], segments[1] = 1, 2, 1
  batch = {
    'tokens': np.zeros((2, 64), np.int32),
    'segment_ids': segments,
    'noise_key': jax.random.key_data(jax.random.key(3)),
  }
  table = jnp.ones((4, width))
  noise = np.asarray(objectives.noisy_embeds(table, batch, alpha)) - 1
  for row, segment, size in ((0, 1, 10), (0, 2, 40), (1, 1, 64)):
    found = noise[row][segments[row] == segment]
    bound = alpha / np.sqrt(size * width)
    assert np.abs(found).max() <= bound
    assert np.abs(found).max() > 0.99 * bound
    assert found.mean() == pytest.approx(0, abs=0.05 * bound)
    # Of a uniform distribution.
    assert found.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def _run(**changes):
  config = run_config.defaults()
  overrides = {
    field.name: getattr(_MODEL, field.name)
    for field in dataclasses.fields(_MODEL)
    if field.name not in ('rope_scaling', 'lora')
  }
  config['model']['overrides'] = overrides
  config['data'].update(length=64, batch_tokens=64 * 2, vocabulary_size=96)
  config['optimizer'].update(warmup_steps=0, learning_rate=1e-2, **changes)
  return run_config.resolve(config)


def _two_rows():
  _, packed = _chats()
  return {name: np.concatenate([x, x]) for name, x in packed.items()}


def _update(run, params):
  mesh = meshes.make_mesh(dict(data=1, fsdp=1), jax.devices()[:1])
  step = train_step.make(run, mesh)
  state = train_state.fresh(run, mesh, 0, params)
  before = jax.device_get(state.params)
  batch = train_step.put_batch(_two_rows(), step.batch)
  state, metrics = step.update(state, batch)
  return before, jax.device_get(state.params), jax.device_get(metrics)


def test_there_is_noise_only_where_it_is_asked_for(params):
  quiet, noisy = (
    float(_update(_run(neftune_alpha=alpha), params)[2]['loss'])
    for alpha in (0.0, 5.0)
  )
  want, aux = objectives.next_token(params, _two_rows(), _MODEL)
  assert quiet == pytest.approx(float(want / aux['weight']), rel=1e-5)
  assert noisy != pytest.approx(quiet, rel=1e-4)


@pytest.mark.parametrize('bits', [32, 8])
def test_a_step_moves_adapters_alone_and_as_the_merged_model_says(bits, params):
  config = lora.LoraConfig(rank=4, alpha=8.0, base_bits=bits)
  run = _run(weight_decay=0.0)
  run = dataclasses.replace(
    run,
    model=_MODEL.replace(lora=config),
    optimizer=dataclasses.replace(run.optimizer, trainable='.*/lora_[AB]'),
  )
  before, after, metrics = _update(run, params)
  plain, adapter = lora.detach(before)
  moved_plain, moved = lora.detach(after)
  jax.tree.map(np.testing.assert_array_equal, plain, moved_plain)
  batch = _two_rows()

  def loss(adapter):
    merged = lora.merge(plain, adapter, config)
    total, aux = objectives.next_token(merged, batch, _MODEL)
    return total / aux['weight']

  want, grads = jax.jit(jax.value_and_grad(loss))(adapter)
  assert metrics['loss'] == pytest.approx(float(want), rel=1e-5)
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
  assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-4)
  for (_, b), (_, grad) in zip(
    lora.modules(moved).values(), lora.modules(grads).values(), strict=True
  ):
    # The first step of Adam is the sign of the gradient, at the full rate.
    large = np.abs(grad) > 1e-6
    assert large.any()
    np.testing.assert_allclose(
      b[large], -1e-2 * np.sign(grad[large]), rtol=1e-2
    )


def test_adapters_are_trained_kept_and_taken_out(tiny_run, tmp_path, capsys):
  path = tiny_run('c.train.steps = 2')
  config = app.load_config(str(path))
  base, tuned = str(tmp_path / 'base'), str(tmp_path / 'tuned')
  with faults.StopSignal() as stop:
    assert train.train(config, base, stop) == 0
    config.init_from, config.model.preset = base, 'init_from'
    for name in config.model.overrides:
      if name != 'rope_scaling':
        config.model.overrides[name] = None
    config.lora.rank, config.lora.base_bits = 2, 8
    config.optimizer.update(learning_rate=0.1, neftune_alpha=5.0)
    config.checkpoint.every = 1
    assert train.train(config, tuned, stop) == 0
    model, found, _ = checkpointing.load_params(tuned)
    assert model.lora is None
    config.train.steps = 3  # goes on from the checkpoint with adapters
    assert train.train(config, tuned, stop) == 0
  assert 'continues after step 2' in capsys.readouterr().out
  model, after, _ = checkpointing.load_params(tuned)
  _, lazily, _ = weights.open_checkpoint(tuned)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    jax.tree.map(np.asarray, lazily),
    after,
  )
  # `convert` takes it too: whole, in the type it computes in.
  place = pathlib.Path(tuned)
  source = convert.open_source(place)
  convert.convert(source, place, tmp_path / 'hf', convert.Plan(to='hf'))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    hf.load_pretrained(tmp_path / 'hf', 'float32', scan_layers=False)[1],
    after,
  )
  equal = jax.tree.map(np.array_equal, found, after)
  assert not equal['layers']['0']['mlp']['up_proj']['kernel']
  assert equal['norm']['scale']
  # PEFT's folder, put on the rounded base, is the same model.
  _, plain, _ = checkpointing.load_params(base)
  rounded = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      lora.dequantize(*lora.quantize(x))
      if lora.is_target(
        lora.LoraConfig(targets=config.lora.targets),
        jax.tree_util.keystr(path[:-1], simple=True, separator='/'),
      )
      and path[-1].key == 'kernel'
      else x
    ),
    plain,
  )
  merged = peft.merge_adapter(f'{tuned}/adapter', model, rounded)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    merged,
    after,
  )


def test_a_run_starts_from_a_folder_of_hugging_faces_kind(
  tiny_run, tmp_path, capsys
):
  config = app.load_config(str(tiny_run('c.train.steps = 1')))
  config.optimizer.update(learning_rate=0.0, warmup_steps=0)
  words = prepared.open_vocabulary(config.data)
  model = run_config.resolve(config).model
  params = transformer.init_params(model, jax.random.key(9))
  hf.save_pretrained(model, params, tmp_path / 'hf', words)
  config.init_from = str(tmp_path / 'hf')
  config.model.overrides.rope_theta = 2e4
  with faults.StopSignal() as stop:
    assert train.train(config, str(tmp_path / 'run'), stop) == 0
  assert 'rope_theta was 10000, here it is 20000' in capsys.readouterr().out
  _, found, _ = checkpointing.load_params(str(tmp_path / 'run'))
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(lora__rank=4), 'set init_from'),
    (dict(lora__rank=4, init_from='x', mesh__stage=2), 'do not go together'),
    (dict(lora__rank=-1, init_from='x'), 'rank of LoRA'),
    (
      dict(lora__rank=4, lora__base_bits=8, init_from='x')
      | dict(optimizer__trainable='.*q_proj.*'),
      'lora.base_bits = 8 rounds',
    ),
    (dict(model__preset='init_from'), 'needs init_from'),
    (dict(optimizer__neftune_alpha=-1.0), 'must not be negative'),
  ],
)
def test_what_cannot_be_tuned_is_refused(changes, message):
  config = run_config.defaults()
  for name, value in changes.items():
    section, _, key = name.rpartition('__')
    (config[section] if section else config)[key] = value
  with pytest.raises(ValueError, match=message):
    run_config.resolve(config)
