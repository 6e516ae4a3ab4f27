"""Fast checkpoints on each host's own disk, between those that last.

Each process writes what its own devices hold, into one file a step:

  FOLDER/KEY/process-0/120.state     length of the header, header (JSON), numbers

The numbers are copied to the host at once and written by a thread. Nobody waits
for another host, nothing crosses the network. In return such a checkpoint is of
use only where the parts a process needs are on its own disk: on as many hosts
as before, or wherever parameters are replicated. Otherwise, or when one host's
disk is gone, the run goes on from the newest lasting checkpoint.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import struct
import tempfile
import threading
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from yi_jax.training import state as train_state

_KEEP = 2
_SHOWN = 8  # newest steps of a process that the others hear of
_SUFFIX = '.state'

Index = tuple[slice, ...]


class Incomplete(ValueError):
  """The file lacks, or has lost, what is needed here."""


class LocalCheckpoints:
  """Writes and reads the files of this process."""

  def __init__(self, folder: str, workdir: str, run: str, start: int) -> None:
    """Opens the folder; what stood there of the same run counts.

    Args:
      folder: on a local disk; '' takes the system's for temporary files.
      workdir: of the run.
      run: names the run for good, see `workdir_lock`.
      start: counts the starts of the run; equal steps of different starts are
        not mixed.
    """
    folder = folder or os.path.join(tempfile.gettempdir(), 'yi_jax')
    key = hashlib.sha256(f'{run} {workdir}'.encode()).hexdigest()[:16]
    self._run_folder = pathlib.Path(folder, key)
    self._folder = self._run_folder / f'process-{jax.process_index()}'
    self._start = start
    self._thread: threading.Thread | None = None
    self._error: Exception | None = None

  def save(
    self, step: int, state: train_state.TrainState, manifest: dict[str, Any]
  ) -> str:
    """Copies the state and starts to write it.

    Args:
      step: updates made.
      state: may be donated right after.
      manifest: see `checkpointing.manifest`.

    Returns:
      What went wrong with this one or the one before; '' for nothing.
    """
    complaint = self.wait()
    entries, arrays, offset = [], [], 0
    for name, leaf in _named(state):
      for index, data in _parts(leaf):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        entries.append({'name': name, 'index': index, 'offset': offset})
        arrays.append(data)
        offset += data.nbytes
    header = {
      'step': step,
      'start': self._start,
      'manifest': manifest,
      'entries': entries,
    }
    self._thread = threading.Thread(
      target=self._write, args=(step, header, arrays), name='local checkpoint'
    )
    self._thread.start()
    return complaint

  def wait(self) -> str:
    """Returns when all is written, with what went wrong, or ''."""
    if self._thread:
      self._thread.join()
    self._thread, error, self._error = None, self._error, None
    if error is None:
      return ''
    return f'no local checkpoint in {self._folder}: {error}'

  def newest(self, before: float = math.inf) -> int:
    """Returns the newest step that all processes have, 0 for none.

    Args:
      before: only older ones count.
    """
    mine = np.zeros((_SHOWN, 2), np.int32)
    found = self._found()[-_SHOWN:]
    for row, pair in enumerate(found):
      mine[row] = pair
    if jax.process_count() == 1:
      everyone = mine[None]
    else:
      everyone = multihost_utils.process_allgather(mine)
    sets = [{tuple(map(int, pair)) for pair in rows} for rows in everyone]
    common = {step for step, _ in set.intersection(*sets)}
    return max((step for step in common if step < before), default=0)

  def restore(
    self, step: int, abstract: train_state.TrainState
  ) -> tuple[train_state.TrainState, dict[str, Any]] | None:
    """Restores a step if every process can.

    Args:
      step: one that all processes have.
      abstract: shapes, types and shardings of the state.

    Returns:
      (state, manifest), or None if some process lacks a part.
    """
    try:
      found = self._read(step, abstract)
    except (OSError, ValueError, KeyError, TypeError):
      found = None
    if jax.process_count() > 1:
      able = multihost_utils.process_allgather(np.int32(found is not None))
      if not np.all(able):
        return None
    if found is None:
      return None
    parts, manifest = found
    leaves = [
      jax.make_array_from_callback(leaf.shape, leaf.sharding, held.__getitem__)
      for (_, leaf), held in zip(_named(abstract), parts, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), manifest

  def forget_after(self, step: int) -> None:
    """Removes what is of an abandoned branch: all steps beyond this one."""
    self.wait()
    for found, _ in self._found():
      if found > step:
        self._path(found).unlink(missing_ok=True)

  def remove(self) -> None:
    """Removes all: the run is complete, or its files are of no use."""
    self.wait()
    shutil.rmtree(self._folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # the last one turns off the light
      self._run_folder.rmdir()

  def _path(self, step: int) -> pathlib.Path:
    return self._folder / f'{step}{_SUFFIX}'

  def _found(self) -> list[tuple[int, int]]:
    """Returns (step, start that wrote it) of the files here, oldest first."""
    found = []
    for path in self._folder.glob(f'*{_SUFFIX}'):
      with contextlib.suppress(OSError, ValueError, KeyError, struct.error):
        header, _ = _header(path)
        found.append((header['step'], header['start']))
    return sorted(found)

  def _write(
    self, step: int, header: dict[str, Any], arrays: list[np.ndarray]
  ) -> None:
    part = self._folder / f'.{step}.part'
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      for leftover in self._folder.glob('.*.part'):
        leftover.unlink()
      for entry, data in zip(header['entries'], arrays, strict=True):
        entry['bytes'], entry['crc'] = data.nbytes, zlib.crc32(data)
      text = json.dumps(header).encode()
      with open(part, 'wb') as file:
        file.write(struct.pack('<QI', len(text), zlib.crc32(text)) + text)
        for data in arrays:
          file.write(data)
        file.flush()
        os.fsync(file.fileno())
      part.replace(self._path(step))
      for old, _ in self._found()[:-_KEEP]:
        self._path(old).unlink(missing_ok=True)
    except Exception as error:  # told with the next save
      self._error = error
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)

  def _read(
    self, step: int, abstract: train_state.TrainState
  ) -> tuple[list[dict[Any, np.ndarray]], dict[str, Any]]:
    """Returns, a leaf, the parts this process needs, and the manifest."""
    path = self._path(step)
    header, begin = _header(path)
    held: dict[str, list[dict[str, Any]]] = {}
    for entry in header['entries']:
      held.setdefault(entry['name'], []).append(entry)
    numbers = np.memmap(path, np.uint8, 'r')
    parts = []
    for name, leaf in _named(abstract):
      places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
      needed = {_bounds(index, leaf.shape): index for index in places.values()}
      pieces = [
        (entry['index'], _checked(numbers, begin, entry, leaf.dtype))
        for entry in held[name]
      ]
      parts.append(
        _ByIndex(
          leaf.shape,
          {
            bounds: _assemble(name, bounds, pieces, leaf.dtype)
            for bounds in needed
          },
        )
      )
    return parts, header['manifest']


class _ByIndex(dict):
  """Parts of one array, asked for by slices."""

  def __init__(self, shape: tuple[int, ...], parts: dict[Any, Any]) -> None:
    super().__init__(parts)
    self._shape = shape

  def __getitem__(self, index: Index) -> np.ndarray:
    return super().__getitem__(_bounds(index, self._shape))


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Returns the header and where the numbers begin; ValueError if damaged."""
  with open(path, 'rb') as file:
    size, crc = struct.unpack('<QI', file.read(12))
    text = file.read(size)
  if len(text) != size or zlib.crc32(text) != crc:
    raise Incomplete(f'{path} is damaged')
  return json.loads(text), 12 + size


def _named(tree: Any) -> list[tuple[str, Any]]:
  return [
    (jax.tree_util.keystr(path), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _parts(array: jax.Array) -> list[tuple[list[list[int]], np.ndarray]]:
  """Returns the different parts that local devices hold, with their bounds."""
  found = {}
  for shard in array.addressable_shards:
    found.setdefault(_bounds(shard.index, array.shape), shard.data)
  # A copy: on CPU the view would change under the thread's hands.
  return [
    ([list(pair) for pair in bounds], np.array(data))
    for bounds, data in found.items()
  ]


def _bounds(
  index: Index, shape: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
  return tuple(
    s.indices(size)[:2] for s, size in zip(index, shape, strict=True)
  )


def _checked(
  numbers: np.ndarray, begin: int, entry: dict[str, Any], dtype: Any
) -> np.ndarray:
  """Returns one saved part; Incomplete if it is cut off or changed."""
  first = begin + entry['offset']
  data = numbers[first : first + entry['bytes']]
  if data.nbytes != entry['bytes'] or zlib.crc32(data) != entry['crc']:
    raise Incomplete(f'{entry["name"]} is damaged')
  shape = [stop - start for start, stop in entry['index']]
  return np.array(data).view(jnp.dtype(dtype)).reshape(shape)


def _assemble(
  name: str,
  bounds: tuple[tuple[int, int], ...],
  pieces: list[tuple[list[list[int]], np.ndarray]],
  dtype: Any,
) -> np.ndarray:
  """Returns one needed part, put together from saved ones."""
  wanted = np.empty([stop - start for start, stop in bounds], dtype)
  filled = 0
  for index, data in pieces:
    common = [
      (max(a, c), min(b, d))
      for (a, b), (c, d) in zip(bounds, index, strict=True)
    ]
    if any(start >= stop for start, stop in common):
      continue
    to = tuple(
      slice(s - a, e - a) for (s, e), (a, _) in zip(common, bounds, strict=True)
    )
    source = tuple(
      slice(s - c, e - c) for (s, e), (c, _) in zip(common, index, strict=True)
    )
    wanted[to] = data[source]
    filled += math.prod(stop - start for start, stop in common)
  if filled < wanted.size:
    raise Incomplete(f'{name} is not all on this host')
  return wanted
