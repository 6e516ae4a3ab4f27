"""One run a workdir; the dead do not keep it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from yi_jax.training import workdir_lock

_HOLDS = """
import sys, time
from yi_jax.training import workdir_lock
workdir_lock.WorkdirLock(sys.argv[1])
print('held', flush=True)
time.sleep(600)
"""


def _told(workdir):
  return json.loads((workdir / 'lock').read_text())


def _as_other_host(workdir, **changes):
  """Rewrites the lock as a host would that shares the disk, but no locks."""
  content = {'run': '5f0c9a1e', 'start': 3, 'host': 'elsewhere', 'pid': 7}
  content |= {'beat': 1, **changes}
  # In place, as a holder does: a reader never finds it cut off.
  (workdir / 'lock').touch()
  with (workdir / 'lock').open('r+b') as file:
    file.write(json.dumps(content).encode().ljust(255))


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
  with workdir_lock.WorkdirLock(str(tmp_path)) as first:
    mine = f'process {os.getpid()} on {socket.gethostname()}'
    with pytest.raises(ValueError, match=f'another run .*{mine}'):
      workdir_lock.WorkdirLock(str(tmp_path))
    with workdir_lock.WorkdirLock(str(tmp_path / 'other')) as other:
      assert other.run != first.run
  with workdir_lock.WorkdirLock(str(tmp_path)) as second:
    assert (second.run, second.start) == (first.run, first.start + 1)


def test_a_killed_holder_leaves_at_once(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLDS, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(ValueError, match=f'process {process.pid} on'):
      workdir_lock.WorkdirLock(str(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Patience beyond any test: it must not be needed.
    with workdir_lock.WorkdirLock(str(tmp_path), patience=9e9) as lock:
      assert lock.start == 2
  finally:
    process.kill()
    process.communicate()


def test_a_holder_on_another_host_is_believed_while_it_gives_signs(tmp_path):
  _as_other_host(tmp_path)
  ended = threading.Event()

  def beat():
    for number in range(2, 10_000):
      if ended.wait(0.02):
        return
      _as_other_host(tmp_path, beat=number)

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    with pytest.raises(ValueError, match='process 7 on elsewhere'):
      workdir_lock.WorkdirLock(str(tmp_path), patience=60)
  finally:
    ended.set()
    thread.join()
  # No sign any more: it is dead.
  with workdir_lock.WorkdirLock(str(tmp_path), patience=0.2) as lock:
    assert (lock.run, lock.start) == ('5f0c9a1e', 4)
    assert _told(tmp_path)['host'] == socket.gethostname()
  assert _told(tmp_path)['pid'] is None


def test_half_a_lock_does_not_tell_that_its_holder_has_ended(
  tmp_path, monkeypatch
):
  _as_other_host(tmp_path)
  seen = ['{"run": "5f0c']  # where a write is not seen at once

  def sleep(seconds):
    if seen:
      (tmp_path / 'lock').write_text(seen.pop())
    else:
      _as_other_host(tmp_path, beat=2)

  monkeypatch.setattr(time, 'sleep', sleep)
  with pytest.raises(ValueError, match='process 7 on elsewhere'):
    workdir_lock.WorkdirLock(str(tmp_path))


def test_the_holder_gives_signs_of_life(tmp_path):
  seen = set()
  with workdir_lock.WorkdirLock(str(tmp_path), beat=0.01):
    deadline = time.monotonic() + 30
    while len(seen) < 3 and time.monotonic() < deadline:
      seen.add(_told(tmp_path)['beat'])
      time.sleep(0.005)
  assert len(seen) == 3


@pytest.mark.parametrize('content', ['', '{"run": ', '[]', '{"run": "zz"}'])
def test_a_damaged_lock_names_no_run(tmp_path, content):
  (tmp_path / 'lock').write_text(content)
  with workdir_lock.WorkdirLock(str(tmp_path)) as lock:
    assert (len(lock.run), lock.start) == (8, 1)
