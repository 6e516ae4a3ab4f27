"""Files and folders that are there whole or not at all, and locks.

What `prepare` makes is written beside its place under a dotted name and then
renamed, so that a kill, a full disk or a power cut leaves no half. The locks
belong to the open file: the system gives them back when a process ends, by
whatever means, so none is ever stale.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO, Any, BinaryIO


@contextlib.contextmanager
def locked(path: pathlib.Path, remove: bool = False) -> Iterator[None]:
  """Waits until no other process holds `path`, and holds it in the block.

  Args:
    path: file whose only purpose is to be locked; made if needed.
    remove: whether it goes with the last who held it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  while True:
    with open(path, 'w') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        print(f'another process works in {path.parent}; waiting for it')
        fcntl.flock(file, fcntl.LOCK_EX)
      if not _is_at(file, path):
        continue  # the one before removed it: this lock keeps nobody out
      try:
        yield
      finally:
        if remove:
          path.unlink()
      return


def _is_at(file: IO[Any], path: pathlib.Path) -> bool:
  """Returns whether an open file is the one that has this name now."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def new_folder(final: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a folder that becomes `final` when the block ends without an error.

  Call it under a lock: leftovers of killed processes are removed.

  Args:
    final: where the folder shall be; nothing may be there.

  Raises:
    FileExistsError: if `final` is there.
  """
  if final.exists():
    raise FileExistsError(f'{final} is there already')
  final.parent.mkdir(parents=True, exist_ok=True)
  for leftover in final.parent.glob(f'.{final.name}.part-*'):
    shutil.rmtree(leftover)
  part = final.parent / f'.{final.name}.part-{os.getpid()}'
  part.mkdir()
  try:
    yield part
    part.rename(final)
  finally:
    # Only after an error; it is renamed otherwise.
    shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields a file that replaces `path` when the block ends without an error.

  Call it under a lock, as `new_folder`.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for leftover in path.parent.glob(f'.{path.name}.part-*'):
    leftover.unlink()
  part = path.parent / f'.{path.name}.part-{os.getpid()}'
  try:
    with open(part, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file, or leaves what was there."""
  with new_file(path) as file:
    file.write(content)
