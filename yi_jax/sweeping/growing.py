"""A sweep that is told its points in turns, the later ones by the results.

What is finished is never run again, so a search that asks for the same points
in the same order goes through them in no time when it is started again.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import places, points, results, running


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run that is asked for.

  Attributes:
    label: what to name its folder by, as {'share': 0.5} for share=0.5.
    changes: config key -> value, as texts.
  """

  label: dict[str, Any]
  changes: dict[str, str]


class Growing:
  """Runs trials, as many turns as it is asked to."""

  def __init__(
    self,
    folder: sweep_folder.Folder,
    config: str,
    assignments: Sequence[str],
    place: Callable[[sweep_folder.Folder, int | None], places.Place],
    at_once: int,
  ) -> None:
    """Starts nothing.

    Args:
      folder: of the sweep.
      config: `FILE.py[:arg]`.
      assignments: `key=value` for all runs.
      place: makes the place of a turn of the folder and its lock.
      at_once: see `running.run`.
    """
    self.folder = folder
    self._config, self._assignments = config, list(assignments)
    self._place, self._at_once = place, at_once
    self._failed: dict[str, str] = {}

  def agree(
    self, trials: Sequence[Trial], write: bool = True
  ) -> list[points.Point]:
    """Adds trials to the sweep and returns their points, without running.

    Raises:
      ValueError: for a trial that `train` would refuse, or a folder that holds
        a sweep of another config.
      OSError: if there is no such config.
    """
    wanted = points.check(
      self._config, self._assignments, [trial.changes for trial in trials]
    )
    asked = {points.identity(changes) for changes in wanted}
    others = [
      point.changes
      for point in self.folder.points
      if points.identity(point.changes) not in asked
    ]
    self.folder.agree(
      self._config,
      self._assignments,
      [*wanted, *others],
      write=write,
      labels=[*(trial.label for trial in trials), *others],
    )
    known = {points.identity(p.changes): p for p in self.folder.points}
    return [known[points.identity(changes)] for changes in wanted]

  def flags(self) -> list[str]:
    """Returns the flags of every run of this sweep."""
    return [
      f'--config={self._config}',
      *(f'--config.{assignment}' for assignment in self._assignments),
    ]

  def run(self, trials: Sequence[Trial], metric: str) -> list[results.Row]:
    """Brings trials to their ends and returns what came of them, in order.

    A trial that has failed is tried once by this object.

    Args:
      trials: the turn.
      metric: see `results.collect`.

    Raises:
      KeyboardInterrupt: when a signal has ended the sweep.
      BlockingIOError: if another sweep is at work in the folder.
      ValueError, OSError: see `agree` and `running.run`.
    """
    with contextlib.ExitStack() as stack:
      lock = stack.enter_context(self.folder.locked())
      found = self.agree(trials)
      names = {point.name for point in found} - self._failed.keys()
      if not all(map(self.folder.finished, names)):
        place = self._place(self.folder, lock)
        self._failed |= running.run(
          *(self.folder, place, self.flags()),
          at_once=self._at_once,
          names=names,
        )
    return results.collect(self.folder.path, found, metric, self._failed)
