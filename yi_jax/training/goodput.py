"""Where the time of a run went: the share that moved it forward, and the rest.

Goodput is the time of steps that count, divided by all time since the run
began, restarts included. The rest is told by cause:

  step        steps whose result is part of the run
  redone      steps whose result was lost to a crash or a rollback
  data        waiting for the next batch
  save        handing checkpoints over to be written
  evaluation  held-out text and samples
  compile, restore
  start       opening data, model and files
  down        between the last sign of life and the next start

WORKDIR/goodput.json carries the sums over crashes; it is replaced, whole, with
each line of metrics.
"""

import collections
import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

_KEPT_MARKS = 100


class Goodput:
  """The clock of one workdir, of process 0; the others keep none."""

  def __init__(self, folder: str | None) -> None:
    """Starts the clock with cause 'start'.

    Args:
      folder: existing local folder with the sums until now, if any; None counts
        but keeps nothing.
    """
    self._path = os.path.join(folder, 'goodput.json') if folder else None
    past = _read(self._path) if self._path else {}
    self._seconds = collections.defaultdict(float, past.get('seconds', {}))
    # Step -> seconds of steps that count, up to a state one may go back to.
    self._marks = {int(k): v for k, v in past.get('marks', {}).items()}
    self._marks[0] = 0.0
    self._last = past.get('step', 0)
    self._starts = past.get('starts', 0) + 1
    if 'time' in past:
      self._seconds['down'] += max(time.time() - past['time'], 0.0)
    self._cause, self._since = 'start', time.monotonic()

  def now(self, cause: str) -> None:
    """Counts the time from here on for a cause."""
    moment = time.monotonic()
    self._seconds[self._cause] += moment - self._since
    self._cause, self._since = cause, moment

  @contextlib.contextmanager
  def on(self, cause: str) -> Iterator[None]:
    """Counts the time of the block for a cause."""
    before = self._cause
    self.now(cause)
    try:
      yield
    finally:
      self.now(before)

  def resumed(self, step: int) -> None:
    """Says that all steps after this one have to be made again."""
    self.now(self._cause)
    counted = self._seconds['step']
    if step in self._marks:
      kept = self._marks[step]
    else:  # a checkpoint from before this file: all steps took as long
      kept = counted * min(step / max(self._last, 1), 1.0)
    self._seconds['step'] = kept
    self._seconds['redone'] += counted - kept
    self._marks = {k: v for k, v in self._marks.items() if k <= step}
    self._last = step

  def saved(self, step: int) -> None:
    """Says that one may go back to this step."""
    self.now(self._cause)
    self._marks[step] = self._seconds['step']
    for old in sorted(self._marks)[1:-_KEPT_MARKS]:
      del self._marks[old]

  def share(self) -> float:
    """Returns the goodput until now, 0 to 1."""
    self.now(self._cause)
    return self._seconds['step'] / max(sum(self._seconds.values()), 1e-9)

  def keep(self, step: int) -> float:
    """Writes the sums up to a step down; returns the goodput."""
    share = self.share()
    self._last = step
    if self._path:
      content = {
        'step': step,
        'time': time.time(),
        'starts': self._starts,
        'seconds': dict(self._seconds),
        'marks': self._marks,
      }
      # On a full disk the older sums stay.
      with contextlib.suppress(OSError):
        part = f'{self._path}.part'
        with open(part, 'w') as file:
          json.dump(content, file)
        os.replace(part, self._path)
    return share

  def report(self) -> dict[str, Any]:
    """Returns what stands in report.json."""
    share = self.share()
    seconds = {k: round(v, 3) for k, v in sorted(self._seconds.items())}
    return {'share': share, 'starts': self._starts, 'seconds': seconds}


def _read(path: str) -> dict[str, Any]:
  try:
    with open(path) as file:
      return json.load(file)
  except (OSError, ValueError):
    return {}
