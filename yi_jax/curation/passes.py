"""One pass over the data: some stages, from one set of shards to the next.

The functions here run in workers, on one machine or many. Each makes whole
files under names that depend on the input alone, and ends with a file of
figures, by which a later start sees what is done:

  PASS/kept/SHARD.parquet      documents that go on, in the order they came
  PASS/removed/SHARD.parquet   the others, with what removed them
  PASS/stats/JOB.json          figures, see `counting`, and the shards made
  PASS/seconds/JOB.json        time a stage took; differs from run to run
  PASS/quarantine/JOB.jsonl    what could not be read (first pass only)
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from yi_jax.curation import (
  cascade,
  counting,
  documents,
  reading,
  shards,
  stage,
)

FOLDERS = ('kept', 'removed', 'stats', 'seconds', 'quarantine', 'parts')


@dataclasses.dataclass(frozen=True)
class Job:
  """What one worker does at once.

  Attributes:
    name: of its files.
    folder: of the pass.
    stages: JSON of [name, class, config] of each stage.
    source: shard that is read; '' for the first pass and after a shuffle.
    unit: what the first pass reads.
    parts: files of one batch each, after a shuffle.
    known: names of scores from passes before.
    settings: sections of the config, for the first pass and for writing;
      else stage -> inputs that pass it by.
    documents: that come in, 0 if unknown.
    size: bytes that come in, of the first pass.
  """

  name: str
  folder: str
  stages: str = '[]'
  source: str = ''
  unit: reading.Unit | None = None
  parts: tuple[str, ...] = ()
  known: tuple[str, ...] = ()
  settings: dict[str, Any] | None = None
  documents: int = 0
  size: int = 0

  @property
  def done(self) -> epath.Path:
    """The file that is written last."""
    return epath.Path(self.folder) / 'stats' / f'{self.name}.json'


@functools.lru_cache(maxsize=4)
def _stages(encoded: str) -> tuple[stage.Stage, ...]:
  """Returns stages that are ready; models are loaded once a process."""
  made = tuple(
    cascade.make(given, config) for _, given, config in json.loads(encoded)
  )
  for one in made:
    one.setup()
  return made


class _Meter:
  """Adds up what the stages of a job did and how long they took."""

  def __init__(self, names: Iterable[str]) -> None:
    self.counts = {name: counting.Counts(name) for name in names}
    # Stage -> seconds, documents and characters that it left or removed.
    self.seconds = {name: [0.0, 0, 0] for name in self.counts}
    self.scores: set[str] = set()

  def add(
    self, name: str, batch: documents.Batch, known: Iterable[str], took: float
  ) -> None:
    self.counts[name].add(batch, known)
    self.scores.update(batch.scores)
    entry = self.seconds[name]
    entry[0] += took
    entry[1] += len(batch)
    entry[2] += sum(map(len, batch.texts))


def run(job: Job) -> None:
  """Does a job: reads, runs the stages, writes; nothing if it is done."""
  if job.done.exists():
    return
  folder = epath.Path(job.folder)
  meter = _Meter(name for name, _, _ in json.loads(job.stages))
  if job.unit:
    stats = _read(job, folder, meter)
  elif job.parts:
    stats = {'shards': [_gather(job, folder, meter)]}
  else:
    stats = {'shards': [_process(job, folder, meter)]}
  shards.write_json(folder / 'seconds' / f'{job.name}.json', meter.seconds)
  stats['stages'] = [counts.to_json() for counts in meter.counts.values()]
  stats['scores'] = sorted(meter.scores)
  shards.write_json(job.done, stats)


@contextlib.contextmanager
def _writers(
  folder: epath.Path, name: str
) -> Iterator[tuple[shards.Writer, shards.Writer]]:
  """Yields writers of the documents that go on and of those that do not."""
  file = f'{name}.parquet'
  with (
    shards.Writer(folder / 'kept' / file) as kept,
    shards.Writer(folder / 'removed' / file) as removed,
  ):
    yield kept, removed


def _made(name: str, kept: shards.Writer) -> dict[str, Any]:
  return {'name': name, 'documents': kept.documents, 'batches': kept.batches}


def _process(job: Job, folder: epath.Path, meter: _Meter) -> dict[str, Any]:
  """Runs stages over one shard."""
  stages = _stages(job.stages)
  with _writers(folder, job.name) as (kept, removed):
    for batch in shards.read(epath.Path(job.source)):
      for one in stages:
        known, started = set(batch.scores), time.perf_counter()
        batch = _through(one, batch, job.settings.get(one.name, ()))
        meter.add(one.name, batch, known, time.perf_counter() - started)
        gone, batch = _split(batch)
        removed.write(gone)
      kept.write(batch)
  return _made(job.name, kept)


def _through(
  one: stage.Stage, batch: documents.Batch, skipped: Sequence[str]
) -> documents.Batch:
  """Runs a stage over a batch, but for documents of inputs that pass it by."""
  inside = [i for i, s in enumerate(batch.sources) if s not in skipped]
  if len(inside) == len(batch):
    return one.process(batch)
  if not inside:
    return batch
  outside = sorted(set(range(len(batch))) - set(inside))
  done = one.process(batch.select(inside))
  return documents.concatenate([done, batch.select(outside)])


def _gather(job: Job, folder: epath.Path, meter: _Meter) -> dict[str, Any]:
  """Joins the batches that a shuffle left, in order, to a shard again."""
  ((name, _, _),) = json.loads(job.stages)
  with _writers(folder, job.name) as (kept, removed):
    for part in job.parts:
      started = time.perf_counter()
      for batch in shards.read(epath.Path(part)):
        meter.add(name, batch, job.known, time.perf_counter() - started)
        gone, batch = _split(batch)
        removed.write(gone)
        kept.write(batch)
  return _made(job.name, kept)


def _read(job: Job, folder: epath.Path, meter: _Meter) -> dict[str, Any]:
  """Reads a unit into as many shards as it fills."""
  quarantine = reading.Quarantine()
  started = time.perf_counter()
  batches = reading.read(
    job.unit, job.settings['max_bytes'], quarantine, job.settings['limit']
  )
  made = []
  first = next(batches, None)
  while first is not None or not made:
    name = f'{job.name}-{len(made):05}'
    with _writers(folder, name) as (kept, _):
      while first is not None:
        meter.add('read', first, (), time.perf_counter() - started)
        kept.write(first)
        started = time.perf_counter()
        first = next(batches, None)
        if kept.documents >= job.settings['shard_documents']:
          break
    made.append(_made(name, kept))
  if quarantine.entries:
    with shards.new_file(folder / 'quarantine' / f'{job.name}.jsonl') as file:
      for entry in quarantine.entries:
        file.write(f'{json.dumps(entry, ensure_ascii=False)}\n'.encode())
  return {
    'shards': made,
    'input': job.unit.name,
    'quarantine': dict(quarantine.counts),
    'damaged': quarantine.damaged(),
  }


def _split(
  batch: documents.Batch,
) -> tuple[documents.Batch, documents.Batch]:
  """Returns the removed documents of a batch, and the others."""
  alive = batch.alive()
  if len(alive) == len(batch):
    return documents.Batch(), batch
  gone = [i for i, rule in enumerate(batch.removed) if rule]
  return batch.select(gone), batch.select(alive)
