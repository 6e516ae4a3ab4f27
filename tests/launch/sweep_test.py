"""launch/sweep.py on real runs: stopped, continued, failing, compared."""

import csv
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import pytest

from yi_jax import app
from yi_jax.sweeping import places
from yi_jax.training import metrics

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPT = _ROOT / 'launch/sweep.py'
_GRID = '--grid=optimizer.learning_rate=1e-2,1e-3'
_BOTH = ('learning_rate=0.01', 'learning_rate=0.001')


@pytest.fixture
def config_file(tiny_run):
  """Returns a config whose rows are made."""
  return tiny_run(
    'c.train.steps = 300',
    'c.checkpoint.every = 1000',
  )


@pytest.fixture
def environment(tmp_path, monkeypatch):
  """One device a run, and programs that only the first has to compile."""
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'programs'))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _here(*arguments):
  """Runs the sweep in this process and returns its exit code."""
  spec = importlib.util.spec_from_file_location('sweep', _SCRIPT)
  module = importlib.util.module_from_spec(spec)
  sys.modules['sweep'] = module
  spec.loader.exec_module(module)
  before, sys.argv = sys.argv, [str(_SCRIPT), *arguments]
  try:
    return app.run(module.main, module.FLAGS, example='--config=x.py')
  finally:
    sys.argv = before
    del sys.modules['sweep']


def test_a_sweep_is_stopped_continued_and_extended(
  config_file, environment, tmp_path, capfd, monkeypatch
):
  workdir = tmp_path / 'sweep'
  common = (f'--config={config_file}', f'--workdir={workdir}')
  log = workdir / _BOTH[0] / 'metrics.jsonl'
  sweep = subprocess.Popen(
    [sys.executable, _SCRIPT, *common, _GRID],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    while not log.exists() or len(metrics.read(log)) < 3:
      assert sweep.poll() is None, sweep.communicate()[0]
      time.sleep(0.002)
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate(timeout=240)[0]
  finally:
    sweep.kill()
  assert sweep.returncode == app.INTERRUPTED, said
  assert '1 running save and leave' in said
  saved = len(metrics.read(log))
  assert 3 <= saved < 300
  assert not (workdir / _BOTH[1]).exists()

  # Both of the grid, and one whose weights are nowhere.
  listed = tmp_path / 'points.jsonl'
  lost = {'optimizer.learning_rate': 1e-2, 'init_from': str(tmp_path / 'lost')}
  points = [{'optimizer.learning_rate': rate} for rate in (1e-2, 1e-3)]
  listed.write_text('\n'.join(map(json.dumps, [*points, lost])))
  assert _here(*common, f'--list={listed}', '--at_once=2') == 1
  said, errors = capfd.readouterr()
  assert '1 of 3 points are new' in said
  assert f'best: {_BOTH[0]} with bits_per_byte' in said
  [third] = [p.name for p in workdir.glob('*init_from*')]
  assert f'error: {third} did not finish: error: ' in errors
  assert str(tmp_path / 'lost') in errors
  text = (workdir / 'logs' / f'{_BOTH[0]}.txt').read_text()
  assert f'continues after step {saved}' in text
  steps = [line['step'] for line in metrics.read(log)]
  assert steps == list(range(1, 301))

  with open(workdir / 'results.csv') as file:
    rows = {row['run']: row for row in csv.DictReader(file)}
  assert list(rows) == [*_BOTH, third]
  reports = [
    json.loads((workdir / name / 'report.json').read_text()) for name in _BOTH
  ]
  for name, report in zip(_BOTH, reports, strict=True):
    bits = report['bits_per_byte']['en']
    assert float(rows[name]['bits_per_byte']) == pytest.approx(bits)
  assert str(tmp_path / 'lost') in rows[third]['remark']
  assert (workdir / 'results.png').read_bytes().startswith(b'\x89PNG')

  # What is finished is not started again.
  started = []
  monkeypatch.setattr(
    places.Local, 'start', lambda self, name, flags: started.append(name) or ''
  )
  monkeypatch.setattr(places.Local, 'reason', lambda self, name: 'told so')
  assert _here(*common, f'--list={listed}') == 1
  assert started == [third]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--grid=optimizer.lerning_rate=1'], "did you mean 'learning_rate'"),
    (['--grid=seed=0,1', '--config.seed=2'], 'swept as well'),
    (['--grid=seed=0,1', '--place=slrum'], "did you mean 'slurm'"),
    (['--grid=seed=0,1', '--submit=-N2'], '--submit is for'),
    (['--grid=seed=0,1', '--config.data.root=/nowhere'], 'yi_jax.prepare'),
    (['--grid=seed=0', '--metric=x', '--list=/nowhere'], '/nowhere'),
    ([], 'needs --grid'),
  ],
)
def test_what_cannot_be_swept_is_refused_before_anything_starts(
  config_file, tmp_path, capsys, arguments, message, monkeypatch
):
  monkeypatch.delattr(places.Local, 'start')
  workdir = tmp_path / 'sweep'
  code = _here(f'--config={config_file}', f'--workdir={workdir}', *arguments)
  assert code == app.BAD_INPUT
  assert message in capsys.readouterr().err
  assert not list(workdir.glob('*=*'))


def test_a_dry_run_shows_commands_that_train_takes(
  config_file, tmp_path, capsys
):
  workdir = tmp_path / 'sweep'
  code = _here(
    *(f'--config={config_file}', f'--workdir={workdir}', '--dry_run'),
    *('--config.train.steps=7', '--grid=optimizer.betas=(0.9,0.95)', _GRID),
  )
  assert code == 0
  assert not workdir.exists()
  lines = capsys.readouterr().out.strip().split('\n')
  assert len(lines) == 2
  for line, rate in zip(lines, (0.01, 0.001), strict=True):
    words = shlex.split(line)
    assert words[:3] == ['python', '-m', 'yi_jax.train']
    spec, changes, [where] = app.split(words[3:])
    config = app.override(app.load_config(spec), changes)
    assert config.train.steps == 7
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.optimizer.learning_rate == rate
    assert where.startswith(f'--workdir={workdir}/')
    assert f'learning_rate={rate}' in where


def test_the_devices_are_left_to_the_runs(config_file, tmp_path):
  jax.config.update('jax_platforms', None)
  try:
    workdir = f'--workdir={tmp_path}/sweep'
    assert _here(f'--config={config_file}', workdir, _GRID, '--dry_run') == 0
    assert jax.config.jax_platforms == 'cpu'
  finally:
    jax.config.update('jax_platforms', 'cpu')


def test_help_shows_an_example():
  done = subprocess.run(
    [sys.executable, 'launch/sweep.py', '--help'],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  assert 'python launch/sweep.py --config=experiments/' in done.stdout
