"""What a resumed run may change."""

import pytest

from yi_jax.training import run_config, run_identity


def _identity(config):
  return run_identity.identity(config, run_config.resolve(config))


def test_a_run_may_go_on_further_elsewhere_and_with_a_larger_batch(config_with):
  saved = _identity(run_config.defaults())
  now = _identity(
    config_with(
      train__steps=2000,
      train__log_every=1,
      mesh__fsdp=4,
      data__root='/elsewhere',
      data__batch_tokens=8192,
      optimizer__accumulate_steps=2,
      model__overrides__remat='full',
    )
  )
  changed = run_identity.refuse_other_run(saved, now, 0)
  assert 'data.batch_tokens changed: 4096 -> 8192' in changed
  assert len(changed) == 7


@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'wsd'])
def test_that_other_steps_mean_another_learning_rate_is_said(
  config_with, schedule
):
  saved = _identity(config_with(optimizer__schedule=schedule))
  now = _identity(config_with(optimizer__schedule=schedule, train__steps=2000))
  (line,) = run_identity.refuse_other_run(saved, now, 0)
  assert line.startswith('train.steps changed: 1000 -> 2000')
  assert (f'The {schedule} schedule ends there' in line) == (
    schedule != 'constant'
  )


@pytest.mark.parametrize(
  ('changes', 'key'),
  [
    ({'seed': 1}, 'seed'),
    ({'data__length': 256}, 'data.length'),
    ({'data__mixture': 'other'}, 'data.mixture'),
    ({'data__rates': {'a': 1.0}}, 'data.rates'),
    ({'optimizer__learning_rate': 1e-4}, 'optimizer.learning_rate'),
    ({'model__overrides__rope_theta': 1e6}, 'model.rope_theta'),
    ({'model__overrides__scan_layers': True}, 'model.scan_layers'),
  ],
)
def test_what_makes_another_run_is_refused_by_name(config_with, changes, key):
  saved = _identity(run_config.defaults())
  with pytest.raises(ValueError, match=f'another run, with {key} = '):
    run_identity.refuse_other_run(saved, _identity(config_with(**changes)), 0)


def test_the_same_model_named_otherwise_is_the_same_run(config_with):
  saved = _identity(run_config.defaults())
  now = _identity(config_with(model__overrides__num_hidden_layers=4))
  assert run_identity.refuse_other_run(saved, now, 0) == []


def test_only_stages_that_have_not_begun_may_change(config_with):
  saved = _identity(
    config_with(data__stages=((1000, {'a': 1.0}), (5000, {'b': 1})))
  )
  now = _identity(
    config_with(data__stages=((1000, {'a': 1.0}), (6000, {'a': 2})))
  )
  (line,) = run_identity.refuse_other_run(saved, now, 5000)
  assert line.startswith('data.stages changed: ')
  with pytest.raises(ValueError, match='another run, with data.stages = '):
    run_identity.refuse_other_run(saved, now, 5001)


def test_a_task_that_was_added_to_the_table_does_not_make_another_run(
  config_with,
):
  saved = _identity(config_with(data__rates={'a': 1.0, 'b': None}))
  now = _identity(config_with(data__rates={'a': 1.0, 'b': None, 'c': None}))
  assert run_identity.refuse_other_run(saved, now, 0) == []
