"""Every strategy computes what one device does, and stores what it says."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.sharding import collectives, report, ring, rules
from yi_jax.sharding import mesh as meshes
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

_ROWS, _LENGTH, _WORDS = 8, 30, 96


@dataclasses.dataclass(frozen=True)
class _Case:
  strategy: str
  sizes: tuple[tuple[str, int], ...]
  heads: tuple[int, int] = (3, 1)
  tied: bool = False

  @property
  def mesh(self):
    sizes = dict(self.sizes)
    count = math.prod(sizes.values())
    return meshes.make_mesh(
      {**sizes, 'strategy': self.strategy}, jax.devices()[:count]
    )

  @property
  def run(self):
    config = run_config.defaults()
    config['model']['overrides'] |= dict(
      vocab_size=_WORDS,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=2,
      num_attention_heads=self.heads[0],
      num_key_value_heads=self.heads[1],
      head_dim=8,
      scan_layers=True,
      tie_word_embeddings=self.tied,
    )
    config['data'] |= dict(
      length=_LENGTH, batch_tokens=_ROWS * _LENGTH, vocabulary_size=_WORDS
    )
    # A large eps: else the first update is little more than a sign.
    config['optimizer'] |= dict(eps=1e-2, warmup_steps=0, learning_rate=0.1)
    stages = dict(self.sizes).get('stage', 1)
    config['mesh'] |= dict(strategy=self.strategy, microbatches=stages)
    return run_config.resolve(config)


def _case(strategy, sizes, heads=(3, 1), tied=False):
  return _Case(strategy, tuple(sizes.items()), heads, tied)


# Odd head counts and matrices of their own for input and output; then, where
# heads are cut, even ones and one matrix for both.
_CASES = [
  _case('zero1', dict(data=4)),
  _case('zero1', dict(data=2, tensor=2), heads=(4, 2), tied=True),
  _case('fsdp', dict(fsdp=4)),
  _case('fsdp_tensor', dict(fsdp=2, tensor=2), heads=(4, 2), tied=True),
  # Rows of 30 tokens, padded to 32.
  _case('context', dict(context=4)),
  _case('context', dict(context=2, tensor=2), heads=(4, 2), tied=True),
  # Rows cut along their length go through stages as well.
  _case('pipeline', dict(context=2, stage=2)),
]
_each = pytest.mark.parametrize('case', _CASES, ids=str)


@functools.cache
def _rows():
  """Packed rows: segments of uneven lengths, padding, weights of all sizes."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, _WORDS, (_ROWS, _LENGTH + 1))
  place = np.arange(_LENGTH)
  second = place >= rng.integers(3, 20, (_ROWS, 1))
  padding = place >= rng.integers(22, 32, (_ROWS, 1))
  starts = np.where(second, second.argmax(axis=1, keepdims=True), 0)
  segments = np.where(padding, 0, 1 + second)
  return dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=segments,
    positions=place - starts,
    loss_weights=rng.random(segments.shape) * ~padding,
  )


@functools.cache
def _one_update(case):
  """Returns the compiled step, and what one update makes."""
  run, mesh = case.run, case.mesh
  step = train_step.make(run, mesh)
  update = step.lower().compile()
  state, metrics = update(
    train_state.fresh(run, mesh, 0), train_step.put_batch(_rows(), step.batch)
  )
  return update, state, jax.device_get(metrics)


@_each
def test_loss_gradients_and_update_are_those_of_one_device(case):
  alone = dataclasses.replace(case, strategy='auto', sizes=(('fsdp', 1),))
  _, want, want_metrics = _one_update(alone)
  _, got, got_metrics = _one_update(case)
  for name in ('loss', 'grad_norm', 'weight'):
    assert got_metrics[name] == pytest.approx(want_metrics[name], rel=1e-5)
  # The first moment after one update is a tenth of the gradient.
  gradients = want.opt_state.mu, got.opt_state.mu
  for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
    assert np.abs(a).max() > 1e-5
    np.testing.assert_allclose(a * 10, b * 10, atol=1e-5)
  for a, b in zip(
    *map(jax.tree.leaves, (want.params, got.params)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


@_each
def test_a_device_stores_what_the_report_says(case):
  update, state, _ = _one_update(case)
  found = rules.strategy(case.strategy, case.mesh.shape)
  params, moments = (
    sum(one.bytes for one in report.parameters(case.run.model, case.mesh, t))
    for t in (found.rules, found.moments)
  )
  assert _on_one_device(state.params) == params
  assert _on_one_device(state.opt_state.mu) == moments
  assert _on_one_device(state.opt_state.nu) == moments
  # And the program takes no more than that, and its rows.
  length = ring.padded(_LENGTH, case.mesh.shape['context'])
  over = ('data', 'fsdp', 'context', 'stage')
  cut = math.prod(case.mesh.shape[axis] for axis in over)
  want = params + 2 * moments + 5 * 4 * _ROWS * length / cut
  memory = update.memory_analysis()
  assert memory.argument_size_in_bytes == pytest.approx(want, rel=0.01)


def _on_one_device(tree):
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )


def test_zero1_updates_a_share_and_puts_the_parameters_together_again():
  case = _CASES[0]
  update, state, _ = _one_update(case)
  matrices = [x for x in jax.tree.leaves(state.params) if x.size > 100]
  sizes = sum(x.nbytes for x in matrices)
  assert all(x.sharding.is_fully_replicated for x in matrices)
  sent = {
    one.kind: one.bytes
    for one in collectives.collectives(update.as_text(), case.mesh)
  }
  assert sent['all-gather'] == pytest.approx(sizes * 3 / 4, rel=0.01)


@pytest.mark.parametrize('name', rules.STRATEGIES)
def test_no_table_cuts_two_dimensions_of_an_array_over_the_same_devices(name):
  # Devices of every axis at once, more than there are here.
  mesh = AbstractMesh((2,) * len(meshes.AXES), meshes.AXES)
  found = rules.STRATEGIES[name]
  config = config_lib.get_preset('yi_6b')
  seen = set()

  def note(x, axes):
    seen.add((axes, x.shape))
    return x

  shapes = transformer.abstract_params(config)
  jax.eval_shape(
    lambda p, t: transformer.Transformer(config).apply(
      {'params': p}, t, constrain=note
    ),
    shapes,
    jax.ShapeDtypeStruct((64, 64), 'int32'),
  )
  assert len(seen) > 5
  for axes, shape in seen:
    rules.spec(mesh, axes, shape, found.rules)
  for table in (found.rules, found.moments):
    rules.shardings(mesh, transformer.param_axes(config), shapes, table)


def test_tensor_parallel_norms_see_a_part_of_the_length():
  mesh = meshes.make_mesh(dict(context=2, tensor=2))
  axes = ('activation_batch', 'activation_norm_length', 'activation_embed')
  cut = rules.spec(mesh, axes, (4, 32, 8), rules.CONTEXT)
  assert cut[1] == ('context', 'tensor')
  # 30 tokens: the second cut does not divide, the first does.
  assert rules.spec(mesh, axes, (4, 30, 8), rules.CONTEXT)[1] == 'context'


def test_rows_cut_along_their_length_are_padded_and_dealt_out():
  case = _CASES[4]
  batch = train_step.abstract_batch(case.run, case.mesh)
  put = train_step.put_batch(_rows(), batch)
  tokens = np.pad(_rows()['tokens'], ((0, 0), (0, 2)))
  first = put['tokens'].addressable_shards[0].data
  want = np.concatenate([tokens[:, :4], tokens[:, 28:]], axis=1)
  np.testing.assert_array_equal(first, want)
  assert put['loss_weights'].sum() == pytest.approx(
    _rows()['loss_weights'].sum(), rel=1e-6
  )
