"""The last step: what is left becomes a data set that `prepare` reads.

Below WORKDIR/curated:

  manifest.json                tasks, their figures and rates, and their files
  KEY/TASK/SHARD.parquet       documents: id, text, url, source, language

`mixtures.register_curated` makes tasks and a mixture of it. The manifest is
written last, in place of the one before, so a reader sees either set whole.
"""

import collections
import contextlib
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

_FORMAT = 1
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
  base = epath.Path(workdir) / 'curated'
  tasks = {
    name: reading.settings_of(name, given)['task']
    for name, given in engine.plain(config.inputs).items()
  }
  facts = [_FORMAT, settings['section'], tasks]
  folder = base / engine.key(last.folder.name, facts)
  jobs = [
    passes.Job(
      entry['name'],
      str(folder),
      source=str(last.folder / 'kept' / f'{entry["name"]}.parquet'),
      settings={'section': settings['section'], 'tasks': tasks},
      documents=entry['documents'],
    )
    for entry in last.manifest()['shards']
  ]
  (folder / 'stats').mkdir(parents=True, exist_ok=True)
  engine.do('write', jobs, machine, run)
  manifest = _manifest(jobs, settings['weights'], folder.name)
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
  with contextlib.ExitStack() as stack:
    for batch in shards.read(epath.Path(job.source)):
      rows = collections.defaultdict(list)
      for i, source in enumerate(batch.sources):
        language = batch.languages[i] or 'unknown'
        task = job.settings['tasks'][source].format(language=language)
        rows[task] += _rows(batch, i, job.settings['section'])
      for task, found in sorted(rows.items()):
        if task not in writers:
          (folder / task).mkdir(parents=True, exist_ok=True)
          path = folder / task / f'{job.name}.parquet'
          file = stack.enter_context(shards.new_file(path))
          writers[task] = stack.enter_context(
            parquet.ParquetWriter(file, _SCHEMA, compression='zstd')
          )
        table = pyarrow.Table.from_pylist(found, schema=_SCHEMA)
        writers[task].write_table(table)
        figures[task]['documents'] += len(found)
        figures[task]['characters'] += sum(len(row['text']) for row in found)
        figures[task]['bytes'] += sum(
          len(row['text'].encode()) for row in found
        )
  shards.write_json(job.done, figures)


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
  jobs: list[passes.Job], weights: dict[str, float], folder: str
) -> dict[str, Any]:
  """Returns what a reader has to know."""
  tasks = collections.defaultdict(collections.Counter)
  for job in jobs:
    for task, figures in shards.read_json(job.done).items():
      tasks[task].update(figures)
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
  return {
    'format': _FORMAT,
    'tasks': {
      name: {
        **figures,
        'rate': shares[name] / total,
        'files': f'{folder}/{name}/*.parquet',
      }
      for name, figures in sorted(tasks.items())
    },
  }
