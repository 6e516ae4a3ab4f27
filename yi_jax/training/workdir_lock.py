"""One run a workdir: a second one would overwrite the checkpoints of the first.

WORKDIR/lock says who is at work:

  {"run": "5f0c9a1e", "start": 3, "host": "a", "pid": 4711, "beat": 17}

On one host the system knows whether the holder lives: the lock is the open
file's, and is gone with the process, even by kill -9. Other hosts may share the
disk but not its locks; there `beat`, which counts up every few seconds, is the
sign of life, and no clocks are compared.

`run` names the run for good, so that leftovers of another one that was in the
same folder are not taken for its own; `start` counts its starts.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

_BEAT_SECONDS = 5.0
_PATIENCE_SECONDS = 30.0  # without a beat
_SIZE = 256  # bytes; always the same, so that a full disk cannot cut it off


class WorkdirLock:
  """Held by process 0 for all processes of a run.

  Attributes:
    run: eight hex digits, the same at each start of the run.
    start: 1 at the first start.
  """

  def __init__(
    self,
    workdir: str,
    beat: float = _BEAT_SECONDS,
    patience: float = _PATIENCE_SECONDS,
  ) -> None:
    """Takes the lock.

    Args:
      workdir: absolute path or URL; made if needed.
      beat: seconds between two signs of life.
      patience: seconds without one after which a holder on another host counts
        as dead.

    Raises:
      ValueError: if another process is at work in the folder, naming it.
    """
    self._beat, self._patience = beat, patience
    self._workdir, self._file = workdir, None
    self._released = threading.Event()
    self._thread = None
    refusal, words = '', np.zeros(2, np.uint32)
    if jax.process_index() == 0:
      try:
        words[:] = self._take()
      except ValueError as error:
        refusal = str(error)
    if jax.process_count() > 1:  # all refuse, or none
      words = multihost_utils.broadcast_one_to_all(words)
    self.run, self.start = f'{int(words[0]):08x}', int(words[1])
    if not self.start:
      raise ValueError(refusal or f'process 0 was refused {workdir}')

  def close(self) -> None:
    """Lets the next one in."""
    self._released.set()
    if self._thread:
      self._thread.join()
      self._write({**self._mine, 'pid': None})
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def __enter__(self) -> 'WorkdirLock':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def _take(self) -> tuple[int, int]:
    """Returns run and start as numbers; raises ValueError if it is taken."""
    exact = False  # whether the system itself tells if the holder lives
    if '://' not in self._workdir:
      os.makedirs(self._workdir, exist_ok=True)
      path = os.path.join(self._workdir, 'lock')
      self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        exact = True
      except BlockingIOError:
        os.close(self._file)
        self._file = None
        raise ValueError(_refusal(self._workdir, _read(path))) from None
      except OSError:  # a file system without locks
        pass
    before = self._read()
    if before.get('pid') and not (
      exact and before.get('host') == socket.gethostname()
    ):
      self._wait_for_a_sign_of_life(before)
    try:
      run, start = int(before['run'], 16), int(before['start']) + 1
    except (KeyError, TypeError, ValueError):
      run, start = secrets.randbits(32), 1
    self._mine = {
      'run': f'{run:08x}',
      'start': start,
      'host': socket.gethostname()[:100],
      'pid': os.getpid(),
      'beat': 0,
    }
    self._write(self._mine)
    self._thread = threading.Thread(
      target=self._keep_beating, daemon=True, name='workdir lock'
    )
    self._thread.start()
    return run, start

  def _wait_for_a_sign_of_life(self, before: dict[str, Any]) -> None:
    """Returns if the holder is dead; raises ValueError if it lives."""
    print(
      f'{self._workdir} was in use on {before.get("host")}; waiting '
      f'{self._patience:.0f} s for a sign of life from there',
      flush=True,
    )
    deadline = time.monotonic() + self._patience
    while time.monotonic() < deadline:
      time.sleep(min(1.0, self._patience / 10))
      now = self._read()
      if 'pid' in now and now != before:  # not one that is half written
        if now['pid']:
          if self._file is not None:
            os.close(self._file)
            self._file = None
          raise ValueError(_refusal(self._workdir, now))
        return  # it has just ended

  def _keep_beating(self) -> None:
    while not self._released.wait(self._beat):
      self._mine['beat'] += 1
      self._write(self._mine)

  def _read(self) -> dict[str, Any]:
    if self._file is None:
      return _read(epath.Path(self._workdir) / 'lock')
    return _parse(os.pread(self._file, _SIZE, 0))

  def _write(self, content: dict[str, Any]) -> None:
    line = json.dumps(content).encode().ljust(_SIZE - 1) + b'\n'
    with contextlib.suppress(OSError):  # the next beat may succeed
      if self._file is None:
        folder = epath.Path(self._workdir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'lock').write_bytes(line)
      else:
        os.pwrite(self._file, line, 0)


def _read(path: Any) -> dict[str, Any]:
  try:
    return _parse(epath.Path(path).read_bytes())
  except FileNotFoundError:
    return {}


def _parse(content: bytes) -> dict[str, Any]:
  try:
    found = json.loads(content)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _refusal(workdir: str, holder: dict[str, Any]) -> str:
  return (
    f'another run is at work in {workdir}: process {holder.get("pid")} on '
    f'{holder.get("host")}. Wait for it, stop it, or take another --workdir'
  )
