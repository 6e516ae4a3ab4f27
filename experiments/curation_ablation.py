"""Does the cascade help? The same tokens of raw and of curated text.

Ours: the Yi report says that its data decide, and shows no ablation. Two runs of
the quickstart's model, equal but for what they read: noisy text as it is (news,
tweets, chats, reviews, pages of C4; half English, half Chinese), or what
`curate` leaves of it. Both are judged by clean text that neither has read:
Wikipedia, the Bible and plays in English, statutes, a novel and a dictionary in
Chinese (`clean-en` and `clean-zh` in the report).

  python -m yi_jax.curate --config=experiments/curate.py:sources
  for side in raw curated; do
    python -m yi_jax.prepare --config=experiments/curation_ablation.py:$side
    python -m yi_jax.train --config=experiments/curation_ablation.py:$side
  done

Time and result on two CPU cores: see docs/curate.md.
"""

import collections

import ml_collections

from yi_jax.data import mixtures
from yi_jax.training import run_config

_NOISY = (
  'en_web_news',
  'en_web_tweets',
  'en_web_chat',
  'en_web_c4sample',
  'zh_web_news',
  'zh_web_reviews',
)
# Clean text -> its source; a language of its own, so that it is told apart.
_CLEAN = {
  'clean-en_encyclopedia_wikipedia': 'web_wiki',
  'clean-en_books_bible': 'en_bible',
  'clean-en_books_plays': 'en_plays',
  'clean-zh_other_law': 'zh_law',
  'clean-zh_books_novel': 'zh_novel',
  'clean-zh_encyclopedia_dictionary': 'zh_dict',
}


def get_config(arg: str = 'raw') -> ml_collections.ConfigDict:
  """Returns the run.

  Args:
    arg: 'raw' or 'curated'.
  """
  sizes = {name: mixtures.get(name).megabytes for name in _NOISY}
  if arg == 'curated':
    left = mixtures.register_curated('runs/curate_sources/curated')
    sizes = {f'{name}_curated': left.get(f'{name}_curated') for name in _NOISY}
    # The cascade may leave nothing of a source.
    sizes = {name: size for name, size in sizes.items() if size}
  elif arg != 'raw':
    raise ValueError(f"no variant {arg!r}: 'raw' or 'curated'")
  for name, source in _CLEAN.items():
    mixtures.TASKS[name] = mixtures.Task(name, source=source)
  c = run_config.base()
  totals = collections.Counter()
  for name, size in sizes.items():
    totals[name[:2]] += size
  c.data.rates = ml_collections.ConfigDict(
    {
      # Half of each language; inside it, by size.
      **{name: 0.5 * size / totals[name[:2]] for name, size in sizes.items()},
      **dict.fromkeys(_CLEAN, 0.0),
    }
  )
  # Of both runs: prepare the raw one first.
  c.data.vocabulary = 'ablation'
  c.data.vocabulary_size = 8192
  c.data.heldout_fraction = 0.01
  c.data.heldout_bytes = 100_000
  c.data.length = 512
  c.data.batch_tokens = 2048
  c.model.preset = 'tiny'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.schedule = 'wsd'
  c.optimizer.warmup_steps = 50
  c.optimizer.decay_fraction = 0.4
  c.optimizer.final_fraction = 0.05
  c.train.steps = 300
  c.train.log_every = 10
  c.checkpoint.every = 300
  return c
