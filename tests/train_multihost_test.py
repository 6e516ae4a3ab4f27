"""Two processes of two devices each train as one process of four does."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from yi_jax import train
from yi_jax.training import faults, metrics

_NOTHING = {'step': 0, 'starts': 0}


@pytest.fixture
def config_file(tiny_run):
  """Returns a config whose rows are made."""
  return tiny_run(
    'c.optimizer.learning_rate = 1e-2',
    'c.train.steps = 40',
    'c.checkpoint.every = 10',
    'c.checkpoint.keep = 9',
    'c.mesh.data = 2',
    # After step 16 a batch is twice as large, whoever computes it.
    'c.data.batch_growth.window = 8',
    'c.data.batch_growth.least_gain = 0.9',
    'c.data.batch_growth.most_tokens = 256',
  )


def _config(path):
  scope = {}
  exec(path.read_text(), scope)
  return scope['get_config']()


def _environment(programs=''):
  return {
    **os.environ,
    'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=4', 'count=2'),
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def _start(port, config_file, workdir, *changes):
  """Starts both processes of a run as users do."""
  verb = [sys.executable, '-m', 'yi_jax.train']
  command = [*verb, f'--config={config_file}', f'--workdir={workdir}', *changes]
  places = [
    {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': '0',
    },
    {},
  ]
  by_flags = [f'--coordinator=localhost:{port}', '--processes=2', '--process=1']
  return [
    subprocess.Popen(
      [*command, *(by_flags if index else [])],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**_environment(), **places[index]},
    )
    for index in range(2)
  ]


def _train(config_file, workdir):
  with faults.StopSignal() as stop:
    train.train(_config(config_file), str(workdir), stop)
  return metrics.read(workdir / 'metrics.jsonl')


def test_two_processes_continue_a_run_over_context_and_one_continues_theirs(
  config_file, tmp_path, free_port
):
  want = _train(config_file, tmp_path / 'one')
  assert want[-1]['loss'] < want[0]['loss'] - 1
  workdir = tmp_path / 'two'
  first = 'checkpoints/10'
  shutil.copytree(tmp_path / 'one' / first, workdir / first)
  log = workdir / 'metrics.jsonl'
  # Each process has a half of every row.
  over = ['--config.mesh.data=1', '--config.mesh.context=4']
  processes = _start(free_port, config_file, workdir, *over)
  try:
    while not log.exists() or not metrics.read(log):
      assert processes[0].poll() is None, processes[0].communicate()[0]
      time.sleep(0.002)
    processes[1].send_signal(signal.SIGTERM)  # both shall stop
    said = [process.communicate(timeout=240)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said
  assert 'continues after step 10' in said[0]
  assert 'stopped by a signal' in said[0]
  assert len(metrics.read(log)) < 30

  got = _train(config_file, workdir)
  assert [line['step'] for line in got] == list(range(11, 41))
  for line, other in zip(got, want[10:], strict=True):
    assert line['loss'] == pytest.approx(other['loss'], abs=1e-5)


def _wait_for(condition, process):
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)


def _goodput(workdir):
  path = workdir / 'goodput.json'
  return json.loads(path.read_text()) if path.exists() else _NOTHING


def _children(process):
  """Returns the ids of a process's children, in the order they were started."""
  path = f'/proc/{process.pid}/task/{process.pid}/children'
  return [int(number) for number in pathlib.Path(path).read_text().split()]


def _rows(workdir):
  """Returns step -> row ids that all processes read for it."""
  found = collections.defaultdict(list)
  for path in (workdir / 'rows').iterdir():
    for line in metrics.read(path):
      found[line['step']] += line['row_id']
  return {step: sorted(rows) for step, rows in found.items()}


def test_a_process_is_killed_and_the_run_goes_on_with_one_and_two_again(
  config_file, tmp_path
):
  config = _config(config_file)
  config.train.log_rows = True
  with faults.StopSignal() as stop:
    train.train(config, str(tmp_path / 'undisturbed'), stop)
  want = metrics.read(tmp_path / 'undisturbed/metrics.jsonl')

  workdir, count = tmp_path / 'run', tmp_path / 'count'
  count.write_text('2')
  supervise = pathlib.Path(__file__).parents[1] / 'launch/supervise.py'
  arguments = [
    f'--config={config_file}',
    f'--workdir={workdir}',
    '--config.train.log_rows=True',
    '--config.checkpoint.every=10',
    '--config.checkpoint.local_every=1',
    f'--config.checkpoint.local_folder={tmp_path}/local',
  ]
  process = subprocess.Popen(
    [
      *(sys.executable, supervise, f'--processes=@{count}', '--backoff=1'),
      *('--', sys.executable, '-m', 'yi_jax.train', *arguments),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=_environment(tmp_path / 'programs'),
  )
  try:
    _wait_for(lambda: _goodput(workdir)['step'] >= 6, process)
    os.kill(_children(process)[1], signal.SIGKILL)
    count.write_text('1')
    _wait_for(lambda: _goodput(workdir)['starts'] >= 2, process)
    first = _goodput(workdir)['step']
    _wait_for(lambda: _goodput(workdir)['step'] >= first + 3, process)
    count.write_text('2')
    said = process.communicate(timeout=240)[0]
  finally:
    for child in _children(process) if process.poll() is None else []:
      os.kill(child, signal.SIGKILL)
    process.kill()
  assert process.returncode == 0, said
  starts = [line for line in said.split('\n') if 'supervise: start' in line]
  assert [line.split(', ')[1] for line in starts][-3:] == [
    '2 processes',
    '1 process',
    '2 processes',
  ], said
  assert 'process 1 of 2 on' in said

  got = metrics.read(workdir / 'metrics.jsonl')
  assert [line['step'] for line in got] == [line['step'] for line in want]
  for line, other in zip(got, want, strict=True):
    assert line['loss'] == pytest.approx(other['loss'], abs=1e-5)
  assert _rows(workdir) == _rows(tmp_path / 'undisturbed')
  assert [line['batch_tokens'] for line in got] == [128] * 16 + [256] * 24
  report = json.loads((workdir / 'report.json').read_text())
  assert report['goodput']['starts'] >= 3
