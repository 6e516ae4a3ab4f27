"""Trains a model: pretraining, and every later stage with another config.

A run is where the weights start, what is read, what is trainable, and on which
devices. Running the same command again continues from the newest checkpoint.
"""

import collections
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import flags

from yi_jax import app, compilation_cache, paths
from yi_jax.data import loader as data_loader
from yi_jax.data import prepared, vocabulary
from yi_jax.models import config as model_config
from yi_jax.serving import generation
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import start
from yi_jax.training import (
  checkpointing,
  evaluation,
  faults,
  metrics,
  report,
  run_config,
  train_step,
  weights,
)
from yi_jax.training import state as train_state

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'folder of the run: checkpoints, metrics, report; runs/NAME if not given',
  flag_values=FLAGS,
)

_DIVERGED = 1  # exit code
# Ours: lively enough not to repeat itself, small models do at 0.
_SAMPLE_TEMPERATURE, _SAMPLE_TOP_P = 0.7, 0.9


def main(config: ml_collections.ConfigDict) -> int:
  """Trains what a config describes; returns the exit code."""
  start.start()
  compilation_cache.enable()
  try:
    with faults.StopSignal() as stop:
      return train(config, _WORKDIR.value, stop)
  except faults.Diverged as error:
    print(f'error: {error}', file=sys.stderr)
    return _DIVERGED


def train(
  config: ml_collections.ConfigDict, workdir: str, stop: faults.StopSignal
) -> int:
  """Runs, or continues, one run until it ends or is asked to stop.

  Args:
    config: see `run_config.defaults`.
    workdir: absolute path or URL.
    stop: tells when to save and leave.

  Returns:
    Exit code of the process: 0 also after SIGTERM, 130 after Ctrl-C.

  Raises:
    ValueError: for a config that cannot be run.
    OSError: if data are missing or checkpoints can be neither read nor written.
    faults.Diverged: if too many updates in a row were bad.
  """
  started = time.monotonic()
  chief = jax.process_index() == 0
  say = print if chief else lambda *unused: None

  ##############################################################################
  #                  What and where: checks before compiling                   #
  ##############################################################################

  run = run_config.resolve(config)
  mesh = meshes.make_mesh(config.mesh.to_dict())
  train_step.check_rows(run, mesh)
  say(_describe(config, run, mesh))

  ##############################################################################
  #                                    Data                                    #
  ##############################################################################

  texts = prepared.open_prepared(config.data, 'train')
  heldout = prepared.open_prepared(config.data, 'heldout')
  words = vocabulary.load(prepared.vocabulary_folder(config.data))
  if words.size > run.model.vocab_size:
    raise ValueError(
      f'vocabulary {config.data.vocabulary!r} has {words.size} pieces, the '
      f'embedding only {run.model.vocab_size} rows; set '
      'model.overrides.vocab_size'
    )

  ##############################################################################
  #                     State: resume, warm start or fresh                     #
  ##############################################################################

  identity = run_config.identity(config, run)
  checkpoints = checkpointing.Checkpointer(workdir, config.checkpoint.keep)
  state, past = _start(
    config,
    run,
    mesh,
    workdir,
    identity,
    texts,
    checkpoints,
    say,
  )
  first, rows_before = int(state.step), past.get('rows_consumed', 0)
  folder = metrics.Folder(workdir)
  if first > run.steps:
    raise ValueError(
      f'{workdir} is at step {first:,} already, beyond train.steps = '
      f'{run.steps:,}; raise it, or take another --workdir'
    )
  if first == run.steps and os.path.exists(f'{folder.path}/report.json'):
    say(f'{first:,} steps are done; see {workdir}/report.json')
    return 0
  if chief:  # with the weights, so that they are of use without the data
    words.save(folder.path)

  ##############################################################################
  #                              The training step                             #
  ##############################################################################

  step = train_step.make(run, mesh)
  evaluate = evaluation.Evaluator(
    run, mesh, heldout, words, config.train.eval_rows
  )
  clock = time.monotonic()
  update = step.lower().compile()
  say(f'compiled in {time.monotonic() - clock:.0f} s')
  # Steps queued on several virtual CPU devices wait for each other for ever.
  queue = 0 if jax.default_backend() == 'cpu' and mesh.size > 1 else 1

  ##############################################################################
  #                                 The loop                                   #
  ##############################################################################

  board = metrics.Board(
    run, mesh, folder.path, first, rows_before, config.train.log_every
  )
  profiler = metrics.Profiler(
    run_config.profile_range(config.train.profile), f'{folder.path}/profile'
  )
  loader = data_loader.Loader(
    texts.readers,
    texts.stages,
    batch_size=run.rows,
    seed=config.seed,
    rows_consumed=rows_before,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  bits = {}
  late = collections.deque()  # (step, metrics) the host has not looked at

  def look(number: int, values: train_step.Metrics, **more: Any) -> None:
    values = jax.device_get(values)
    board.record(number, values, **more)
    faults.check(number, values['bad'], values['loss'], run.max_bad_steps)

  def save(number: int) -> None:
    seconds = past.get('seconds', 0.0) + time.monotonic() - started
    rows = rows_before + (number - first) * run.rows
    board.sync()
    checkpoints.save(
      number,
      state,
      checkpointing.manifest(
        identity=identity,
        model=run.model,
        vocabulary_hash=texts.vocabulary_hash,
        rows_consumed=rows,
        rates=texts.stages[0][1],
        rows=texts.keys,
        seconds=seconds,
      ),
    )
    if chief:
      folder.push()

  with contextlib.ExitStack() as stack:
    for resource in (checkpoints, loader, board, profiler):
      stack.callback(resource.close)
    for number in range(first + 1, run.steps + 1):
      batch = train_step.put_batch(next(loader), step.batch)
      profiler.before(number)
      state, values = update(state, batch)
      profiler.after(number, values)
      late.append((number, values))

      last, stopping = number == run.steps, stop.agreed(number)
      saves = last or stopping or number % config.checkpoint.every == 0
      every = config.train.eval_every
      evaluates = last or bool(every and number % every == 0)
      pauses = saves or evaluates
      while len(late) > max(queue, pauses):
        look(*late.popleft())
      if pauses:
        # Metrics before the checkpoint: what is saved has all its lines.
        with board.paused(values):
          more = {}
          if evaluates and not stopping:
            more['bits_per_byte'] = bits = evaluate(state.params)
          while late:
            look(*late.popleft(), **more)
          if saves:
            save(number)
      if stopping:
        board.say(f'stopped by a signal; step {number:,} is saved in {workdir}')
        return app.INTERRUPTED if stop.received == signal.SIGINT else 0

  ##############################################################################
  #                                  The end                                   #
  ##############################################################################

  values = {
    'steps': run.steps,
    'tokens': (rows_before + (run.steps - first) * run.rows) * run.length,
    'bits_per_byte': bits or evaluate(state.params),
    'xz': heldout.xz,
    'skipped': int(state.guard.skipped),
    'samples': _samples(config, run, state, words),
    'seconds': past.get('seconds', 0.0) + time.monotonic() - started,
  }
  if chief:
    report.write(folder.path, values)
    folder.push()
    say(report.summary(values, workdir))
  return 0


def _start(
  config: ml_collections.ConfigDict,
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  workdir: str,
  identity: dict[str, Any],
  texts: prepared.Prepared,
  checkpoints: checkpointing.Checkpointer,
  say: Callable[[str], None],
) -> tuple[train_state.TrainState, dict[str, Any]]:
  """Returns the state a run starts from and the manifest of its past."""
  # 1. An earlier part of this very run.
  if checkpoints.steps():
    manifest = checkpointing.newest_manifest(workdir)
    changed = run_config.refuse_other_run(
      manifest['run'], identity, manifest['rows_consumed'] * run.length
    )
    checkpointing.refuse_other_vocabulary(manifest, texts.vocabulary_hash)
    checkpointing.refuse_other_data(manifest, texts.stages[0][1], texts.keys)
    state, manifest, complaints = checkpoints.restore(
      train_state.abstract(run, mesh)
    )
    for line in [*complaints, *changed]:
      say(line)
    say(f'continues after step {int(state.step):,}')
    return state, manifest
  # 2. The weights of another run, or of a folder of Hugging Face's kind.
  if config.init_from:
    source = paths.in_repository(config.init_from)
    found = weights.describe(source)
    checkpointing.refuse_other_vocabulary(found, texts.vocabulary_hash)
    params = weights.load_into(source, run.model, mesh)
    for line in weights.differences(found, run.model):
      say(line)
    say(f'starts from the weights of {source}')
    return train_state.fresh(run, mesh, config.seed, params), {}
  # 3. Fresh weights.
  say('starts from fresh weights')
  return train_state.fresh(run, mesh, config.seed), {}


def _samples(
  config: ml_collections.ConfigDict,
  run: run_config.Run,
  state: train_state.TrainState,
  words: vocabulary.Vocabulary,
) -> list[dict[str, str]]:
  """Returns how the trained model continues the prompts of the config."""
  prompts = list(config.sample.prompts)
  if not prompts or jax.process_count() > 1:
    return []
  # Training rows begin a document after an end mark.
  rows = [[words.eos_id, *words.encode(prompt)] for prompt in prompts]
  generator = generation.Generator(
    run.model,
    state.params,
    max_length=max(map(len, rows)) + config.sample.tokens,
    vocabulary_size=words.size,
  )
  made = generator.generate(
    rows,
    config.sample.tokens,
    temperature=_SAMPLE_TEMPERATURE,
    top_p=_SAMPLE_TOP_P,
    seed=config.seed,
  )
  return [
    {'prompt': prompt, 'text': words.decode(ids)}
    for prompt, ids in zip(prompts, made, strict=True)
  ]


def _describe(
  config: ml_collections.ConfigDict,
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
) -> str:
  """Returns one line on what is trained where."""
  size = model_config.num_params(run.model)
  device = mesh.devices.flat[0].device_kind
  tokens = run.rows * run.length
  return (
    f'{config.model.preset}: {size:,} parameters on {mesh.size} x {device}, '
    f'{run.rows:,} rows of {run.length:,} = {tokens:,} tokens a step'
  )


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example='--config=experiments/quickstart.py --workdir=runs/quickstart',
    )
  )
