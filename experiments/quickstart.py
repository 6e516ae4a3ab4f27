"""The whole story on a laptop: a small bilingual Yi, from raw text to samples.

Ours: the Yi report trains nothing this small. Statutes, a Chinese-English
dictionary and worked mathematics; plays, a Bible and a manual. Every stage is
the one the large models take.

  launch/local.sh quickstart        # prepare, train, report, samples

or stage by stage

  python -m yi_jax.prepare --config=experiments/quickstart.py
  python -m yi_jax.train --config=experiments/quickstart.py
  python -m yi_jax.generate --checkpoint=runs/quickstart --prompt="Enter HAMLET"

`quickstart.py:curated` trains on the same texts after the cascade, once

  python -m yi_jax.curate --config=experiments/curate.py:quickstart

has run. Time and result on two CPU cores: see docs/benchmarks.md.
"""

import ml_collections

from yi_jax.data import mixtures
from yi_jax.training import run_config


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the run.

  Args:
    arg: 'curated' reads what `curate` has left of the same sources.
  """
  if arg not in ('', 'curated'):
    raise ValueError(f"no variant {arg!r}: there is 'curated'")
  c = run_config.base()
  c.model.preset = 'tiny'

  # Data: both languages the same share, see yi_jax/data/mixtures.py.
  c.data.mixture = 'quickstart'
  if arg == 'curated':
    mixtures.register_curated('runs/curate_quickstart/curated')
    c.data.mixture = 'curated'
  c.data.vocabulary = 'quickstart'
  c.data.vocabulary_size = 8192
  c.data.length = 512
  # Small batches: with minutes to train, more updates beat smoother ones.
  c.data.batch_tokens = 2048

  c.optimizer.learning_rate = 3e-3
  c.optimizer.schedule = 'wsd'
  c.optimizer.warmup_steps = 50
  c.optimizer.decay_fraction = 0.4
  c.optimizer.final_fraction = 0.05

  c.train.steps = 600
  c.train.log_every = 10
  c.checkpoint.every = 150

  c.sample.prompts = (
    'HAMLET. To be, or',
    'In the beginning',
    '第一条　为了',
    '问：小明有',
  )
  return c
