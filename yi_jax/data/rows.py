"""Packed rows on disk: ArrayRecord files and a manifest beside them.

A row is a dict of named arrays that have the same shape in every row. On disk:

  tokens        [L + 1]  a slice of the stream, see `packing`
  segment_ids   [L]      1.., 0 is padding
  loss_weights  [L]      optional; without it, 1 where a segment is
  row_id        []       unique among all tasks; other tables join by it

and whatever else a task needs (image patches, stored log-probabilities). A
record is the bytes of the arrays one after the other; manifest.json tells their
types and shapes, the number of rows and the size of each file. A folder of rows
is there whole or not at all.
"""

import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from yi_jax.data import packing

MANIFEST = 'manifest.json'
_FORMAT = 1
_ROWS_A_FILE = 1 << 17  # about 150 MB at 512 tokens


@dataclasses.dataclass
class _File:
  """What array_record wants to know of a file, so that it need not open it."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class RowWriter:
  """Writes rows to a folder that must not be read before `close`.

  Use it inside `atomic.new_folder`, and as a context manager: after an error
  no manifest is written, and without it a folder holds no rows.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    task: str,
    shard: tuple[int, int] = (0, 1),
    types: Mapping[str, str] | None = None,
  ) -> None:
    """Opens a folder.

    Args:
      folder: is made; nothing else may write to it.
      task: name, which makes row ids unique.
      shard: (i, n): these are the rows of the i-th of n writers of the task.
      types: array name -> type on disk, if narrower than in memory.
    """
    self._folder = folder
    self._shard = shard
    self._first_id = (zlib.crc32(task.encode()) & 0x7FFFFFFF) << 32
    self._types = dict(types or {})
    self._fields: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    self._files: list[dict[str, Any]] = []
    self._writer = None
    self.rows = 0
    folder.mkdir(parents=True, exist_ok=True)

  def write(self, row: Mapping[str, np.ndarray]) -> None:
    """Appends a row; the first one decides names and shapes.

    Raises:
      ValueError: if a row has other names, shapes, or values that do not fit
        the type on disk.
    """
    # Of n writers, the i-th numbers its rows i, i + n, i + 2n, ...
    number = self._shard[0] + self.rows * self._shard[1]
    row = {**row, 'row_id': np.int64(self._first_id + number)}
    if not self._fields:
      self._fields = {
        name: (np.dtype(self._types.get(name, array.dtype)), array.shape)
        for name, array in row.items()
      }
    if row.keys() != self._fields.keys():
      raise ValueError(
        f'a row of {sorted(row)} among rows of {sorted(self._fields)}'
      )
    parts = []
    for name, (dtype, shape) in self._fields.items():
      array = np.asarray(row[name])
      narrow = array.astype(dtype)
      exact = dtype.kind == 'f' or np.array_equal(narrow, array)
      if array.shape != shape or not exact:
        raise ValueError(
          f'{name} {array.dtype}{list(array.shape)} does not fit '
          f'{dtype}{list(shape)}'
        )
      parts.append(narrow.tobytes())
    if self.rows % _ROWS_A_FILE == 0:
      self._next_file()
    self._writer.write(b''.join(parts))
    self.rows += 1
    self._files[-1]['rows'] += 1

  def close(self, **facts: Any) -> None:
    """Writes the manifest, with these facts in it; then the rows are there."""
    self._close_file()
    manifest = {
      'format': _FORMAT,
      'rows': self.rows,
      'fields': {
        name: {'dtype': dtype.str, 'shape': list(shape)}
        for name, (dtype, shape) in self._fields.items()
      },
      'files': self._files,
      **facts,
    }
    path = self._folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2))

  def __enter__(self) -> 'RowWriter':
    return self

  def __exit__(self, *error: object) -> None:
    if self._writer is not None:  # an error came first
      self._writer.close()

  def _next_file(self) -> None:
    self._close_file()
    name = f'rows-{len(self._files):05}.array_record'
    self._files.append({'name': name, 'rows': 0, 'bytes': 0})
    # One row a group: rows are read one by one, in any order.
    self._writer = array_record_module.ArrayRecordWriter(
      str(self._folder / name), 'group_size:1'
    )

  def _close_file(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None
      file = self._files[-1]
      path = self._folder / file['name']
      file['bytes'] = path.stat().st_size
      reader = array_record_module.ArrayRecordReader(str(path))
      whole = reader.num_records() == file['rows']
      reader.close()
      if not whole:  # the library may not tell that a disk is full
        raise OSError(f'{path} was not written whole: is the disk full?')


class RowReader:
  """Rows of one or several folders, by number, ready for training.

  reader[i] is a dict of tokens int32[L] (inputs), targets int32[L], segment_ids
  int32[L], positions int32[L] (they restart in each segment), loss_weights
  float32[L] (0 in padding), row_id int64, and the other arrays as they are.
  Any number of threads may read.

  Attributes:
    facts: what the writer of the first folder said at `close`.
  """

  def __init__(self, folders: pathlib.Path | Sequence[pathlib.Path]) -> None:
    """Opens the folders, one after the other in the order given.

    Raises:
      FileNotFoundError: if a folder holds no rows.
      ValueError: if a file is damaged or the folders do not fit each other.
    """
    folders = [folders] if isinstance(folders, pathlib.Path) else list(folders)
    manifests = [_manifest(folder) for folder in folders]
    self.facts = manifests[0]
    self._fields, instructions = None, []
    for folder, manifest in zip(folders, manifests, strict=True):
      if not manifest['rows']:
        continue
      fields = {
        name: (np.dtype(field['dtype']), tuple(field['shape']))
        for name, field in manifest['fields'].items()
      }
      if self._fields not in (None, fields):
        raise ValueError(
          f'the rows of {folder} and {folders[0]} differ in kind'
        )
      self._fields = fields
      instructions += [
        _File(str(folder / file['name']), 0, file['rows'], file['rows'])
        for file in manifest['files']
      ]
    self._size = sum(manifest['rows'] for manifest in manifests)
    self._source = instructions and (
      array_record_data_source.ArrayRecordDataSource(instructions)
    )

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    record, row, offset = self._source[index], {}, 0
    for name, (dtype, shape) in self._fields.items():
      count = math.prod(shape)
      array = np.frombuffer(record, dtype, count, offset).reshape(shape)
      row[name] = array.astype(_WIDE.get(name, dtype))
      offset += count * dtype.itemsize
    tokens, segments = row.pop('tokens'), row['segment_ids']
    weights = row.get('loss_weights', segments > 0)
    return {
      **row,
      'tokens': tokens[:-1],
      'targets': tokens[1:],
      'positions': packing.positions(segments),
      'loss_weights': weights.astype(np.float32),
    }


# Types in memory.
_WIDE = {
  'tokens': np.int32,
  'segment_ids': np.int32,
  'loss_weights': np.float32,
  'row_id': np.int64,
}


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest of a folder whose files are as it says."""
  path = folder / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(f'{folder} holds no rows; run yi_jax.prepare')
  manifest = json.loads(path.read_text())
  if manifest['format'] != _FORMAT:
    raise ValueError(
      f'{folder} was written by another version of yi_jax; delete it and run '
      'yi_jax.prepare'
    )
  for file in manifest['files']:
    data = folder / file['name']
    if not data.is_file() or data.stat().st_size != file['bytes']:
      raise ValueError(
        f'{data} is damaged: it should have {file["bytes"]:,} bytes; delete '
        f'{folder.parent} and run yi_jax.prepare again'
      )
  return manifest
