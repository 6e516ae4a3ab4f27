"""Two processes of two devices each train as one process of four does."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from yi_jax import prepare, train
from yi_jax.data import mixtures
from yi_jax.sharding import start
from yi_jax.training import faults, metrics

_CONFIG = """
import ml_collections
from yi_jax.data import mixtures
from yi_jax.training import run_config

def get_config():
  c = run_config.base()
  mixtures.register_files('en_other_hosts', '{folder}/*.txt')
  c.data.rates = ml_collections.ConfigDict({{'en_other_hosts': 1.0}})
  c.data.root = '{folder}/data'
  c.data.vocabulary_size = 300
  c.data.length = 16
  c.data.batch_tokens = 8 * 16
  c.data.heldout_bytes = 500
  c.model.overrides.update(dict(
      vocab_size=300, hidden_size=16, intermediate_size=32,
      num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
      head_dim=8, max_position_embeddings=16))
  c.optimizer.learning_rate = 1e-2
  c.optimizer.warmup_steps = 2
  c.train.steps = 40
  c.checkpoint.every = 10
  c.checkpoint.keep = 9
  c.train.log_every = 1
  c.mesh.data = 2
  return c
"""
_WORDS = ('the', 'cat', 'sees', 'a', 'bird', 'under', 'an', 'old', 'tree')


@pytest.fixture
def config_file(tmp_path, monkeypatch):
  """Returns a config whose rows are made."""
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  draw = random.Random(0)
  for number in range(30):
    words = draw.choices(_WORDS, k=99)
    (tmp_path / f'{number}.txt').write_text(' '.join(words))
  path = tmp_path / 'run.py'
  path.write_text(_CONFIG.format(folder=tmp_path))
  prepare.prepare(_config(path))
  return path


def _config(path):
  scope = {}
  exec(path.read_text(), scope)
  return scope['get_config']()


def _start(config_file, workdir):
  """Starts both processes of a run as users do."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=4', 'count=2'),
    'JAX_COMPILATION_CACHE_DIR': '',
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': '2',
  }
  command = [sys.executable, '-m', 'yi_jax.train', f'--config={config_file}']
  return [
    subprocess.Popen(
      [*command, f'--workdir={workdir}'],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**environment, 'JAX_PROCESS_ID': str(index)},
    )
    for index in range(2)
  ]


def _train(config_file, workdir):
  with faults.StopSignal() as stop:
    train.train(_config(config_file), str(workdir), stop)
  return metrics.read(workdir / 'metrics.jsonl')


def test_two_processes_continue_a_run_and_one_continues_theirs(
  config_file, tmp_path
):
  want = _train(config_file, tmp_path / 'one')
  assert want[-1]['loss'] < want[0]['loss'] - 1
  workdir = tmp_path / 'two'
  first = 'checkpoints/10'
  shutil.copytree(tmp_path / 'one' / first, workdir / first)
  log = workdir / 'metrics.jsonl'
  processes = _start(config_file, workdir)
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


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ({'JAX_PROCESS_ID': '0'}, 'JAX_PROCESS_ID is set, but .* needs all of'),
    (('host', '2', '0'), 'not a host:port'),
    (('host:1', 'two', '0'), 'JAX_NUM_PROCESSES=two'),
    (('host:1', '2', '2'), 'JAX_PROCESS_ID=2'),
  ],
)
def test_half_an_environment_is_refused(environment, message, monkeypatch):
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  if isinstance(environment, tuple):
    environment = dict(zip(names, environment, strict=True))
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    start.start()
