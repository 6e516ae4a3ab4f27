"""Held-out text: how many bits the model needs for a byte of each language.

Bits per byte compare across vocabularies, languages and with compressors
(`xz` on the same text), which the loss per token does not. Of conversations
what counts is what the assistant says, and there the loss of each ability is
told too. Of long rows the loss by position tells what a long context is worth.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import attention
from yi_jax.training import (
  cross_entropy,
  objectives,
  run_config,
  train_step,
)

_SHORT = 4096  # tokens of a row that needs no buckets


class Heldout(NamedTuple):
  """What an evaluation finds.

  Attributes:
    bits_per_byte: by language, in alphabetical order. The bits are those of
      every token that is learned, end marks included; the bytes are those of
      the UTF-8 text alone.
    response_loss: nats a learned token, by language and ability as in
      'zh_math'; of conversations only.
    loss_by_position: nats a token of each bucket of positions, by language and
      first position as in 'en/4096'; of long rows only, see `buckets`.
  """

  bits_per_byte: dict[str, float]
  response_loss: dict[str, float]
  loss_by_position: dict[str, float]


def buckets(firsts: Sequence[int], length: int) -> tuple[int, ...]:
  """Returns the first position of each bucket that rows of a length have.

  Args:
    firsts: `train.eval_buckets`; () asks for 0, 1,024, 2,048, 4,096 and so on
      doubling where rows are longer than 4,096 tokens, and for none elsewhere.
    length: tokens a row.
  """
  if not firsts and length > _SHORT:
    doublings = range((length - 1).bit_length())
    firsts = (0, *(2**n for n in doublings if 2**n >= 1024))
  return tuple(first for first in firsts if first < length)


class Evaluator:
  """Reads the same held-out rows at every call."""

  def __init__(
    self,
    run: run_config.Run,
    mesh: jax.sharding.Mesh,
    prepared: Any,
    vocabulary: Any,
    max_rows: int = 0,
    firsts: Sequence[int] = (),
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
      firsts: see `buckets`.
      attention_fn: as in training.
    """
    rows = run.rows // run.optimizer.accumulate_steps
    run = dataclasses.replace(run, rows=rows)
    self._rows, self._prepared, self._max_rows = rows, prepared, max_rows
    self._vocabulary = vocabulary
    self._batch = train_step.abstract_batch(run, mesh)
    self._group, self._groups = train_step.row_group(run, mesh)
    self._firsts = buckets(firsts, run.length)
    self._sums = _sums(run, mesh, attention_fn, self._firsts)

  def __call__(self, params: dict[str, Any]) -> Heldout:
    """Returns the figures of the held-out documents."""
    bits, sizes, losses, places = {}, {}, {}, {}
    counts = row_counts(self._prepared, self._max_rows)
    for task, count in sorted(counts.items()):
      reader = self._prepared.readers[task]
      language = self._prepared.languages[task]
      sums = self._nats(params, reader, count)
      nats, weight = sums['nll'], sums['weight']
      size = self._prepared.bytes[task]
      if count < len(reader):
        size = self._text_bytes(reader, count)
      if self._firsts:
        pair = np.stack([sums['bucket_nll'], sums['bucket_weight']])
        places[language] = places.get(language, 0.0) + pair
      bits[language] = bits.get(language, 0.0) + nats / math.log(2)
      sizes[language] = sizes.get(language, 0.0) + size
      if ability := self._prepared.abilities.get(task):
        before = losses.get(ability, (0.0, 0.0))
        losses[ability] = before[0] + nats, before[1] + weight
    return Heldout(
      {name: bits[name] / sizes[name] for name in sorted(bits)},
      {name: nats / weight for name, (nats, weight) in losses.items()},
      {
        f'{language}/{first}': float(nats / weight)
        for language, pair in sorted(places.items())
        for first, nats, weight in zip(self._firsts, *pair, strict=True)
        if weight
      },
    )

  def _nats(
    self, params: dict[str, Any], reader: Any, count: int
  ) -> dict[str, Any]:
    """Returns the sums of the first rows, in float64."""
    share = self._rows // self._groups
    mine = self._group * share
    sums = []
    for first in range(0, count, self._rows):
      rows = [
        _row_or_padding(reader, first + mine + i, count) for i in range(share)
      ]
      batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      batch = train_step.put_batch(batch, self._batch)
      sums.append(self._sums(params, batch))
    # Added up in float64: all the nats together need more than float32 has.
    return jax.tree.map(
      lambda *parts: np.sum(parts, axis=0, dtype=np.float64),
      *jax.device_get(sums),
    )

  def _text_bytes(self, reader: Any, count: int) -> int:
    """Returns the UTF-8 bytes of the text in the first `count` rows."""
    special = list(self._vocabulary.special_ids.values())
    targets = [reader[i]['targets'] for i in range(count)]
    weights = [reader[i]['loss_weights'] for i in range(count)]
    tokens = np.concatenate(targets)[np.concatenate(weights) > 0]
    text = tokens[~np.isin(tokens, special)]
    return len(self._vocabulary.decode(text.tolist()).encode())


def row_counts(prepared: Any, max_rows: int) -> dict[str, int]:
  """Returns how many rows of which tasks are read.

  Args:
    prepared: the held-out split, see data/prepared.py.
    max_rows: rows a language, dealt out evenly; with fewer rows than tasks,
      those with most text get one. 0 reads all.
  """
  tasks_of: dict[str, list[str]] = {}
  for task in sorted(prepared.readers, key=lambda t: (-prepared.bytes[t], t)):
    tasks_of.setdefault(prepared.languages[task], []).append(task)
  counts = {}
  for tasks in tasks_of.values():
    for place, task in enumerate(tasks):
      rows = len(prepared.readers[task])
      if max_rows:
        rows = min(rows, max_rows // len(tasks) or int(place < max_rows))
      if rows:
        counts[task] = rows
  return counts


def _sums(
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  attention_fn: attention.AttentionFn | None,
  firsts: tuple[int, ...],
) -> Callable[..., dict[str, jax.Array]]:
  """Returns a compiled (params, batch) -> sums, of buckets too if asked."""
  if not firsts:
    plain = train_step.next_token(run, mesh, attention_fn)
    return jax.jit(lambda params, batch: plain(params, batch)[1])
  loss = functools.partial(cross_entropy.by_bucket, num_buckets=len(firsts))
  objective = train_step.next_token(run, mesh, attention_fn, loss_fn=loss)

  @jax.jit
  def sums(
    params: dict[str, Any], batch: objectives.Batch
  ) -> dict[str, jax.Array]:
    places = jnp.searchsorted(
      jnp.array(firsts), batch['positions'], side='right'
    )
    weights = batch['loss_weights'], places - 1
    return objective(params, {**batch, 'loss_weights': weights})[1]

  return sums


def _row_or_padding(
  reader: Any, index: int, count: int
) -> dict[str, np.ndarray]:
  """Returns a row, or one without weight where the last batch is not full."""
  if index < count:
    return reader[index]
  row = reader[0]
  return {**row, 'loss_weights': np.zeros_like(row['loss_weights'])}
