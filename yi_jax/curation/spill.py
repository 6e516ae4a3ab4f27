"""Records in files: what shuffles on this machine keep on disk.

A bundle of work writes its records one behind the other into a file of its own,
and returns where each of them lies, with its checksum. Whoever wants records
reads them from there, one at a time. So memory holds where things are, a few
tens of bytes for thousands of rows, and not the things.
"""

import collections
import contextlib
import os
import pathlib
import pickle
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from apache_beam import coders

# File, offset, bytes and checksum of a record.
Entry = tuple[str, int, int, int]

_BUFFER = 1 << 18
_KEYS = coders.FastPrimitivesCoder().as_deterministic_coder('a shuffle')


def encode_key(key: Hashable) -> bytes:
  """Returns the same bytes for equal keys, in every process."""
  return _KEYS.encode(key)


def decode_key(content: bytes) -> Any:
  """Returns the key again."""
  return _KEYS.decode(content)


class Writer:
  """Writes the records of one bundle; the file appears with the first.

  Attributes:
    entries: of what was written, with the encoded key of each, b'' for none.
  """

  def __init__(self, folder: str, name: str) -> None:
    """Opens nothing yet."""
    self._folder, self._name, self._file = folder, name, None
    self._size = 0
    self.entries: list[tuple[bytes, Entry]] = []

  def write(self, key: bytes, value: Any) -> None:
    """Appends a record."""
    if self._file is None:
      path = os.path.join(self._folder, self._name)
      self._file = open(path, 'wb', buffering=_BUFFER)  # noqa: SIM115
    content = pickle.dumps(value, protocol=5)
    self._file.write(content)
    entry = (self._name, self._size, len(content), zlib.crc32(content))
    self.entries.append((key, entry))
    self._size += len(content)

  def close(self) -> None:
    """Brings the file to the disk; OSError if that is full."""
    if self._file:
      self._file.close()
      self._file = None

  def abort(self) -> None:
    """Removes the file."""
    if self._file:
      with contextlib.suppress(OSError):  # the disk may be full
        self._file.close()
      with contextlib.suppress(OSError):
        os.unlink(os.path.join(self._folder, self._name))
    self._file = None


class Records:
  """The values of some records, read whenever somebody iterates."""

  def __init__(self, folder: str, entries: Iterable[Entry]) -> None:
    """Reads nothing yet."""
    self._folder, self._entries = folder, list(entries)

  def __len__(self) -> int:
    """Returns how many they are."""
    return len(self._entries)

  def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
    """Travels as a list: the files will not be there for long."""
    return list, (list(self),)

  def __iter__(self) -> Iterator[Any]:
    """Yields the values; OSError if a file is not what was written."""
    for name, offset, size, checksum in self._entries:
      with open(os.path.join(self._folder, name), 'rb') as file:
        file.seek(offset)
        content = file.read(size)
      if len(content) != size or zlib.crc32(content) != checksum:
        raise OSError(
          f'{self._folder}/{name} is not what was written: {len(content)} of '
          f'{size} bytes at {offset}, or others; start again, and look at '
          'that disk'
        )
      yield pickle.loads(content)


class Multimap:
  """Values by key, as a side input has them."""

  def __init__(self, folder: str, groups: Mapping[bytes, list[Entry]]) -> None:
    """Reads nothing yet."""
    self._folder, self._groups = folder, groups

  def __getitem__(self, key: Hashable) -> Records:
    """Returns the values of a key, none if it is not there."""
    return Records(self._folder, self._groups.get(encode_key(key), ()))


def group(
  entries: Iterable[tuple[bytes, Entry]],
) -> dict[bytes, list[Entry]]:
  """Returns the entries of each key, in the order they were written."""
  groups = collections.defaultdict(list)
  for key, entry in entries:
    groups[key].append(entry)
  return dict(groups)


def remove(folder: str, entries: Iterable[tuple[bytes, Entry]]) -> None:
  """Removes the files of some entries."""
  for name in {entry[0] for _, entry in entries}:
    pathlib.Path(folder, name).unlink(missing_ok=True)
