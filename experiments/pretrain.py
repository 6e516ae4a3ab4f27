"""Pretrains a dense Yi from scratch on the bilingual mixture.

Source: Yi report, table 1 and section 2 (3.1T tokens at 4,096; peak rate 3e-4
for 6B, 1.5e-4 for 34B). Batch, schedule, warm-up, betas and clip were never
published: ours, marked below. The 200K and Coder siblings are continued from
these runs; here they get their own shapes and bases at 4,096 tokens.

  # what a pod reads; see docs/prepare.md for the large sources
  python -m yi_jax.prepare --config=experiments/pretrain.py:yi_34b

  # 128 v5p chips, on every host of them
  YI_DISTRIBUTED=1 python -m yi_jax.train \\
      --config=experiments/pretrain.py:yi_34b --workdir=gs://bucket/yi_34b

  # a laptop: the same run at 7M parameters, on the small sources
  python -m yi_jax.prepare --config=experiments/pretrain.py:tiny
  python -m yi_jax.train --config=experiments/pretrain.py:tiny

Expected: the report gives no loss curve; 34B was still improving at 3.1T.
"""

import ml_collections

from yi_jax.models import config as model_config
from yi_jax.training import run_config

_PEAK_RATE = {'yi_6b': 3e-4, 'yi_34b': 1.5e-4}  # published
_TOKENS = 3_100_000_000_000  # published


def get_config(arg: str = 'yi_6b') -> ml_collections.ConfigDict:
  """Returns the run for one preset, e.g. `pretrain.py:yi_34b`."""
  c = run_config.base()
  small = arg == 'tiny'
  model = model_config.get_preset(arg)
  c.model.preset = arg
  if not small:
    c.model.overrides.remat = 'full'  # ours

  # Data
  c.data.mixture = 'yi_text' if small else 'yi_pretrain'
  c.data.vocabulary = 'yi_text_8k' if small else 'yi_64k'
  c.data.vocabulary_size = model.vocab_size
  c.data.length = 512 if small else 4096  # 4,096 published
  # Ours; 4M tokens is what was published for the later stages.
  c.data.batch_tokens = 8192 if small else 4_194_304

  # Optimizer
  same_width = 'yi_34b' if '34b' in arg else 'yi_6b'
  c.optimizer.learning_rate = 1e-3 if small else _PEAK_RATE[same_width]
  c.optimizer.schedule = 'cosine'  # ours, as all below
  c.optimizer.warmup_steps = 100 if small else 2000
  c.optimizer.final_fraction = 0.1
  c.optimizer.betas = (0.9, 0.95)
  c.optimizer.weight_decay = 0.1
  c.optimizer.clip_norm = 1.0

  # Ours: 8 rows a device at a time on 128 devices.
  c.optimizer.accumulate_steps = 4 if '34b' in arg else 1

  c.train.steps = 3000 if small else _TOKENS // c.data.batch_tokens
  c.train.eval_every = 500 if small else 5000
  c.train.eval_rows = 64 if small else 1024
  c.checkpoint.every = 500 if small else 1000

  # Where it runs: -1 takes the devices that are left.
  c.mesh.tensor = 4 if '34b' in arg else 1
  return c
