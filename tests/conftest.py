"""Four virtual CPU devices for every test, set before JAX starts."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ['XLA_FLAGS'] = (
  ' '.join(
    flag
    for flag in os.environ.get('XLA_FLAGS', '').split()
    if 'host_platform_device_count' not in flag
  )
  + ' --xla_force_host_platform_device_count=4'
  # Tests compile far more than they compute.
  + ' --xla_backend_optimization_level=0'
  + ' --xla_llvm_disable_expensive_passes=true'
)

import jax  # noqa: E402

# Several virtual devices on two cores: queued steps would wait for each other
# inside a collective and XLA aborts after 40 s.
jax.config.update('jax_cpu_enable_async_dispatch', False)

import contextlib  # noqa: E402
import pathlib  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Callable  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# The same examples each time, however slow the machine is.
hypothesis.settings.register_profile(
  'tests',
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('tests')

_REPOSITORY = pathlib.Path(__file__).parents[1]
_WORDS = ('the', 'cat', 'sees', 'a', 'bird', 'under', 'an', 'old', 'tree')
_TINY_RUN = """
import ml_collections
from yi_jax.data import mixtures
from yi_jax.training import run_config

def get_config():
  c = run_config.base()
  mixtures.register_files('en_other_tiny', '{folder}/*.txt')
  c.data.rates = ml_collections.ConfigDict({{'en_other_tiny': 1.0}})
  c.data.root = '{folder}/data'
  c.data.vocabulary_size = 300
  c.data.length = 16
  c.data.batch_tokens = 8 * 16
  c.data.heldout_bytes = 500
  c.model.overrides.update(dict(
      vocab_size=300, hidden_size=16, intermediate_size=32,
      num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
      head_dim=8, max_position_embeddings=16))
  c.optimizer.warmup_steps = 2
  c.train.log_every = 1
  {changes}
  return c
"""


@pytest.fixture
def peer(tmp_path: pathlib.Path) -> Callable[..., dict[str, np.ndarray]]:
  """Runs a script of tests/peers among the libraries we are compared with.

  peer('llama.py', x=array, ...) gives the script an .npz of these arrays and
  returns the arrays of the .npz it writes. Without .venv-peer (built by
  `launch/local.sh peer`) the test is skipped; with YI_REQUIRE_PEER it fails.
  """
  python = _REPOSITORY / '.venv-peer/bin/python'
  if not python.exists():
    if os.environ.get('YI_REQUIRE_PEER'):
      pytest.fail('.venv-peer is missing; run: launch/local.sh peer true')
    pytest.skip('no .venv-peer to compare with')

  def run(script: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    given, written = tmp_path / 'given.npz', tmp_path / 'written.npz'
    np.savez(given, **arrays)
    command = [python, _REPOSITORY / 'tests/peers' / script, given, written]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(written) as result:
      return dict(result)

  return run


@pytest.fixture
def free_port() -> int:
  """A port that nobody listens on, and that the kernel gives to nobody else."""
  while True:
    port = random.randrange(20_000, 32_000)
    with socket.socket() as probe, contextlib.suppress(OSError):
      probe.bind(('localhost', port))
      return port


@pytest.fixture
def tiny_run(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pathlib.Path]:
  """Makes the config file of a very small run, and its rows.

  tiny_run('c.train.steps = 40', ...) adds these lines to it and returns where
  it is; processes of their own can read it too.
  """
  from yi_jax import app, prepare
  from yi_jax.data import mixtures

  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))

  def make(*changes: str) -> pathlib.Path:
    draw = random.Random(0)
    for number in range(30):
      words = draw.choices(_WORDS, k=99)
      (tmp_path / f'{number}.txt').write_text(' '.join(words))
    path = tmp_path / 'run.py'
    lines = '\n  '.join(changes)
    path.write_text(_TINY_RUN.format(folder=tmp_path, changes=lines))
    prepare.prepare(app.load_config(str(path)))
    return path

  return make
