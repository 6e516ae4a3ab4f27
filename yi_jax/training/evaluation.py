"""Held-out text: how many bits the model needs for a byte of each language.

Bits per byte compare across vocabularies, languages and with compressors
(`xz` on the same text), which the loss per token does not. Of conversations
what counts is what the assistant says, and there the loss of each ability is
told too.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from yi_jax.models import attention
from yi_jax.training import run_config, train_step


class Heldout(NamedTuple):
  """What an evaluation finds.

  Attributes:
    bits_per_byte: by language, in alphabetical order. The bits are those of
      every token that is learned, end marks included; the bytes are those of
      the UTF-8 text alone.
    response_loss: nats a learned token, by language and ability as in
      'zh_math'; of conversations only.
  """

  bits_per_byte: dict[str, float]
  response_loss: dict[str, float]


class Evaluator:
  """Reads the same held-out rows at every call."""

  def __init__(
    self,
    run: run_config.Run,
    mesh: jax.sharding.Mesh,
    prepared: Any,
    vocabulary: Any,
    max_rows: int = 0,
    attention_fn: attention.AttentionFn | None = None,
  ) -> None:
    """Prepares an evaluation; nothing is read or compiled yet.

    Args:
      run: the run; a batch here has as many rows as a microbatch of a step,
        so that it fits where a step does.
      mesh: where the parameters live.
      prepared: the held-out split, see data/prepared.py.
      vocabulary: tells how many bytes tokens stand for, see data/vocabulary.py.
      max_rows: rows read a language, shared by its tasks; 0 reads all.
      attention_fn: as in training.
    """
    rows = run.rows // run.optimizer.accumulate_steps
    run = dataclasses.replace(run, rows=rows)
    self._rows, self._prepared, self._max_rows = rows, prepared, max_rows
    self._vocabulary = vocabulary
    self._batch = train_step.abstract_batch(run, mesh)
    self._group, self._groups = train_step.row_group(run, mesh)
    objective = train_step.next_token(run, mesh, attention_fn)
    self._sums = jax.jit(lambda params, batch: objective(params, batch)[1])

  def __call__(self, params: dict[str, Any]) -> Heldout:
    """Returns the figures of the held-out documents."""
    bits, sizes, losses = {}, {}, {}
    counts = self._counts()
    for task, reader in sorted(self._prepared.readers.items()):
      language, count = self._prepared.languages[task], counts[task]
      nats, weight = self._nats(params, reader, count)
      size = self._prepared.bytes[task]
      if count < len(reader):
        size = self._text_bytes(reader, count)
      bits[language] = bits.get(language, 0.0) + nats / math.log(2)
      sizes[language] = sizes.get(language, 0.0) + size
      if ability := self._prepared.abilities.get(task):
        before = losses.get(ability, (0.0, 0.0))
        losses[ability] = before[0] + nats, before[1] + weight
    return Heldout(
      {name: bits[name] / sizes[name] for name in sorted(bits)},
      {name: nats / weight for name, (nats, weight) in losses.items()},
    )

  def _counts(self) -> dict[str, int]:
    """Returns how many rows of each task are read."""
    languages = [self._prepared.languages[t] for t in self._prepared.readers]
    counts = {}
    for task, reader in self._prepared.readers.items():
      limit = len(reader)
      if self._max_rows:
        tasks = languages.count(self._prepared.languages[task])
        limit = max(1, self._max_rows // tasks)
      counts[task] = min(limit, len(reader))
    return counts

  def _nats(
    self, params: dict[str, Any], reader: Any, count: int
  ) -> tuple[float, float]:
    """Returns negative log-likelihood and weight of the first rows."""
    share = self._rows // self._groups
    mine = self._group * share
    sums = []
    for first in range(0, count, self._rows):
      rows = [
        _row_or_padding(reader, first + mine + i, count) for i in range(share)
      ]
      batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      batch = train_step.put_batch(batch, self._batch)
      found = self._sums(params, batch)
      sums.append((found['nll'], found['weight']))
    # Added up in float64: all the nats together need more than float32 has.
    nats, weight = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    return float(nats), float(weight)

  def _text_bytes(self, reader: Any, count: int) -> int:
    """Returns the UTF-8 bytes of the text in the first `count` rows."""
    special = list(self._vocabulary.special_ids.values())
    targets = [reader[i]['targets'] for i in range(count)]
    weights = [reader[i]['loss_weights'] for i in range(count)]
    tokens = np.concatenate(targets)[np.concatenate(weights) > 0]
    text = tokens[~np.isin(tokens, special)]
    return len(self._vocabulary.decode(text.tolist()).encode())


def _row_or_padding(
  reader: Any, index: int, count: int
) -> dict[str, np.ndarray]:
  """Returns a row, or one without weight where the last batch is not full."""
  if index < count:
    return reader[index]
  row = reader[0]
  return {**row, 'loss_weights': np.zeros_like(row['loss_weights'])}
