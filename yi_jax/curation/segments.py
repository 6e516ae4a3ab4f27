"""One bundle of a Beam pipeline on this machine: the part of the workers.

`local_runner` cuts a pipeline into segments: functions that follow each other
without a shuffle between them. A segment is a file; a bundle of its input is
read from records, goes through the functions as Beam's own DoFnRunner calls
them, and what leaves the segment goes to records again.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

from apache_beam import pvalue
from apache_beam.internal import pickler
from apache_beam.metrics import cells
from apache_beam.runners import common
from apache_beam.runners.worker import statesampler
from apache_beam.transforms import core, window
from apache_beam.utils import windowed_value

from yi_jax.curation import spill

# Where an element goes: ('call', number of a Call) or ('sink', number).
Target = tuple[str, int]

_WINDOWED = window.GlobalWindows.windowed_value


@dataclasses.dataclass(frozen=True)
class Call:
  """A DoFn of a segment.

  Attributes:
    function: the DoFn.
    args: of `process`, with placeholders for the side inputs.
    kwargs: of `process`.
    sides: views of the side inputs, and the files that tell their records.
    outputs: tag -> where its elements go.
  """

  function: core.DoFn
  args: tuple[Any, ...]
  kwargs: dict[str, Any]
  sides: tuple[tuple[pvalue.SideInputData, str], ...]
  outputs: dict[str | None, tuple[Target, ...]]


@dataclasses.dataclass(frozen=True)
class Segment:
  """Some functions, and what they read and write.

  Attributes:
    calls: number -> function, in an order in which none comes before those
      that its elements go to.
    entry: where the elements that are read go.
    grouped: whether an element is a key with its values.
    sinks: number -> whether its elements are pairs of a key and a value.
  """

  calls: dict[int, Call]
  entry: tuple[Target, ...]
  grouped: bool
  sinks: dict[int, bool]


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A piece of a segment's input.

  Attributes:
    folder: of all records.
    segment: name of its file.
    name: of what is written.
    source: encoded key and records, of each element if `grouped`, else the
      one element's record by itself.
    values: elements that are not on disk.
  """

  folder: str
  segment: str
  name: str
  source: tuple[tuple[bytes, tuple[spill.Entry, ...]], ...] = ()
  values: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a bundle did.

  Attributes:
    read: records.
    written: sink -> keys and entries of its records.
    counters: (namespace, name) -> what functions counted.
  """

  read: int
  written: dict[int, list[tuple[bytes, spill.Entry]]]
  counters: dict[tuple[str, str], int]


class _Counters:
  """Takes the place of Beam's sampler; keeps counters, drops other metrics."""

  def __init__(self) -> None:
    self.found: dict[tuple[str, str], int] = {}

  def update_metric(self, name: Any, value: int) -> None:
    if name.cell_type is cells.CounterCell:
      key = (name.metric_name.namespace, name.metric_name.name)
      self.found[key] = self.found.get(key, 0) + value


@contextlib.contextmanager
def _counting() -> Iterator[_Counters]:
  before = statesampler.get_current_tracker()
  counters = _Counters()
  statesampler.set_current_tracker(counters)
  try:
    yield counters
  finally:
    statesampler.set_current_tracker(before)


class _Fan(common.Receiver):
  """Hands each element to all that want it."""

  def __init__(self, takers: list[Callable[[Any], Any]]) -> None:
    self._takers = takers

  def receive(self, element: windowed_value.WindowedValue) -> None:
    for take in self._takers:
      take(element)


class _Sink:
  """Writes elements as records."""

  def __init__(self, keyed: bool) -> None:
    self._keyed = keyed
    self.writer: spill.Writer | None = None

  def take(self, element: windowed_value.WindowedValue) -> None:
    if self._keyed:
      key, value = element.value
      self.writer.write(spill.encode_key(key), value)
    else:
      self.writer.write(b'', element.value)


class _Side:
  """A side input as DoFnRunner asks for it, loaded once a worker."""

  def __init__(self, folder: str, view: Any, file: str) -> None:
    groups = load(folder, file)
    if isinstance(groups, dict):
      records = spill.Multimap(folder, groups)
    else:
      records = spill.Records(folder, groups)
    self._value = view.view_fn(records)

  def __getitem__(self, _: Any) -> Any:
    return self._value

  def is_globally_windowed(self) -> bool:
    return True


def save(folder: str, name: str, value: Any) -> None:
  """Writes what workers load."""
  with open(os.path.join(folder, name), 'wb') as file:
    file.write(pickler.dumps(value))


def load(folder: str, name: str) -> Any:
  """Returns what `save` wrote."""
  with open(os.path.join(folder, name), 'rb') as file:
    return pickler.loads(file.read())


class _Running:
  """A segment whose functions are set up."""

  def __init__(self, folder: str, segment: Segment) -> None:
    self.segment = segment
    self.sinks = {
      number: _Sink(keyed) for number, keyed in segment.sinks.items()
    }
    self.runners: dict[int, common.DoFnRunner] = {}
    for number, call in segment.calls.items():
      receivers = {
        tag: self._fan(targets) for tag, targets in call.outputs.items()
      }
      receivers.setdefault(None, _Fan([]))
      self.runners[number] = common.DoFnRunner(
        call.function,
        call.args,
        call.kwargs,
        [_Side(folder, view, file) for view, file in call.sides],
        core.Windowing(window.GlobalWindows()),
        receivers,
      )
      self.runners[number].setup()
    self.entry = self._fan(segment.entry)

  def _fan(self, targets: tuple[Target, ...]) -> _Fan:
    return _Fan(
      [
        self.runners[number].process
        if kind == 'call'
        else self.sinks[number].take
        for kind, number in targets
      ]
    )

  def run(self, bundle: Bundle) -> int:
    """Returns how many records were read."""
    for runner in self.runners.values():
      runner.start()
    read = 0
    for value in bundle.values:
      self.entry.receive(_WINDOWED(value))
    for key, entries in bundle.source:
      records = spill.Records(bundle.folder, entries)
      read += len(records)
      if self.segment.grouped:
        self.entry.receive(_WINDOWED((spill.decode_key(key), records)))
      else:
        for value in records:
          self.entry.receive(_WINDOWED(value))
    for runner in reversed(self.runners.values()):  # those that come first
      runner.finish()
    return read

  def close(self) -> None:
    for runner in self.runners.values():
      runner.teardown()


# Of this process: the segment that it ran last, and its folder and name.
_last: tuple[tuple[str, str], _Running] | None = None


def _ready(folder: str, name: str) -> _Running:
  global _last
  if _last is None or _last[0] != (folder, name):
    end()
    _last = (folder, name), _Running(folder, load(folder, name))
  return _last[1]


def end() -> None:
  """Lets go of the segment that ran last."""
  global _last
  last, _last = _last, None
  if last:
    last[1].close()


def _forget() -> None:
  global _last
  _last = None


def run(bundle: Bundle) -> Outcome:
  """Runs a bundle; its files are there afterwards, or none of them."""
  with _counting() as counters:
    running = _ready(bundle.folder, bundle.segment)
    for number, sink in running.sinks.items():
      sink.writer = spill.Writer(bundle.folder, f'{bundle.name}-{number}')
    writers = {number: sink.writer for number, sink in running.sinks.items()}
    try:
      read = running.run(bundle)
      for writer in writers.values():
        writer.close()
    except BaseException:
      _forget()
      for writer in writers.values():
        writer.abort()
      raise
  written = {
    number: writer.entries
    for number, writer in writers.items()
    if writer.entries
  }
  return Outcome(read, written, counters.found)
