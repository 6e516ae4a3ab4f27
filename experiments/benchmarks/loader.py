"""How fast the loader feeds batches, against what a training step eats.

  launch/local.sh python -m yi_jax.prepare --config=experiments/quickstart.py
  launch/local.sh python experiments/benchmarks/loader.py \\
      --config=experiments/quickstart.py --step_tokens_per_second=4000

Reads the rows of a prepared run the way training does, first from its
beginning, then opened at step 1,000,000 with 8 rows a step. 4,000 tokens/s is
about what the tiny model's step eats on two cores; give your own with
--step_tokens_per_second. The last line is JSON: `ratio` is tokens/s of the
loader over those of the step (20 or more is wanted), `open_seconds` the time
from opening the rows to the first batch at that step (under 1 s is wanted).
"""

import json
import sys
import time
from typing import Any

from absl import flags

from yi_jax import app
from yi_jax.data import loader, prepared

FLAGS = flags.FlagValues()
_EATEN = flags.DEFINE_float(
  'step_tokens_per_second',
  4000,
  'Tokens a second that the training step eats.',
  flag_values=FLAGS,
)
_SECONDS = flags.DEFINE_float(
  'seconds', 5, 'How long to read, in seconds.', flag_values=FLAGS
)

_BATCH = 8  # rows a step
_FAR = 1_000_000  # the step at which a run is opened


def main(config: Any) -> None:
  """Measures and prints."""
  # What the first batch of a process costs once is no matter of the loader.
  _opened(config, 0)[0].close()
  rows, _ = _opened(config, 0)
  count, started = 0, time.perf_counter()
  while time.perf_counter() - started < FLAGS.seconds:
    next(rows)
    count += _BATCH
  rows_per_second = count / (time.perf_counter() - started)
  rows.close()
  rows, open_seconds = _opened(config, _FAR * _BATCH)
  rows.close()
  tokens_per_second = rows_per_second * config.data.length
  print(
    f'{rows_per_second:,.0f} rows/s of {config.data.length} tokens; open at '
    f'step {_FAR:,} in {open_seconds:.3f} s'
  )
  figures = {
    'benchmark': 'loader',
    'rows_per_second': round(rows_per_second, 1),
    'tokens_per_second': round(tokens_per_second),
    'step_tokens_per_second': FLAGS.step_tokens_per_second,
    'ratio': round(tokens_per_second / FLAGS.step_tokens_per_second, 1),
    'open_step': _FAR,
    'open_seconds': round(open_seconds, 4),
  }
  print(json.dumps(figures))


def _opened(config: Any, first_row: int) -> tuple[loader.Loader, float]:
  """Returns a loader that has given its first batch, and the seconds for it."""
  started = time.perf_counter()
  texts = prepared.open_prepared(config.data, 'train')
  rows = loader.Loader(
    texts.readers,
    texts.stages,
    batch_size=_BATCH,
    seed=0,
    rows_consumed=first_row,
  )
  next(rows)
  return rows, time.perf_counter() - started


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--config=experiments/quickstart.py'))
