"""What an evaluation has found so far: a line a result, safe against a kill.

The first line says what was evaluated and how. A line that a killed process
left torn is put aside; everything before it stays, and the work goes on there.
"""

import json
import pathlib
from typing import Any

from yi_jax.data import journal


class Record:
  """Results by name, in a file of JSON lines.

  Attributes:
    done: name -> result, in the order in which they came.
  """

  def __init__(self, path: pathlib.Path, identity: dict[str, Any]) -> None:
    """Reads what is there, or begins.

    Args:
      path: of the file.
      identity: what the results belong to; plain JSON.

    Raises:
      ValueError: if the file belongs to something else, or is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    journal.mend_if_cut(path)
    try:
      self._journal = journal.Journal(path)
    except ValueError as error:
      raise ValueError(
        f'{path} is damaged ({error}); remove it to begin again'
      ) from error
    identity = json.loads(json.dumps(identity))
    if not self._journal.rows:
      self._journal.append([identity])
    (_, found), *lines = self._journal.rows
    for key in {**found, **identity}:
      if found.get(key) != identity.get(key):
        raise ValueError(
          f'{path} holds results of another evaluation: {key} was '
          f'{found.get(key)!r} and is {identity.get(key)!r} now; give another '
          '--workdir, or remove the file to begin again'
        )
    self.done = {
      row['name']: {k: v for k, v in row.items() if k != 'name'}
      for _, row in lines
    }

  def add(self, name: str, result: dict[str, Any]) -> None:
    """Keeps a result: when this returns, it is on the disk."""
    self._journal.append([{'name': name, **result}])
    self.done[name] = result
