#!/usr/bin/env python3
"""Keeps a run going: starts it again when it fails, until it is complete.

  launch/supervise.py -- python -m yi_jax.train --config=... --workdir=...
  launch/supervise.py --processes=2 -- python -m yi_jax.train ...

Needs nothing but Python. One supervisor a host: with --processes=1 the command
keeps its environment and finds the other hosts as it would without. With more,
that many processes of this host are joined to one run; when one fails, the
others, which cannot go on without it, are ended too.

  --processes=N|@FILE   processes on this host. A file holds the number and is
                        read again and again: when it changes, the run is saved,
                        stopped and started with the new number
  --failures=N          give up after so many failures in a row without a new
                        checkpoint (default 5)
  --backoff=S           seconds before a restart; doubles with each failure in a
                        row, with some jitter, up to --longest (default 5, 300)
  --grace=S             seconds for a run to save when it is asked to stop, before
                        it is killed (default 120)

Exit codes: 0 the run is complete; 1 it diverged; 2 bad input: the command ended
so before its first step; 5 given up; 143 or 130 stopped by SIGTERM or Ctrl-C,
which are handed on, and the run is saved.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable

_DIVERGED, _BAD_INPUT, _GIVEN_UP = 1, 2, 5
_POLL_SECONDS = 0.05


class Supervisor:
  """Starts, watches and starts again."""

  def __init__(self, options: argparse.Namespace) -> None:
    """Takes the options of `_parse`."""
    self._options = options
    self._signal = 0  # that this process was sent
    self._best = -1  # newest step that was saved, of all starts
    self._began = False  # whether any start came to its first step

  def run(self) -> int:
    """Returns the exit code; see the top of this file."""
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._note)
    failures, starts, count = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix='supervise_') as folder:
      while True:
        count = self._count(count)
        starts += 1
        _say(f'start {starts}, {count} process{"es" if count > 1 else ""}')
        before = self._best
        codes, resized = self._attempt(count, pathlib.Path(folder))
        state = self._look(pathlib.Path(folder), count)
        if resized and state != 'done':
          continue
        verdict = self._judge(codes, state)
        if verdict is not None:
          return verdict
        if state == 'saved':
          continue  # stopped by somebody else; all that counts is on disk
        failures = 0 if self._best > before else failures + 1
        why = ', '.join(map(_describe, codes))
        if failures >= self._options.failures:
          _say(
            f'gives up: {failures} failures in a row without a new checkpoint, '
            f'the last one with {why}'
          )
          return _GIVEN_UP
        pause = self._backoff(failures)
        _say(
          f'failed ({why}) after step {max(self._best, 0)}; starts again in '
          f'{pause:.1f} s'
        )
        if self._sleep(pause):
          return 128 + self._signal

  def _attempt(
    self, count: int, folder: pathlib.Path
  ) -> tuple[list[int], bool]:
    """Runs the command once.

    Returns:
      (exit codes of its processes, whether it was stopped for another number).
    """
    for path in folder.iterdir():
      path.unlink()
    environments = _environments(count, folder)
    children = [
      subprocess.Popen(
        self._options.command,
        env=environment,
        # Ctrl-C in a terminal reaches this process alone, which hands it on.
        start_new_session=True,
      )
      for environment in environments
    ]
    asked, resized = None, False  # when they were asked to stop, and why
    try:
      while True:
        codes = [child.poll() for child in children]
        if None not in codes:
          return codes, resized
        if any(code for code in codes if code is not None):
          return _end(children), resized
        if asked is None and (self._signal or self._resized(count)):
          asked, resized = time.monotonic(), not self._signal
          _signal_all(children, self._signal or signal.SIGTERM)
        one_left = any(code is not None for code in codes)
        if one_left and asked is None:
          asked = time.monotonic()
        if asked and time.monotonic() - asked > self._options.grace:
          _say(f'not stopped within {self._options.grace:g} s')
          return _end(children), resized
        time.sleep(_POLL_SECONDS)
    finally:
      _end(children)

  def _look(self, folder: pathlib.Path, count: int) -> str:
    """Notes how far the run has come; returns the state it told last."""
    state = ''
    for index in range(count):
      try:
        found = json.loads((folder / f'{index}.json').read_text())
      except (OSError, ValueError):
        continue
      self._began = True
      self._best = max(self._best, found['step'])
      state = state or found['state']
    return state

  def _judge(self, codes: list[int], state: str) -> int | None:
    """Returns the exit code if there is nothing to start again, else None."""
    clean = all(code == 0 for code in codes)
    if clean and state in ('done', ''):
      _say('complete')
      return 0
    if state == 'diverged':
      _say('diverged: starting again would not help')
      return _DIVERGED
    if self._signal:
      _say(f'stopped by signal {self._signal}; step {self._best} is saved')
      return 128 + self._signal
    if _BAD_INPUT in codes and not self._began:
      _say('bad input: starting again would not help')
      return _BAD_INPUT
    if state == 'done':
      _say('complete, with trouble on the way out')
      return 0
    return None

  def _resized(self, count: int) -> bool:
    if not self._options.processes.startswith('@'):
      return False
    return self._count(count) != count

  def _count(self, before: int) -> int:
    """Returns the number of processes, or that of the start before."""
    try:
      return _read_count(self._options.processes)
    except ValueError:
      if before:  # its file is being written
        return before
      raise

  def _backoff(self, failures: int) -> float:
    pause = self._options.backoff * 2 ** max(failures - 1, 0)
    # Many hosts shall not come back in the same second.
    return min(pause, self._options.longest) * random.uniform(0.5, 1)

  def _sleep(self, seconds: float) -> bool:
    """Waits; returns at once, and whether, a signal came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not self._signal:
      time.sleep(_POLL_SECONDS)
    return bool(self._signal)

  def _note(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    self._signal = number


def _environments(count: int, folder: pathlib.Path) -> list[dict[str, str]]:
  """Returns the environment of each process."""
  common = dict(os.environ)
  # The status, not an exit code, tells a stopped run from a complete one.
  common['YI_STOPPED_EXIT'] = '0'
  if count > 1:
    common['JAX_COORDINATOR_ADDRESS'] = f'localhost:{_free_port()}'
    common['JAX_NUM_PROCESSES'] = str(count)
  found = []
  for index in range(count):
    own = {**common, 'YI_STATUS_FILE': str(folder / f'{index}.json')}
    if count > 1:
      own['JAX_PROCESS_ID'] = str(index)
    found.append(own)
  return found


def _free_port() -> int:
  """Returns one that the kernel gives to nobody until the run listens there."""
  while True:
    port = random.randrange(20_000, 32_000)
    with socket.socket() as probe, contextlib.suppress(OSError):
      probe.bind(('localhost', port))
      return port


def _signal_all(children: list[subprocess.Popen], number: int) -> None:
  for child in children:
    if child.poll() is None:
      child.send_signal(number)


def _end(children: list[subprocess.Popen]) -> list[int]:
  """Kills what still runs; returns all exit codes."""
  codes = [child.poll() for child in children]
  _signal_all(children, signal.SIGKILL)
  for child in children:
    child.wait()
  failed = [code for code in codes if code]
  # Those that were killed here did not fail by themselves.
  return failed or [child.returncode for child in children]


def _describe(code: int) -> str:
  if code >= 0:
    return {3: 'exit code 3: hung', 4: 'exit code 4: others did not come'}.get(
      code, f'exit code {code}'
    )
  return f'signal {signal.Signals(-code).name}'


def _read_count(text: str) -> int:
  """Returns the number of processes of --processes."""
  if text.startswith('@'):
    try:
      text = pathlib.Path(text[1:]).read_text().strip()
    except OSError as error:
      raise ValueError(f'--processes: {error}') from error
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(f'--processes is a number from 1, not {text!r}')
  return int(text)


def _say(text: str) -> None:
  print(f'supervise: {text}', file=sys.stderr, flush=True)


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
  def parse(text: str) -> float:
    value = kind(text)
    if value <= 0:
      raise argparse.ArgumentTypeError(f'{text} is not above 0')
    return value

  return parse


def _parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    usage='launch/supervise.py [options] -- COMMAND ...',
  )
  parser.add_argument('--processes', default='1')
  parser.add_argument('--failures', type=_positive(int), default=5)
  parser.add_argument('--backoff', type=_positive(float), default=5.0)
  parser.add_argument('--longest', type=_positive(float), default=300.0)
  parser.add_argument('--grace', type=_positive(float), default=120.0)
  parser.add_argument('command', nargs='+')
  return parser.parse_args(argv)


def main(argv: list[str]) -> int:
  """Returns the exit code."""
  options = _parse(argv)
  try:
    return Supervisor(options).run()
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return _BAD_INPUT


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
