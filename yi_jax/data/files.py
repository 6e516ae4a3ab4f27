"""Documents in files of your own: JSON lines, Parquet, plain text.

JSON lines are read from .jsonl and .json, plain or .gz; Parquet from .parquet;
ArrayRecord of TFDS from names as x.array_record-00000-of-00001; any other file
is one document, plain or .gz. Nothing here needs TensorFlow.
"""

import collections
import glob
import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from yi_jax import paths
from yi_jax.data import sources

_EDGE = 1 << 20  # bytes at both ends of a file that its identity looks at


def matches(pattern: str) -> list[pathlib.Path]:
  """Returns the files of a glob (`**` too), sorted.

  Raises:
    FileNotFoundError: if there is none.
  """
  found = glob.glob(paths.in_repository(pattern), recursive=True)
  files = sorted(pathlib.Path(f) for f in found if pathlib.Path(f).is_file())
  if not files:
    raise FileNotFoundError(f'no file matches {pattern}')
  return files


def identity(pattern: str, column: str) -> str:
  """Returns a string that changes when the files do.

  Names, sizes, and the first and last MiB of each file: reading a terabyte
  twice to notice a changed word in the middle is not worth it.
  """
  digest = hashlib.sha256(column.encode())
  for path in matches(pattern):
    size = path.stat().st_size
    digest.update(f'{path.name} {size} '.encode())
    with open(path, 'rb') as file:
      digest.update(file.read(_EDGE))
      file.seek(max(_EDGE, size - _EDGE))
      digest.update(file.read(_EDGE))
  return f'files {digest.hexdigest()}'


def read(
  pattern: str,
  column: str = 'text',
  shard: tuple[int, int] = (0, 1),
  skipped: collections.Counter[str] | None = None,
) -> Iterator[str]:
  """Yields the texts of the files of a glob.

  Args:
    pattern: glob; a relative one starts at the repository.
    column: field or column that holds the text.
    shard: (i, n) yields the i-th of n parts: whole files if there are n of
      them, else every n-th document.
    skipped: counts 'invalid UTF-8' and 'blank' documents.

  Raises:
    FileNotFoundError: if no file matches.
    ValueError: if a file is not what its name says, naming it and the line.
  """
  skipped = collections.Counter() if skipped is None else skipped
  index, count = shard
  files = matches(pattern)
  by_file = len(files) >= count
  number = 0
  for path in files[index::count] if by_file else files:
    for content in _texts(path, column):
      number += 1
      if not by_file and (number - 1) % count != index:
        continue
      text = sources.decode(content)
      if text is None:
        skipped['invalid UTF-8'] += 1
      elif not text.strip():
        skipped['blank'] += 1
      else:
        yield text


def _texts(path: pathlib.Path, column: str) -> Iterator[str | bytes]:
  """Yields the texts of one file, not yet checked."""
  suffixes = [s for s in path.suffixes if s != '.gz']
  kind = suffixes[-1] if suffixes else ''
  if kind == '.parquet':
    yield from _parquet(path, column)
    return
  if kind.startswith('.array_record'):
    from yi_jax.data import tfds_files  # a second, and only for these

    yield from tfds_files.decode(path, column)
    return
  try:
    with gzip.open(path) if path.suffix == '.gz' else open(path, 'rb') as file:
      if kind in ('.jsonl', '.json'):
        yield from _json_lines(path, file, column)
      else:
        yield file.read()
  except (EOFError, gzip.BadGzipFile) as error:
    raise ValueError(f'{path} is truncated or no gzip file: {error}') from error


def _json_lines(
  path: pathlib.Path, file: BinaryIO, column: str
) -> Iterator[str | bytes]:
  for number, line in enumerate(file, 1):
    try:
      row = json.loads(line)
    except UnicodeDecodeError:
      yield line  # counted by the caller as invalid UTF-8
      continue
    except ValueError as error:
      raise ValueError(f'{path}, line {number} is not JSON: {error}') from error
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
      raise ValueError(f'{path}, line {number} has no text in field {column!r}')
    yield text


def _parquet(path: pathlib.Path, column: str) -> Iterator[str]:
  import pyarrow  # only those who have Parquet pay for it
  from pyarrow import parquet

  try:
    file = parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
      raise ValueError(
        f'{path} has no column {column!r}; there are: {file.schema_arrow.names}'
      )
    for batch in file.iter_batches(columns=[column]):
      values = batch.column(0).cast(pyarrow.binary()).to_pylist()
      yield from (value or b'' for value in values)
  except pyarrow.ArrowException as error:
    raise ValueError(
      f'{path} is damaged or no Parquet file: {error}'
    ) from error
