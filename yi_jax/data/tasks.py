"""The tasks and mixtures of `mixtures`, in seqio's registry.

  tasks.register()
  seqio.get_mixture_or_task('en_books_plays').get_dataset(
      sequence_length={'targets': 512}, split='train')

yields the tokens of each document and EOS; sources are TFDS data sets (ours in
ArrayRecord, the large ones as TFDS stores them) or files. Training does not
read this way: seqio trims documents and packs them by the position of zeros, so
`prepare` takes the texts before the cache placeholder and packs them itself.

No tf.py_function anywhere, as it blocks checkpoints of iterators and can hang
at exit: what TensorFlow cannot read itself (ArrayRecord, JSON, Parquet) is
handed to it as a whole, which is meant for small sources; `prepare` streams.
"""

import collections
import functools
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from yi_jax import paths
from yi_jax.data import (
  chat_sources,
  chatml,
  files,
  mixtures,
  sources,
  tfds_builder,
  tokenizer,
  vocabulary,
)

_MOST_BYTES = 2 << 30  # of text that is handed to TensorFlow as a whole

# Of seqio tasks and mixtures that `register` has made, to make them anew.
_registered: set[str] = set()


class ArrayRecordSource(seqio.TfdsDataSource):
  """A source of `yi_text`: tf.data itself cannot read TFDS's ArrayRecord."""

  def __init__(self, source: str, tfds_directory: pathlib.Path) -> None:
    """Takes a key of `sources.SOURCES` and where its data set was built."""
    self._source, self._directory = source, tfds_directory
    super().__init__(
      tfds_name=f'{tfds_builder.NAME}/{source}:{sources.VERSION}',
      tfds_data_dir=str(tfds_directory),
      splits=('train',),
    )

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: object,
  ) -> tf.data.Dataset:
    """Returns the documents, dicts of the features of `yi_text`."""
    _check_split(split)
    records = list(
      tfds_builder.records(self._source, self._directory, _shard(shard_info))
    )
    if shuffle:
      np.random.default_rng(seed).shuffle(records)
    features = tfds_builder.builder(self._source, self._directory).info.features
    dataset = tf.data.Dataset.from_tensor_slices(records)
    return dataset.map(features.deserialize_example)

  def num_input_examples(self, split: str) -> int:
    """Returns the number of documents."""
    made = tfds_builder.builder(self._source, self._directory)
    return made.info.splits[split].num_examples

  def list_shards(self, split: str) -> list[str]:
    """Returns one name: the documents are one table."""
    return [f'{self._source}/{split}']


class _Unbuilt(seqio.DataSource):
  """What is read from files of others each time, all of it."""

  def __init__(self) -> None:
    super().__init__(splits=('train',))

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Whether any number of shards is fine."""
    return True

  def num_input_examples(self, split: str) -> None:
    """Returns None: counting means reading."""


class FileSource(_Unbuilt):
  """JSON lines, Parquet or text files; see `files`."""

  def __init__(self, pattern: str, column: str) -> None:
    """Takes a glob, and the field or column that holds the text."""
    self._pattern, self._column = pattern, column
    super().__init__()

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: object,
  ) -> tf.data.Dataset:
    """Returns the documents, dicts of text."""
    _check_split(split)
    texts, size = [], 0
    for text in files.read(self._pattern, self._column, _shard(shard_info)):
      texts.append(text.encode())
      size += len(texts[-1])
      if size > _MOST_BYTES:
        raise ValueError(
          f'{self._pattern} is too large for seqio, which has to hold it as a '
          'whole: take more shards, or read it through yi_jax.prepare'
        )
    if shuffle:
      np.random.default_rng(seed).shuffle(texts)
    dataset = tf.data.Dataset.from_tensor_slices(texts or np.array([], object))
    return dataset.map(lambda text: {'text': text})

  def list_shards(self, split: str) -> list[str]:
    """Returns the files."""
    return [str(path) for path in files.matches(self._pattern)]


def register(
  root: pathlib.Path | str = 'data',
  vocabulary_name: str = 'quickstart',
  template: str = 'chatml',
  found: Mapping[str, str] | None = None,
) -> None:
  """Puts every task and mixture into seqio's registry, again if need be.

  Call it after `mixtures.register_files`.

  Args:
    root: data root; a relative one starts at the repository.
    vocabulary_name: folder below ROOT/vocabularies, read when it is needed.
    template: format of conversations, see `chatml`.
    found: name -> file of further mixtures, as launch/mixture_search.py writes
      them. Only their rates: seqio knows no limit of examples.
  """
  root = pathlib.Path(paths.in_repository(str(root)))
  model = root / 'vocabularies' / vocabulary_name / vocabulary.MODEL_FILE
  features = {
    'targets': seqio.Feature(
      # Without `allow_special`, this gives the ids of vocabulary.Vocabulary.
      seqio.SentencePieceVocabulary(str(model)),
      add_eos=True,
      dtype=tf.int32,
    )
  }
  for name in _registered:
    seqio.TaskRegistry.remove(name)
    seqio.MixtureRegistry.remove(name)
  _registered.clear()
  for task in mixtures.TASKS.values():
    if task.chat:
      _add_chats(task, root / 'raw', model, template)
      continue
    seqio.TaskRegistry.add(
      task.name,
      source=_source(task, root / 'tfds'),
      preprocessors=[
        functools.partial(seqio.preprocessors.rekey, key_map={'text': 'text'}),
        seqio.CacheDatasetPlaceholder(),
        functools.partial(
          seqio.preprocessors.rekey, key_map={'targets': 'text'}
        ),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
      ],
      output_features=features,
    )
    _registered.add(task.name)
  files_found = {n: mixtures.rates(path) for n, path in (found or {}).items()}
  for name, rates in {**mixtures.MIXTURES, **files_found}.items():
    seqio.MixtureRegistry.add(name, list(rates.items()))
    _registered.add(name)


class ChatSource(_Unbuilt):
  """Conversations as token ids, and which of them the assistant wrote."""

  def __init__(
    self,
    chat: str,
    raw_directory: pathlib.Path,
    model: pathlib.Path,
    template: str,
  ) -> None:
    """Takes `mixtures.Task.chat`, raw packages, a tokenizer, a format."""
    self._chat, self._raw, self._model = chat, raw_directory, model
    self._template = chatml.get(template)
    super().__init__()

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: object,
  ) -> tf.data.Dataset:
    """Returns conversations, dicts of targets and loss_weights (0 or 1)."""
    _check_split(split)
    words = tokenizer.open_tokenizer(self._model)
    shard = _shard(shard_info)
    rendered = [
      chatml.render(self._template, messages, words)
      for messages in chat_sources.chats(self._chat, self._raw, shard)
    ]
    if shuffle:
      np.random.default_rng(seed).shuffle(rendered)
    columns = {
      'targets': [one.ids for one in rendered],
      'loss_weights': [list(map(int, one.learned)) for one in rendered],
    }
    return tf.data.Dataset.from_tensor_slices(
      {
        name: tf.ragged.constant(values, tf.int32, ragged_rank=1)
        for name, values in columns.items()
      }
    )

  def list_shards(self, split: str) -> list[str]:
    """Returns one name."""
    return [f'{self._chat}/{split}']


def _add_chats(
  task: mixtures.Task,
  raw_directory: pathlib.Path,
  model: pathlib.Path,
  template: str,
) -> None:
  """Registers a task of conversations; nothing is added to what they hold."""
  words = seqio.SentencePieceVocabulary(str(model))
  ids = seqio.Feature(words, add_eos=False, dtype=tf.int32)
  marks = seqio.PassThroughVocabulary(2)
  seqio.TaskRegistry.add(
    task.name,
    source=ChatSource(task.chat, raw_directory, model, template),
    preprocessors=[seqio.CacheDatasetPlaceholder()],
    output_features={
      'targets': ids,
      'loss_weights': seqio.Feature(marks, add_eos=False, dtype=tf.int32),
    },
  )
  _registered.add(task.name)


def texts(
  name: str,
  shard: tuple[int, int] = (0, 1),
  skipped: collections.Counter[str] | None = None,
) -> Iterator[str]:
  """Yields the texts of a registered task, as they are before the cache.

  Args:
    name: of the task.
    shard: (i, n): the i-th of n parts; whole files if the source has n.
    skipped: counts 'invalid UTF-8' and 'blank' documents.

  Raises:
    FileNotFoundError: if a data set of TFDS is not there.
  """
  skipped = collections.Counter() if skipped is None else skipped
  task = seqio.TaskRegistry.get(name)
  _check_built(mixtures.get(name), task.source)
  info = seqio.ShardInfo(*shard)
  if len(task.source.list_shards('train')) >= info.num_shards:
    dataset = task.source.get_dataset('train', shuffle=False, shard_info=info)
  else:
    dataset = task.source.get_dataset('train', shuffle=False)
    dataset = dataset.shard(info.num_shards, info.index)
  for document in task.preprocess_precache(dataset).as_numpy_iterator():
    text = sources.decode(document['text'])
    if text is None:
      skipped['invalid UTF-8'] += 1
    elif not text.strip():
      skipped['blank'] += 1
    else:
      yield text


def _source(
  task: mixtures.Task, tfds_directory: pathlib.Path
) -> seqio.DataSource:
  if task.source:
    return ArrayRecordSource(task.source, tfds_directory)
  if task.pattern:
    return FileSource(task.pattern, task.column)
  return seqio.TfdsDataSource(
    tfds_name=task.tfds,
    tfds_data_dir=str(tfds_directory),
    splits={'train': task.split},
    read_only=True,  # building C4 is a decision, not a side effect
  )


def _check_built(task: mixtures.Task, source: seqio.DataSource) -> None:
  """Raises FileNotFoundError if a set of TFDS has to be built first."""
  if task.tfds and not source.tfds_dataset.builder.is_prepared():
    name = task.tfds.partition(':')[0]
    place = source.tfds_dataset.data_dir
    raise FileNotFoundError(
      f'task {task.name} reads the TFDS data set {task.tfds}, which is not in '
      f'{place}; build it there (tfds build {name} --data_dir={place}, with Beam '
      'for the large ones) or link a copy to that place'
    )


def _check_split(split: str) -> None:
  if split != 'train':
    raise ValueError(
      f'no split {split!r}: there is train; prepare holds documents out of it'
    )


def _shard(info: seqio.ShardInfo | None) -> tuple[int, int]:
  return (info.index, info.num_shards) if info else (0, 1)
