"""A runner of Apache Beam for one machine: shuffles on disk, workers that fork.

Stages are written against Beam and run on any of its runners. Beam's own one
for a machine keeps every shuffle in memory and, with several workers, loses
elements when the machine is busy (see docs/curate.md). This one knows what
batch pipelines in one window are made of, Create, ParDo, GroupByKey, Flatten,
Reshuffle, side inputs and counters, and refuses the rest by name.

A pipeline is cut into segments where elements have to be brought together, or
where a side input has to be whole first. One segment runs at a time, its input
in bundles, and each bundle answers for its records: what a segment reads is
counted against what was written for it, so nothing is lost without a word.
"""

import collections
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.options import pipeline_options
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.portability import common_urns
from apache_beam.runners import common, runner
from apache_beam.transforms import core, window

from yi_jax.curation import pool as pool_module
from yi_jax.curation import segments, spill

_MOST = 16  # elements a bundle
_SHARES = 4  # bundles a worker, at least
_GROUPED_BYTES = 32 << 20  # of groups a bundle
_SECONDS = 10  # between two lines that tell how far it is

_LEAVES = (beam.Create, beam.Reshuffle, core.Impulse)


class Result(runner.PipelineResult):
  """A pipeline that is done.

  Attributes:
    counters: (namespace, name) -> what functions counted.
  """

  def __init__(self, counters: dict[tuple[str, str], int]) -> None:
    """Takes the counters."""
    super().__init__(runner.PipelineState.DONE)
    self.counters = counters


class LocalRunner(runner.PipelineRunner):
  """Runs pipelines on this machine."""

  def __init__(
    self,
    workers: int,
    folder: str | None = None,
    tell: Callable[[str], None] | None = None,
  ) -> None:
    """Takes what runs have in common.

    Args:
      workers: processes; 1 is this one.
      folder: of the shuffles, which is emptied before and removed after a run;
        None is one among the temporary files.
      tell: is called with a line every few seconds.
    """
    super().__init__()
    self._workers, self._folder, self._tell = workers, folder, tell

  def run_pipeline(
    self,
    pipeline: beam.Pipeline,
    options: pipeline_options.PipelineOptions,
  ) -> Result:
    """Runs a pipeline to its end.

    Raises:
      NotImplementedError: if there is something in it that is not known here.
      OSError: if the disk is full, a worker died, or records were lost.
      Exception: what a function raises, as it is.
    """
    del options
    folder = self._folder
    if folder is None:
      folder = tempfile.mkdtemp(prefix='beam-')
    else:
      shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
      os.makedirs(folder)
    try:
      with pool_module.Pool(self._workers) as pool:
        return _Run(_Graph(pipeline), folder, pool, self._tell).run()
    finally:
      segments.end()
      shutil.rmtree(folder, ignore_errors=True)


class _Graph(PipelineVisitor):
  """The transforms of a pipeline that do something, and what ties them.

  Attributes:
    nodes: in an order in which none comes before what it reads.
    consumers: collection -> nodes that read it.
    producers: collection -> node that makes it.
    sides: collection -> access patterns by which it is a side input.
  """

  def __init__(self, pipeline: beam.Pipeline) -> None:
    self.nodes: list[AppliedPTransform] = []
    pipeline.visit(self)
    self.consumers = collections.defaultdict(list)
    self.sides = collections.defaultdict(set)
    self.producers = {}
    for node in self.nodes:
      for collection in node.inputs:
        self.consumers[collection].append(node)
      for side in node.side_inputs:
        self.sides[side.pvalue].add(side._side_input_data().access_pattern)
      for collection in node.outputs.values():
        self.producers[collection] = node
    self._needs: dict[AppliedPTransform, set[AppliedPTransform]] = {}
    self.nodes = self._sorted()

  def enter_composite_transform(self, node: AppliedPTransform) -> None:
    if isinstance(node.transform, _LEAVES) and not _inside_leaf(node):
      self.nodes.append(node)

  def visit_transform(self, node: AppliedPTransform) -> None:
    if not _inside_leaf(node):
      _check(node)
      self.nodes.append(node)

  def _sorted(self) -> list[AppliedPTransform]:
    order = {}
    for node in self.nodes:
      order.setdefault(node, len(order))
      self.needs(node)
    return sorted(order, key=lambda node: (len(self.needs(node)), order[node]))

  def needs(self, node: AppliedPTransform) -> set[AppliedPTransform]:
    """Returns the nodes that have to run before a node, and itself."""
    if node not in self._needs:
      found = {node}
      for collection in (*node.inputs, *(s.pvalue for s in node.side_inputs)):
        if collection in self.producers:
          found |= self.needs(self.producers[collection])
      self._needs[node] = found
    return self._needs[node]

  def waits(self, node: AppliedPTransform, root: AppliedPTransform) -> bool:
    """Returns whether a side input of a node is only known after a root ran."""
    return any(
      root in self.needs(self.producers[side.pvalue])
      for side in node.side_inputs
    )


def _inside_leaf(node: AppliedPTransform) -> bool:
  above = node.parent
  while above is not None:
    if isinstance(above.transform, _LEAVES):
      return True
    above = above.parent
  return False


def _check(node: AppliedPTransform) -> None:
  """Raises NotImplementedError for what this runner does not know."""
  transform, why = node.transform, ''
  known = (beam.ParDo, beam.GroupByKey, beam.Flatten, *_LEAVES)
  if not isinstance(transform, known):
    why = f'{type(transform).__name__} is none of the transforms it runs'
  elif isinstance(transform, beam.ParDo) and not isinstance(
    transform.fn, core.CallableWrapperDoFn
  ):
    signature = common.DoFnSignature(transform.fn)
    if signature.is_splittable_dofn() or signature.is_stateful_dofn():
      why = 'its function is splittable, or has state'
  for collection in node.inputs:
    windowing = getattr(collection, 'windowing', None)
    if windowing and not isinstance(windowing.windowfn, window.GlobalWindows):
      why = 'it has one window only'
  if why:
    raise NotImplementedError(
      f'{node.full_label} cannot run with --runner=local: {why}; it reads '
      'batches by Create, ParDo, GroupByKey, Flatten, Reshuffle, side inputs'
    )


# A collection on disk: itself, and how: 'list', 'groups', for one segment, or
# the access pattern of a side input.
_Stored = tuple[pvalue.PCollection, str]


@dataclasses.dataclass
class _Cut:
  """A segment, and what it waits for.

  Attributes:
    name: for people.
    source: what it reads; None for the values of a Create.
    values: those.
    segment: what workers get; sides are still to be named.
    sides: numbers of calls -> side inputs.
    sinks: number -> what is written.
  """

  name: str
  source: _Stored | None
  values: tuple[Any, ...]
  segment: segments.Segment
  sides: dict[int, list[pvalue.AsSideInput]]
  sinks: dict[int, _Stored]


class _Cutter:
  """Cuts a graph into segments."""

  def __init__(self, graph: _Graph) -> None:
    self._graph = graph
    self._cuts: list[_Cut] = []
    self._copies = 0  # of collections that wait for a side input

  def cut(self) -> list[_Cut]:
    """Returns the segments."""
    for node in self._graph.nodes:
      if isinstance(node.transform, beam.Create | core.Impulse):
        values = (b'',)
        if isinstance(node.transform, beam.Create):
          values = tuple(node.transform.values)
        self._values(node, values)
      elif isinstance(node.transform, beam.GroupByKey):
        self._read((_output(node), 'groups'))
      elif isinstance(node.transform, beam.Reshuffle):
        self._read((_output(node), 'list'))
    return self._cuts

  def _values(self, node: AppliedPTransform, values: tuple[Any, ...]) -> None:
    """Adds a segment for each consumer of values."""
    for consumer in self._consumers(_output(node)):
      self._add(_output(node), consumer, None, values)

  def _read(self, stored: _Stored) -> None:
    """Adds a segment for each consumer of a collection on disk."""
    for consumer in self._consumers(stored[0]):
      self._add(stored[0], consumer, stored, ())

  def _consumers(
    self, collection: pvalue.PCollection
  ) -> list[AppliedPTransform | str]:
    return [
      *self._graph.consumers[collection],
      *sorted(self._graph.sides[collection]),
    ]

  def _add(
    self,
    collection: pvalue.PCollection,
    consumer: AppliedPTransform | str,
    source: _Stored | None,
    values: tuple[Any, ...],
  ) -> None:
    """Adds the segment of one consumer and of all that follows it at once."""
    calls: dict[int, segments.Call] = {}
    numbers: dict[AppliedPTransform, int] = {}
    sides, sinks, later = {}, {}, []

    def to_disk(kind: str, what: pvalue.PCollection) -> segments.Target:
      for number, stored in sinks.items():
        if stored == (what, kind):
          return 'sink', number
      sinks[len(sinks)] = (what, kind)
      return 'sink', len(sinks) - 1

    def follow(what: Any, into: Any) -> list[segments.Target]:
      if isinstance(into, str):
        return [to_disk(into, what)]
      transform = into.transform
      if isinstance(transform, beam.GroupByKey):
        return [to_disk('groups', _output(into))]
      if isinstance(transform, beam.Reshuffle):
        return [to_disk('list', _output(into))]
      if isinstance(transform, beam.Flatten):
        return targets(_output(into))
      if into is not consumer and self._graph.waits(into, consumer):
        self._copies += 1
        later.append(((what, f'list {self._copies}'), into))
        return [to_disk(later[-1][0][1], what)]
      if into not in numbers:
        numbers[into] = len(numbers)
        sides[numbers[into]] = list(into.side_inputs)
        calls[numbers[into]] = segments.Call(
          transform.fn,
          tuple(transform.args),
          dict(transform.kwargs),
          (),
          {tag: tuple(targets(output)) for tag, output in into.outputs.items()},
        )
      return [('call', numbers[into])]

    def targets(what: pvalue.PCollection) -> list[segments.Target]:
      return [t for into in self._consumers(what) for t in follow(what, into)]

    entry = tuple(follow(collection, consumer))
    keyed = {
      number: kind in ('groups', common_urns.side_inputs.MULTIMAP.urn)
      for number, (_, kind) in sinks.items()
    }
    named = consumer
    if isinstance(consumer, str):  # a side input
      named = self._graph.producers[collection]
    grouped = bool(source) and source[1] == 'groups'
    segment = segments.Segment(calls, entry, grouped, keyed)
    self._cuts.append(
      _Cut(named.full_label, source, values, segment, sides, sinks)
    )
    for stored, waiting in later:
      self._add(stored[0], waiting, stored, ())


def _output(node: AppliedPTransform) -> pvalue.PCollection:
  return next(iter(node.outputs.values()))


class _Run:
  """Runs the segments of a graph, one after the other."""

  def __init__(
    self,
    graph: _Graph,
    folder: str,
    pool: pool_module.Pool,
    tell: Callable[[str], None] | None,
  ) -> None:
    self._cuts = _Cutter(graph).cut()
    self._folder, self._pool = folder, pool
    self._tell, self._told = tell, time.monotonic()
    self._records: dict[_Stored, list[tuple[bytes, spill.Entry]]] = (
      collections.defaultdict(list)
    )
    self._counters = collections.Counter()

  def run(self) -> Result:
    waiting = list(enumerate(self._cuts))
    while waiting:
      wanted = {s for _, cut in waiting for s in cut.sinks.values()}
      ready = [
        (number, cut)
        for number, cut in waiting
        if not wanted & set(_needed(cut))
      ]
      if not ready:
        names = ', '.join(cut.name for _, cut in waiting)
        raise NotImplementedError(
          f'side inputs of {names} wait for each other: put a Reshuffle between'
        )
      self._segment(*ready[0])
      waiting.remove(ready[0])
      self._clean(cut for _, cut in waiting)
    return Result(dict(self._counters))

  def _segment(self, number: int, cut: _Cut) -> None:
    """Runs the bundles of a segment, and counts what they read."""
    file = f'segment-{number:04}'
    calls = {
      index: dataclasses.replace(
        call, sides=tuple(self._side(s) for s in cut.sides[index])
      )
      for index, call in cut.segment.calls.items()
    }
    segment = dataclasses.replace(cut.segment, calls=calls)
    segments.save(self._folder, file, segment)
    sent = len(self._records[cut.source]) if cut.source else 0
    bundles = list(self._bundles(number, file, cut))
    written: dict[int, dict[str, Any]] = collections.defaultdict(dict)
    received = done = 0

    def tell(bundle: segments.Bundle | None, outcome: Any) -> None:
      nonlocal received, done
      if bundle is not None:
        done += 1
        received += outcome.read
        self._counters.update(outcome.counters)
        for sink, entries in outcome.written.items():
          written[sink][bundle.name] = entries
      self._say(number, cut, done / len(bundles))

    self._pool.each(segments.run, bundles, tell)
    if (received, done) != (sent, len(bundles)):
      raise OSError(
        f'{cut.name} read {received:,} of the {sent:,} records that were '
        f'written for it, in {done:,} of {len(bundles):,} bundles: start again'
      )
    for sink, stored in cut.sinks.items():
      for _, entries in sorted(written[sink].items()):
        self._records[stored] += entries
      self._records[stored]  # there even if empty

  def _bundles(
    self, number: int, file: str, cut: _Cut
  ) -> Iterator[segments.Bundle]:
    """Yields the bundles of a segment, made as they are asked for."""

    def bundle(index: int, **elements: Any) -> segments.Bundle:
      name = f'{number:04}-{index:06}'
      return segments.Bundle(self._folder, file, name, **elements)

    if cut.source is None:
      yield bundle(0, values=cut.values)
      return
    entries = self._records[cut.source]
    if cut.segment.grouped:
      elements = [(k, tuple(v)) for k, v in spill.group(entries).items()]
    else:
      elements = [(key, (entry,)) for key, entry in entries]
    # Few bundles cost least, many keep all workers busy to the end.
    count = -(-len(elements) // (self._pool.workers * _SHARES))
    count = min(max(count, 1), _MOST)
    index, source, size = 0, [], 0
    for element in elements:
      more = sum(entry[2] for entry in element[1])
      if source and (len(source) >= count or size + more > _GROUPED_BYTES):
        yield bundle(index, source=tuple(source))
        index, source, size = index + 1, [], 0
      source.append(element)
      size += more
    if source:
      yield bundle(index, source=tuple(source))

  def _side(self, side: pvalue.AsSideInput) -> tuple[pvalue.SideInputData, str]:
    """Returns a side input as workers get it; its records are told in a file."""
    view = side._side_input_data()
    stored = (side.pvalue, view.access_pattern)
    entries = self._records[stored]
    file = f'side-{list(self._records).index(stored):04}'
    if view.access_pattern == common_urns.side_inputs.MULTIMAP.urn:
      segments.save(self._folder, file, spill.group(entries))
    else:
      segments.save(self._folder, file, [entry for _, entry in entries])
    return view, file

  def _clean(self, waiting: Iterable[_Cut]) -> None:
    """Removes records that nobody will read."""
    needed = {stored for cut in waiting for stored in _needed(cut)}
    for stored, entries in self._records.items():
      if stored not in needed:
        spill.remove(self._folder, entries)
        entries.clear()

  def _say(self, number: int, cut: _Cut, share: float) -> None:
    if self._tell and time.monotonic() - self._told > _SECONDS:
      self._told = time.monotonic()
      self._tell(
        f'step {number + 1} of {len(self._cuts)} ({cut.name}): {share:.0%}'
      )


def _needed(cut: _Cut) -> list[_Stored]:
  """Returns the collections that have to be whole before a segment runs."""
  found = [cut.source] if cut.source else []
  for sides in cut.sides.values():
    found += [(s.pvalue, s._side_input_data().access_pattern) for s in sides]
  return found
