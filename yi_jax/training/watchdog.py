"""Ends a process whose step hangs, and shows where it hangs.

A device that stopped answering, a peer that is gone or a dead file server leave
a process waiting for ever, at full price. Better that it dies with the stacks
of all its threads on record, so that whoever started it can start it again.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import jax

HUNG = 3  # exit code
# An evaluation or a save may take so many times as long as a step.
PATIENCE = 4


class Watchdog:
  """A thread that waits for `alive` to be called in time."""

  def __init__(
    self,
    seconds: float,
    folder: str,
    leave: Callable[[int], None] = os._exit,
  ) -> None:
    """Starts watching with the first call of `alive`.

    Args:
      seconds: longest time between two calls, PATIENCE times that in a block
        of `patient`; 0 watches nothing.
      folder: existing local folder for the stacks.
      leave: ends the process, whatever its other threads do.
    """
    self._seconds, self._leave = seconds, leave
    self._path = os.path.join(folder, f'hang-{jax.process_index()}.txt')
    self._step = 0
    self._limit = None  # (when, after how many seconds), once it watches
    self._closed = threading.Event()
    self._thread = None
    if seconds:
      self._thread = threading.Thread(
        target=self._watch, daemon=True, name='watchdog'
      )
      self._thread.start()

  def alive(self, step: int) -> None:
    """Says that this step is done; the next one has its time from now on."""
    self._step = step
    self._give(self._seconds)

  @contextlib.contextmanager
  def patient(self) -> Iterator[None]:
    """Gives the block more time, as it may take long for good reasons."""
    self._give(PATIENCE * self._seconds)
    yield
    self.alive(self._step)

  def close(self) -> None:
    self._closed.set()
    if self._thread:
      self._thread.join()

  def _give(self, seconds: float) -> None:
    self._limit = time.monotonic() + seconds, seconds

  def _watch(self) -> None:
    while not self._closed.wait(min(self._seconds / 4, 1.0)):
      limit = self._limit
      if limit is not None and time.monotonic() > limit[0]:
        self._tell(limit[1])
        return self._leave(HUNG)

  def _tell(self, seconds: float) -> None:
    text = (
      f'error: process {jax.process_index()} hangs after step {self._step:,}: '
      f'nothing for {seconds:g} s (train.hang_seconds = {self._seconds:g}; '
      f'{PATIENCE} times that in evaluations and saves). Stacks (also in '
      f'{self._path}):\n'
    )
    with contextlib.suppress(OSError), open(self._path, 'a') as file:
      _dump(text, file)
    _dump(text, sys.stderr)


def _dump(text: str, file: IO[str]) -> None:
  file.write(text)
  file.flush()
  faulthandler.dump_traceback(file, all_threads=True)
