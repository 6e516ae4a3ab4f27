"""The folder of a sweep: its manifest, one folder a run, and its results.

WORKDIR/sweep.json     config, what is changed for all, points, cluster jobs
WORKDIR/NAME/          workdir of one run, see docs/train.md
WORKDIR/logs/NAME.txt  what that run printed
WORKDIR/results.*      the table (md, csv) and the plot (png)
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from yi_jax import paths
from yi_jax.sweeping import points as sweep_points


class Folder:
  """A sweep on disk.

  Attributes:
    path: of the sweep; may be a URL.
    logs: local folder for what runs print.
    points: of the sweep, in order.
  """

  def __init__(self, workdir: str) -> None:
    """Reads what is there; nothing is written before `agree`.

    Args:
      workdir: absolute path or URL.
    """
    self.path = epath.Path(workdir)
    remote = '://' in workdir
    where = paths.in_repository(f'runs/{self.path.name}') if remote else workdir
    self.logs = pathlib.Path(where) / 'logs'
    self._file = self.path / 'sweep.json'
    self._content: dict[str, Any] = {}
    if self._file.exists():
      self._content = json.loads(self._file.read_text())

  @property
  def points(self) -> list[sweep_points.Point]:
    return [
      sweep_points.Point(name, changes)
      for name, changes in self._content.get('points', {}).items()
    ]

  @contextlib.contextmanager
  def locked(self) -> Iterator[int | None]:
    """Holds the folder in the block; yields what a child must inherit.

    The lock is the open file's, so a run that survives its sweep keeps it. An
    object store has no locks: None.

    Raises:
      BlockingIOError: if a sweep, or a run of one, is at work here.
    """
    if '://' in str(self.path):
      yield None
      return
    self.logs.mkdir(parents=True, exist_ok=True)
    with open(self.logs / '.lock', 'w') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise BlockingIOError(
          f'a sweep, or a run one has left behind, is at work in {self.path}; '
          'wait for it, or end it'
        ) from None
      yield file.fileno()

  def agree(
    self,
    config: str,
    assignments: Sequence[str],
    wanted: Sequence[dict[str, Any]],
    write: bool = True,
    labels: Sequence[dict[str, Any]] = (),
  ) -> int:
    """Makes this folder's sweep that of the command, or extends it.

    Args:
      config: `FILE.py[:arg]`.
      assignments: `key=value` for all runs.
      wanted: of `points.check`.
      write: False leaves the folder as it is.
      labels: what to name each point by, if not by its changes.

    Returns:
      How many points are new.

    Raises:
      ValueError: if the folder holds another sweep, or points that the command
        does not name.
    """
    content = self._content or {
      'config': config,
      'overrides': sorted(assignments),
      'points': {},
      'jobs': {},
    }
    now = {'config': config, 'overrides': sorted(assignments)}
    for key, value in now.items():
      if content[key] != value:
        raise ValueError(
          f'{self.path} holds a sweep with {key} = {content[key]!r}; here it '
          f'is {value!r}. Set it back, or take another --workdir'
        )
    known = {
      sweep_points.identity(changes): name
      for name, changes in content['points'].items()
    }
    identities = [sweep_points.identity(changes) for changes in wanted]
    for missing in known.keys() - set(identities):
      raise ValueError(
        f'{self.path} holds a sweep with {known[missing]}, which this one does '
        'not have. Name its points and more, or take another --workdir'
      )
    fresh = {
      key: (changes, label)
      for changes, key, label in zip(
        wanted, identities, labels or wanted, strict=True
      )
      if key not in known
    }
    changes = [change for change, _ in fresh.values()]
    given = sweep_points.names(
      [label for _, label in fresh.values()], taken=known.values()
    )
    content['points'].update(zip(given, changes, strict=True))
    self._content = content
    if write:
      self._write()
    return len(fresh)

  def workdir(self, name: str) -> str:
    """Returns the workdir of a run."""
    return str(self.path / name)

  def finished(self, name: str) -> bool:
    """Returns whether a run has come to its end."""
    return (self.path / name / 'report.json').exists()

  def jobs(self, place: str) -> dict[str, str]:
    """Returns run -> the job of a cluster that was last given it."""
    return dict(self._content['jobs'].get(place, {}))

  def note_job(self, place: str, name: str, job: str) -> None:
    """Remembers which job does a run, for a sweep that is started again."""
    self._content['jobs'].setdefault(place, {})[name] = job
    self._write()

  def _write(self) -> None:
    text = json.dumps(self._content, indent=2, ensure_ascii=False) + '\n'
    write_whole(self._file, text)


def write_whole(file: epath.Path, text: str) -> None:
  """Writes a file, in a bucket too, whole or not at all."""
  file.parent.mkdir(parents=True, exist_ok=True)
  if '://' in str(file):  # object stores replace a file at once
    file.write_text(text)
    return
  part = f'{file}.part'
  pathlib.Path(part).write_text(text)
  os.replace(part, file)
