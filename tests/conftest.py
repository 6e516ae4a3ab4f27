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

import pathlib  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

_REPOSITORY = pathlib.Path(__file__).parents[1]


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
