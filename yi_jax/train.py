"""Trains a model: pretraining, and every later stage with another config.

A run is where the weights start, what is read, what is trainable, and on which
devices. Running the same command again continues from the newest checkpoint.
"""

import collections
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import flags
from jax.experimental import multihost_utils

from yi_jax import app, compilation_cache, paths
from yi_jax.checkpoints import peft
from yi_jax.data import prepared
from yi_jax.models import config as model_config
from yi_jax.models import lora
from yi_jax.serving import samples, turns
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import pipeline, start
from yi_jax.sharding import report as layout
from yi_jax.training import (
  checkpointing,
  course,
  evaluation,
  faults,
  metrics,
  phases,
  recovery,
  report,
  run_config,
  run_identity,
  status,
  train_step,
  weights,
  workdir_lock,
)
from yi_jax.training import goodput as goodput_lib
from yi_jax.training import state as train_state
from yi_jax.training import watchdog as watchdogs

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'folder of the run: checkpoints, metrics, report; runs/NAME if not given',
  flag_values=FLAGS,
)

_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of process 0, where no launcher tells (see docs/faults.md)',
  flag_values=FLAGS,
)
_PROCESSES = flags.DEFINE_integer(
  'processes', None, 'how many processes there are', flag_values=FLAGS
)
_PROCESS = flags.DEFINE_integer(
  'process', None, 'which of them this is, from 0', flag_values=FLAGS
)

_DIVERGED, _NOT_JOINED = 1, 4  # exit codes
# A cluster that starts a stopped run again names the exit code it looks for.
_STOPPED_EXIT = 'YI_STOPPED_EXIT'


def main(config: ml_collections.ConfigDict) -> int:
  """Trains what a config describes; returns the exit code."""
  try:
    start.start(_place())
  except start.NotJoined as error:
    print(f'error: {error}', file=sys.stderr)
    return _NOT_JOINED
  compilation_cache.enable()
  skipped: phases.Skipped = []
  with faults.StopSignal() as stop:
    while True:
      try:
        return train(config, _WORKDIR.value, stop, skipped)
      except faults.GoBack as error:
        print(f'warning: {error}', file=sys.stderr)
        skipped = error.skipped
      except faults.Diverged as error:
        print(f'error: {error}', file=sys.stderr)
        status.tell(status.DIVERGED, error.last)
        return _DIVERGED


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: faults.StopSignal,
  skipped: phases.Skipped = (),
) -> int:
  """Runs, or continues, one run until it ends or is asked to stop.

  Args:
    config: see `run_config.defaults`.
    workdir: absolute path or URL.
    stop: tells when to save and leave.
    skipped: all rows to leave out; none takes those that the checkpoint names.

  Returns:
    Exit code of the process: 130 after Ctrl-C, YI_STOPPED_EXIT or else 0 after
    SIGTERM.

  Raises:
    ValueError: for a config that cannot be run.
    OSError: if data are missing, checkpoints cannot be read, or the last one
      cannot be written.
    faults.Diverged: if too many updates in a row were bad.
    faults.GoBack: if the run shall be continued without the rows of these.
  """
  with contextlib.ExitStack() as stack:
    return _train(config, workdir, stop, skipped, stack)


def _train(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: faults.StopSignal,
  skipped: phases.Skipped,
  stack: contextlib.ExitStack,
) -> int:
  """Is `train`; closes what it opens with the stack."""
  started = time.monotonic()
  chief = jax.process_index() == 0
  say = print if chief else lambda *unused: None

  ##############################################################################
  #                  What and where: checks before compiling                   #
  ##############################################################################

  run = run_config.resolve(config)
  mesh = meshes.make_mesh(config.mesh.to_dict())
  for phase in phases.runs(run):
    train_step.check(phase, mesh)
  say(_describe(config, run, mesh))
  trainable = run.optimizer.trainable
  say(layout.summary(run.model, mesh, run.strategy, trainable))

  ##############################################################################
  #                                    Data                                    #
  ##############################################################################

  texts, heldout = (
    {
      length: prepared.open_prepared(data, split)
      for length, data in prepared.of_each_length(config.data).items()
    }
    for split in prepared.SPLITS
  )
  prepared.refuse_other_text(config.data)
  text = texts[run.length]
  words = prepared.open_vocabulary(config.data)
  if words.size > run.model.vocab_size:
    raise ValueError(
      f'vocabulary {config.data.vocabulary!r} has {words.size} pieces, the '
      f'embedding only {run.model.vocab_size} rows; set '
      'model.overrides.vocab_size'
    )

  ##############################################################################
  #                     State: resume, warm start or fresh                     #
  ##############################################################################

  lock = stack.enter_context(workdir_lock.WorkdirLock(workdir))
  folder = metrics.Folder(workdir)
  goodput = goodput_lib.Goodput(folder.path if chief else None)
  identity = run_identity.identity(config, run)
  checkpoints = recovery.Checkpoints(workdir, lock, config.checkpoint, say)
  stack.callback(checkpoints.close)
  with goodput.on('restore'):
    state, past = _start(config, run, mesh, identity, text, checkpoints, say)
  first = int(state.step)
  plan = phases.Phases(run, first, past, phases.turns(config.data))
  skipped = list(skipped) or phases.skipped_rows(past, run.length)
  if first > run.steps:
    raise ValueError(
      f'{workdir} is at step {first:,} already, beyond train.steps = '
      f'{run.steps:,}; raise it, or take another --workdir'
    )
  if plan.ends(first) and os.path.exists(f'{folder.path}/report.json'):
    say(f'{first:,} steps are done; see {workdir}/report.json')
    status.tell(status.DONE, first)
    return 0
  goodput.resumed(first)
  if chief:  # with the weights, so that they are of use without the data
    words.save(folder.path)

  ##############################################################################
  #                              The training step                             #
  ##############################################################################

  part = course.Course(
    config, mesh, plan, texts, heldout, words, skipped, goodput, say
  )
  stack.callback(part.close)
  part.begin(first)
  # Steps queued on several virtual CPU devices wait for each other for ever.
  queue = 0 if jax.default_backend() == 'cpu' and mesh.size > 1 else 1

  ##############################################################################
  #                                 The loop                                   #
  ##############################################################################

  board = metrics.Board(
    run,
    mesh,
    folder.path,
    first,
    plan.tokens(first),
    config.train.log_every,
    goodput,
  )
  profiler = metrics.Profiler(
    run_config.profile_range(config.train.profile), f'{folder.path}/profile'
  )
  watchdog = watchdogs.Watchdog(config.train.hang_seconds, folder.path)
  for resource in (board, profiler, watchdog):
    stack.callback(resource.close)
  row_log = None
  if config.train.log_rows:
    row_log = stack.enter_context(metrics.RowLog(folder.path, first))
  figures = None
  late = collections.deque()  # (step, metrics) the host has not looked at

  def look(number: int, values: train_step.Metrics, **more: Any) -> None:
    values = jax.device_get(values)
    applied = not values['bad']
    plan.saw(number, float(values['loss']), applied)
    board.record(number, values, plan.tokens(number), plan.run(number), **more)
    try:
      faults.check(number, values['bad'], values['loss'], run.max_bad_steps)
    except faults.Diverged as error:
      if len(skipped) >= config.train.rollback:
        raise
      if not checkpoints.durable_before(error.first):
        raise
      goodput.keep(number)
      checkpoints.forget_after(error.first - 1)
      raise faults.GoBack(
        f'{error}. Goes back to the last checkpoint before, and leaves the '
        'rows of these steps out',
        plan.left_out(skipped, error.first, error.last),
      ) from error

  def save(kind: str, number: int) -> None:
    board.sync()
    checkpoints.save(
      kind,
      number,
      state,
      checkpointing.manifest(
        identity=identity,
        model=run.model,
        vocabulary_hash=text.vocabulary_hash,
        rates=text.stages[0][1],
        rows=text.keys,
        seconds=past.get('seconds', 0.0) + time.monotonic() - started,
        skipped_rows=skipped,
        **plan.manifest(number),
      ),
    )
    goodput.saved(number)
    status.tell(status.RUNNING, number)
    if chief:
      folder.push()

  status.tell(status.RUNNING, first)
  watchdog.alive(first)
  if config.train.eval_first and not first:
    with board.paused(state.params), watchdog.patient():
      goodput.now('evaluation')
      board.begin(**_some(part.evaluate(state.params)))
  goodput.now('step')
  clock, values, number = time.monotonic(), {}, first
  while not plan.ends(number):
    number += 1
    if part.is_over:
      with board.paused(values), watchdog.patient():
        part.begin(number - 1)
    rows = part.rows()
    if row_log:
      row_log.write(number, rows['row_id'])
    profiler.before(number)
    state, values = part.update(state, rows)
    profiler.after(number, values)
    plan.made(number)
    late.append((number, values))
    if number == first + 1 and jax.process_count() > 1:
      jax.block_until_ready(values)
      _introduce(number, time.monotonic() - clock)

    last, stopping = plan.ends(number), stop.agreed(number)
    saves = checkpoints.kind(number, end=last or stopping)
    every = config.train.eval_every
    evaluates = last or bool(every and number % every == 0)
    pauses = bool(saves or evaluates or plan.due(number))
    while len(late) > max(queue, pauses):
      look(*late.popleft())
    watchdog.alive(number)
    if pauses:
      # Metrics before the checkpoint: what is saved has all its lines.
      with board.paused(values), watchdog.patient():
        more = {}
        if evaluates and not stopping:
          with goodput.on('evaluation'):
            figures = part.evaluate(state.params)
          more |= _some(figures)
        while late:
          look(*late.popleft(), **more)
        if saves:
          with goodput.on('save'):
            save(saves, number)
            if last or stopping:
              checkpoints.wait()
    if stopping:
      board.say(f'stopped by a signal; step {number:,} is saved in {workdir}')
      status.tell(status.SAVED, number)
      if stop.received == signal.SIGINT:
        return app.INTERRUPTED
      return int(os.environ.get(_STOPPED_EXIT, '0'))
  watchdog.close()

  ##############################################################################
  #                                  The end                                   #
  ##############################################################################

  goodput.now('evaluation')
  figures = figures or part.evaluate(state.params)
  made, ended = [], {}
  if config.sample.prompts and jax.process_count() == 1:
    made = samples.make(config, run.model, state.params, words)
  if config.sample.heldout and jax.process_count() == 1:
    ended = turns.ended(
      config, run.model, state.params, words, heldout[run.length]
    )
  goodput.keep(number)
  values = {
    'steps': number,
    'tokens': plan.tokens(number),
    **figures._asdict(),
    'xz': heldout[run.length].xz,
    'skipped': int(state.guard.skipped),
    'skipped_rows': sum(end - begin for begin, end, _ in skipped),
    'goodput': goodput.report(),
    'turns_ended': ended,
    'samples': made,
    'seconds': past.get('seconds', 0.0) + time.monotonic() - started,
  }
  checkpoints.complete()
  if run.model.lora:
    _write_adapter(config, run, state, f'{folder.path}/adapter')
  if chief:
    report.write(folder.path, values)
    folder.push()
    say(report.summary(values, workdir))
  status.tell(status.DONE, number)
  return 0


def _some(figures: evaluation.Heldout) -> dict[str, dict[str, float]]:
  """Returns the kinds of figures that there are."""
  return {name: found for name, found in figures._asdict().items() if found}


def _place() -> start.Place | None:
  """Returns what the flags say of this process among others, if anything."""
  address, count, index = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if address is None and count is None and index is None:
    return None
  if address is None or count is None or index is None:
    raise ValueError('--coordinator, --processes and --process go together')
  return start.checked('by hand', address, str(count), str(index))


def _start(
  config: ml_collections.ConfigDict,
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  identity: dict[str, Any],
  text: prepared.Prepared,
  checkpoints: recovery.Checkpoints,
  say: Callable[[str], None],
) -> tuple[train_state.TrainState, dict[str, Any]]:
  """Returns the state a run starts from and the manifest of its past."""

  def check(manifest: dict[str, Any]) -> None:
    changed = run_identity.refuse_other_run(
      manifest['run'], identity, phases.tokens_read(manifest, run.length)
    )
    checkpointing.refuse_other_vocabulary(manifest, text.vocabulary_hash)
    checkpointing.refuse_other_data(manifest, text.stages[0][1], text.keys)
    for line in changed:
      say(line)

  # 1. An earlier part of this very run.
  restored = checkpoints.restore(train_state.abstract(run, mesh), check)
  if restored:
    state, manifest, complaints = restored
    for line in complaints:
      say(line)
    say(f'continues after step {int(state.step):,}')
    return state, manifest
  # 2. The weights of another run, or of a folder of Hugging Face's kind.
  if config.init_from:
    source = paths.in_repository(config.init_from)
    found = weights.describe(source)
    checkpointing.refuse_other_vocabulary(found, text.vocabulary_hash)
    params = weights.load_into(source, run.model, mesh)
    for line in weights.differences(found, run.model):
      say(line)
    say(f'starts from the weights of {source}')
    return train_state.fresh(run, mesh, config.seed, params), {}
  # 3. Fresh weights.
  say('starts from fresh weights')
  return train_state.fresh(run, mesh, config.seed), {}


def _write_adapter(
  config: ml_collections.ConfigDict,
  run: run_config.Run,
  state: train_state.TrainState,
  path: str,
) -> None:
  """Writes the adapter as PEFT reads it; the checkpoints hold it too."""
  _, adapter = lora.detach(state.params)
  adapter = multihost_utils.process_allgather(adapter, tiled=True)
  if jax.process_index() == 0:
    shutil.rmtree(path, ignore_errors=True)  # of an earlier end of this run
    peft.save_adapter(
      run.model.replace(lora=None),
      run.model.lora,
      adapter,
      path,
      config.init_from,
    )


def _introduce(number: int, seconds: float) -> None:
  """Prints that this process computes: the only line of each one."""
  print(
    f'process {jax.process_index()} of {jax.process_count()} on '
    f'{socket.gethostname()}: step {number:,} in {seconds:.1f} s',
    file=sys.stderr,
    flush=True,
  )


def _describe(
  config: ml_collections.ConfigDict,
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
) -> str:
  """Returns one line on what is trained where."""
  size = model_config.num_params(run.model)
  device = mesh.devices.flat[0].device_kind
  tokens = run.rows * run.length
  line = (
    f'{config.model.preset}: {size:,} parameters on {mesh.size} x {device}, '
    f'{run.rows:,} rows of {run.length:,} = {tokens:,} tokens a step'
  )
  if run.tokens:
    line += f'; ends after {run.tokens:,} tokens or {run.steps:,} steps'
  for token, length in run.lengths[1:]:
    line += f'; rows of {length:,} after {token:,} tokens'
  if run.growth.window:
    line += (
      f'; x {run.growth.factor} up to {run.growth.most_tokens:,} tokens a step '
      'whenever the loss stops falling'
    )
  if (stages := mesh.shape['stage']) > 1:
    waits = pipeline.bubble(stages, run.microbatches)
    line += (
      f'; {run.microbatches} microbatches through {stages} stages, each of '
      f'which waits {waits:.0%} of the time'
    )
  return line


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example='--config=experiments/quickstart.py --workdir=runs/quickstart',
    )
  )
