"""A process whose step hangs shows its stacks and ends."""

import os
import subprocess
import sys
import threading

from yi_jax.training import watchdog

_HANGS = """
import sys, threading
from yi_jax.training import watchdog

def stuck_in_a_collective():
  threading.Event().wait()

dog = watchdog.Watchdog(0.2, sys.argv[1])
dog.alive(7)
stuck_in_a_collective()
"""


def test_a_step_that_hangs_ends_the_process_with_its_stacks(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _HANGS, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == watchdog.HUNG == 3
  kept = (tmp_path / 'hang-0.txt').read_text()
  for told in (done.stderr, kept):
    assert 'process 0 hangs after step 7' in told
    assert 'stuck_in_a_collective' in told


def test_only_what_is_watched_ends_the_process(tmp_path):
  left = threading.Event()
  dog = watchdog.Watchdog(0.05, str(tmp_path), lambda code: left.set())
  assert not left.wait(0.4)  # nothing has begun yet
  dog.alive(1)
  assert left.wait(60)
  dog.close()
  assert os.listdir(tmp_path) == ['hang-0.txt']


def test_evaluations_and_saves_have_more_time_but_not_for_ever(
  tmp_path, monkeypatch
):
  left, codes = threading.Event(), []
  monkeypatch.setattr(watchdog, 'PATIENCE', 1000)
  dog = watchdog.Watchdog(
    0.05, str(tmp_path), lambda code: (codes.append(code), left.set())
  )
  with dog.patient():
    assert not left.wait(0.4)
  assert left.wait(60)  # its time began with the end of the block
  dog.close()
  monkeypatch.setattr(watchdog, 'PATIENCE', 2)
  left.clear()
  dog = watchdog.Watchdog(
    0.05, str(tmp_path), lambda code: (codes.append(code), left.set())
  )
  with dog.patient():
    assert left.wait(60)
  dog.close()
  assert codes == [watchdog.HUNG] * 2
  assert 'nothing for 0.1 s' in (tmp_path / 'hang-0.txt').read_text()


def test_zero_seconds_watch_nothing(tmp_path):
  before = set(threading.enumerate())
  dog = watchdog.Watchdog(0, str(tmp_path))
  dog.alive(1)
  assert not set(threading.enumerate()) - before
  dog.close()
