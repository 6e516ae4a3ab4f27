"""The layouts of rows of 200,000 tokens are those of the experiment, and fit."""

import math

import pytest

from yi_jax import app
from yi_jax.data import mixtures
from yi_jax.planning import fits, report
from yi_jax.training import run_config


@pytest.mark.parametrize('preset', ['yi_6b_200k', 'yi_34b_200k'])
def test_long_rows_fit_by_formula_and_their_ring_is_as_fast_as_dense(
  preset, monkeypatch
):
  layout = fits.long_layouts()[preset]
  topology, run = layout.topology, layout.run
  assert math.prod(layout.sizes.values()) == topology.num_devices
  assert (run.rows, run.length) == (20, 200_000)
  memory, _ = layout.expected()
  assert memory.total < 0.9 * topology.chip.hbm
  assert layout.ring().share >= 0.85

  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  name = preset.removesuffix('_200k')
  config = app.load_config(f'experiments/long_context.py:{name}')
  assert report.mesh_sizes(config, topology) == layout.sizes
  same = run_config.resolve(config)
  assert same.model == run.model
  assert same.optimizer.accumulate_steps == run.optimizer.accumulate_steps
