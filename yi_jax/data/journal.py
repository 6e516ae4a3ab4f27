"""JSON lines that only grow: a kill loses at most the line being written.

Rows are appended under a lock, in one write, and are on the disk when `append`
returns. A line that was cut off (a kill, a power cut) has no end of line; it is
told, and `mend` puts it aside. Any other bad line is an error with its number.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from yi_jax.data import atomic

Row = dict[str, Any]


class Journal:
  """A file of JSON objects, one a line.

  Attributes:
    path: the file; it need not be there.
    rows: what was read so far, (line number, object), in order.
    size: bytes that these lines take.
  """

  def __init__(
    self, path: pathlib.Path, check: Callable[[Row], None] | None = None
  ) -> None:
    """Reads what is there.

    Args:
      path: the file.
      check: is called with each object, those appended too; what it raises as
        ValueError is told with the line.

    Raises:
      ValueError: for a bad line, or one that was cut off.
    """
    self.path = path
    self.rows: list[tuple[int, Row]] = []
    self.size = 0
    self._lines, self._check = 0, check
    self.refresh()

  def refresh(self) -> None:
    """Reads what was appended since, by whomever.

    Raises:
      ValueError: as the constructor.
    """
    content, cut = _rest(self.path, self.size)
    if cut:
      # Cut off, or just being written: whoever writes has the lock.
      with self.locked():
        self._read()
    else:
      self._take(content)

  def append(self, rows: Iterable[Row]) -> None:
    """Adds rows; they are on the disk afterwards. Not under `locked`."""
    with self.locked():
      self._read()
      self.append_locked(rows)

  def locked(self) -> Any:
    """Holds the file against other writers in the block."""
    return atomic.locked(self.path.parent / f'.{self.path.name}.lock')

  def append_locked(self, rows: Iterable[Row]) -> None:
    """Adds rows under `locked`, after a `refresh_locked`."""
    rows = list(rows)
    if not rows:
      return
    if self._check:
      for row in rows:
        self._check(row)
    content = b''.join(to_line(row) for row in rows)
    is_new = not self.path.exists()
    with open(self.path, 'ab', buffering=0) as file:
      before = file.seek(0, os.SEEK_END)
      try:
        written = 0
        while written < len(content):
          written += file.write(content[written:])
        os.fsync(file.fileno())
      except OSError:  # a full disk: no half line stays behind
        file.truncate(before)
        raise
    if is_new:
      _sync_folder(self.path.parent)
    for row in rows:
      self._lines += 1
      self.rows.append((self._lines, row))
    self.size += len(content)

  def refresh_locked(self) -> None:
    """As `refresh`, under `locked`."""
    self._read()

  def _read(self) -> None:
    content, cut = _rest(self.path, self.size)
    if cut:
      raise ValueError(
        f'{self.path}, line {self._lines + content.count(10) + 1} was cut off '
        'while it was written; nothing else is lost. Mend the file '
        f'(polish --mend={self.path})'
      )
    self._take(content)

  def _take(self, content: bytes) -> None:
    """Adds the rows of whole lines."""
    for line in content.split(b'\n')[:-1]:
      self._lines += 1
      if line.strip():
        self.rows.append((self._lines, self._parsed(line)))
    self.size += len(content)

  def _parsed(self, line: bytes) -> Row:
    place = f'{self.path}, line {self._lines}'
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
      raise ValueError(f'{place} is not JSON: {error}') from error
    if not isinstance(row, dict):
      raise ValueError(f'{place} is no JSON object')
    if self._check:
      try:
        self._check(row)
      except ValueError as error:
        raise ValueError(f'{place}: {error}') from error
    return row


def mend_if_cut(path: pathlib.Path) -> None:
  """Mends a file whose lines can be made again, and says so."""
  if _rest(path, 0)[1]:
    print(mend(path), flush=True)


def mend(path: pathlib.Path) -> str:
  """Puts a line that was cut off into PATH.cut; tells what it did.

  A last line that is whole but for its end of line gets that.

  Raises:
    FileNotFoundError: if there is no such file.
  """
  if not path.is_file():
    raise FileNotFoundError(f'there is no {path} to mend')
  with atomic.locked(path.parent / f'.{path.name}.lock'):
    content, cut = _rest(path, 0)
    if not cut:
      return f'{path} is whole'
    number = content.count(10) + 1
    try:
      whole = isinstance(json.loads(cut), dict)
    except ValueError:
      whole = False
    if whole:
      with open(path, 'ab') as file:
        file.write(b'\n')
        os.fsync(file.fileno())
      return f'{path}: line {number} is whole, only its end was missing'
    aside = path.with_name(f'{path.name}.cut')
    with open(aside, 'ab') as file:
      file.write(cut + b'\n')
      os.fsync(file.fileno())
    with open(path, 'r+b') as file:
      file.truncate(len(content))
      os.fsync(file.fileno())
    return (
      f'{path}: line {number} was cut off; its {len(cut)} bytes are in {aside}'
    )


def to_line(row: Mapping[str, Any]) -> bytes:
  """Returns a row as it stands in a file."""
  return json.dumps(row, ensure_ascii=False).encode() + b'\n'


def _rest(path: pathlib.Path, start: int) -> tuple[bytes, bytes]:
  """Returns the whole lines of a file from a byte on, and a cut one."""
  try:
    with open(path, 'rb') as file:
      if file.seek(0, os.SEEK_END) < start:
        raise ValueError(
          f'{path} has become shorter while it was in use: it only ever grows. '
          'Put it back'
        )
      file.seek(start)
      content = file.read()
  except FileNotFoundError:
    return b'', b''
  end = content.rfind(b'\n') + 1
  return content[:end], content[end:]


def _sync_folder(folder: pathlib.Path) -> None:
  """Makes the name of a new file last."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
