"""The header of a GGUF file: what it says about itself, and where tensors lie.

GGUF (ggml's docs/gguf.md, versions 2 and 3) is one file: a table of metadata,
which holds the tokenizer too, a table of tensors, then their bytes. Read with
bounds checked, so that a file that was cut off says so, and fast: the reader
of the `gguf` package takes seconds for a vocabulary.
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from typing import Any

import numpy as np

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
# Value types by number: struct formats, then those of variable size.
_SCALARS = dict(enumerate(['B', 'b', 'H', 'h', 'I', 'i', 'f', '?']))
_SCALARS |= {10: 'Q', 11: 'q', 12: 'd'}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies.

  Attributes:
    shape: rows first, as NumPy and PyTorch have it.
    type: number of ggml's type.
    offset: of its first byte in the file.
  """

  shape: tuple[int, ...]
  type: int
  offset: int


class File:
  """An open GGUF file.

  Attributes:
    path: of the file.
    metadata: key -> str, number, bool, list of str, or an array.
    tensors: name -> Tensor.
  """

  def __init__(self, path: pathlib.Path | str) -> None:
    """Reads the header.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is no GGUF file, cut off, or one part of several.
    """
    self.path = pathlib.Path(path)
    with open(self.path, 'rb') as file:
      start = file.read(4)
      if start != _MAGIC:
        raise ValueError(
          f'{self.path} is no GGUF file: it begins with {start!r}, not '
          f'{_MAGIC!r}'
        )
      self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
      self._read_header()
    except (struct.error, IndexError) as error:
      raise ValueError(
        f'{self.path} is cut off: its {len(self._content):,} bytes end within '
        'the header; fetch it again'
      ) from error
    parts = self.metadata.get('split.count', 1)
    if parts > 1:
      raise ValueError(
        f'{self.path} is one of {parts} parts; join them with '
        '`llama-gguf-split --merge` first'
      )

  def bytes_of(self, name: str, size: int) -> np.ndarray:
    """Returns the first `size` bytes of a tensor, uint8, without a copy.

    Raises:
      ValueError: if the file ends before.
    """
    offset = self.tensors[name].offset
    if offset + size > len(self._content):
      raise ValueError(
        f'{self.path} is cut off: {name} ends at byte {offset + size:,}, the '
        f'file at {len(self._content):,}; fetch it again'
      )
    return np.frombuffer(self._content, np.uint8, size, offset)

  def _read_header(self) -> None:
    self._place = len(_MAGIC)
    version = self._scalar('I')
    if version not in _VERSIONS:
      # 3 as a big-endian machine writes it, or a version to come.
      raise ValueError(
        f'{self.path} has GGUF version {version:#x}; known are little-endian '
        f'{_VERSIONS}'
      )
    tensors, entries = self._scalar('Q'), self._scalar('Q')
    self.metadata: dict[str, Any] = {}
    for _ in range(entries):
      key = self._string()
      self.metadata[key] = self._value(self._scalar('I'))
    found = {}
    for _ in range(tensors):
      name = self._string()
      dims = [self._scalar('Q') for _ in range(self._scalar('I'))]
      found[name] = Tensor(
        tuple(reversed(dims)), self._scalar('I'), self._scalar('Q')
      )
    alignment = self.metadata.get('general.alignment', _ALIGNMENT)
    start = math.ceil(self._place / alignment) * alignment
    self.tensors = {
      name: dataclasses.replace(tensor, offset=start + tensor.offset)
      for name, tensor in found.items()
    }

  def _scalar(self, kind: str) -> Any:
    (value,) = struct.unpack_from(f'<{kind}', self._content, self._place)
    self._place += struct.calcsize(kind)
    return value

  def _string(self) -> str:
    size = self._scalar('Q')
    end = self._place + size
    if end > len(self._content):
      raise IndexError('a string beyond the end')
    text = self._content[self._place : end].decode('utf-8', 'replace')
    self._place = end
    return text

  def _value(self, kind: int) -> Any:
    if kind in _SCALARS:
      return self._scalar(_SCALARS[kind])
    if kind == _STRING:
      return self._string()
    if kind != _ARRAY:
      raise ValueError(f'{self.path} is damaged: no value has type {kind}')
    inner, count = self._scalar('I'), self._scalar('Q')
    if count > len(self._content):
      raise IndexError('an array beyond the end')
    if inner not in _SCALARS:
      return [self._value(inner) for _ in range(count)]
    dtype = np.dtype(_SCALARS[inner]).newbyteorder('<')
    end = self._place + count * dtype.itemsize
    if end > len(self._content):
      raise IndexError('an array beyond the end')
    values = np.frombuffer(self._content, dtype, count, self._place)
    self._place = end
    return values
