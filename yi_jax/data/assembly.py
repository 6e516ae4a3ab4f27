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
from collections.abc import Iterator, Mapping
from typing import Any

from yi_jax.data import (
  atomic,
  corpus,
  heldout,
  mixtures,
  packing,
  prepared,
  progress,
  rows,
  vocabulary,
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
  """

  name: str
  folder: pathlib.Path
  length: int
  heldout_limit: int


def pack_shard(
  job: Job,
  shard: tuple[int, int],
  texts: corpus.Corpus,
  words: vocabulary.Vocabulary,
) -> None:
  """Makes the folder of one shard unless it is there."""
  final = job.folder / prepared.shard_name(*shard)
  with atomic.locked(job.folder / f'.lock-{final.name}'):
    if final.is_dir():
      progress.tell('rows', f'{job.name}, shard {final.name}: there')
      return
    with atomic.new_folder(final) as folder:
      _write_shard(job, shard, folder, texts, words)


def _write_shard(
  job: Job,
  shard: tuple[int, int],
  folder: pathlib.Path,
  texts: corpus.Corpus,
  words: vocabulary.Vocabulary,
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
    for split in prepared.SPLITS:
      packers[split] = packing.Packer(job.length, words.eos_id)
      writers[split] = stack.enter_context(
        rows.RowWriter(folder / split, f'{job.name}/{split}', shard, types)
      )
    kept = stack.enter_context(open(folder / 'heldout.txt', 'wb'))
    for text, ids in _encoded(texts.texts(job.name, shard, skipped), words):
      held = heldout.document_hash(text) < job.heldout_limit
      split = 'heldout' if held else 'train'
      content = text.encode()
      if held:
        kept.write(content + b'\n')
      # The closing EOS counts as a token: it is predicted too.
      counts = (1, len(content), len(ids) + 1)
      facts[split].update(dict(zip(_FACTS, counts, strict=True)))
      for row in packers[split].add(ids):
        writers[split].write(row)
      report.add(len(content))
    for split, writer in writers.items():
      for row in packers[split].finish():
        writer.write(row)
      writer.close(
        skipped=dict(skipped), **{key: facts[split][key] for key in _FACTS}
      )
  report.end(
    f', {writers["train"].rows:,} rows and {writers["heldout"].rows:,} held out'
    + progress.skipped(skipped)
  )


def _encoded(
  texts: Iterator[str], words: vocabulary.Vocabulary
) -> Iterator[tuple[str, list[int]]]:
  """Yields texts and their ids, tokenised in batches on all cores."""
  threads = os.cpu_count() or 1
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _BATCH_BYTES:
      yield from zip(batch, words.encode_batch(batch, threads), strict=True)
      batch, size = [], 0
  yield from zip(batch, words.encode_batch(batch, threads), strict=True)


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
