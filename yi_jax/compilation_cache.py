"""Keeps compiled programs between processes."""

import hashlib
import os
import platform


def enable() -> None:
  """Makes JAX keep what it compiles below ~/.cache/yi_jax.

  JAX_COMPILATION_CACHE_DIR names another folder; set to '' it keeps nothing.
  Programs for CPU contain the instructions of the machine that compiled them,
  so each kind of machine has a folder of its own even on a shared disk.
  """
  import jax  # `import yi_jax` stays light

  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return  # JAX reads it itself
  folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  jax.config.update(
    'jax_compilation_cache_dir',
    os.path.join(folder, 'yi_jax', 'programs', _machine()),
  )


def _machine() -> str:
  """Returns a name that machines with different instructions do not share."""
  try:
    with open('/proc/cpuinfo') as lines:
      wanted = ('flags', 'Features', 'model name')
      about = sorted({line for line in lines if line.startswith(wanted)})
  except OSError:
    about = [platform.processor()]
  digest = hashlib.sha256(''.join(about).encode()).hexdigest()[:12]
  return f'{platform.machine()}-{digest}'
