"""The verb: flags, tables, and one line for bad input."""

import json

import pytest

from yi_jax import app, plan
from yi_jax.planning import compiling, topologies

_TINY = '--config=experiments/pretrain.py:tiny'


def _plan(*arguments, config=True):
  return app.run(
    plan.main, plan.FLAGS, example='', needs_config=config, argv=[*arguments]
  )


@pytest.fixture
def jobs(monkeypatch):
  """What was compiled, by a compiler that finds 10 GiB in everything."""
  seen = []

  def compiled(job, fresh=False):
    seen.append(job)
    return compiling.Measured(
      arguments=10 * topologies.GIB,
      needed=10 * topologies.GIB,
      collectives=(('all-gather', ('fsdp',), 3, 2 * 10**9),),
      bandwidths={'fsdp': 1e11},
    )

  monkeypatch.setattr(compiling, 'compile_job', compiled)
  return seen


def test_both_steps_are_planned_on_the_mesh_of_the_run(jobs, capsys):
  assert _plan(_TINY, '--topology=v5p:2x2x1', '--config.mesh.tensor=2') == 0
  assert [job.kind for job in jobs] == ['train', 'decode']
  for job in jobs:
    assert (job.sizes['fsdp'], job.sizes['tensor']) == (2, 2)
  out = capsys.readouterr().out
  assert 'training step, v5p:2x2x1, fsdp 2 x tensor 2' in out
  assert '10.00 GiB  10% of 95.74 GiB: fits' in out
  assert 'all-gather over fsdp' in out
  # 2 GB over 100 GB/s.
  assert '20.00 ms' in out


def test_of_several_lengths_the_longest_rows_are_planned(jobs):
  changes = [
    '--config.data.length=64',
    '--config.data.lengths=((4096, 256), (8192, 128))',
  ]
  assert _plan(_TINY, '--topology=v5e:2x2', '--nodecode', *changes) == 0
  assert jobs[0].run.length == 256


def test_json_is_one_line(jobs, capsys):
  assert _plan(_TINY, '--topology=v5e:2x2', '--json', '--nodecode') == 0
  out = capsys.readouterr().out
  assert out.count('\n') == 1
  values = json.loads(out)['train']
  assert values['fits']
  assert values['devices'] == 4
  assert values['seconds_links'] == {'fsdp': 0.02}


def test_a_step_that_does_not_fit_exits_with_one(jobs, capsys, monkeypatch):
  del jobs
  large = compiling.Measured(needed=20 * topologies.GIB)
  monkeypatch.setattr(compiling, 'compile_job', lambda job: large)
  assert _plan(_TINY, '--topology=v5e:2x2', '--nodecode') == 1
  out = capsys.readouterr().out
  assert 'DOES NOT FIT' in out
  assert '--config.model.overrides.remat=full' in out


def test_a_search_ranks_layouts(jobs, capsys):
  assert _plan(_TINY, '--topology=v5e:2x2', '--search', '--compiles=3') == 0
  assert len(jobs) == 3
  assert capsys.readouterr().out.count('--config.mesh.fsdp=') == 3


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([_TINY], 'give --topology; there are:'),
    ([_TINY, '--topology=v9:4x4'], 'v5p: 2x2x1, 2x2x2'),
    (
      [_TINY, '--topology=v5e:2x2', '--config.mesh.tensor=3'],
      'a multiple of 3 devices; there are 4',
    ),
    ([_TINY, '--topology=v5e:2x2', '--config.mesh.tensr=3'], "mean 'tensor'"),
  ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
  assert _plan(*arguments) == app.BAD_INPUT
  error = capsys.readouterr().err
  assert message in error
  assert 'Traceback' not in error
