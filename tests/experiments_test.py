"""Every shipped experiment builds, and its training step lowers from shapes."""

import pathlib

import jax
import pytest

from yi_jax import app
from yi_jax.data import mixtures
from yi_jax.models import config as config_lib
from yi_jax.sharding import mesh as mesh_lib
from yi_jax.training import run_config, train_step

_FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'
_ARGS = {
  'long_context': ('yi_6b', 'yi_34b', 'smollm2'),
  'pretrain': config_lib.preset_names(),
  'sft': ('yi_6b', 'smollm2', 'tiny'),
  'depth_upscale': ('yi_9b', 'smollm2'),
}
_NO_TRAINING = {'curate', 'polish'}  # see curate_test.py, polish_test.py
_RUNS = [
  f'experiments/{path.name}' + (f':{arg}' if arg else '')
  for path in sorted(_FOLDER.glob('*.py'))
  if path.stem not in _NO_TRAINING
  for arg in _ARGS.get(path.stem, [''])
]


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))


@pytest.mark.parametrize('spec', _RUNS)
def test_the_step_of_every_experiment_lowers(spec):
  config = app.load_config(spec)
  run = run_config.resolve(config)
  # The mesh of what is there: the batch is the run's own.
  # An odd number of heads is not cut.
  tensor = 2 - run.model.num_attention_heads % 2
  sizes = dict(fsdp=2, tensor=tensor)
  mesh = mesh_lib.make_mesh(sizes, jax.devices()[: 2 * tensor])
  lowered = train_step.make(run, mesh).lower()
  state, batch = lowered.args_info[0]
  assert batch['tokens'].shape == (run.rows, run.length)
  params = sum(leaf.size for leaf in jax.tree.leaves(_shapes(state.params)))
  if run.model.lora is None:
    assert params == config_lib.num_params(run.model)


def _shapes(tree):
  return jax.tree.map(
    lambda info: jax.ShapeDtypeStruct(info.shape, info.dtype), tree
  )


@pytest.mark.parametrize(
  ('name', 'rate'), [('yi_6b', 3e-4), ('yi_34b', 1.5e-4)]
)
def test_pretraining_has_the_published_hyperparameters(name, rate):
  config = app.load_config(f'experiments/pretrain.py:{name}')
  assert config.optimizer.learning_rate == rate
  assert config.data.length == 4096
  tokens = config.train.steps * config.data.batch_tokens
  assert tokens == pytest.approx(3.1e12, rel=1e-5)


def test_an_unknown_preset_names_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'yi_34b'"):
    app.load_config('experiments/pretrain.py:yi_34')
