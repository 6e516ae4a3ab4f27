"""Turns raw text into what training reads: a vocabulary and packed rows.

Stages, each skipped where its result is there: fetch the raw files, build the
data sets, survey the documents (to choose the held-out ones), train the
vocabulary, pack the rows. A result appears when it is whole, so a run that was
stopped, or whose disk was full, goes on where it was.

Large data is packed by several processes, each with its --shard=i/n and the
same data root; the one that ends last ties the shards together.
"""

import collections
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

from yi_jax import app
from yi_jax.data import (
  assembly,
  atomic,
  corpus,
  heldout,
  long_documents,
  mixtures,
  prepared,
  progress,
)

FLAGS = flags.FlagValues()
_SHARD = flags.DEFINE_string(
  'shard',
  '0/1',
  'i/n: packs only the i-th of n parts, i from 0.',
  flag_values=FLAGS,
)


def prepare(config: Any, shard: tuple[int, int] = (0, 1)) -> None:
  """Makes what `prepared.open_prepared(config.data, ...)` opens.

  With `data.lengths`, the same documents are packed once a length.

  Args:
    config: of a run; only its data section is read.
    shard: (i, n): pack the i-th of n parts.

  Raises:
    ValueError: if the config or a file is wrong, or there is too little text.
    OSError: if a file is missing and cannot be fetched, or the disk is full.
  """
  if not 0 <= shard[0] < shard[1]:
    raise ValueError(
      f'--shard is i/n with i from 0 to n - 1, not {shard[0]}/{shard[1]}'
    )
  for data in prepared.of_each_length(config.data).values():
    _prepare(data, shard)


def _prepare(data: Any, shard: tuple[int, int]) -> None:
  """Makes the rows of one length."""
  root = prepared.root(data)
  if is_current(data):
    progress.tell('prepare', f'everything is in {root}')
    _tell_figures(data)
    return
  with progress.explain_full_disk(root):
    with atomic.locked(root / '.lock'):
      texts = corpus.Corpus(data)
      surveys = {name: texts.survey(name) for name in texts.tasks}
      limits = heldout.limits(
        surveys,
        {name: task.language for name, task in texts.tasks.items()},
        data.heldout_fraction,
        data.heldout_bytes,
      )
      words = texts.vocabulary(surveys, limits)
    jobs, long = {}, long_documents.settings(data, texts.tasks)
    for name, task in texts.tasks.items():
      limit = limits[task.language]
      key = prepared.rows_key(data, task, words.hash, limit)
      folder = prepared.rows_folder(data, name) / key
      jobs[name] = assembly.Job(
        name, folder, data.length, limit, data.chat.template, long.get(name)
      )
      if prepared.finished_shards(folder):
        progress.tell('rows', f'{name}: there')
      else:
        assembly.pack_shard(jobs[name], shard, texts, words, _order)
    with atomic.locked(root / '.lock'):
      if assembly.write_index(data, jobs, words.hash):
        _tell_figures(data)


def _order(
  texts: Callable[[], Iterable[str]],
) -> long_documents.Order:
  from yi_jax.curation import neighbours  # JAX and SciPy, for long rows only

  return neighbours.order(texts)


def is_current(data: Any) -> bool:
  """Returns whether everything is there, made from today's raw files."""
  index = prepared.read_index(data)
  if index is None or not prepared.vocabulary_folder(data).exists():
    return False
  words = prepared.open_vocabulary(data)
  return index['vocabulary_hash'] == words.hash and all(
    entry['identity'] == mixtures.get(name).identity()
    and prepared.finished_shards(
      prepared.rows_folder(data, name) / entry['key']
    )
    for name, entry in index['tasks'].items()
  )


def _tell_figures(data: Any) -> None:
  """Prints the totals of each language."""
  index = prepared.read_index(data)
  totals = collections.defaultdict(collections.Counter)
  for name, entry in index['tasks'].items():
    if 'long' in entry:
      for line in long_documents.describe(entry['long']):
        progress.tell('long', f'{name}: {line}')
    for split in prepared.SPLITS:
      for key, value in entry[split].items():
        totals[mixtures.get(name).language][split, key] += value
  for language, total in totals.items():
    xz = index['xz'][language]
    progress.tell(
      language,
      f'training {total["train", "documents"]:,} documents, '
      f'{total["train", "bytes"] / 1e6:.1f} MB, '
      f'{total["train", "tokens"] / 1e6:.2f} M tokens; '
      f'held out {total["heldout", "documents"]:,} documents, '
      f'{total["heldout", "bytes"]:,} bytes'
      + (f', xz -9e: {xz:.3f} bits per byte' if xz else ''),
    )


def main(config: Any) -> None:
  """Prepares the data of a run."""
  try:
    index, count = (int(part) for part in FLAGS.shard.split('/'))
  except ValueError as error:
    raise ValueError(f'--shard is i/n, not {FLAGS.shard!r}') from error
  prepare(config, (index, count))


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--config=experiments/quickstart.py'))
