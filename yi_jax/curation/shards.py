"""Parquet files of documents: there whole or not at all, batch by batch.

Paths are `etils.epath`: a bucket (gs://...) works as a folder does.
"""

import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath
from pyarrow import parquet

from yi_jax.curation import documents


@contextlib.contextmanager
def new_file(path: epath.Path) -> Iterator[BinaryIO]:
  """Yields a file that becomes `path` when the block ends without an error.

  Several workers may write the same file at once, as runners do with tasks
  that hang: what they write is the same, and one of them is last.
  """
  part = path.parent / f'.{path.name}.part-{uuid.uuid4().hex[:8]}'
  try:
    with part.open('wb') as file:
      yield file
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write_json(path: epath.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  with new_file(path) as file:
    file.write(json.dumps(value, ensure_ascii=False, indent=1).encode())


def read_json(path: epath.Path) -> Any:
  """Returns what a JSON file holds."""
  return json.loads(path.read_text())


class Writer:
  """Writes documents into one file, a batch a row group.

  Batches that lost most of their documents are joined to full ones. The file
  appears when the block ends without an error.

  Attributes:
    documents: written so far.
    batches: of them in the file, at the end.
  """

  def __init__(self, path: epath.Path) -> None:
    """Opens the file under another name."""
    self.documents = self.batches = 0
    self._stack = contextlib.ExitStack()
    file = self._stack.enter_context(new_file(path))
    self._parquet = parquet.ParquetWriter(
      file, documents.SCHEMA, compression='zstd', compression_level=1
    )
    self._waiting: list[documents.Batch] = []

  def __enter__(self) -> 'Writer':
    """Returns itself."""
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    """Puts the file in its place, or removes it after an error."""
    if error is None:
      with self._stack:
        self._flush()
        self._parquet.close()
      return
    with contextlib.suppress(Exception):  # the disk may be full
      self._parquet.close()
    self._stack.__exit__(kind, error, trace)

  def write(self, batch: documents.Batch) -> None:
    """Adds the documents of a batch, which stays as it is."""
    for start in range(0, len(batch), documents.SIZE):
      piece = batch
      if len(batch) > documents.SIZE:
        end = min(start + documents.SIZE, len(batch))
        piece = batch.select(range(start, end))
      size = sum(len(text) for one in self._waiting for text in one.texts)
      count = sum(map(len, self._waiting)) + len(piece)
      size += sum(map(len, piece.texts))
      if count > documents.SIZE or size > documents.CHARACTERS:
        self._flush()
      self._waiting.append(piece)
      self.documents += len(piece)

  def _flush(self) -> None:
    if self._waiting:
      joined = documents.concatenate(self._waiting)
      self._parquet.write_batch(joined.to_arrow())
      self.batches += 1
    self._waiting = []


def count_batches(path: epath.Path) -> int:
  """Returns how many batches a file holds."""
  with path.open('rb') as file:
    return parquet.ParquetFile(file).num_row_groups


def read_batch(path: epath.Path, number: int) -> documents.Batch:
  """Returns one batch of a file."""
  with path.open('rb') as file:
    # Threads of its own would only get in the way of other workers.
    table = parquet.ParquetFile(file).read_row_group(number, use_threads=False)
  return documents.from_arrow(table)


def read(path: epath.Path) -> Iterator[documents.Batch]:
  """Yields the batches of a file, one in memory at a time."""
  with path.open('rb') as file:
    opened = parquet.ParquetFile(file, pre_buffer=False)
    for number in range(opened.num_row_groups):
      table = opened.read_row_group(number, use_threads=False)
      yield documents.from_arrow(table)
