"""Places to run: what their commands are told, and what is made of answers."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from yi_jax.sweeping import folder, places

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FLAGS = ['--config=a.py', '--config.seed=1', '--workdir=/w/seed=1']


@pytest.fixture
def commands(tmp_path, monkeypatch):
  """Makes commands of a cluster that log their words and print a file."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')

  def make(name, code=0):
    script = folder / name
    script.write_text(
      f'#!/bin/bash\nprintf "%q " "$@" >>{tmp_path}/{name}.log\n'
      f'echo >>{tmp_path}/{name}.log\npwd >{tmp_path}/{name}.cwd\ncat {tmp_path}/{name}.says\nexit {code}\n'
    )
    script.chmod(0o755)

    def says(text):
      (tmp_path / f'{name}.says').write_text(text)

    return says

  return make


def _logged(tmp_path, name):
  lines = (tmp_path / f'{name}.log').read_text().split('\n')
  return [shlex.split(line) for line in lines if line]


def test_slurm_submits_its_launcher_and_looks_for_its_jobs(tmp_path, commands):
  sbatch, squeue = commands('sbatch'), commands('squeue')
  sbatch('123;cluster\n')
  place = places.Slurm(tmp_path / '50%', {'seed=2': '7'}, ['--nodes=2'])
  assert place.start('seed=1', _FLAGS) == '123'
  assert _logged(tmp_path, 'sbatch') == [
    [
      '--parsable',
      '--job-name=seed=1',
      f'--output={tmp_path}/50%%/seed=1.txt',
      f'--export=ALL,YI_REPOSITORY={_ROOT}',
      '--nodes=2',
      f'{_ROOT}/launch/slurm.sbatch',
      *_FLAGS,
    ]
  ]
  squeue('7\n123\n4567\n')
  assert place.running() == {'seed=1', 'seed=2'}
  squeue('7\n')
  assert place.running() == {'seed=2'}


def test_of_a_job_that_was_tried_before_only_the_last_try_counts(
  tmp_path, commands
):
  commands('sbatch')('5')
  log = tmp_path / 'seed=1.txt'
  log.write_text('error: of yesterday\n')
  place = places.Slurm(tmp_path, {})
  place.start('seed=1', _FLAGS)
  assert place.reason('seed=1') == f'see {log}'
  log.write_text('error: of yesterday\n0: loss\nerror: of today\n\nbye\n')
  assert place.reason('seed=1') == 'error: of today'


def test_skypilot_gets_the_flags_as_one_variable(tmp_path, commands):
  sky = commands('sky')
  sky('')
  place = places.SkyPilot({'seed=2': 'yi-old'}, ['--gpus=H100:8'])
  flags = [*_FLAGS, '--config.data.stages=((1, {"a b": 2}),)']
  job = place.start('seed=1', flags)
  [words] = _logged(tmp_path, 'sky')
  assert words[:5] == [
    'jobs',
    'launch',
    '--yes',
    '--detach-run',
    f'--name={job}',
  ]
  assert words[-2:] == ['--gpus=H100:8', f'{_ROOT}/launch/skypilot.yaml']
  assert (tmp_path / 'sky.cwd').read_text().strip() == str(_ROOT)
  variables = dict(
    word.split('=', 1) for word in words if word.startswith('YI_')
  )
  assert variables['YI_CONFIG'] == 'a.py'
  assert variables['YI_WORKDIR'] == '/w/seed=1'
  assert shlex.split(variables['YI_FLAGS']) == [flags[1], flags[3]]
  sky(f'[{{"job_name": "{job}", "status": "RUNNING"}}]')
  assert place.running() == {'seed=1'}
  assert job in place.reason('seed=1')


def test_a_cluster_that_refuses_or_is_not_there_is_an_error(
  tmp_path, commands, monkeypatch
):
  commands('sbatch', code=1)('Batch job submission failed: no such partition')
  with pytest.raises(OSError, match='sbatch --parsable .*no such partition'):
    places.Slurm(tmp_path, {}).start('seed=1', _FLAGS)
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(OSError, match="no command 'sbatch'"):
    places.Slurm(tmp_path, {}).start('seed=1', _FLAGS)


@pytest.fixture
def fake_python(tmp_path, monkeypatch):
  """Stands in for Python: tells its GPUs and ends as its seed says."""
  script = tmp_path / 'python'
  script.write_text(
    '#!/bin/bash\necho "gpus=$CUDA_VISIBLE_DEVICES"\n'
    'case "$*" in *seed=1*) echo "error: too bad"; exit 3 ;;\n'
    '*seed=2*) kill -9 $$ ;; *seed=3*) sleep 60 & wait ;; esac\n'
  )
  script.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(script))


def _join(place):
  while place.running():
    time.sleep(0.01)


def test_local_runs_tell_why_they_ended(tmp_path, fake_python):
  place = places.Local(tmp_path, at_once=2)
  place.start('a', ['--config.seed=1'])
  place.start('b', ['--config.seed=2'])
  _join(place)
  assert place.reason('a') == 'error: too bad'
  assert place.reason('b') == 'killed by SIGKILL'


def test_each_local_run_has_gpus_of_its_own(tmp_path, fake_python, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
  place = places.Local(tmp_path, at_once=2, gpus=2)
  place.start('a', ['--config.seed=3'])
  place.start('b', ['--config.seed=1'])
  while place.running() != {'a'}:
    time.sleep(0.01)
  place.start('c', ['--config.seed=1'])  # where b was
  while place.running() != {'a'}:
    time.sleep(0.01)
  while 'gpus' not in (tmp_path / 'a.txt').read_text():
    time.sleep(0.01)
  place.stop()
  text = {name: (tmp_path / f'{name}.txt').read_text() for name in 'abc'}
  assert text['a'].startswith('gpus=4,5\n')
  assert text['b'].startswith('gpus=6,7\n')
  assert text['c'].startswith('gpus=6,7\n')
  with pytest.raises(ValueError, match='3 runs of 2 GPUs need 6'):
    places.Local(tmp_path, at_once=3, gpus=2)


def test_a_local_run_that_outlives_its_sweep_keeps_the_lock(
  tmp_path, fake_python
):
  real = os.path.realpath(f'/proc/{os.getpid()}/exe')
  code = (
    'import os, sys\n'
    'from yi_jax.sweeping import folder, places\n'
    f'sys.executable = {sys.executable!r}\n'
    f'sweep = folder.Folder({str(tmp_path)!r})\n'
    'with sweep.locked() as lock:\n'
    '  place = places.Local(sweep.logs, lock=lock)\n'
    '  print(place.start("a", ["--config.seed=3"]), flush=True)\n'
    '  os._exit(1)\n'
  )
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run(
    [real, '-c', code], stdout=subprocess.PIPE, text=True, env=environment
  )
  sweep = folder.Folder(str(tmp_path))
  try:
    with pytest.raises(BlockingIOError, match='left behind'), sweep.locked():
      pass
  finally:
    os.killpg(int(done.stdout), signal.SIGKILL)


def test_the_last_error_is_found_in_a_log(tmp_path):
  log = tmp_path / 'log'
  assert places.last_error(log) == ''
  log.write_text('Traceback\n  File\nKeyError: 1\n\n')
  assert places.last_error(log) == 'KeyError: 1'
  log.write_text('error: one\nstep\nerror: two\nbye\n')
  assert places.last_error(log) == 'error: two'
  assert places.last_error(
    log, begins=len('error: one\nstep\nerror: two\n')
  ) == ('bye')
