"""The runs of a search for a mixture: one sweep a phase, in one folder.

WORKDIR/untuned/, single/, fused/   sweeps, see yi_jax/sweeping/folder.py
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from yi_jax.alignment.mixture import mixture_search, mixture_search_space
from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import growing, places, results

# Samples at the end of a run take longer than its steps, and nobody reads them.
_QUIET = {'sample.prompts': '()', 'sample.heldout': '0'}

_Place = Callable[[sweep_folder.Folder, int | None], places.Place]


class Sweeps:
  """Runs trials as sweeps; what is finished is never run again.

  Attributes:
    failed: phase/run -> why it did not come to its end.
  """

  def __init__(
    self,
    workdir: str,
    config: str,
    assignments: Sequence[str],
    place: _Place,
    at_once: int,
  ) -> None:
    """Starts nothing.

    Args:
      workdir: absolute path or URL.
      config: `FILE.py[:arg]`.
      assignments: `key=value` for all runs. Every run has rates of its own
        instead of those among them, and the untuned one its length; no run
        makes samples unless these say so.
      place: see `growing.Growing`.
      at_once: see `growing.Growing`.
    """
    self.failed: dict[str, str] = {}
    shared = [a for a in assignments if not a.startswith('data.rates.')]
    given = {assignment.partition('=')[0] for assignment in shared}
    shared += [f'{k}={v}' for k, v in _QUIET.items() if k not in given]
    untuned = [
      assignment
      for assignment in shared
      if assignment.partition('=')[0] not in mixture_search_space.UNTUNED
    ]
    self._sweeps = {
      phase: growing.Growing(
        sweep_folder.Folder(f'{workdir}/{phase}'),
        *(config, untuned if phase == 'untuned' else shared),
        *(place, at_once),
      )
      for phase in mixture_search.PHASES
    }

  def run(
    self, phase: str, trials: Sequence[growing.Trial]
  ) -> list[results.Row]:
    """Returns what came of trials; see `growing.Growing.run`."""
    rows = self._sweeps[phase].run(trials, mixture_search.METRIC)
    self.failed |= {
      f'{phase}/{row.point.name}': row.remark
      for row in rows
      if row.value is None
    }
    return rows

  def flags(self) -> list[str]:
    """Returns the flags of every run that tunes."""
    return self._sweeps['fused'].flags()

  def forget(self, phase: str, names: Iterable[str]) -> None:
    """Deletes the checkpoints of runs that have ended; their reports stay."""
    for name in names:
      workdir = self._sweeps[phase].folder.workdir(name)
      checkpoints = epath.Path(workdir) / 'checkpoints'
      if checkpoints.exists():
        checkpoints.rmtree()


class Rehearsal(Sweeps):
  """Prints the command of each run, and takes all for equally good."""

  def __init__(self, abilities: Iterable[str], *arguments: Any) -> None:
    """Takes the abilities of the mixture, and what `Sweeps` takes."""
    super().__init__(*arguments)
    self._losses = {f'{mixture_search.METRIC}.{a}': 1.0 for a in abilities}
    self._shown: set[str] = set()

  def run(
    self, phase: str, trials: Sequence[growing.Trial]
  ) -> list[results.Row]:
    """Returns rows with the loss 1 of every ability; writes nothing."""
    sweep = self._sweeps[phase]
    points = sweep.agree(trials, write=False)
    for point in points:
      where = sweep.folder.workdir(point.name)
      if where not in self._shown:
        self._shown.add(where)
        flags = [*sweep.flags(), *point.arguments(), f'--workdir={where}']
        print(f'python -m yi_jax.train {shlex.join(flags)}')
    return [results.Row(point, 1.0, self._losses) for point in points]

  def forget(self, phase: str, names: Iterable[str]) -> None:
    """Does nothing."""
