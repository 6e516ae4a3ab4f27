"""How fast the loader feeds batches, against what the training step eats.

  launch/local.sh python -m yi_jax.prepare --config=experiments/quickstart.py
  launch/local.sh python experiments/benchmarks/loader.py \\
      --config=experiments/quickstart.py

Reads the rows of a prepared run the way training does: a few steps of the run
itself, then the loader alone from the beginning, then opened at step 1,000,000.
The last line is JSON: `ratio` is tokens/s of the loader over those of the step
(20 or more is wanted for the tiny model), `open_seconds` the time from opening
the rows to the first batch at that step (under 1 s is wanted).
"""

import json
import statistics
import sys
import time
from typing import Any

import jax
from absl import flags

from yi_jax import app
from yi_jax.data import loader, prepared
from yi_jax.sharding import mesh as meshes
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

FLAGS = flags.FlagValues()
_SECONDS = flags.DEFINE_float(
  'seconds', 5, 'How long to read, in seconds.', flag_values=FLAGS
)

_STEPS = 5  # measured, after two to warm up
_FAR = 1_000_000  # the step at which a run is opened


def main(config: Any) -> None:
  """Measures and prints."""
  run = run_config.resolve(config)
  eaten = _step_tokens_per_second(config, run)
  rows, _ = _opened(config, run, 0)
  count, started = 0, time.perf_counter()
  while time.perf_counter() - started < FLAGS.seconds:
    next(rows)
    count += run.rows
  rows_per_second = count / (time.perf_counter() - started)
  rows.close()
  rows, open_seconds = _opened(config, run, _FAR)
  rows.close()
  fed = rows_per_second * run.length
  print(
    f'{rows_per_second:,.0f} rows/s of {run.length} tokens, {fed:,.0f} tokens/s'
    f'; the step eats {eaten:,.0f}; open at step {_FAR:,} in '
    f'{open_seconds:.3f} s'
  )
  figures = {
    'benchmark': 'loader',
    'rows_per_second': round(rows_per_second, 1),
    'tokens_per_second': round(fed),
    'step_tokens_per_second': round(eaten),
    'ratio': round(fed / eaten, 1),
    'open_step': _FAR,
    'open_seconds': round(open_seconds, 4),
  }
  print(json.dumps(figures))


def _step_tokens_per_second(config: Any, run: run_config.Run) -> float:
  """Trains a few steps on the loader's batches; returns the median speed."""
  mesh = meshes.make_mesh(config.mesh.to_dict())
  step = train_step.make(run, mesh)
  update = step.lower().compile()
  state = train_state.fresh(run, mesh, config.seed)
  rows, _ = _opened(config, run, 0)
  seconds = []
  for _ in range(2 + _STEPS):
    started = time.perf_counter()
    state, values = update(state, train_step.put_batch(next(rows), step.batch))
    jax.block_until_ready(values)
    seconds.append(time.perf_counter() - started)
  rows.close()
  return run.rows * run.length / statistics.median(seconds[2:])


def _opened(
  config: Any, run: run_config.Run, step: int
) -> tuple[loader.Loader, float]:
  """Returns a loader that has given its first batch, and the seconds for it."""
  started = time.perf_counter()
  texts = prepared.open_prepared(config.data, 'train')
  rows = loader.Loader(
    texts.readers,
    texts.stages,
    batch_size=run.rows,
    seed=config.seed,
    rows_consumed=step * run.rows,
  )
  next(rows)
  return rows, time.perf_counter() - started


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--config=experiments/quickstart.py'))
