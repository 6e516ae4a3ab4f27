"""Real steps, compiled for machines that are not there."""

import dataclasses
import importlib.util
import os
import pathlib

import pytest

from yi_jax.planning import compiling, report, roofline, search, topologies
from yi_jax.training import run_config

_SIZES = dict(data=1, fsdp=2, tensor=2)
_ALL_SIZES = dict(data=1, fsdp=2, context=1, tensor=2, expert=1, stage=1)


@pytest.fixture(autouse=True, scope='module')
def _cache(tmp_path_factory):
  """Results are kept for the tests of this file, not beyond."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture
def libtpu():
  """The TPU compiler; with YI_REQUIRE_PEER it must be there."""
  if importlib.util.find_spec('libtpu') is None:
    if os.environ.get('YI_REQUIRE_PEER'):
      pytest.fail('no libtpu; run: pip install -r requirements-tpu.txt')
    pytest.skip('no libtpu to compile with')


def _run(**changes):
  config = run_config.defaults()
  config['model']['overrides'] = dict(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=128,
    dtype='bfloat16',
    scan_layers=True,
    remat='full',
  )
  config['data'] |= dict(length=128, batch_tokens=1024, vocabulary_size=512)
  return dataclasses.replace(run_config.resolve(config), **changes)


def test_the_training_step_compiles_for_a_tpu(libtpu):
  topology = topologies.parse('v5p:2x2x1')
  layout = search.Layout(_run(), topology, _ALL_SIZES)
  measured = compiling.compile_job(layout.job)
  assert search.fits(measured, topology)
  # Exact but for the tiles of small arrays.
  formula = roofline.memory(layout.run, _SIZES).arguments
  assert formula <= measured.arguments < 1.5 * formula
  assert measured.aliased > 0.9 * measured.arguments
  assert measured.temporaries > 0
  # Weights are gathered over fsdp, the stream is summed over tensor.
  kinds = {(kind, axes) for kind, axes, _, _ in measured.collectives}
  assert ('all-gather', ('fsdp',)) in kinds
  assert {axes for _, axes in kinds} >= {('fsdp',), ('tensor',)}
  # 2 x 2 chips without closed rings: one link a direction for each axis.
  assert measured.bandwidths['fsdp'] == measured.bandwidths['tensor'] == 1e11

  plan = report.train(layout, measured)
  assert plan.values['fits']
  assert not plan.values['estimate']
  assert plan.values['seconds_apart'] > plan.values['seconds_overlapped'] > 0
  assert 'v5p:2x2x1, fsdp 2 x tensor 2' in report.as_text([plan])


def test_the_decoding_step_compiles_for_a_tpu(libtpu):
  job = compiling.Job('decode', _run(), 'v5p:2x2x1', _ALL_SIZES, rows=4)
  measured = compiling.compile_job(job)
  params = 2 * roofline.model_config.num_params(job.run.model) / 4
  cache = 2 * 2 * 4 * 128 * 2 * 128 * 2 / 4  # layers, k and v, rows, ...
  assert measured.arguments == pytest.approx(params + cache, rel=0.05)
  assert measured.aliased == pytest.approx(cache, rel=0.05)
  plan = report.decode(job, measured)
  assert plan.values['tokens_per_second_overlapped'] > 0


def test_gpus_are_estimated_and_results_are_kept(monkeypatch):
  layout = search.Layout(_run(), topologies.parse('h100:1x4'), _ALL_SIZES)
  measured = compiling.compile_job(layout.job)
  # No tiles on CPU: the formula is exact.
  assert measured.arguments == roofline.memory(layout.run, _SIZES).arguments
  plan = report.train(layout, measured)
  assert plan.values['estimate']
  assert 'an estimate' in report.as_text([plan])

  def fail(*_, **__):
    raise RuntimeError('compiled again')

  # Importing jax runs processes too, so that only this module's are refused.
  monkeypatch.setattr(compiling, '_in_process', fail)
  assert compiling.compile_job(layout.job) == measured
  # Another program is another result.
  other = dataclasses.replace(layout.job, sizes={**_ALL_SIZES, 'fsdp': 4})
  with pytest.raises(RuntimeError, match='compiled again'):
    compiling.compile_job(other)


def test_what_the_step_refuses_is_one_error():
  job = compiling.Job('train', _run(rows=9), 'h100:1x4', _ALL_SIZES)
  with pytest.raises(ValueError, match='9 rows'):
    compiling.compile_job(job)


def test_without_libtpu_the_cure_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  job = compiling.Job('train', _run(), 'v5p:2x2x1', _ALL_SIZES)
  with pytest.raises(ValueError, match='pip install -r requirements-tpu.txt'):
    compiling.compile_job(job)
  requirements = pathlib.Path(__file__).parents[2] / 'requirements-tpu.txt'
  assert 'jax[tpu]==' in requirements.read_text()


def test_a_refusal_of_the_compiler_does_not_fit():
  topology = topologies.parse('v5e:2x2')
  layout = search.Layout(_run(), topology, _ALL_SIZES)
  needed = 20 * topologies.GIB
  refused = compiling.Measured(needed=needed, fits=False)
  plan = report.train(layout, refused)
  assert not plan.values['fits']
  assert 'the compiler gave up' in report.as_text([plan])
  large = compiling.Measured(temporaries=needed, needed=needed)
  assert not search.fits(large, topology)
  assert search.fits(large, topologies.parse('v4:2x2x1'))
