"""How an answer is judged: by what is written, and by what is likely."""

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from yi_jax.data import tokenizer as tokenizers
from yi_jax.serving import reading

# An answer is one sentence.
_END = re.compile(r'[.!?]\s|[.!?]$|[\n。！？]')


def exact(text: str, values: Sequence[str]) -> float:
  """Returns whether the answer is the value; of several, the share in it.

  Case, width of characters and quotation marks do not count. A single value
  must be how the text begins; '48213' is not found in '482137'.

  Args:
    text: what the model wrote after the opening of the answer.
    values: the right ones.
  """
  text = _plain(text)
  if len(values) == 1:
    return float(bool(re.match(_whole(values[0]), text)))
  found = [bool(re.search(_whole(value), text)) for value in values]
  return sum(found) / len(found)


def _plain(text: str) -> str:
  text = unicodedata.normalize('NFKC', text).casefold()
  return ' '.join(text.split()).lstrip(' "\'“‘「『*:')


def _whole(value: str) -> str:
  value = _plain(value)
  # Chinese has no space that would end a word.
  edge = r'(?![a-z0-9])' if value[-1].isascii() else ''
  front = r'(?<![a-z0-9])' if value[0].isascii() else ''
  return front + re.escape(value) + edge


def judged(
  right: Sequence[float], wrong: Sequence[float]
) -> tuple[float, float]:
  """Returns what the model prefers.

  Args:
    right: log-probability of each right answer, in nats.
    wrong: of each wrong one.

  Returns:
    (share of right answers above every wrong one, mean probability of a right
    one among itself and the wrong ones).
  """
  above = [score > max(wrong) for score in right]
  shares = [
    1 / sum(math.exp(min(other - score, 700)) for other in (score, *wrong))
    for score in right
  ]
  return sum(above) / len(right), sum(shares) / len(right)


def write(
  reader: reading.Reader,
  last: int,
  draft: Sequence[int],
  best: Sequence[int],
  room: int,
  words: tokenizers.Tokenizer,
) -> str:
  """Lets the model answer a sentence, always with the likeliest token.

  What it would write is known as far as it agrees with an answer that was
  scored already; only what follows is made token by token.

  Args:
    reader: holds the row without its last id.
    last: that id.
    draft: ids of the answer that was scored.
    best: the likeliest token after `last` and after each of `draft`.
    room: tokens at most.
    words: the tokenizer.
  """
  pairs = enumerate(zip(draft, best, strict=False))
  agreed = next((i for i, (a, b) in pairs if a != b), len(draft))
  ids = [*draft[:agreed], int(best[agreed])]
  pending = [last, *ids]
  while (
    ids[-1] not in words.stop_ids
    and len(ids) < room
    and not _END.search(words.decode(ids))
  ):
    found = reader.score(np.asarray(pending, np.int32), keep=True)
    pending = [int(found.best[-1])]
    ids += pending
  if ids[-1] in words.stop_ids:
    ids.pop()
  return words.decode(ids[:room])
