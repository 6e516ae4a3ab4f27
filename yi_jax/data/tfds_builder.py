"""The raw sources as one TensorFlow data set, `yi_text`, a config a source.

  tfds.data_source('yi_text/zh_law', split='train', data_dir='data/tfds')

gives documents with text, id, language and kind, in the order of the source,
from ArrayRecord files (`records` reads them thirty times faster). Held-out documents are not a split here: `prepare`
chooses them by hash (see `heldout`), for the mixture of a run.
"""

import collections
import contextlib
import io
import itertools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_data_source
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from yi_jax.data import atomic, sources

NAME = 'yi_text'
_BATCH = 1_024  # records read at once


class YiText(tfds.core.GeneratorBasedBuilder):
  """Small real texts in English, Chinese and Python."""

  VERSION = tfds.core.Version(sources.VERSION)
  BUILDER_CONFIGS = [  # noqa: RUF012, TFDS wants a list
    tfds.core.BuilderConfig(name=name, description=source.texts.__doc__)
    for name, source in sources.SOURCES.items()
  ]
  # TFDS would find it with importlib_resources, which it does not require.
  code_path = epath.Path(__file__)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'Fetch the raw files with python -m yi_jax.data.raw --group=text and pass '
    'their folder as manual_dir; yi_jax.prepare does both.'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          name: tfds.features.Text()
          for name in ('text', 'id', 'language', 'kind')
        }
      ),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,  # the loader shuffles; sections stay in order
    )

  def _split_generators(self, manager: tfds.download.DownloadManager) -> Any:
    return {'train': self._generate_examples(manager.manual_dir)}

  def _generate_examples(
    self, directory: Any
  ) -> Iterator[tuple[int, dict[str, str]]]:
    name = self.builder_config.name
    skipped = collections.Counter()
    documents = sources.read(name, pathlib.Path(directory), skipped)
    yield from enumerate(documents)
    self.info.metadata['identity'] = sources.identity(name)
    self.info.metadata['skipped'] = dict(skipped)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """TFDS tells much while it builds; errors stay."""
  tfds.disable_progress_bar()
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(before)


def builder(source: str, tfds_directory: pathlib.Path) -> YiText:
  """Returns the builder of a source; nothing is made yet."""
  sources.get(source)
  return YiText(
    config=source,
    data_dir=str(tfds_directory),
    file_format='array_record',
  )


def records(
  source: str, tfds_directory: pathlib.Path, shard: tuple[int, int] = (0, 1)
) -> Iterator[bytes]:
  """Yields the serialised tf.train.Examples of a source, in order.

  Args:
    source: key of `sources.SOURCES`.
    tfds_directory: where it was built.
    shard: (i, n): every n-th from the i-th.

  Raises:
    FileNotFoundError: if it was not built.
  """
  if not is_built(source, tfds_directory):
    raise FileNotFoundError(
      f'{NAME}/{source}, of the raw files of today, is not in {tfds_directory}; '
      'run yi_jax.prepare with a mixture that reads it'
    )
  made = builder(source, tfds_directory)
  files = [str(path) for path in made.info.splits['train'].filepaths]
  table = array_record_data_source.ArrayRecordDataSource(files)
  numbers = range(shard[0], len(table), shard[1])
  for first in range(0, len(numbers), _BATCH):
    yield from table.__getitems__(numbers[first : first + _BATCH])


def texts(
  source: str, tfds_directory: pathlib.Path, shard: tuple[int, int] = (0, 1)
) -> Iterator[str]:
  """Yields the texts of a source; see `records`."""
  for record in records(source, tfds_directory, shard):
    yield _field(record, 'text')


def whole_texts(
  source: str, tfds_directory: pathlib.Path, shard: tuple[int, int] = (0, 1)
) -> Iterator[str]:
  """Yields the whole works of a source; every n-th of them from the i-th."""
  sections = (
    {name: _field(record, name) for name in ('id', 'text')}
    for record in records(source, tfds_directory)
  )
  works = sources.whole(sections, sources.get(source).work)
  for work in itertools.islice(works, shard[0], None, shard[1]):
    yield work['text']


def _field(record: bytes, name: str) -> str:
  """Returns a field of a serialised tf.train.Example."""
  features = tf_example_pb2.Example.FromString(record).features.feature
  return features[name].bytes_list.value[0].decode('utf-8')


def is_built(source: str, tfds_directory: pathlib.Path) -> bool:
  """Returns whether a source is there, made from today's raw file."""
  folder = tfds_directory / NAME / source / sources.VERSION
  if not (folder / 'dataset_info.json').is_file():
    return False
  metadata = builder(source, tfds_directory).info.metadata
  return metadata['identity'] == sources.identity(source)


def build(
  source: str, raw_directory: pathlib.Path, tfds_directory: pathlib.Path
) -> YiText:
  """Makes the data set of a source unless it is there.

  Returns:
    Its builder; `info.metadata['skipped']` counts what was left out.

  Raises:
    FileNotFoundError: if the raw file was not fetched, naming its group.
    ValueError: if the raw file is damaged, or holds no document.
  """
  folder = tfds_directory / NAME / source
  with atomic.locked(folder / '.lock'):
    if is_built(source, tfds_directory):
      return builder(source, tfds_directory)
    # Of an older raw file, or of a build that was killed.
    shutil.rmtree(folder / sources.VERSION, ignore_errors=True)
    for leftover in folder.glob('*incomplete*'):
      shutil.rmtree(leftover)
    config = tfds.download.DownloadConfig(
      manual_dir=str(raw_directory),
      compute_stats=tfds.download.ComputeStatsMode.SKIP,
    )
    raw_directory.mkdir(parents=True, exist_ok=True)
    with _quiet():
      made = builder(source, tfds_directory)
      made.download_and_prepare(download_config=config)
    if not made.info.splits['train'].num_examples:
      raise ValueError(f'{source} holds no documents')
  return builder(source, tfds_directory)
