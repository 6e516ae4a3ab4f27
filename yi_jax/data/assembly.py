"""Packs the texts of tasks into rows, shard by shard, and ties them together.

The last stages of `prepare`: `pack_shard` writes one shard of one task, both
splits in one pass over its text; `write_index` finds all shards of a run there
and writes what `prepared.open_prepared` reads.
"""

import collections
import contextlib
import dataclasses
import json
import lzma
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from yi_jax.data import (
  atomic,
  chat_packing,
  chatml,
  conversations,
  corpus,
  long_documents,
  mixtures,
  packing,
  prepared,
  progress,
  rows,
  tokenizer,
)

_BATCH_BYTES = 4_000_000  # of text tokenised at once
_XZ_BYTES = 32_000_000  # of held-out text that xz compresses
_FACTS = ('documents', 'bytes', 'tokens')


@dataclasses.dataclass(frozen=True)
class Job:
  """Rows of one task.

  Attributes:
    name: of the task.
    folder: of its rows, see `prepared`.
    length: L, tokens a row.
    heldout_limit: documents with a smaller hash are held out.
    template: format of conversations, see `chatml`.
    long: what is done with long documents, if the task has those.
  """

  name: str
  folder: pathlib.Path
  length: int
  heldout_limit: int
  template: str = 'chatml'
  long: long_documents.Settings | None = None


def pack_shard(
  job: Job,
  shard: tuple[int, int],
  texts: corpus.Corpus,
  words: tokenizer.Tokenizer,
  orderer: long_documents.Orderer | None = None,
) -> None:
  """Makes the folder of one shard unless it is there.

  Args:
    job: what to make.
    shard: (i, n): the i-th of n parts.
    texts: of all tasks.
    words: the tokenizer.
    orderer: brings like documents together, for jobs that ask for it.
  """
  final = job.folder / prepared.shard_name(*shard)
  with atomic.locked(job.folder / f'.lock-{final.name}'):
    if final.is_dir():
      progress.tell('rows', f'{job.name}, shard {final.name}: there')
      return
    with atomic.new_folder(final) as folder:
      _write_shard(job, shard, folder, texts, words, orderer)


def _write_shard(
  job: Job,
  shard: tuple[int, int],
  folder: pathlib.Path,
  texts: corpus.Corpus,
  words: tokenizer.Tokenizer,
  orderer: long_documents.Orderer | None,
) -> None:
  small = 'uint16'  # half the disk, where ids fit
  types = {
    'tokens': small if words.size <= 1 << 16 else 'int32',
    'segment_ids': small if job.length < 1 << 16 else 'int32',
  }
  report = progress.Progress('rows', job.name)
  skipped = collections.Counter()
  facts = {split: collections.Counter() for split in prepared.SPLITS}
  with contextlib.ExitStack() as stack:
    packers, writers = {}, {}
    is_chat = bool(texts.tasks[job.name].chat)
    for split in prepared.SPLITS:
      packers[split] = (
        chat_packing.Packer(job.length)
        if is_chat
        else packing.Packer(job.length, words.eos_id, _separate(job, split))
      )
      writers[split] = stack.enter_context(
        rows.RowWriter(folder / split, f'{job.name}/{split}', shard, types)
      )
    kept = stack.enter_context(open(folder / 'heldout.txt', 'wb'))
    found = texts.texts(job.name, shard, skipped)

    def is_held(text: str) -> bool:
      return texts.hash(job.name, text) < job.heldout_limit

    def read_again() -> Iterator[str]:
      again = texts.texts(job.name, shard)
      return (text for text in again if not is_held(text))

    if is_chat:
      documents = _chats(found, job, words, skipped, is_held)
    else:
      documents = _encoded(found, words, is_held)
    shelf = None
    if job.long:
      shelf = long_documents.Shelf(folder, job.long.upsample)
      stack.enter_context(shelf)
      documents = _arranged(documents, shelf, job, orderer, read_again)
    for document in documents:
      split = 'heldout' if document.held else 'train'
      if document.held:
        kept.write(document.text.encode() + b'\n')
      counts = (1, document.size, document.tokens)
      facts[split].update(dict(zip(_FACTS, counts, strict=True)))
      for row in packers[split].add(document.ids):
        writers[split].write(row)
      report.add(document.size)
    for split, writer in writers.items():
      for row in packers[split].finish():
        writer.write(row)
      writer.close(
        skipped=dict(skipped),
        **({'long': shelf.facts()} if shelf else {}),
        **{key: facts[split][key] for key in _FACTS},
      )
  padding = ''
  if is_chat and (made := writers['train'].rows * job.length):
    used, packed = packers['train'].used, packers['train'].packed
    padding = (
      f' with {1 - used / made:.1%} padding '
      f'({1 - used / (packed * job.length):.1%} with one conversation a row)'
    )
  report.end(
    f', {writers["train"].rows:,} rows{padding} and '
    f'{writers["heldout"].rows:,} held out' + progress.skipped(skipped)
  )


class _Document(NamedTuple):
  """A document on its way into rows.

  Attributes:
    text: what is learned of it; '' once only its ids are left.
    size: UTF-8 bytes of that text.
    ids: what the packer takes.
    tokens: that are learned.
    held: whether it is kept from training.
  """

  text: str
  size: int
  ids: Any
  tokens: int
  held: bool


def _separate(job: Job, split: str) -> bool:
  """Returns whether documents of a row do not see each other."""
  joined = job.long is not None and job.long.attend == 'row'
  return split == 'heldout' or not joined


def _encoded(
  texts: Iterator[str],
  words: tokenizer.Tokenizer,
  is_held: Callable[[str], bool],
) -> Iterator[_Document]:
  """Yields texts with their ids, tokenised in batches on all cores."""
  threads = os.cpu_count() or 1

  def flush() -> Iterator[_Document]:
    encoded = words.encode_batch(batch, threads)
    for text, ids in zip(batch, encoded, strict=True):
      # The closing EOS counts as a token: it is predicted too.
      size = len(text.encode())
      yield _Document(text, size, ids, len(ids) + 1, is_held(text))

  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _BATCH_BYTES:
      yield from flush()
      batch, size = [], 0
  yield from flush()


def _chats(
  texts: Iterator[str],
  job: Job,
  words: tokenizer.Tokenizer,
  skipped: collections.Counter[str],
  is_held: Callable[[str], bool],
) -> Iterator[_Document]:
  """Yields conversations that fit a row, in the format of the job."""
  template = chatml.get(job.template)
  for text in texts:
    messages = conversations.from_text(text)
    encoded = chat_packing.encode(
      template, messages, words, job.length, skipped
    )
    if encoded is not None:
      answers = conversations.answers(encoded.messages)
      learned = sum(encoded.rendered.learned)
      size = len(answers.encode())
      yield _Document(answers, size, encoded.rendered, learned, is_held(text))


def _arranged(
  documents: Iterator[_Document],
  shelf: long_documents.Shelf,
  job: Job,
  orderer: long_documents.Orderer | None,
  read_again: Callable[[], Iterator[str]],
) -> Iterator[_Document]:
  """Yields held-out documents, then those to train on as `job.long` says.

  Args:
    documents: as they are read.
    shelf: empty; holds the ids until all documents were read.
    job: what to make.
    orderer: see `pack_shard`.
    read_again: gives the texts to train on, in the order of `documents`.
  """
  for document in documents:
    if document.held:
      yield document
    else:
      shelf.add(document.text, document.ids)
  long_documents.check_enough(job.name, shelf.buckets(), job.length)
  numbers = np.arange(len(shelf))
  if job.long.join == 'similar':
    order = orderer(read_again)
    numbers, shelf.likeness = order.numbers, order.likeness
  for ids, size in shelf.read(numbers):
    yield _Document('', size, ids, len(ids) + 1, held=False)


def write_index(
  data: Any, jobs: Mapping[str, Job], vocabulary_hash: str
) -> bool:
  """Writes the held-out text and the index of a run.

  Args:
    data: the data section of the run's config.
    jobs: by task.
    vocabulary_hash: of the vocabulary that made the rows.

  Returns:
    False, and writes nothing, if shards are still missing.

  Raises:
    ValueError: if a task that training reads has no training text.
  """
  entries, parts = {}, collections.defaultdict(list)
  for name, job in jobs.items():
    shards = prepared.finished_shards(job.folder)
    if not shards:
      progress.tell(
        'rows', f'{name} waits for its other shards; start them too'
      )
      return False
    task = mixtures.get(name)
    entries[name] = {'key': job.folder.name, 'identity': task.identity()}
    for split in prepared.SPLITS:
      facts = [rows.RowReader(shard / split).facts for shard in shards]
      entries[name][split] = {
        key: sum(fact[key] for fact in facts) for key in (*_FACTS, 'rows')
      }
    if job.long:
      entries[name]['long'] = long_documents.merged(
        [rows.RowReader(shard / 'train').facts['long'] for shard in shards]
      )
    is_read = any(rates[name] for _, rates in prepared.stages(data))
    if is_read and not entries[name]['train']['rows']:
      raise ValueError(
        f'task {name} has no training text, all of it is held out: set its '
        'rate to 0 or lower data.heldout_fraction'
      )
    parts[task.language] += [shard / 'heldout.txt' for shard in shards]
  keys = {name: job.folder.name for name, job in jobs.items()}
  folder = prepared.heldout_folder(data, keys)
  xz = {}
  for language, paths in parts.items():
    size = sum(
      entry['heldout']['bytes']
      for name, entry in entries.items()
      if mixtures.get(name).language == language
    )
    path = folder / f'{language}.txt'
    _concatenate(paths, path)
    xz[language] = _xz_bits_per_byte(path, size) if size else None
  index = {
    **prepared.wanted(data),
    'vocabulary_hash': vocabulary_hash,
    'tasks': entries,
    'xz': xz,
  }
  content = json.dumps(index, indent=2, ensure_ascii=False)
  atomic.write(prepared.index_path(data), content.encode())
  return True


def _concatenate(parts: list[pathlib.Path], path: pathlib.Path) -> None:
  with atomic.new_file(path) as file:
    for part in parts:
      with open(part, 'rb') as source:
        shutil.copyfileobj(source, file)


def _xz_bits_per_byte(path: pathlib.Path, size: int) -> float:
  """Returns what `xz -9e` needs for a byte of document.

  Args:
    path: the documents, each followed by a newline.
    size: bytes of the documents alone, which the figure is divided by.
  """
  with open(path, 'rb') as file:
    content = file.read(_XZ_BYTES)
  packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
  return 8 * len(packed) / len(content) * path.stat().st_size / size
