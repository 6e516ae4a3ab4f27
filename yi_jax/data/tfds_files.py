"""Data sets of TFDS shard by shard, as plain rows, for `curate`."""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds


def shard_sizes(name: str, split: str, root: pathlib.Path | str) -> list[int]:
  """Returns about how many bytes each shard of a split has.

  Args:
    name: as in 'c4/en:3.1.0'.
    split: whole split, as in 'train'.
    root: data root; the set is below ROOT/tfds.

  Raises:
    FileNotFoundError: if it was not built there.
    ValueError: if it has no such split.
  """
  splits = _builder(name, root).info.splits
  if split not in splits:
    raise ValueError(f'{name} has no split {split!r}; there are: {[*splits]}')
  info = splits[split]
  return [info.num_bytes // info.num_shards] * info.num_shards


def rows(
  name: str, split: str, root: pathlib.Path | str
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a part of a data set, in order.

  Args:
    name: as in 'c4/en:3.1.0'.
    split: as in 'train[3shard]'.
    root: data root.
  """
  made = _builder(name, root)
  if made.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    yield from made.as_data_source(split)
  else:
    yield from tfds.as_numpy(made.as_dataset(split, shuffle_files=False))


def _builder(name: str, root: pathlib.Path | str) -> tfds.core.DatasetBuilder:
  folder = pathlib.Path(root) / 'tfds'
  whole, _, version = name.partition(':')
  dataset, _, config = whole.partition('/')
  try:
    return tfds.core.read_only_builder.builder_from_files(
      dataset,
      config=config or None,
      version=version or None,
      data_dir=[str(folder)],
    )
  except tfds.core.DatasetNotFoundError as error:
    raise FileNotFoundError(
      f'the TFDS data set {name} is not in {folder}; build it there (tfds build '
      f'{dataset} --data_dir={folder}) or link a copy to that place'
    ) from error
