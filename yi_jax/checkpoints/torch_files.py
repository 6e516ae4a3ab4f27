"""Files of torch.save, read without PyTorch and without running what they say.

Such a file is a zip archive: `NAME/data.pkl`, a pickle of the tensors' names,
shapes and places, and one uncompressed entry `NAME/data/KEY` a storage. A
pickle is a program. This one may only call what rebuilds a tensor; whatever
else it asks for is refused by name, before anything of it is called. Numbers
are read from the archive tensor by tensor.
"""

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from yi_jax.checkpoints import lazy, safetensors_files

_STORAGES = {
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
}
_LONGEST_PICKLE = 100_000_000  # bytes; that of Yi-34B has about 100,000


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A run of numbers in the archive."""

  key: str
  kind: str  # of PyTorch's storages
  size: int  # elements


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(path: pathlib.Path) -> dict[str, lazy.Leaf]:
  """Returns the tensors of a state dict; their numbers are not read yet.

  Args:
    path: a `.bin` or `.pt` file.

  Raises:
    OSError: if the file cannot be read or is cut off.
    ValueError: if it is not a plain dict of float tensors, naming what else it
      asks for.
  """
  try:
    archive = zipfile.ZipFile(path)
  except zipfile.BadZipFile as error:
    raise ValueError(
      f'{path} is no zip archive of torch.save: it is cut off, or was saved by '
      'PyTorch before 1.6 (load and save it there again)'
    ) from error
  with archive:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise ValueError(
        f'{path} holds no data.pkl, so torch.save did not write it'
      )
    folder = pickles[0].removesuffix('data.pkl')
    _check_byte_order(archive, folder, entries, path)
    if entries[pickles[0]].file_size > _LONGEST_PICKLE:
      raise ValueError(f'{path} is no state dict: its pickle is too long')
    with archive.open(pickles[0]) as file:
      found = _unpickle(file, path)
  return {
    name: _leaf(path, name, tensor, entries, folder)
    for name, tensor in found.items()
  }


class _NotWeightsError(ValueError):
  """The file asks for more than tensors."""


class _Unpickler(pickle.Unpickler):
  """Rebuilds descriptions of tensors and nothing else."""

  def __init__(self, file: Any, path: pathlib.Path) -> None:
    super().__init__(file, encoding='utf-8')
    self._path = path
    self._known: dict[tuple[str, str], Callable[..., Any] | str] = {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('torch._utils', '_rebuild_tensor_v2'): _tensor,
      ('torch._utils', '_rebuild_parameter'): _parameter,
    }

  def find_class(self, module: str, name: str) -> Any:
    """Returns what stands for one of PyTorch's names."""
    if module == 'torch' and name.endswith('Storage'):
      return _Kind(name)
    if (module, name) not in self._known:
      raise _NotWeightsError(
        f'{self._path} is not weights only: its pickle asks for {module}.{name}, '
        'which could do anything. Have its author save safetensors'
      )
    return self._known[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns what stands for a storage."""
    what, kind, key, _, size = pid
    if what != 'storage' or not isinstance(kind, _Kind):
      raise _NotWeightsError(f'{self._path} is damaged: it refers to {pid!r}')
    return _Storage(str(key), kind.name, int(size))


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A class of PyTorch's storages; pickles only mention it."""

  name: str


def _tensor(
  storage: _Storage,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  *unused: Any,
) -> _Tensor:
  return _Tensor(storage, int(offset), tuple(shape), tuple(strides))


def _parameter(data: _Tensor, *unused: Any) -> _Tensor:
  return data


def _unpickle(file: Any, path: pathlib.Path) -> dict[str, _Tensor]:
  try:
    found = _Unpickler(file, path).load()
  except _NotWeightsError:
    raise
  except Exception as error:  # a damaged pickle fails in a dozen ways
    raise ValueError(f'{path} is damaged: {error}') from error
  if not isinstance(found, dict) or not found:
    raise ValueError(f'{path} holds no state dict but {type(found).__name__}')
  for name, tensor in dict.items(found):
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise ValueError(
        f'{path} is no plain state dict: {name!r} is a '
        f'{type(tensor).__name__}. A training checkpoint? Save the weights alone'
      )
  return dict(found)


def _check_byte_order(
  archive: zipfile.ZipFile,
  folder: str,
  entries: dict[str, zipfile.ZipInfo],
  path: pathlib.Path,
) -> None:
  name = f'{folder}byteorder'
  if name in entries and archive.read(name) != b'little':
    raise ValueError(f'{path} was saved on a big-endian machine')


def _leaf(
  path: pathlib.Path,
  name: str,
  tensor: _Tensor,
  entries: dict[str, zipfile.ZipInfo],
  folder: str,
) -> lazy.Leaf:
  """Returns one tensor, after comparing all its figures with the archive."""
  storage = tensor.storage
  if storage.kind not in _STORAGES:
    raise ValueError(
      f'{name} in {path} is a torch.{storage.kind}; only '
      f'{", ".join(_STORAGES)} are weights of a model that is not quantized'
    )
  dtype = _STORAGES[storage.kind]
  entry = entries.get(f'{folder}data/{storage.key}')
  if entry is None:
    raise ValueError(f'{path} is damaged: the numbers of {name} are missing')
  if entry.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'{path} is compressed, as torch.save never does')
  sizes = (*tensor.shape, *tensor.strides, tensor.offset)
  whole = all(isinstance(n, int) and n >= 0 for n in sizes)
  if not whole or len(tensor.shape) != len(tensor.strides):
    raise ValueError(f'{path} is damaged: what it says of {name}')
  # One behind the last element that the view reaches.
  reach = 0
  if math.prod(tensor.shape):
    steps = zip(tensor.shape, tensor.strides, strict=True)
    reach = 1 + sum((length - 1) * step for length, step in steps)
  last = (tensor.offset + reach) * dtype.itemsize
  if last > entry.file_size:
    raise ValueError(
      f'{path} is damaged: {name} {list(tensor.shape)} needs {last:,} bytes of '
      f'its storage, which has {entry.file_size:,}'
    )

  def numbers() -> np.ndarray:
    start = _data_start(path, entry) + tensor.offset * dtype.itemsize
    flat = safetensors_files.read_span(path, start, (reach,), dtype)
    strides = [step * dtype.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)
    return np.ascontiguousarray(view)

  return lazy.Leaf(name, tensor.shape, dtype, numbers)


def _data_start(path: pathlib.Path, entry: zipfile.ZipInfo) -> int:
  """Returns where the bytes of an uncompressed entry begin in the archive."""
  with open(path, 'rb') as file:
    file.seek(entry.header_offset)
    header = file.read(30)
  if len(header) < 30 or header[:4] != b'PK\x03\x04':
    raise OSError(f'{path} is damaged at byte {entry.header_offset:,}')
  name, extra = struct.unpack('<HH', header[26:30])
  return entry.header_offset + 30 + name + extra
