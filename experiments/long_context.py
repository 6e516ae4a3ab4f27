"""Long context: a finished checkpoint learns to read 200,000 tokens, or 16,384.

Source: Yi report (arXiv:2403.04652), sections 2.3 and 7.1: the base of RoPE is
raised and nothing else changes; 5B tokens in batches of 4M, so 1,250 steps (the
printed 100 is a typo, as 01.AI has said), of original pretraining data,
length-upsampled long documents, mostly books, and questions on many documents
whose answers recite the passage. Rate, ratios and lengths of rows were never
published: ours, marked below.

  # your books and web pages, see docs/long_context.md; on every host of 32 v5p
  python -m yi_jax.alignment.long_qa \\
      --config=experiments/long_context.py:yi_6b --count=1250
  python -m yi_jax.prepare --config=experiments/long_context.py:yi_6b
  YI_DISTRIBUTED=1 python -m yi_jax.train \\
      --config=experiments/long_context.py:yi_6b --workdir=gs://bucket/yi_6b_200k

On a laptop SmolLM2-135M-Instruct goes from 8,192 to 16,384 tokens on plays, the
Bible, statutes and a Chinese novel (`python -m yi_jax.data.raw
--group=text,model` fetches all of it):

  python -m yi_jax.alignment.long_qa \\
      --config=experiments/long_context.py:smollm2 --count=100
  python -m yi_jax.prepare --config=experiments/long_context.py:smollm2
  python -m yi_jax.train --config=experiments/long_context.py:smollm2

`smollm2:32768` is the same for another length. Time and result on two CPU cores:
see docs/long_context.md.
"""

import ml_collections

from yi_jax import app
from yi_jax.data import mixtures
from yi_jax.extension import rope_base
from yi_jax.training import run_config

_YI = {'yi_6b': 'yi_6b_200k', 'yi_34b': 'yi_34b_200k'}
_SMOLLM2_LENGTH = 8_192  # tokens that SmolLM2 was trained for
_QUESTIONS = 'data/long_qa'  # where yi_jax.alignment.long_qa writes


def get_config(arg: str = 'yi_6b') -> ml_collections.ConfigDict:
  """Returns the run.

  Args:
    arg: 'yi_6b', 'yi_34b', 'smollm2', or 'smollm2:LENGTH' in tokens.
  """
  name, _, length = arg.partition(':')
  for language in ('en', 'zh'):
    mixtures.register_chats(
      f'{language}_knowledge_longqa', f'{_QUESTIONS}/{language}.jsonl'
    )
  if name in _YI and not length:
    return _yi(name)
  if name == 'smollm2' and (length.isdecimal() or not length):
    return _smollm2(int(length or 16_384))
  raise ValueError(
    f'no variant {arg!r}: yi_6b, yi_34b, smollm2, smollm2:LENGTH'
  )


def _yi(name: str) -> ml_collections.ConfigDict:
  """The published recipe, as far as it is."""
  # Books are yours to add; no open set of TFDS has them at this size.
  for language in ('en', 'zh'):
    mixtures.register_files(
      f'{language}_books_long', f'data/books/{language}/*.jsonl.gz'
    )
  c = run_config.base()
  # Base 5e6 (6B) and 1e7 (34B), 200,000 positions: published.
  c.model.preset = _YI[name]
  c.model.overrides.remat = 'full'  # ours
  c.init_from = f'checkpoints/{name}'
  c.data.vocabulary = f'checkpoints/{name}'
  c.data.vocabulary_size = 64_000
  c.data.length = 200_000
  c.data.batch_tokens = 4_000_000  # published: 20 rows
  c.train.steps = 1_250  # published: 5B tokens
  # Ours: half of what the model has read before, by the shares it had there.
  rates = {k: 0.5 * v for k, v in mixtures.MIXTURES['yi_pretrain'].items()}
  books = {'en_books_long': 0.2, 'zh_books_long': 0.2}
  questions = {'en_knowledge_longqa': 0.05, 'zh_knowledge_longqa': 0.05}
  c.data.rates = ml_collections.ConfigDict({**rates, **books, **questions})
  c.data.long.tasks = tuple(books)
  # Ours. Yi-Lightning raises what is longer than 8K, too (report, 3.3).
  c.data.long.upsample = ((0, 0.5), (8_192, 1), (32_768, 4), (131_072, 8))
  c.data.heldout_fraction = 1e-3
  # Ours: a small constant rate, as the weights shall hardly move.
  c.optimizer.learning_rate = 2e-5
  c.optimizer.schedule = 'constant'
  c.optimizer.warmup_steps = 10
  # 4 groups of devices read a row each, five times a step.
  c.optimizer.accumulate_steps = 5
  c.mesh.fsdp = 4
  c.mesh.context = 8
  c.mesh.tensor = 4 if name == 'yi_34b' else 1
  c.train.log_every = 1
  c.train.eval_every = 250
  c.train.eval_first = True
  c.train.eval_rows = 20
  c.checkpoint.every = 50
  return c


def _smollm2(length: int) -> ml_collections.ConfigDict:
  """A small model that works, on real long documents."""
  c = run_config.base()
  tuned = app.load_config('experiments/sft.py:smollm2')
  c.init_from = tuned.init_from
  model, known = c.model.overrides, tuned.model.overrides.to_dict()
  del known['rope_scaling']
  model.update({k: v for k, v in known.items() if v is not None})
  model.rope_theta = rope_base.raised_base(
    model.rope_theta, model.head_dim, _SMOLLM2_LENGTH, length
  )
  model.max_position_embeddings = length
  model.remat = 'full'
  for key in ('vocabulary', 'vocabulary_size'):
    c.data[key] = tuned.data[key]
  c.data.chat.template = tuned.data.chat.template
  # Ours: long documents are three fifths, a fifth each is what keeps the model
  # from forgetting short ones and the questions.
  c.data.rates = ml_collections.ConfigDict(
    {
      'en_books_plays': 0.25,
      'en_books_bible': 0.15,
      'zh_books_novel': 0.05,
      'zh_other_law': 0.15,
      'en_other_django': 0.15,
      'en_web_c4sample': 0.05,
      'en_knowledge_longqa': 0.15,
      'zh_knowledge_longqa': 0.05,
    }
  )
  c.data.long.tasks = (
    *('en_books_plays', 'en_books_bible'),
    *('zh_books_novel', 'zh_other_law'),
  )
  c.data.long.upsample = ((0, 1), (4_096, 2), (length, 4))
  c.data.long.attend = 'row'
  c.data.heldout_fraction = 0.05  # two plays, three books of the Bible
  # A new base is met on short rows, which cost a third, then used on long ones.
  c.data.length = 4_096
  c.data.batch_tokens = length
  c.data.lengths = ((3 * length, length),)
  c.train.steps = 5  # on two cores; see docs/long_context.md for a GPU
  # All of the model, at once: adapters begin at nothing, and steps are few.
  c.optimizer.learning_rate = 1e-4
  c.optimizer.schedule = 'constant'
  c.optimizer.warmup_steps = 0
  c.train.log_every = 1
  c.train.eval_first = True
  c.train.eval_rows = 4  # of the first length: as many tokens of the others
  c.checkpoint.every = 5
  return c
