"""The last step: what is left becomes a data set that `prepare` reads.

Below WORKDIR/curated:

  manifest.json            tasks, their figures and rates, and their files
  KEY/TASK/1.0.0/*         ArrayRecord, and what makes it a data set of TFDS
  KEY/TASK/SHARD.parquet   or, with write.format='parquet', Parquet

A row is a document, or a section of one: id, text, url, source, language.
`mixtures.register_curated` makes tasks and a mixture of it. The manifest is
written last, in place of the one before, so a reader sees either set whole.
"""

import collections
import contextlib
import os
from typing import Any

import pyarrow
from etils import epath
from pyarrow import parquet

from yi_jax import spelling
from yi_jax.curation import (
  documents,
  engine,
  passes,
  reading,
  shards,
  stage,
)
from yi_jax.data import progress, sources

_VERSION = '1.0.0'  # of the data sets
_FORMATS = ('array_record', 'parquet')
_SCHEMA = pyarrow.schema(
  [
    ('id', pyarrow.string()),
    ('text', pyarrow.large_string()),
    ('url', pyarrow.string()),
    ('source', pyarrow.string()),
    ('language', pyarrow.string()),
  ]
)


def defaults() -> dict[str, Any]:
  """Returns every key of the section `write` with its default."""
  return {
    # 'array_record', a data set of TFDS for each task; or 'parquet', which a
    # bucket can hold too.
    'format': 'array_record',
    # Longer texts are cut into exact slices of about this many characters,
    # between paragraphs if possible, so that a held-out split takes sections
    # and not whole books; 0 leaves them whole.
    'section': sources.SECTION,
    # Task -> times its bytes count in the mixture; 1 for those not named.
    'weights': {},
  }


def write(
  config: Any, workdir: str, last: engine.Pass, machine: engine.Machine
) -> dict[str, Any]:
  """Writes what the last pass left, and returns the manifest.

  Raises:
    ValueError: for a wrong key, or a weight of a task that is not there.
  """
  settings = {**defaults(), **engine.plain(config.write)}
  stage.check_keys('write', settings, defaults())
  if settings['format'] not in _FORMATS:
    raise ValueError(
      f'write.format is {settings["format"]!r}: take one of {list(_FORMATS)}'
    )
  if '://' in workdir and settings['format'] != 'parquet':
    raise ValueError(
      f'{workdir} is a bucket, where no ArrayRecord can be written: set '
      '--config.write.format=parquet'
    )
  base = epath.Path(workdir) / 'curated'
  tasks = {
    name: reading.settings_of(name, given)['task']
    for name, given in engine.plain(config.inputs).items()
  }
  facts = [_VERSION, settings['format'], settings['section'], tasks]
  folder = base / engine.key(last.folder.name, facts)
  jobs = [
    passes.Job(
      entry['name'],
      str(folder),
      source=str(last.folder / 'kept' / f'{entry["name"]}.parquet'),
      settings={**settings, 'tasks': tasks},
      documents=entry['documents'],
    )
    for entry in last.manifest()['shards']
  ]
  (folder / 'stats').mkdir(parents=True, exist_ok=True)
  engine.do('write', jobs, machine, run)
  manifest = _manifest(jobs, settings, folder)
  shards.write_json(base / engine.MANIFEST, manifest)
  for old in base.iterdir():
    if old.is_dir() and old.name != folder.name:
      old.rmtree()
  size = sum(task['bytes'] for task in manifest['tasks'].values())
  progress.tell(
    'done',
    f'write: {len(manifest["tasks"])} tasks, {size / 1e6:.1f} MB, {base}',
  )
  return manifest


def run(job: passes.Job) -> None:
  """Writes the documents of one shard, a file for each task."""
  folder, writers = epath.Path(job.folder), {}
  figures = collections.defaultdict(collections.Counter)
  make = _Records if job.settings['format'] == 'array_record' else _Table
  with contextlib.ExitStack() as stack:
    for batch in shards.read(epath.Path(job.source)):
      rows = collections.defaultdict(list)
      for i, source in enumerate(batch.sources):
        language = batch.languages[i] or 'unknown'
        task = job.settings['tasks'][source].format(
          language=language, bucket=batch.metadata[i].get('perplexity', 'none')
        )
        rows[task] += _rows(batch, i, job.settings['section'])
      for task, found in sorted(rows.items()):
        if task not in writers:
          writers[task] = stack.enter_context(make(folder / task, job.name))
        writers[task].write(found)
        figures[task]['documents'] += len(found)
        figures[task]['characters'] += sum(len(row['text']) for row in found)
        figures[task]['bytes'] += sum(
          len(row['text'].encode()) for row in found
        )
  shards.write_json(job.done, figures)


class _Table:
  """Writes rows into a Parquet file."""

  def __init__(self, folder: epath.Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / f'{name}.parquet'

  def __enter__(self) -> '_Table':
    self._stack = contextlib.ExitStack()
    file = self._stack.enter_context(shards.new_file(self._path))
    self._writer = parquet.ParquetWriter(file, _SCHEMA, compression='zstd')
    return self

  def __exit__(self, *error: Any) -> None:
    self._writer.close()
    self._stack.__exit__(*error)

  def write(self, rows: list[dict[str, str]]) -> None:
    self._writer.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA))


class _Records:
  """Writes rows into an ArrayRecord file; `_tie` gives it its last name."""

  def __init__(self, folder: epath.Path, name: str) -> None:
    from yi_jax.data import tfds_files

    (folder / _VERSION).mkdir(parents=True, exist_ok=True)
    self._path = folder / _VERSION / f'.{name}'
    self._part = self._path.with_name(f'.{name}.part-{os.getpid()}')
    self._writer = tfds_files.Writer(self._part)

  def __enter__(self) -> '_Records':
    return self

  def __exit__(self, kind: Any, *error: Any) -> None:
    self._writer.close()
    if kind is None:
      self._part.replace(self._path)
    else:
      self._part.unlink(missing_ok=True)

  def write(self, rows: list[dict[str, str]]) -> None:
    for row in rows:
      self._writer.write(row)


def _tie(folder: epath.Path, task: str, lengths: dict[str, int]) -> None:
  """Makes the files of a task a data set of TFDS.

  Args:
    folder: of all tasks.
    task: name.
    lengths: shard -> rows, in order.
  """
  from yi_jax.data import tfds_files

  inside, size = folder / task / _VERSION, 0
  for number, name in enumerate(lengths):
    final = inside / tfds_files.file_name(task, number, len(lengths))
    if (
      inside / f'.{name}'
    ).exists():  # else it has its name, from a run before
      (inside / f'.{name}').replace(final)
    size += final.stat().length
  for leftover in inside.glob('.*.part-*'):
    leftover.unlink()
  values = list(lengths.values())
  tfds_files.write_metadata(inside, task, _SCHEMA.names, values, size)


def _rows(batch: documents.Batch, i: int, section: int) -> list[dict[str, str]]:
  """Returns document i, or its sections with numbered ids."""
  text = batch.texts[i]
  pieces = sources.cut(text, section) if section else [text]
  return [
    {
      'id': batch.ids[i] + (f'#{number:04}' if len(pieces) > 1 else ''),
      'text': piece,
      'url': batch.urls[i],
      'source': batch.sources[i],
      'language': batch.languages[i],
    }
    for number, piece in enumerate(pieces)
  ]


def _manifest(
  jobs: list[passes.Job], settings: dict[str, Any], folder: epath.Path
) -> dict[str, Any]:
  """Returns what a reader has to know, once every task is whole."""
  tasks = collections.defaultdict(collections.Counter)
  lengths = collections.defaultdict(dict)
  for job in jobs:
    for task, figures in shards.read_json(job.done).items():
      tasks[task].update(figures)
      lengths[task][job.name] = figures['documents']
  rates = _rates(tasks, settings['weights'])
  pattern = '*.parquet'
  if settings['format'] == 'array_record':
    pattern = f'{_VERSION}/*.array_record-*'
    for task, found in lengths.items():
      _tie(folder, task, found)
  return {
    'version': _VERSION,
    'tasks': {
      name: {
        **figures,
        'rate': rates[name],
        'files': f'{folder.name}/{name}/{pattern}',
      }
      for name, figures in sorted(tasks.items())
    },
  }


def _rates(
  tasks: dict[str, Any], weights: dict[str, float]
) -> dict[str, float]:
  """Returns the share of each task: its bytes times its weight."""
  for name, weight in weights.items():
    if name not in tasks:
      hint = spelling.nearest(name, sorted(tasks))
      raise ValueError(f'write.weights: no document of task {name!r}{hint}')
    if not weight >= 0:
      raise ValueError(f'write.weights.{name} is negative: {weight}')
  shares = {
    name: figures['bytes'] * weights.get(name, 1)
    for name, figures in tasks.items()
  }
  total = sum(shares.values())
  if not total:
    raise ValueError('write.weights leaves nothing: give one task more than 0')
  return {name: share / total for name, share in shares.items()}
