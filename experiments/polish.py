"""Polishing the real conversations, or your own.

Source: Yi report (arXiv:2403.04652), section 3.1: fewer than 10,000
conversations, each looked at by hand, chosen by tags for diversity, rewritten
where they repeat, in one style. It publishes no thresholds: those are ours, see
docs/polish.md.

  python -m yi_jax.data.raw --group=text,tuning
  python -m yi_jax.polish --config=experiments/polish.py --workdir=runs/polish

Your own, in any layout of docs/sft.md:

  python -m yi_jax.polish --config=experiments/polish.py --workdir=runs/mine \\
      --config.data.files='mine/*.jsonl' --config.data.language=zh \\
      --config.data.ability=writing

Time and result on two CPU cores: see docs/polish.md.
"""

import ml_collections

from yi_jax.alignment import run_config


def get_config() -> ml_collections.ConfigDict:
  """Returns the run."""
  c = run_config.base()
  return c
