"""What an evaluation has found so far: a line a result, safe against a kill.

The first line says what was evaluated and how. A line that a killed process
left torn is cut off; everything before it stays, and the work goes on there.
"""

import json
import os
import pathlib
from typing import Any


class Journal:
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
    self.done: dict[str, dict[str, Any]] = {}
    identity = json.loads(json.dumps(identity))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b''
    # Only whole lines count: the last one may be torn.
    content = content[: content.rfind(b'\n') + 1]
    if content:
      self._read(path, content, identity)
    self._path = path
    if path.exists():
      os.truncate(path, len(content))
    if not content:
      self._append(identity)

  def add(self, name: str, result: dict[str, Any]) -> None:
    """Keeps a result: when this returns, it is on the disk."""
    self._append({'name': name, **result})
    self.done[name] = result

  def _append(self, value: dict[str, Any]) -> None:
    line = json.dumps(value, ensure_ascii=False)
    with open(self._path, 'ab') as file:
      file.write(f'{line}\n'.encode())
      file.flush()
      os.fsync(file.fileno())

  def _read(
    self, path: pathlib.Path, content: bytes, identity: dict[str, Any]
  ) -> None:
    first, *lines = content.splitlines()
    try:
      found = json.loads(first)
      results = list(map(json.loads, lines))
    except ValueError as error:
      raise ValueError(
        f'{path} is damaged ({error}); remove it to begin again'
      ) from error
    for key in {**found, **identity}:
      if found.get(key) != identity.get(key):
        raise ValueError(
          f'{path} holds results of another evaluation: {key} was '
          f'{found.get(key)!r} and is {identity.get(key)!r} now; give another '
          '--workdir, or remove the file to begin again'
        )
    self.done = {result.pop('name'): result for result in results}
