"""Files of the safetensors format, read tensor by tensor and written as a stream.

  8 bytes      length of the header, little-endian
  header       JSON: {name: {"dtype": "BF16", "shape": [...],
               "data_offsets": [begin, end]}, "__metadata__": {...}}
  data         the tensors, row by row, without gaps

The library of that name holds all tensors of a file in memory to write it; the
format is simple enough to write while they are being made.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from yi_jax.checkpoints import lazy

_TYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = '__metadata__'
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def read(path: pathlib.Path) -> dict[str, lazy.Leaf]:
  """Returns the tensors of a file; only its header is read now.

  Args:
    path: the file.

  Raises:
    OSError: if it cannot be read, or is shorter than its header says.
    ValueError: if the header is damaged, or a tensor is of no float type.
  """
  size = path.stat().st_size
  with open(path, 'rb') as file:
    header, start = _header(file, path, size)
  tensors, end = {}, 0
  for name, entry in header.items():
    if name == _METADATA:
      continue
    tensors[name], last = _leaf(path, start, name, entry)
    end = max(end, last)
  if start + end > size:
    raise OSError(
      f'{path} is cut off: its header describes {start + end:,} bytes, the file '
      f'has {size:,}. Copy or download it again'
    )
  return tensors


def write(
  path: pathlib.Path,
  tensors: Mapping[str, lazy.Leaf],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors to a file, a few in memory at a time.

  Args:
    path: of the file, which becomes visible as it grows: name it so that nobody
      takes it for whole.
    tensors: by name; they stand in the file in this order.
    metadata: strings for the header. transformers wants {'format': 'pt'}.

  Raises:
    OSError: if the file cannot be written.
  """
  header, end = {}, 0
  if metadata:
    header[_METADATA] = dict(metadata)
  for name, leaf in tensors.items():
    begin, end = end, end + leaf.nbytes
    header[name] = {
      'dtype': _NAMES[np.dtype(leaf.dtype)],
      'shape': list(leaf.shape),
      'data_offsets': [begin, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # so that the data are aligned
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    arrays = lazy.read_ahead(tensors.values())
    for leaf, numbers in zip(tensors.values(), arrays, strict=True):
      assert (numbers.shape, numbers.dtype) == (leaf.shape, leaf.dtype)
      file.write(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())


def _header(
  file: BinaryIO, path: pathlib.Path, size: int
) -> tuple[dict[str, Any], int]:
  """Returns the header and where the data begin."""
  start = file.read(8)
  length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
  if not 2 <= length <= _LONGEST_HEADER:
    raise ValueError(f'{path} is no safetensors file, or is damaged')
  if 8 + length > size:
    raise OSError(
      f'{path} is cut off inside its header ({size:,} bytes). Copy or download '
      'it again'
    )
  try:
    header = json.loads(file.read(length))
  except ValueError as error:
    raise ValueError(
      f'{path} is no safetensors file, or is damaged: {error}'
    ) from error
  if not isinstance(header, dict):
    raise ValueError(f'{path} is no safetensors file: its header is no object')
  return header, 8 + length


def _leaf(
  path: pathlib.Path, start: int, name: str, entry: Any
) -> tuple[lazy.Leaf, int]:
  """Returns one tensor and where it ends, counted from the first."""
  try:
    kind, shape = entry['dtype'], tuple(entry['shape'])
    begin, end = entry['data_offsets']
    count = math.prod(shape)
    whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
  except (TypeError, KeyError, ValueError) as error:
    raise ValueError(f'{path} is damaged: what it says of {name}') from error
  if kind not in _TYPES:
    raise ValueError(
      f'{name} in {path} has type {kind}; only {", ".join(_TYPES)} are '
      'weights of a model that is not quantized'
    )
  dtype = _TYPES[kind]
  if not whole or end - begin != count * dtype.itemsize:
    raise ValueError(
      f'{path} is damaged: {name} {list(shape)} of {kind} takes '
      f'{count * dtype.itemsize:,} bytes, not those from {begin:,} to {end:,}'
    )
  return lazy.Leaf(
    name, shape, dtype, lambda: read_span(path, start + begin, shape, dtype)
  ), end


def read_span(
  path: pathlib.Path, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
  """Returns an array that stands in a file as it is in memory.

  It is read, not mapped: pages of a mapping would count as memory in use.

  Args:
    path: the file.
    start: of the array, in bytes.
    shape: of the array.
    dtype: of the array.

  Raises:
    OSError: if the file ends before.
  """
  numbers = np.empty(shape, dtype)
  rest = numbers.reshape(-1).view(np.uint8)
  with open(path, 'rb', buffering=0) as file:
    file.seek(start)
    while rest.size:
      got = file.readinto(rest.data)
      if not got:
        raise OSError(f'{path} has become shorter while it was being read')
      rest = rest[got:]
  return numbers
