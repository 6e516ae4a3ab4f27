"""What a run tells about itself: JSON lines, TensorBoard, a progress line.

WORKDIR/metrics.jsonl has one object a logged step:

  {"step": 20, "loss": 7.1, "learning_rate": 2e-4, "grad_norm": 1.3,
   "tokens": 81920, "tokens_per_second": 4100.5, "mfu": null,
   "goodput": 0.93, ...}

Lines of an evaluation hold step, tokens and `bits_per_byte` per language. A
full disk does not end a run here: lines wait until there is room.
"""

import collections
import contextlib
import io
import json
import math
import os
import pathlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from yi_jax.models import config as model_config
from yi_jax.training import goodput as goodput_lib
from yi_jax.training import run_config

# Dense bfloat16 FLOP/s of one JAX device, without sparsity, by the beginning
# of its `device_kind`; the first that fits counts. TPU: Google Cloud's system
# architecture pages (one v4, v5p chip is one device; of a tpu7x chip with 2,307
# TFLOP/s JAX sees two). NVIDIA: data sheets of A100, H100 SXM, H200 SXM, B200.
_PEAK_FLOPS = (
  ('TPU v4 lite', 137e12),
  ('TPU v4', 275e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5', 459e12),
  ('TPU v6', 918e12),
  ('TPU7x', 1153.5e12),
  ('NVIDIA A100', 312e12),
  ('NVIDIA H100 PCIe', 756e12),
  ('NVIDIA H100', 989e12),
  ('NVIDIA H200', 989e12),
  ('NVIDIA B200', 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
  """Returns the bfloat16 peak of one device in FLOP/s, None if unknown.

  Args:
    device_kind: as JAX names it, e.g. 'TPU v5p' or 'NVIDIA H100 80GB HBM3'.
  """
  for prefix, peak in _PEAK_FLOPS:
    if device_kind.lower().startswith(prefix.lower()):
      return peak
  return None


def mfu(
  config: model_config.ModelConfig,
  length: int,
  tokens_per_second: float,
  device_kind: str,
  devices: int,
) -> float | None:
  """Returns model FLOPs utilisation (Chowdhery et al. 2022), 0 to 1.

  Args:
    config: the model.
    length: tokens a row.
    tokens_per_second: of all devices together.
    device_kind: see `peak_flops`; None comes back for one without a peak.
    devices: how many.
  """
  peak = peak_flops(device_kind)
  if peak is None:
    return None
  needed = tokens_per_second * model_config.flops_per_token(config, length)
  return needed / (peak * devices)


class Folder:
  """Where the small files of a run are written: the workdir, or a stand-in.

  Object stores know no appending. For a workdir such as gs://bucket/run the
  files live in a local folder and are copied over by `push`.

  Attributes:
    path: an existing local folder.
  """

  def __init__(self, workdir: str, stand_in: str | None = None) -> None:
    """Makes the folder, with what an earlier run of this workdir left.

    Args:
      workdir: absolute path or URL.
      stand_in: local folder to use; None makes one only for a URL.
    """
    if stand_in is None and '://' in workdir:
      stand_in = tempfile.mkdtemp(prefix='yi_jax_')
    self.path = stand_in or workdir
    self._workdir = epath.Path(workdir) if stand_in else None
    os.makedirs(self.path, exist_ok=True)
    names = ('metrics.jsonl', 'report.json', 'goodput.json')
    for name in names if self._workdir else ():
      if (self._workdir / name).exists():
        text = (self._workdir / name).read_text()
        pathlib.Path(self.path, name).write_text(text)

  def push(self) -> None:
    """Copies everything to the workdir, if that is elsewhere."""
    if self._workdir is None:
      return
    here = pathlib.Path(self.path)
    for source in here.rglob('*'):
      if source.is_file():
        target = self._workdir / source.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


class Writer:
  """Appends to metrics.jsonl and to TensorBoard's event file."""

  def __init__(self, folder: str, first_step: int) -> None:
    """Opens both; lines after the step that was restored are dropped.

    Args:
      folder: existing local folder, see `Folder`.
      first_step: step of the state the run goes on from, 0 for a fresh one.
    """
    self._path = os.path.join(folder, 'metrics.jsonl')
    _drop_after(self._path, first_step)
    self._lines = _Appended(self._path)
    self._events = _EventFile(os.path.join(folder, 'tensorboard'), first_step)

  def write(self, step: int, values: dict[str, Any]) -> bool:
    """Writes one line; numbers also go to TensorBoard, nested ones as a/b.

    A number that is not finite becomes null: JSON has none.

    Returns:
      Whether the line is in the file; it waits otherwise.
    """
    line = {'step': step}
    for name, value in values.items():
      if isinstance(value, float) and not math.isfinite(value):
        value = None
      line[name] = value
    self._events.write(step, values)
    return self._lines.write((json.dumps(line) + '\n').encode())

  def sync(self) -> None:
    """Makes sure that what was written survives a power cut."""
    self._lines.sync()

  def close(self) -> None:
    self._lines.close()
    self._events.close()


class _Appended:
  """A file that grows by whole pieces, also when the disk is full at times."""

  def __init__(self, path: str) -> None:
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 (see `close`)
    self._waiting: collections.deque[bytes] = collections.deque()

  def write(self, piece: bytes) -> bool:
    """Appends what waits and this piece; returns whether all is written."""
    self._waiting.append(piece)
    while self._waiting:
      end = self._file.tell()
      piece = self._waiting[0]
      try:
        written = self._file.write(piece)
      except OSError:
        written = 0
      if written != len(piece):  # half of it would make the rest unreadable
        with contextlib.suppress(OSError):
          self._file.truncate(end)
        self._file.seek(end)
        return False
      self._waiting.popleft()
    return True

  def sync(self) -> None:
    with contextlib.suppress(OSError):
      os.fsync(self._file.fileno())

  def close(self) -> None:
    if self._waiting:
      self.write(b'')
    self._file.close()


class RowLog:
  """Which rows each step of a process has read, for `train.log_rows`.

  WORKDIR/rows/PROCESS.jsonl: {"step": 3, "row_id": [17, 4]}
  """

  def __init__(self, folder: str, first_step: int) -> None:
    """Opens the file of this process; lines after the step are dropped.

    Args:
      folder: existing local folder, see `Folder`.
      first_step: step of the state the run goes on from, 0 for a fresh one.
    """
    folder = os.path.join(folder, 'rows')
    os.makedirs(folder, exist_ok=True)
    if jax.process_index() == 0:  # there may have been more processes
      for name in os.listdir(folder):
        _drop_after(os.path.join(folder, name), first_step)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('rows dropped')
    path = os.path.join(folder, f'{jax.process_index()}.jsonl')
    self._lines = _Appended(path)

  def write(self, step: int, row_ids: np.ndarray) -> None:
    """Adds the rows [B] of a step."""
    line = json.dumps({'step': step, 'row_id': row_ids.tolist()})
    self._lines.write(f'{line}\n'.encode())

  def __enter__(self) -> 'RowLog':
    return self

  def __exit__(self, *unused: object) -> None:
    self._lines.close()


def read(path: str) -> list[dict[str, Any]]:
  """Returns the objects of a metrics.jsonl; a half-written last line is not."""
  found = []
  with open(path) as lines:
    for line in lines:
      try:
        found.append(json.loads(line))
      except ValueError:
        break
  return found


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file that is either complete or not there."""
  part = f'{path}.part'
  with open(part, 'w') as file:
    json.dump(value, file, indent=2, ensure_ascii=False)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path)


def _drop_after(path: str, step: int) -> None:
  """Removes what a killed run had logged beyond its last checkpoint."""
  if not os.path.exists(path):
    return
  # Where there is none, all is made anew, step 0 as well.
  kept = [line for line in read(path) if step and line['step'] <= step]
  part = f'{path}.part'
  with open(part, 'w') as file:
    file.writelines(json.dumps(line) + '\n' for line in kept)
  os.replace(part, path)


class _EventFile:
  """TensorBoard's event file, written without importing TensorFlow."""

  def __init__(self, folder: str, first_step: int) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import record_writer

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    os.makedirs(folder, exist_ok=True)
    name = f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}'
    self._file = _Appended(os.path.join(folder, name))
    self._encode = record_writer.RecordWriter
    self._put(self._event(file_version='brain.Event:2'))
    # Tells TensorBoard to forget steps of an earlier file from here on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._put(self._event(session_log=start, step=first_step + 1))

  def _put(self, event: Any) -> None:
    event.wall_time = time.time()
    record = io.BytesIO()
    self._encode(record).write(event.SerializeToString())
    self._file.write(record.getvalue())

  def write(self, step: int, values: dict[str, Any]) -> None:
    flat = {}
    for name, value in values.items():
      nested = value if isinstance(value, dict) else {'': value}
      for key, number in nested.items():
        if isinstance(number, (int, float)):
          flat[f'{name}/{key}'.rstrip('/')] = number
    scalars = [
      self._summary.Value(tag=tag, simple_value=number)
      for tag, number in flat.items()
    ]
    self._put(self._event(summary=self._summary(value=scalars), step=step))

  def close(self) -> None:
    self._file.close()


class Board:
  """Everything that is told about the steps of one process's run.

  Other processes than the first keep silent.
  """

  def __init__(
    self,
    run: run_config.Run,
    mesh: jax.sharding.Mesh,
    folder: str,
    first_step: int,
    tokens_before: int,
    log_every: int,
    goodput: goodput_lib.Goodput,
  ) -> None:
    """Opens the files and starts the clock.

    Args:
      run: the run, as it begins.
      mesh: its devices.
      folder: local folder, see `Folder`.
      first_step: step of the state the run goes on from, 0 for a fresh one.
      tokens_before: read up to that step.
      log_every: steps between two lines.
      goodput: the run's.
    """
    self._goodput, self._full = goodput, False
    self._run, self._mesh, self._log_every = run, mesh, log_every
    self._tokens_before = self._tokens_logged = tokens_before
    self._chief = jax.process_index() == 0
    self._writer = Writer(folder, first_step) if self._chief else None
    self._live = sys.stdout.isatty()
    self._paused_for, self._frozen = 0.0, None  # seconds
    self._started = self._since = self._clock()

  def record(
    self,
    step: int,
    values: dict[str, Any],
    tokens: int,
    phase: run_config.Run,
    **more: dict[str, float],
  ) -> None:
    """Logs a step if its turn has come.

    Args:
      step: number of the update, from 1.
      values: its metrics, on the host.
      tokens: read up to and with it.
      phase: the run with the rows and the length of this step.
      **more: values by name, which are logged whether or not it is its turn.
    """
    turn = step % self._log_every == 0 or step in (1, self._run.steps)
    if not self._chief or not (turn or more):
      return
    now = self._clock()
    seconds = max(now - self._since, 1e-9)
    speed = (tokens - self._tokens_logged) / seconds
    self._tokens_logged, self._since = tokens, now
    device = self._mesh.devices.flat[0].device_kind
    line = {
      name: float(values[name])
      for name in ('loss', 'learning_rate', 'grad_norm')
    }
    line['tokens'] = tokens
    line['tokens_per_second'] = speed
    line['mfu'] = mfu(phase.model, phase.length, speed, device, self._mesh.size)
    line['skipped'] = int(values['skipped'])
    line['goodput'] = self._goodput.keep(step)
    if len(self._run.lengths) > 1 or self._run.growth.window:
      line['length'] = phase.length
      line['batch_tokens'] = phase.rows * phase.length
    self._write(step, {**line, **more})
    self._show(step, line, phase)
    self._tell(step, more)

  def begin(self, **values: dict[str, float]) -> None:
    """Logs values of the weights that a run starts from, as step 0."""
    if self._chief:
      self._write(0, {'tokens': 0, **values})
      self._tell(0, values)

  def _write(self, step: int, line: dict[str, Any]) -> None:
    full = not self._writer.write(step, line)
    if full and not self._full:
      self.say('warning: metrics cannot be written (disk full?); they wait')
    self._full = full

  def _tell(self, step: int, values: dict[str, dict[str, float]]) -> None:
    for name, numbers in values.items():
      shown = ', '.join(f'{key} {x:.4f}' for key, x in numbers.items())
      self.say(f'step {step:,}: {name.replace("_", " ")} {shown}')

  @contextlib.contextmanager
  def paused(self, values: dict[str, jax.Array]) -> Iterator[None]:
    """Keeps the block's time, after the step of `values`, out of the speed."""
    jax.block_until_ready(values)
    self._frozen = time.monotonic()
    yield
    self._paused_for += time.monotonic() - self._frozen
    self._frozen = None

  def _clock(self) -> float:
    """Returns seconds that stand still while paused."""
    return (self._frozen or time.monotonic()) - self._paused_for

  def sync(self) -> None:
    """Makes sure that what was written survives a power cut."""
    if self._chief:
      self._writer.sync()

  def close(self) -> None:
    if self._chief:
      self._writer.close()
      if self._live:
        print(flush=True)

  def _show(
    self, step: int, line: dict[str, Any], phase: run_config.Run
  ) -> None:
    """Shows step, loss, speed, MFU where it is known, and the time left."""
    steps = self._run.steps
    elapsed = self._clock() - self._started
    # If batches stay as they are, and a token takes as long as until now.
    tokens_left = (steps - step) * phase.rows * phase.length
    if most := self._run.tokens:
      tokens_left = min(tokens_left, max(most - line['tokens'], 0))
    read = max(line['tokens'] - self._tokens_before, 1)
    left = elapsed / read * tokens_left
    parts = [
      f'step {step:,}/{steps:,}',
      f'loss {line["loss"]:.4f}',
      f'{line["tokens_per_second"]:,.0f} tokens/s',
    ]
    if line['mfu'] is not None:
      parts.append(f'MFU {100 * line["mfu"]:.1f} %')
    if line['skipped']:
      parts.append(f'{line["skipped"]} updates skipped')
    parts.append(f'{duration(left)} left')
    self.say(' | '.join(parts), live=True)

  def say(self, text: str, live: bool = False) -> None:
    """Prints a line; on a terminal a live one is overwritten by the next."""
    if not self._chief:
      return
    if self._live:
      print(f'\r\x1b[K{text}', end='' if live else '\n', flush=True)
    else:
      print(text, flush=True)


class Profiler:
  """Records a trace of some steps for TensorBoard or Perfetto."""

  def __init__(self, steps: tuple[int, int] | None, folder: str) -> None:
    """Sets which steps (first, last) go into which folder; None is none."""
    self._steps, self._folder = steps or (0, 0), folder
    self._running = False

  def before(self, step: int) -> None:
    """Starts with the first step."""
    if step == self._steps[0]:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, values: Any) -> None:
    """Stops when the last step, which made `values`, has really run."""
    if step == self._steps[1]:
      jax.block_until_ready(values)
      self.close()

  def close(self) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


def duration(seconds: float) -> str:
  """Returns e.g. '45 s', '3 min 10 s' or '2 h 5 min'."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60} min'
