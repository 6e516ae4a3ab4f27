"""Runs the cascade: what is done is kept, what has changed is done again.

The config's stages become passes over the data. Stages that look at one
document at a time share a pass; one that has to see all documents is a pass of
its own. A pass is a folder, WORKDIR/stages/NN-NAMES-KEY, with a manifest when
it is whole. KEY is a hash of the code and config of its stages and of what
they read, so a changed threshold starts from the pass that has it, and nothing
there is ever stale. Inside a pass, finished shards are kept too: a run that was
killed goes on with the first missing one, and its result is the same.
"""

import collections
import dataclasses
import hashlib
import inspect
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from yi_jax import paths, spelling
from yi_jax.curation import (
  cascade,
  counting,
  passes,
  reading,
  running,
  shards,
  stage,
)
from yi_jax.data import progress

_FORMAT = 1  # of the files and their figures
MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Pass:
  """One pass over the data.

  Attributes:
    names: of its stages, as in counters and sections of the config.
    configs: of each.
    classes: keys of cascade.STAGES, or module:Class.
    skips: stage -> inputs whose documents pass it by.
    shuffles: whether it has to see all documents.
    folder: where it is or will be.
  """

  names: tuple[str, ...]
  configs: tuple[Any, ...]
  classes: tuple[str, ...]
  skips: dict[str, list[str]]
  shuffles: bool
  folder: epath.Path

  def manifest(self) -> dict[str, Any] | None:
    """Returns its figures if it is whole."""
    path = self.folder / MANIFEST
    return shards.read_json(path) if path.exists() else None

  def encoded(self) -> str:
    """Returns its stages as a job has them."""
    return json.dumps(
      list(zip(self.names, self.classes, self.configs, strict=True))
    )


@dataclasses.dataclass(frozen=True)
class Machine:
  """Where passes run.

  Attributes:
    runner: running.LOCAL, or the name of a Beam runner.
    workers: processes on this machine.
    beam_flags: options of a Beam runner.
  """

  runner: str = running.LOCAL
  workers: int = 1
  beam_flags: str = ''


def root(config: Any) -> pathlib.Path:
  """Returns the data root of a config."""
  return pathlib.Path(paths.in_repository(config.root))


def plan(
  config: Any, workdir: str, sample: int = 0
) -> tuple[list[Pass], list[reading.Unit]]:
  """Returns the passes of a run and what the first one reads.

  Every stage is made once here, so that a wrong key ends the run at once.

  Args:
    config: of experiments/curate.py.
    workdir: folder or bucket that holds them.
    sample: documents of a dry run, 0 for all.

  Raises:
    ValueError: for a wrong key, naming it.
    OSError: if an input is missing.
  """
  stages = _stages(config)
  units = reading.units(plain(config.inputs), root(config))
  read = {**reading.read_defaults(), **plain(config.read)}
  stage.check_keys('read', read, reading.read_defaults())
  # How much damage is allowed does not change what is read.
  facts = {k: v for k, v in read.items() if k != 'max_damaged'}
  base = epath.Path(workdir) / (f'sample-{sample}' if sample else 'stages')
  states = [dataclasses.asdict(unit) for unit in units]
  digest = key('', [_FORMAT, facts, sample, _code(reading), states])
  found = [
    Pass(('read',), (read,), ('',), {}, False, base / f'00-read-{digest}')
  ]
  skipped = _skips(units, stages)
  groups = []
  for given, one in stages:
    shuffles = isinstance(one, stage.GlobalStage)
    alone = shuffles or not config.fuse or not groups or groups[-1][0]
    if alone:
      groups.append((shuffles, []))
    groups[-1][1].append((given, one))
  for number, (shuffles, group) in enumerate(groups, 1):
    classes, group = zip(*group, strict=True)
    names = tuple(one.name for one in group)
    configs = tuple(plain(config[name]) for name in names)
    skips = {name: skipped[name] for name in names if skipped.get(name)}
    facts = [
      [one.name, given, one.identity(), _code(inspect.getmodule(type(one)))]
      for one, given in zip(group, configs, strict=True)
    ]
    digest = key(digest, [facts, skips])
    title = '+'.join(names)[:60]
    folder = base / f'{number:02}-{title}-{digest}'
    found.append(Pass(names, configs, classes, skips, shuffles, folder))
  return found, units


def _stages(config: Any) -> list[tuple[str, stage.Stage]]:
  """Returns the stages of a config, as it calls them, and made.

  Raises:
    ValueError: for what is wrong with them.
  """
  made = []
  for given in config.stages:
    name = cascade.stage_class(given).name
    if name in {one.name for _, one in made}:
      raise ValueError(f'config.stages names {name!r} twice')
    if name not in config:
      raise ValueError(f'the config has no section {name!r} for that stage')
    made.append((given, cascade.make(given, plain(config[name]))))
  return made


def _skips(
  units: Sequence[reading.Unit], stages: Sequence[tuple[str, stage.Stage]]
) -> dict[str, list[str]]:
  """Returns stage -> inputs that pass it by; ValueError if one cannot."""
  skipped = collections.defaultdict(set)
  made = {one.name: one for _, one in stages}
  for unit in units:
    for name in unit.settings['skip']:
      if name not in made and name not in cascade.STAGES:
        hint = spelling.nearest(name, [*made, *cascade.STAGES])
        raise ValueError(f'inputs.{unit.name}.skip: no stage {name!r}{hint}')
      if isinstance(made.get(name), stage.GlobalStage):
        raise ValueError(
          f'inputs.{unit.name}.skip: {name} looks at all documents at once; '
          'leave it out of config.stages, or curate that input by itself'
        )
      skipped[name].add(unit.name)
  return {name: sorted(inputs) for name, inputs in skipped.items()}


def _code(module: Any) -> str:
  """Returns a hash of a module and of those of curation/ that it uses."""
  waiting, found = [module], {}
  while waiting:
    module = waiting.pop()
    if module.__name__ not in found:
      found[module.__name__] = inspect.getsource(module)
      waiting += [
        value
        for value in vars(module).values()
        if inspect.ismodule(value)
        and value.__name__.startswith('yi_jax.curation.')
      ]
  return key('', sorted(found.items()))


def run(
  config: Any, workdir: str, machine: Machine, sample: int = 0
) -> list[Pass]:
  """Does what is missing of a run, and returns its passes.

  Args:
    config: of experiments/curate.py.
    workdir: folder or bucket.
    machine: where.
    sample: about how many documents a dry run reads; 0 reads all.

  Raises:
    ValueError: if the config or too much of an input is wrong.
    OSError: if a file is missing, or the disk full.
  """
  found, units = plan(config, workdir, sample)
  before = None
  for one in found:
    title = '+'.join(one.names)
    manifest = one.manifest()
    if manifest:
      progress.tell('there', f'{title}: {_summary(manifest)}')
    else:
      for name in passes.FOLDERS:
        (one.folder / name).mkdir(parents=True, exist_ok=True)
        for leftover in (one.folder / name).glob('.*.part-*'):
          leftover.unlink(missing_ok=True)
      if before is None:
        limit = -(-sample // len(units))
        jobs = _first_jobs(one, units, limit)
        do(title, jobs, machine)
        _check_damage(one, jobs)
      else:
        if one.shuffles:
          _shuffle(before, one, machine)
        jobs = _jobs(before, one)
        do(title, jobs, machine)
      manifest = _finish(one, jobs)
      progress.tell('done', f'{title}: {_summary(manifest)}')
    _check_documents(title, manifest)
    before = one
  return found


def _first_jobs(
  one: Pass, units: Sequence[reading.Unit], limit: int
) -> list[passes.Job]:
  settings = {**one.configs[0], 'limit': limit}
  return [
    passes.Job(
      f'{unit.number:06}',
      str(one.folder),
      '[["read", "", {}]]',
      unit=unit,
      settings=settings,
      size=unit.size,
    )
    for unit in units
  ]


def _jobs(before: Pass, one: Pass) -> list[passes.Job]:
  """Returns a job for each shard of the pass before."""
  earlier = before.manifest()
  jobs = []
  for number, entry in enumerate(earlier['shards']):
    parts = [
      running.part_path(str(one.folder), (number, index))
      for index in range(entry['batches'] if one.shuffles else 0)
    ]
    if one.shuffles and not parts:
      continue  # it had no documents
    jobs.append(
      passes.Job(
        entry['name'],
        str(one.folder),
        one.encoded(),
        source=str(before.folder / 'kept' / f'{entry["name"]}.parquet'),
        parts=tuple(map(str, parts)),
        settings=one.skips,
        known=tuple(earlier['scores']),
        documents=entry['documents'],
      )
    )
  return jobs


def _shuffle(before: Pass, one: Pass, machine: Machine) -> None:
  """Runs a stage that sees all documents, up to a file for each batch."""
  done = one.folder / 'shuffled.json'
  if done.exists():
    return
  entries = before.manifest()['shards']
  references = [
    (number, str(before.folder / 'kept' / f'{entry["name"]}.parquet'), index)
    for number, entry in enumerate(entries)
    for index in range(entry['batches'])
  ]
  total = sum(entry['documents'] for entry in entries)
  progress.tell('start', f'{one.names[0]}: {total:,} documents at once')
  started = time.monotonic()
  running.shuffle(
    one.classes[0],
    one.configs[0],
    references,
    str(one.folder),
    **dataclasses.asdict(machine),
  )
  shards.write_json(done, {'seconds': time.monotonic() - started})


def do(
  title: str,
  jobs: Sequence[passes.Job],
  machine: Machine,
  function: Callable[[passes.Job], None] = passes.run,
) -> None:
  """Does the jobs of a pass that are not done, and tells how far it is."""
  missing = [job for job in jobs if not job.done.exists()]
  if not missing:
    return
  line = _Line(title, missing)
  if len(missing) < len(jobs):
    progress.tell('going on', f'{len(missing)} of {len(jobs)} jobs are left')
  running.each(function, missing, tell=line.tell, **dataclasses.asdict(machine))


class _Line:
  """Tells how far a pass is, every few seconds."""

  _SECONDS = 10

  def __init__(self, title: str, jobs: Sequence[passes.Job]) -> None:
    self._title, self._documents = title, 0
    # Documents are not known before they are read; bytes may not be either.
    self._weigh = (
      (lambda job: job.size) if jobs[0].unit else (lambda job: job.documents)
    )
    self._total = sum(map(self._weigh, jobs)) or 1
    self._done = 0
    self._started = self._told = time.monotonic()

  def tell(self, job: passes.Job | None) -> None:
    """Counts a job that is done, and prints a line if it is time."""
    if job:
      self._done += self._weigh(job)
      made = shards.read_json(job.done)['shards'] if job.unit else ()
      read = sum(entry['documents'] for entry in made)
      self._documents += read + job.documents
    now = time.monotonic()
    if now - self._told < self._SECONDS:
      return
    self._told = now
    seconds, share = now - self._started, self._done / self._total
    rest = f'{seconds * (1 - share) / share:.0f} s left' if share else ''
    progress.tell(
      'running',
      f'{self._title}: {share:.0%}, {self._documents:,} documents, '
      f'{self._documents / seconds:,.0f} documents/s {rest}'.rstrip(),
    )


def _finish(one: Pass, jobs: Sequence[passes.Job]) -> dict[str, Any]:
  """Adds up the figures of a pass, and writes its manifest."""
  counts = {name: counting.Counts(name) for name in one.names}
  quarantine = collections.defaultdict(collections.Counter)
  entries, scores, timed = [], set(), {name: [0.0, 0, 0] for name in one.names}
  for job in jobs:
    stats = shards.read_json(job.done)
    entries += stats['shards']
    scores.update(stats['scores'])
    for stage_counts in stats['stages']:
      counts[stage_counts['name']].merge(stage_counts)
    if stats.get('quarantine'):
      quarantine[stats['input']].update(stats['quarantine'])
    took = shards.read_json(one.folder / 'seconds' / f'{job.name}.json')
    for name, entry in took.items():
      timed[name] = [a + b for a, b in zip(timed[name], entry, strict=True)]
  shuffled = one.folder / 'shuffled.json'
  if shuffled.exists():
    timed[one.names[0]][0] += shards.read_json(shuffled)['seconds']
  shards.write_json(one.folder / 'seconds.json', timed)
  manifest = {
    'format': _FORMAT,
    'stages': list(one.names),
    'configs': list(one.configs),
    'shards': entries,
    'scores': sorted(scores),
    'counts': [counts[name].to_json() for name in one.names],
    'quarantine': {name: dict(found) for name, found in quarantine.items()},
  }
  shards.write_json(one.folder / MANIFEST, manifest)
  for part in (one.folder / 'parts').glob('*.parquet'):
    part.unlink()
  return manifest


def _check_damage(one: Pass, jobs: Sequence[passes.Job]) -> None:
  """Raises ValueError if too much of an input could not be read."""
  allowed = one.configs[0]['max_damaged']
  read, damaged = collections.Counter(), collections.Counter()
  reasons = collections.defaultdict(collections.Counter)
  for job in jobs:
    stats = shards.read_json(job.done)
    read[stats['input']] += sum(e['documents'] for e in stats['shards'])
    damaged[stats['input']] += stats['damaged']
    reasons[stats['input']].update(stats['quarantine'])
  for name, count in damaged.items():
    share = count / max(count + read[name], 1)
    if share > allowed:
      why = ', '.join(f'{n:,} {why}' for why, n in reasons[name].items())
      raise ValueError(
        f'{count:,} of {count + read[name]:,} documents of input {name} cannot '
        f'be read ({why}); see {one.folder / "quarantine"}, and mend the files '
        f'or allow more with --config.read.max_damaged={share:.2g}'
      )


def _check_documents(title: str, manifest: Mapping[str, Any]) -> None:
  if not any(entry['documents'] for entry in manifest['shards']):
    raise ValueError(
      f'no document is left after {title}; removed were: '
      + ', '.join(
        f'{counting.totals(found)[0]:,} by {rule}'
        for counts in manifest['counts']
        for rule, found in counts['removed'].items()
      )
    )


def _summary(manifest: Mapping[str, Any]) -> str:
  """Returns the figures of a pass in a line."""
  kept = counting.totals(manifest['counts'][-1]['kept'])
  removed = sum(
    counting.totals(found)[0]
    for counts in manifest['counts']
    for found in counts['removed'].values()
  )
  aside = sum(sum(found.values()) for found in manifest['quarantine'].values())
  return (
    f'{kept[0]:,} documents, {kept[1] / 1e6:.1f} M characters'
    + (f'; removed {removed:,}' if removed else '')
    + (f'; put aside {aside:,}' if aside else '')
  )


def plain(config: Any) -> Any:
  """Returns a config as JSON has it."""
  if hasattr(config, 'items'):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, list | tuple | set | frozenset):
    return [plain(value) for value in config]
  return config


def key(before: str, facts: Any) -> str:
  """Returns a short hash of JSON and of the key before it."""
  text = json.dumps([before, facts], sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
