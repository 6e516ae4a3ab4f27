"""Runs the points of a sweep, so many at a time, and says how it goes."""

import signal
import time
from collections.abc import Collection, Sequence

from etils import epath

from yi_jax.data import progress
from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import places, results

_SECONDS = 30  # between two lines on what is at work


def run(
  folder: sweep_folder.Folder,
  place: places.Place,
  flags: Sequence[str],
  *,
  at_once: int,
  names: Collection[str] | None = None,
) -> dict[str, str]:
  """Brings every point to its end that is not there yet.

  A run that fails does not stop the others. Ctrl-C and SIGTERM let local runs
  save first; runs of a cluster go on, and the next sweep waits for them.

  Args:
    folder: an agreed sweep.
    place: where its runs take place.
    flags: of every run: its config, and what is changed for all.
    at_once: the most runs queued or at work at a time; 0 is all.
    names: of the points that are meant; None: all of them.

  Returns:
    Run name -> why it did not come to its end.

  Raises:
    KeyboardInterrupt: when a signal has ended the sweep.
    OSError: if a cluster's commands fail.
  """
  points = [p for p in folder.points if names is None or p.name in names]
  number = {point.name: i for i, point in enumerate(points, 1)}
  unfinished = [point for point in points if not folder.finished(point.name)]
  if len(unfinished) < len(points):
    _tell(f'{len(points) - len(unfinished)} of {len(points)} are finished')
  running = place.running() & {point.name for point in unfinished}
  for name in sorted(running, key=number.get):
    _tell(f'{name} is at work already', number[name], len(points))
  waiting = [point for point in unfinished if point.name not in running]
  failed, told = {}, time.monotonic()
  previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    while waiting or running:
      while waiting and not (at_once and len(running) >= at_once):
        point = waiting.pop(0)
        workdir = folder.workdir(point.name)
        job = place.start(
          point.name, [*flags, *point.arguments(), f'--workdir={workdir}']
        )
        if place.stays:
          folder.note_job(type(place).__name__, point.name, job)
        running.add(point.name)
        _tell(f'{point.name} starts', number[point.name], len(points))
      time.sleep(place.pause)
      now = place.running()
      for name in sorted(running - now, key=number.get):
        if folder.finished(name):
          shown = results.outcome(folder.path / name)
        else:
          failed[name] = place.reason(name)
          shown = f'did not finish: {failed[name]}'
        _tell(f'{name}: {shown}', number[name], len(points))
      running &= now
      if running and time.monotonic() - told > _SECONDS:
        told = time.monotonic()
        for name in sorted(running, key=number.get):
          shown = results.latest(epath.Path(folder.workdir(name)))
          _tell(f'{name}: {shown}', number[name], len(points))
  except KeyboardInterrupt:
    if running:
      _tell(
        'interrupted; the jobs go on, and the same command waits for them'
        if place.stays
        else f'interrupted; {len(running)} running save and leave'
      )
    place.stop()
    raise
  finally:
    signal.signal(signal.SIGTERM, previous)
  return failed


def _tell(text: str, number: int = 0, count: int = 0) -> None:
  progress.tell(f'[{number}/{count}]' if number else 'sweep', text)
