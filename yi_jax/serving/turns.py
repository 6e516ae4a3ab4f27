"""Whether a chat model ends its turns: a share of held-out prompts.

A model that has learned ChatML says <|im_end|> when it has answered, instead of
talking on or speaking for the user.
"""

from typing import Any

import numpy as np

from yi_jax.data import chatml, tokenizer
from yi_jax.models import config as model_config
from yi_jax.models import lora
from yi_jax.serving import generation, samples

_BATCH = 16  # prompts answered at a time


def prompts(reader: Any, count: int) -> list[list[int]]:
  """Returns the ids before the first answer of held-out conversations.

  Args:
    reader: rows of whole conversations, see data/chat_packing.py.
    count: the most conversations, in the order of the rows.
  """
  found = []
  for index in range(len(reader)):
    row = reader[index]
    segments = row['segment_ids']
    for segment in range(1, int(segments.max(initial=0)) + 1):
      if len(found) == count:
        return found
      at = np.flatnonzero(segments == segment)
      learned = np.flatnonzero(row['loss_weights'][at])
      if learned.size:
        # A weight stands at the token before the one that is learned.
        found.append(row['tokens'][at[: learned[0] + 1]].tolist())
  return found


def ended(
  config: Any,
  model: model_config.ModelConfig,
  params: dict[str, Any],
  words: tokenizer.Tokenizer,
  heldout: Any,
) -> dict[str, float]:
  """Returns which share of answers ends within `sample.tokens` tokens.

  Sampled as `samples` are: the best tokens alone make a small model repeat
  itself, whatever it has learned of turns.

  Args:
    config: of the run.
    model: the model.
    params: its parameters, adapters among them if it has any.
    words: the tokenizer.
    heldout: the held-out split, see data/prepared.py.

  Returns:
    By ability, as in `evaluation.Heldout.response_loss`; {} without
    conversations.
  """
  end = words.special_ids.get(chatml.get(config.data.chat.template).end)
  asked: dict[str, list[list[int]]] = {}
  for task, reader in sorted(heldout.readers.items()):
    found = prompts(reader, config.sample.heldout)
    if found and task in heldout.abilities:
      asked.setdefault(heldout.abilities[task], []).extend(found)
  rows = [ids for group in asked.values() for ids in group]
  if not rows or end is None:
    return {}
  generator = generation.Generator(
    model.replace(lora=None),
    lora.fold(params, model.lora),
    max_length=max(map(len, rows)) + config.sample.tokens,
    vocabulary_size=words.size,
  )
  shares = {}
  for ability, group in asked.items():
    sizes = []
    for first in range(0, len(group), _BATCH):
      made = generator.generate(
        group[first : first + _BATCH],
        config.sample.tokens,
        temperature=samples.TEMPERATURE,
        top_p=samples.TOP_P,
        seed=config.seed + first,
        stop_ids=[end],
      )
      sizes.extend(map(len, made))
    shares[ability] = sum(s < config.sample.tokens for s in sizes) / len(sizes)
  return shares
