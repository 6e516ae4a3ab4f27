"""Data sets of TFDS shard by shard, as plain rows: read and made by `curate`."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from tensorflow_datasets.proto import tf_example_pb2

_BATCH = 1_024  # records read at once


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


class Writer:
  """Writes rows of strings into an ArrayRecord file, as TFDS stores them."""

  def __init__(self, path: pathlib.Path | str) -> None:
    """Opens a new file."""
    self._file = array_record_module.ArrayRecordWriter(
      str(path), 'group_size:1'
    )

  def write(self, row: Mapping[str, str]) -> None:
    """Adds a row, as a tf.train.Example."""
    example = tf_example_pb2.Example()
    for name, value in row.items():
      feature = example.features.feature[name]
      feature.bytes_list.value.append(value.encode())
    self._file.write(example.SerializeToString(deterministic=True))

  def close(self) -> None:
    """Ends the file."""
    self._file.close()


def decode(path: pathlib.Path, column: str) -> Iterator[bytes]:
  """Yields a feature of the records of one ArrayRecord file."""
  table = array_record_data_source.ArrayRecordDataSource([str(path)])
  for first in range(0, len(table), _BATCH):
    numbers = range(first, min(first + _BATCH, len(table)))
    for record in table.__getitems__(numbers):
      features = tf_example_pb2.Example.FromString(record).features.feature
      if column not in features:
        raise ValueError(
          f'{path} has no feature {column!r}; there are: {sorted(features)}'
        )
      yield features[column].bytes_list.value[0]


def file_name(name: str, number: int, count: int) -> str:
  """Returns what TFDS calls a file of split train of a set."""
  return f'{name}-train.array_record-{number:05}-of-{count:05}'


def write_metadata(
  folder: pathlib.Path | str,
  name: str,
  columns: Sequence[str],
  lengths: Sequence[int],
  size: int,
) -> None:
  """Makes a folder of ArrayRecord files a data set of TFDS.

  Args:
    folder: holds files of `file_name`, and ends with the version.
    name: of the set.
    columns: features, all of them texts.
    lengths: rows of each file.
    size: bytes of all.
  """
  folder = pathlib.Path(folder)
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=name,
    split='train',
    filetype_suffix='array_record',
  )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=tfds.features.FeaturesDict(
      {column: tfds.features.Text() for column in columns}
    ),
    split_infos=[
      tfds.core.SplitInfo('train', list(lengths), size, template),
    ],
    filename_template=template,
    version=folder.name,
    check_data=False,
    description='Written by yi_jax.curate.',
  )


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
