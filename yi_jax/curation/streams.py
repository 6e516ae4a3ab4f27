"""Bytes of plain, gzip and zstd files, of which parts may be damaged.

Crawls come as thousands of compressed members in one file. Where one is broken
its rest is lost, and reading goes on with the next.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from etils import epath

_PIECE = 1 << 16  # compressed bytes read at once: bounds what they become


class Damage(ValueError):
  """A part of a file that cannot be read.

  Attributes:
    reason: what is counted.
  """

  def __init__(self, reason: str, detail: str = '') -> None:
    """Takes a short reason and where it was, or what."""
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason = reason


def _zstd() -> Any:
  import zstandard  # only those who have such files pay for it

  return zstandard.ZstdDecompressor().decompressobj()


# Suffix -> first bytes of a member, and a new decoder.
_FORMATS: dict[str, tuple[bytes, Callable[[], Any]]] = {
  '.gz': (b'\x1f\x8b\x08', lambda: zlib.decompressobj(31)),
  '.zst': (b'\x28\xb5\x2f\xfd', _zstd),
}


def suffixes(path: epath.Path) -> tuple[str, str]:
  """Returns the suffix of the content and that of the compression, or ''.

  Example: x.jsonl.gz -> ('.jsonl', '.gz'), x.txt -> ('.txt', '').
  """
  packing = path.suffix if path.suffix in _FORMATS else ''
  name = epath.Path(path.stem) if packing else path
  return name.suffix, packing


def pieces(path: epath.Path) -> Iterator[bytes | Damage]:
  """Yields the content of a file, and Damage where some of it is missing."""
  with path.open('rb') as file:
    packing = suffixes(path)[1]
    if packing:
      yield from _members(file, *_FORMATS[packing])
      return
    while piece := file.read(_PIECE):
      yield piece


def _members(
  file: BinaryIO, magic: bytes, new: Callable[[], Any]
) -> Iterator[bytes | Damage]:
  """Yields what the members of a compressed file hold."""
  decoder, data, offset = None, b'', 0  # offset of data in the file
  broken = False  # inside a member that cannot be read
  while True:
    if len(data) < len(magic):
      more = file.read(_PIECE)
      data += more
      if not more:
        break
    if decoder is None:
      start = data.find(magic)
      if start and not broken:
        yield Damage('broken member', f'none at byte {offset:,}')
      broken = bool(start)
      kept = start if start >= 0 else max(0, len(data) - len(magic) + 1)
      data, offset = data[kept:], offset + kept
      if start < 0:
        more = file.read(_PIECE)
        if not more:
          return
        data += more
        continue
      decoder = new()
    try:
      piece = decoder.decompress(data)
    except Exception as error:  # zlib.error, or whatever zstandard has
      if not broken:
        yield Damage('broken member', f'near byte {offset:,}, {error}')
      # The next member may begin one byte on; not at the start of this one.
      broken, decoder = True, None
      data, offset = data[1:], offset + 1
      continue
    if piece:
      yield piece
    rest = decoder.unused_data if decoder.eof else b''
    offset += len(data) - len(rest)
    data = rest
    if decoder.eof:
      decoder, broken = None, False
  if decoder is not None:
    yield Damage('broken member', f'the last ends early, at byte {offset:,}')


class Reader:
  """Reads lines and blocks; raises Damage where bytes are missing.

  After Damage it goes on with what follows the gap.
  """

  def __init__(self, path: epath.Path) -> None:
    """Opens nothing yet."""
    self._pieces = pieces(path)
    self._buffer, self._at = b'', 0
    self._pending: Damage | None = None

  def _more(self) -> bool:
    """Appends a piece; whether there was one. Raises Damage at a gap."""
    if self._pending:
      damage, self._pending = self._pending, None
      self._buffer, self._at = b'', 0  # what led up to the gap
      raise damage
    piece = next(self._pieces, None)
    if isinstance(piece, Damage):
      self._pending = piece
      return self._more()
    if piece is None:
      return False
    self._buffer, self._at = self._buffer[self._at :] + piece, 0
    return True

  def line(self, limit: int) -> bytes:
    """Returns the next line with its end, b'' at the end of the file.

    Args:
      limit: bytes, beyond which a line is passed over.

    Raises:
      Damage: at a gap, or for a line beyond the limit.
    """
    size, parts = 0, []
    while True:
      end = self._buffer.find(b'\n', self._at)
      found = end >= 0
      part = self._buffer[self._at : end + 1 if found else len(self._buffer)]
      size += len(part)
      if size <= limit:
        parts.append(part)
      self._at += len(part)
      if found or not self._more():
        break
    if size > limit:
      raise Damage('too long', f'{size:,} bytes > {limit:,}')
    return b''.join(parts)

  def block(self, size: int, keep: bool = True) -> bytes:
    """Returns `size` bytes, or passes over them.

    Raises:
      Damage: at a gap, or if the file ends before.
    """
    parts, left = [], size
    while left:
      if self._at == len(self._buffer) and not self._more():
        raise Damage('broken record', 'the file ends inside')
      part = self._buffer[self._at : self._at + left]
      self._at += len(part)
      left -= len(part)
      if keep:
        parts.append(part)
    return b''.join(parts)
