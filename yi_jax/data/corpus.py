"""The texts of a run's tasks, from wherever they are, and a first look at them.

The stages of `prepare` before packing: fetch raw files, build data sets, survey
the documents, train the vocabulary. Call them under the lock of the data root.
"""

import collections
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from yi_jax.data import (
  atomic,
  chat_sources,
  conversations,
  files,
  heldout,
  prepared,
  progress,
  raw,
  sources,
  tokenizer,
  vocabulary,
)

# Of a task so much text is surveyed; what is larger is judged by its beginning.
_SURVEY_BYTES = 256_000_000
# Of text a vocabulary is trained on.
_SAMPLE_BYTES = 16_000_000

Survey = tuple[np.ndarray, np.ndarray]


class Corpus:
  """The tasks of a run, fetched and built, ready to be read.

  Attributes:
    tasks: by name.
  """

  def __init__(self, data: Any) -> None:
    """Fetches and builds what is missing.

    Args:
      data: the data section of a run's config.

    Raises:
      OSError: if a raw file is missing and cannot be fetched.
      ValueError: if a raw file is damaged.
    """
    self._data = data
    self._raw = prepared.root(data) / 'raw'
    self._tfds = prepared.root(data) / 'tfds'
    self._registered = False
    self.tasks = prepared.tasks(data)
    self._whole = set(data.long.tasks)
    used = [task.source for task in self.tasks.values() if task.source]
    if used:
      self._build(used)
    chats = [task.chat for task in self.tasks.values() if task.chat]
    chats = set(chats) & set(chat_sources.SOURCES)
    self._fetch({chat_sources.get(name).package for name in chats})

  def _build(self, used: list[str]) -> None:
    from yi_jax.data import tfds_builder  # a second, and only for our sources

    missing = [s for s in used if not tfds_builder.is_built(s, self._tfds)]
    wanted = {sources.get(source).package for source in missing}
    self._fetch(wanted)
    for source in used:
      if source not in missing:
        progress.tell('data set', f'{source}: there')
        continue
      started = time.monotonic()
      info = tfds_builder.build(source, self._raw, self._tfds).info
      progress.tell(
        'data set',
        f'{source}: {info.splits["train"].num_examples:,} documents, '
        f'{time.monotonic() - started:.1f} s'
        + progress.skipped(info.metadata['skipped']),
      )

  def _fetch(self, names: Iterable[str]) -> None:
    """Fetches the raw packages of these names that are not there."""
    packages = [p for name, p in raw.packages().items() if name in names]
    if packages:
      progress.tell('raw', f'{len(packages)} files into {self._raw}')
      raw.fetch_packages(packages, self._raw)

  def texts(
    self,
    name: str,
    shard: tuple[int, int] = (0, 1),
    skipped: collections.Counter[str] | None = None,
  ) -> Iterator[str]:
    """Yields the texts of a task.

    Args:
      name: of the task.
      shard: (i, n): the i-th of n parts.
      skipped: counts documents left out while reading (those of our own
        sources were counted when they were built).
    """
    task = self.tasks[name]
    if task.source:
      from yi_jax.data import tfds_builder

      read = tfds_builder.texts
      if name in self._whole:
        read = tfds_builder.whole_texts
      return read(task.source, self._tfds, shard)
    if task.chat:
      found = chat_sources.chats(
        task.chat,
        self._raw,
        shard,
        skip_invalid=self._data.chat.skip_invalid,
        skipped=skipped,
      )
      return map(conversations.to_text, found)
    if task.pattern:
      return files.read(task.pattern, task.column, shard, skipped)
    # Seconds and gigabytes of TensorFlow, only for data sets of others.
    from yi_jax.data import tasks

    if not self._registered:
      tasks.register(prepared.root(self._data), self._data.vocabulary)
      self._registered = True
    return tasks.texts(name, shard, skipped)

  def hash(self, name: str, text: str) -> int:
    """Returns the hash by which a document of a task may be held out."""
    if self.tasks[name].chat:
      text = conversations.question(conversations.from_text(text))
    return heldout.document_hash(text)

  def survey(self, name: str) -> Survey:
    """Returns uint64 hashes and int64 bytes of a task's first documents.

    Raises:
      ValueError: if the task has no document.
    """
    task = self.tasks[name]
    identity = task.identity() + (', whole' if name in self._whole else '')
    path = prepared.survey_path(self._data, name, identity)
    if path.is_file():
      with np.load(path) as saved:
        return saved['hashes'], saved['sizes']
    hashes, sizes, total = [], [], 0
    report = progress.Progress('survey', name)
    for text in self.texts(name):
      hashes.append(self.hash(name, text))
      sizes.append(len(text.encode()))
      report.add(sizes[-1])
      total += sizes[-1]
      if total >= _SURVEY_BYTES:
        break
    if not hashes:
      raise ValueError(
        f'task {name} has no documents: there is nothing to read'
      )
    report.end(', and there is more' if total >= _SURVEY_BYTES else '')
    survey = np.array(hashes, np.uint64), np.array(sizes, np.int64)
    with atomic.new_file(path) as file:
      np.savez(file, hashes=survey[0], sizes=survey[1])
    return survey

  def vocabulary(
    self, surveys: Mapping[str, Survey], limits: Mapping[str, int]
  ) -> tokenizer.Tokenizer:
    """Returns the vocabulary of the run, trained if there is none of its name.

    The sample is training text only, the same amount of each language.

    Args:
      surveys: by task.
      limits: by language, see `heldout.limits`.

    Raises:
      ValueError: if the vocabulary has another size than the config asks for,
        or the text does not fit that size.
    """
    data, folder = self._data, prepared.vocabulary_folder(self._data)
    if folder.is_dir() or prepared.is_imported(data):
      words = prepared.open_vocabulary(data)
      size = data.vocabulary_size
      if words.size != size and not (prepared.is_imported(data) and not size):
        raise ValueError(
          f'vocabulary {data.vocabulary!r} has {words.size} pieces and the '
          f'config asks for {data.vocabulary_size}: set data.vocabulary_size to '
          f'{words.size}, or data.vocabulary to a new name'
        )
      progress.tell(
        'vocabulary', f'{data.vocabulary}: there, {words.size:,} pieces'
      )
      return words
    started = time.monotonic()
    words = vocabulary.train(
      self._sample(surveys, limits), data.vocabulary_size, folder
    )
    facts = json.loads((folder / vocabulary.MANIFEST_FILE).read_text())
    progress.tell(
      'vocabulary',
      f'{data.vocabulary}: {words.size:,} pieces from '
      f'{facts["bytes"] / 1e6:.1f} MB, {time.monotonic() - started:.1f} s',
    )
    return words

  def _sample(
    self, surveys: Mapping[str, Survey], limits: Mapping[str, int]
  ) -> Iterator[str]:
    """Yields surveyed training texts, `_SAMPLE_BYTES` in all."""
    languages = {name: task.language for name, task in self.tasks.items()}
    ends = heldout.sample_limits(surveys, languages, limits, _SAMPLE_BYTES)
    for name, language in languages.items():
      hashes = surveys[name][0].tolist()
      chats = bool(self.tasks[name].chat)
      for value, text in zip(hashes, self.texts(name), strict=False):
        if limits[language] <= value < ends[language]:
          if chats:
            text = conversations.words(conversations.from_text(text))
          yield text
