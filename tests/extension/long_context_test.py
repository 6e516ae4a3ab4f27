"""The recipe of a longer context: what is published, and what is refused."""

import pytest

from yi_jax import app
from yi_jax.data import mixtures, prepared
from yi_jax.extension import rope_base
from yi_jax.training import run_config

_FILE = 'experiments/long_context.py'


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))


@pytest.mark.parametrize(('name', 'theta'), [('yi_6b', 5e6), ('yi_34b', 1e7)])
def test_yi_has_the_published_recipe(name, theta):
  config = app.load_config(f'{_FILE}:{name}')
  run = run_config.resolve(config)
  assert run.model.rope_theta == theta
  assert run.model.max_position_embeddings == run.length == 200_000
  assert run.rows * run.length == 4_000_000
  assert run.steps == 1_250
  assert config.mesh.context > 1
  # Rows of a piece are shared out among those who read them.
  rows = run.rows // config.optimizer.accumulate_steps
  assert rows % (config.mesh.data * config.mesh.fsdp) == 0
  rates = prepared.stages(config.data)[0][1]
  assert sum(rates.values()) == pytest.approx(1)
  assert set(config.data.long.tasks) < set(rates)


def test_smollm2_gets_the_base_of_the_rule_and_rows_of_two_lengths():
  config = app.load_config(f'{_FILE}:smollm2')
  run = run_config.resolve(config)
  assert run.model.rope_theta == rope_base.raised_base(1e5, 64, 8_192, 16_384)
  assert [length for _, length in run.lengths] == [4_096, 16_384]
  # The last steps are long ones.
  assert run.lengths[1][0] < run.steps * config.data.batch_tokens
  longer = run_config.resolve(app.load_config(f'{_FILE}:smollm2:32768'))
  assert longer.model.rope_theta > run.model.rope_theta
  assert longer.model.max_position_embeddings == 32_768


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('smollm2:8192', 'no more than the 8,192 that the model was trained for'),
    ('smollm2:long', 'smollm2:LENGTH'),
    ('yi_6b:100000', 'no variant'),
    ('yi_9b', 'no variant'),
  ],
)
def test_other_targets_are_refused(arg, message):
  with pytest.raises(ValueError, match=message):
    app.load_config(f'{_FILE}:{arg}')
