"""Paired measurement: workers in processes of their own, one turn each.

A shared machine's speed drifts by tens of percent within minutes, so two
numbers taken one after the other say little. Here every worker warms up, then
all take turns, round after round; what is compared are medians of the same
rounds, while nobody else works.

A worker is a command that prints `ready` when it is warm, and then, for every
line it reads, does the unit of work of that name and prints its seconds.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def serve(
  units: dict[str, Callable[[], None]] | Callable[[], None], warm_up: int = 2
) -> None:
  """The worker's side: warms up, then works once for every line of stdin.

  Args:
    units: name -> one unit of work, finished when it returns; or the only one.
    warm_up: how often each is done before the first measured one.
  """
  if callable(units):
    units = {'': units}
  for work in units.values():
    for _ in range(warm_up):
      work()
  print('ready', flush=True)
  for line in sys.stdin:
    work = units[line.strip()]
    start = time.perf_counter()
    work()
    print(time.perf_counter() - start, flush=True)


def measure(
  commands: dict[str, list[str]], rounds: int, units: Sequence[str] = ('',)
) -> dict[str, list[float]]:
  """Runs the workers in turns.

  Args:
    commands: name -> argv of a worker.
    rounds: how often a worker does each unit.
    units: names of the units of work.

  Returns:
    name, or 'name unit' if units have names -> seconds of each round.

  Raises:
    RuntimeError: if a worker dies, with the end of what it said.
  """
  workers = {}
  for name, command in commands.items():
    workers[name] = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    # One after the other: compiling is heavy.
    _expect(name, workers[name])
    print(f'{name} is warm', file=sys.stderr)
  seconds = {f'{n} {u}'.strip(): [] for u in units for n in commands}
  for number in range(rounds):
    for unit in units:
      for name, worker in workers.items():
        try:
          worker.stdin.write(f'{unit}\n')
          worker.stdin.flush()
        except BrokenPipeError:
          pass  # `_expect` tells what the worker died of
        took = float(_expect(name, worker))
        seconds[f'{name} {unit}'.strip()].append(took)
    last = ', '.join(f'{n} {s[-1]:.2f} s' for n, s in seconds.items())
    print(f'round {number + 1}/{rounds}: {last}', file=sys.stderr)
  for worker in workers.values():
    worker.stdin.close()
    worker.wait()
  return seconds


def _expect(name: str, worker: subprocess.Popen) -> str:
  """Returns the worker's next line that is a number or `ready`."""
  for line in worker.stdout:
    word = line.strip()
    if word == 'ready' or word.replace('.', '', 1).replace('e-', '').isdigit():
      return word
  code, said = worker.wait(), worker.stderr.read()[-2000:]
  raise RuntimeError(f'{name} died with exit code {code}:\n{said}')


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
  """Returns the median of each worker's rounds, in seconds."""
  return {name: statistics.median(s) for name, s in seconds.items()}
