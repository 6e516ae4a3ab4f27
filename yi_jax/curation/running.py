"""Where passes run: processes of this machine, or a runner of Apache Beam.

The same functions over the same files either way. On one machine a pass over
shards needs no Beam, and a pool hands out shards as workers become free; what
has to see all documents is a Beam pipeline everywhere, here by `local_runner`.
"""

import collections
import contextlib
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from yi_jax.curation import cascade, documents, passes, pool, shards
from yi_jax.data import progress

LOCAL = 'local'  # runner: this machine

# (shard, its file, batch): what a pipeline hands around instead of documents.
Reference = tuple[int, str, int]


def each(
  function: Callable[[passes.Job], None],
  jobs: Sequence[passes.Job],
  *,
  runner: str,
  workers: int,
  beam_flags: str,
  tell: Callable[[passes.Job | None], None],
) -> None:
  """Does jobs, in any order.

  Args:
    function: does one; found by name in other processes.
    jobs: what to do.
    runner: LOCAL, or the name of a Beam runner.
    workers: processes on this machine.
    beam_flags: options of the runner, as on a command line.
    tell: is called with each job done, and with None now and then.

  Raises:
    ValueError: if a stage refuses its input.
    OSError: if a file is missing, or a disk full, or a worker died.
  """
  if runner != LOCAL:
    with _quiet():
      import apache_beam as beam

    with pipeline(runner, workers, beam_flags) as made:
      _ = made | beam.Create(list(jobs)) | beam.Reshuffle() | beam.Map(function)
    return
  with pool.Pool(workers) as workers_pool:
    workers_pool.each(function, jobs, lambda job, _: tell(job))


class Stored:
  """Documents of a pass, as often as a pipeline wants them.

  `stored | transform` reads the files anew. A PCollection that is used twice
  would be kept, texts and all: on one machine, in memory.

  Attributes:
    pipeline: it is part of.
  """

  def __init__(self, references: Any) -> None:
    """Takes a PCollection of Reference."""
    self._references, self._uses = references, 0
    self.pipeline = references.pipeline

  def __or__(self, transform: Any) -> Any:
    """Returns the PCollection that a transform makes of the batches."""
    return self.collection() | transform

  def collection(self) -> Any:
    """Returns a PCollection of the batches, read anew."""
    import apache_beam as beam

    self._uses += 1
    return self._references | f'Read{self._uses}' >> beam.Map(load)


def load(reference: Reference) -> documents.Batch:
  """Returns a batch with its place."""
  number, path, index = reference
  batch = shards.read_batch(epath.Path(path), index)
  batch.place = number, index
  return batch


def part_path(folder: str, place: tuple[int, int]) -> epath.Path:
  """Returns where a batch that went through a shuffle is written."""
  return epath.Path(folder) / 'parts' / f'{place[0]:06}-{place[1]:06}.parquet'


def _write_part(batch: documents.Batch, folder: str, stage: str) -> None:
  if batch.place < (0, 0):
    raise ValueError(
      f'stage {stage} made a batch that has no place: change those it is given, '
      'or take select() of them'
    )
  with shards.Writer(part_path(folder, batch.place)) as file:
    file.write(batch)


def shuffle(
  name: str,
  config: Any,
  references: Sequence[Reference],
  folder: str,
  *,
  runner: str,
  workers: int,
  beam_flags: str,
) -> None:
  """Runs a stage that sees all documents; writes a file for each batch.

  Args:
    name: of the stage.
    config: its section.
    references: to all batches.
    folder: of the pass.
    runner: LOCAL, or the name of a Beam runner.
    workers: processes on this machine.
    beam_flags: options of the runner.

  Raises:
    ValueError: if the stage refuses something, or loses a batch.
  """
  with _quiet():
    import apache_beam as beam

  spilled = None if '://' in folder else f'{folder}/shuffle'
  with pipeline(runner, workers, beam_flags, spilled, _teller(name)) as made:
    # Nothing to fuse with: else one worker would read all that Create lists.
    created = made | beam.Create(list(references)) | beam.Reshuffle()
    batches = cascade.make(name, config).expand(Stored(created))
    _ = batches | 'WriteParts' >> beam.Map(_write_part, folder, name)
  _check(name, _counters(made.result))
  lost = [r for r in references if not part_path(folder, (r[0], r[2])).exists()]
  if lost:
    raise ValueError(
      f'{name} lost {len(lost):,} of {len(references):,} batches: it has '
      'to return each, with the documents it removed'
    )


def _counters(result: Any) -> dict[tuple[str, str], int]:
  """Returns (namespace, name) -> value of the counters of a pipeline."""
  if hasattr(result, 'counters'):
    return result.counters
  try:
    metrics = result.metrics().query()['counters']
  except NotImplementedError:  # by that runner
    return {}
  found = collections.Counter()
  for metric in metrics:
    key = metric.key.metric.namespace, metric.key.metric.name
    found[key] += metric.result or 0
  return dict(found)


def _check(name: str, counters: dict[tuple[str, str], int]) -> None:
  """Raises ValueError if rows were lost; says what else counters tell."""
  from yi_jax.curation import shuffle as exchanges

  for exchange, (missing, sent) in exchanges.lost(counters).items():
    raise ValueError(
      f'{name}: {missing:,} of {sent:,} rows of the exchange {exchange!r} did '
      'not arrive: the runner lost them; start again, with another --runner if '
      'it does that once more'
    )
  unsettled = counters.get(('components', 'unsettled'), 0)
  if unsettled:
    progress.tell(
      'note',
      f'{name}: {unsettled:,} documents are tied to more than one group, so '
      f'some copies stay: raise {name}.rounds',
    )


def _teller(name: str) -> Callable[[str], None]:
  return lambda line: progress.tell('running', f'{name}: {line}')


@contextlib.contextmanager
def pipeline(
  runner: str,
  workers: int,
  beam_flags: str,
  folder: str | None = None,
  tell: Callable[[str], None] | None = None,
) -> Iterator[Any]:
  """Yields a Beam pipeline that runs when the block ends.

  Args:
    runner: LOCAL, or the name of a Beam runner.
    workers: processes on this machine.
    beam_flags: options of the runner, as on a command line.
    folder: of the shuffles on this machine; None is a temporary one.
    tell: is called with how far it is, on this machine.

  Raises:
    ValueError: if a stage refused something in a worker, or rows were lost.
    OSError: if a worker met one, on a full disk say.
  """
  with _quiet():
    import apache_beam as beam
    from apache_beam.options import pipeline_options

    from yi_jax.curation import local_runner

  chosen, flags = runner, shlex.split(beam_flags)
  if runner == LOCAL:
    chosen = local_runner.LocalRunner(workers, folder, tell)
  else:
    flags.append('--default_sdk_harness_log_level=ERROR')
  options = pipeline_options.PipelineOptions(flags)
  try:
    with _quiet(), beam.Pipeline(runner=chosen, options=options) as made:
      yield made
  except RuntimeError as error:
    raise _plain(error) from error


def _plain(error: RuntimeError) -> Exception:
  """Returns the error of a worker, where Beam says it in its own words."""
  found = re.findall(
    r'^(ValueError|OSError|FileNotFoundError): (.*?)(?: \[while running.*)?$',
    str(error),
    re.MULTILINE,
  )
  if not found:
    return error
  kind, message = found[-1]
  return ValueError(message) if kind == 'ValueError' else OSError(message)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Beam tells how its workers come and go; errors stay."""
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(before)
