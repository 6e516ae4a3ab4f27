"""A deeper model out of a trained one, trained on: Yi-6B becomes Yi-9B.

Source: Yi report (arXiv:2403.04652), section 7.3, and 01.AI's notes on Yi-9B
(March 2024): layers 12 to 27 of 32 are said twice, the optimizer starts anew,
and about 0.8T tokens follow at a constant rate of 3e-5: 0.4T of general text and
code as Yi-6B had it, 0.4T with code and mathematics raised. The batch begins at
4M tokens and is raised whenever the loss stops falling; all else is as for
Yi-6B. By how much, and the shares of the second half, were never published:
ours, marked below.

  # your code and mathematics: data/code/*.jsonl.gz, data/math/*.jsonl.gz
  python -m yi_jax.convert --source=checkpoints/Yi-6B \\
      --target=checkpoints/Yi-6B-deeper --layers=0:28,12:32
  python -m yi_jax.prepare --config=experiments/depth_upscale.py:yi_9b
  YI_DISTRIBUTED=1 python -m yi_jax.train \\
      --config=experiments/depth_upscale.py:yi_9b --workdir=gs://bucket/yi_9b

On a laptop SmolLM2-135M-Instruct grows from 30 to 40 layers: those that turn
their input least (docs/depth_upscale.md) stand there twice.

  python -m yi_jax.data.raw --group=model,tuning
  python -m yi_jax.convert --target=runs/smollm2_40 --layers=0:19,9:30 \\
      --source=data/raw/SmolLM2-135M-Instruct.Q4_1.gguf
  python -m yi_jax.prepare --config=experiments/depth_upscale.py:smollm2
  python -m yi_jax.train --config=experiments/depth_upscale.py:smollm2

Expected: Yi-9B's scores are in the report's table 8; for SmolLM2 see
docs/depth_upscale.md.
"""

import ml_collections

from yi_jax import app
from yi_jax.data import mixtures
from yi_jax.training import run_config

_VARIANTS = ('yi_9b', 'smollm2')
_STAGE = 400_000_000_000  # tokens of each half, published


def get_config(arg: str = 'yi_9b') -> ml_collections.ConfigDict:
  """Returns the run.

  Args:
    arg: 'yi_9b' or 'smollm2'.
  """
  if arg not in _VARIANTS:
    raise ValueError(f'no variant {arg!r}: {", ".join(_VARIANTS)}')
  c = run_config.base()
  # Published; AdamW's moments are not in what `convert` writes.
  c.optimizer.learning_rate = 3e-5
  c.optimizer.schedule = 'constant'
  c.optimizer.warmup_steps = 0
  # As experiments/pretrain.py has them.
  c.optimizer.betas = (0.9, 0.95)
  c.optimizer.weight_decay = 0.1
  c.optimizer.clip_norm = 1.0
  return _yi_9b(c) if arg == 'yi_9b' else _smollm2(c)


def _yi_9b(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The published recipe, as far as it is."""
  # Theta and epsilon stay Yi-6B's; those of the published Yi-9B differ.
  c.model.preset = 'yi_6b'
  c.model.overrides.num_hidden_layers = 48
  c.model.overrides.remat = 'full'  # ours
  c.init_from = 'checkpoints/Yi-6B-deeper'
  c.data.vocabulary = 'checkpoints/Yi-6B-deeper'
  c.data.vocabulary_size = 64_000
  c.data.length = 4096

  # Code and mathematics are yours to add; no open set of TFDS has them.
  mixtures.register_files('code_code_own', 'data/code/*.jsonl.gz')
  mixtures.register_files('en_papers_math', 'data/math/*.jsonl.gz')
  general = mixtures.MIXTURES['yi_pretrain']
  first = mixtures.by_kind([*general, 'code_code_own'])
  # Mathematics has no part in the first half, but is held out from the start.
  c.data.rates = ml_collections.ConfigDict({**first, 'en_papers_math': 0.0})
  # Ours: twice the code, a tenth mathematics, the rest in its proportions.
  code = 2 * first['code_code_own']
  rest = (0.9 - code) / sum(first[name] for name in general)
  second = {name: rest * first[name] for name in general}
  second |= {'code_code_own': code, 'en_papers_math': 0.1}
  c.data.stages = ((_STAGE, second),)
  c.data.heldout_fraction = 1e-4

  # 4M published. The rest ours: 2B tokens a stretch at first.
  c.data.batch_tokens = 4_194_304
  c.data.batch_growth.window = 500
  c.data.batch_growth.least_gain = 0.001
  c.data.batch_growth.factor = 2
  c.data.batch_growth.most_tokens = 4 * 4_194_304

  c.train.tokens = 2 * _STAGE
  c.train.steps = -(-c.train.tokens // c.data.batch_tokens)  # if none grows
  c.train.eval_every = 5000
  c.train.eval_first = True
  c.train.eval_rows = 1024
  c.checkpoint.every = 1000
  return c


def _smollm2(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A small model that works, on two cores."""
  tuned = app.load_config('experiments/sft.py:smollm2')
  known = tuned.model.overrides.to_dict()
  del known['rope_scaling']
  c.model.overrides.update({k: v for k, v in known.items() if v is not None})
  c.model.overrides.num_hidden_layers = 40
  c.model.overrides.remat = 'full'
  c.init_from = 'runs/smollm2_40'
  c.data.vocabulary = 'runs/smollm2_40'
  c.data.vocabulary_size = tuned.data.vocabulary_size

  # Ours, all below; a small model moves faster.
  c.optimizer.learning_rate = 1e-4
  rates = {'en_web_c4sample': 0.4, 'en_encyclopedia_wikisample': 0.4}
  first = {**rates, 'code_code_python': 0.2, 'zh_other_mathematics': 0.0}
  c.data.rates = ml_collections.ConfigDict(first)
  second = {name: 0.6 * rate for name, rate in rates.items()}
  second |= {'code_code_python': 0.4, 'zh_other_mathematics': 0.12}
  c.data.length = 512
  c.data.batch_tokens = 4 * 512
  c.data.stages = ((30 * c.data.batch_tokens, second),)
  c.data.heldout_bytes = 50_000
  c.data.batch_growth.window = 10
  c.data.batch_growth.least_gain = 0.01
  c.data.batch_growth.most_tokens = 4 * c.data.batch_tokens
  c.train.tokens = 60 * c.data.batch_tokens
  c.train.steps = 60
  c.train.log_every = 1
  c.train.eval_every = 10
  c.train.eval_first = True
  c.train.eval_rows = 8
  c.checkpoint.every = 30
  return c
