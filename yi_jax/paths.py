"""Where relative paths start."""

import os
import pathlib

# The folder that holds yi_jax/, experiments/ and data/.
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def in_repository(path: str) -> str:
  """Returns a path that no longer depends on the caller's folder.

  Configs name their files this way (`experiments/quickstart.py`, `data`), so
  that a command means the same wherever it is typed.

  Args:
    path: absolute, home-relative (`~/x`), a URL (`gs://x`), or relative to the
      repository.
  """
  if '://' in path:
    return path
  return str(REPOSITORY / os.path.expanduser(path))


def in_caller(path: str) -> str:
  """Returns an absolute path; a relative one starts where the user stands."""
  return path if '://' in path else os.path.abspath(os.path.expanduser(path))
