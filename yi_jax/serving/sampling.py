"""From logits to the next token: pure functions, settings a row.

Axes: B batch, V vocabulary.

The order is that of transformers: repetition penalty, temperature, top-k,
top-p. Settings are arrays, not Python numbers, so that one compiled program
serves rows with any mix of them; a filter that no row asks for costs nothing.

Top-k and top-p look for a threshold instead of sorting the vocabulary: the
largest score above which enough tokens (or enough probability) lie, found bit
by bit in 32 passes over the scores. That is exact, and tokens that tie with the
threshold stay.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

REMOVED = -math.inf  # score of a token that cannot be chosen
_COLDEST = 1e-20
_BLOCK = 256  # of `pick`, about the root of a vocabulary


class Settings(NamedTuple):
  """How each row chooses.

  Attributes:
    temperature: float32[B]; 0 takes the best token (greedy).
    top_k: int32[B], tokens that stay; 0 keeps all.
    top_p: float32[B], probability that stays; 1 keeps all.
    repetition_penalty: float32[B]; 1 does nothing.
    keys: uint32[B, 2], a threefry key a row: its draws depend on that alone.
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  repetition_penalty: jax.Array
  keys: jax.Array


def make_settings(
  count: int,
  size: int,
  *,
  temperature: float | Sequence[float] = 0.0,
  top_k: int | Sequence[int] = 0,
  top_p: float | Sequence[float] = 1.0,
  repetition_penalty: float | Sequence[float] = 1.0,
  seed: int | Sequence[int] = 0,
) -> Settings:
  """Returns settings for a batch, in NumPy arrays.

  Each argument is one value for all rows or one a row, see `Settings`.

  Args:
    count: rows that are real.
    size: B; the rows beyond `count` are greedy.
    temperature: 0 or more.
    top_k: 0 or more.
    top_p: above 0, up to 1.
    repetition_penalty: above 0.
    seed: one gives every row draws of its own; given a row, equal seeds draw
      alike, and a row draws what it would draw alone.

  Raises:
    ValueError: for a value out of range, or not as many as there are rows.
  """
  given = {
    'temperature': temperature,
    'top_k': top_k,
    'top_p': top_p,
    'repetition_penalty': repetition_penalty,
    'seed': seed,
  }
  rows = {}
  for name, values in given.items():
    kind, fill, fits, wanted = _RANGES[name]
    values = np.asarray(values)
    if values.shape not in ((), (count,)):
      raise ValueError(
        f'{name} takes one value, or one for each of the {count} prompts, not '
        f'{values.tolist()}'
      )
    for value in values.reshape(-1).tolist():
      if not fits(value):
        raise ValueError(f'{name} must be {wanted}, not {value}')
    rows[name] = np.full(size, fill, kind)
    rows[name][:count] = values
  streams = np.zeros if np.ndim(seed) else np.arange
  words = rows.pop('seed'), streams(size).astype(np.uint32)
  return Settings(**rows, keys=np.stack(words, axis=1))


def _natural(value: Any) -> bool:
  return isinstance(value, int) and 0 <= value < 2**31


# Setting -> its type, what rows get that only fill the batch, what it may be.
_RANGES = {
  'temperature': (np.float32, 0, lambda x: 0 <= x < math.inf, '0 or more'),
  'top_k': (np.int32, 0, _natural, 'a whole number from 0'),
  'top_p': (np.float32, 1, lambda x: 0 < x <= 1, 'above 0 and up to 1'),
  'repetition_penalty': (
    np.float32,
    1,
    lambda x: 0 < x < math.inf,
    'above 0',
  ),
  'seed': (np.uint32, 0, _natural, 'a whole number from 0'),
}


def choose(
  logits: jax.Array, seen: jax.Array, draws: jax.Array, settings: Settings
) -> jax.Array:
  """Chooses the next token of each row.

  Args:
    logits: [B, V], any float type.
    seen: bool[B, V], tokens the row holds already, its prompt included.
    draws: int32[B], tokens chosen before; each has randomness of its own.
    settings: see `Settings`.

  Returns:
    int32[B].
  """
  scores = logits.astype(jnp.float32)
  scores = jax.lax.cond(
    jnp.any(settings.repetition_penalty != 1.0),
    lambda x: penalize(x, seen, settings.repetition_penalty),
    lambda x: x,
    scores,
  )
  best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  greedy = settings.temperature <= 0.0
  return jax.lax.cond(
    jnp.all(greedy),
    lambda x: best,
    lambda x: jnp.where(greedy, best, _draw(x, draws, settings)),
    scores,
  )


def penalize(
  scores: jax.Array, seen: jax.Array, penalty: jax.Array
) -> jax.Array:
  """Makes tokens that were there before less likely (Keskar et al. 2019).

  Args:
    scores: float32[B, V].
    seen: bool[B, V].
    penalty: float32[B]; above 1 divides positive and multiplies negative
      scores.

  Returns:
    float32[B, V].
  """
  penalty = penalty[:, None]
  lowered = jnp.where(scores > 0, scores / penalty, scores * penalty)
  return jnp.where(seen, lowered, scores)


def keep_top_k(scores: jax.Array, top_k: jax.Array) -> jax.Array:
  """Removes all but the k best tokens of each row.

  Args:
    scores: float32[B, V].
    top_k: int32[B]; 0 keeps all.

  Returns:
    float32[B, V], `REMOVED` in place of the rest.
  """
  wanted = jnp.where(top_k > 0, top_k, scores.shape[-1])

  def enough(kept: jax.Array) -> jax.Array:
    return jnp.sum(kept, axis=-1, dtype=jnp.int32) >= wanted

  return _keep(scores, enough)


def keep_top_p(scores: jax.Array, top_p: jax.Array) -> jax.Array:
  """Removes all but the likeliest tokens that reach a probability together.

  Nucleus sampling (Holtzman et al. 2019): a token stays if those above it do
  not reach top_p without it.

  Args:
    scores: float32[B, V].
    top_p: float32[B], in (0, 1]; 1 keeps all.

  Returns:
    float32[B, V], `REMOVED` in place of the rest.
  """
  probabilities = jax.nn.softmax(scores, axis=-1)
  # No sum of float32 probabilities is sure to reach 1: infinity never does.
  wanted = jnp.where(top_p < 1.0, top_p, jnp.inf)

  def enough(kept: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1) >= wanted

  return _keep(scores, enough)


def warp(scores: jax.Array, settings: Settings) -> jax.Array:
  """Applies temperature, top-k and top-p, in this order.

  Args:
    scores: float32[B, V].
    settings: see `Settings`; greedy rows keep temperature 1.

  Returns:
    float32[B, V], logits of what to draw from.
  """
  heat = jnp.where(settings.temperature > 0, settings.temperature, 1.0)
  # Scores must stay finite next to temperature 0.
  scores /= jnp.maximum(heat, _COLDEST)[:, None]
  scores = jax.lax.cond(
    jnp.any(settings.top_k > 0),
    lambda x: keep_top_k(x, settings.top_k),
    lambda x: x,
    scores,
  )
  return jax.lax.cond(
    jnp.any(settings.top_p < 1.0),
    lambda x: keep_top_p(x, settings.top_p),
    lambda x: x,
    scores,
  )


def _draw(scores: jax.Array, draws: jax.Array, settings: Settings) -> jax.Array:
  """int32[B]: one token a row, each with randomness of its own."""
  keys = jax.random.wrap_key_data(settings.keys, impl='threefry2x32')
  keys = jax.vmap(jax.random.fold_in)(keys, draws)
  return pick(warp(scores, settings), jax.vmap(jax.random.uniform)(keys))


def pick(scores: jax.Array, uniform: jax.Array) -> jax.Array:
  """Draws from the softmax by inverting its cumulative distribution.

  One random number a row, where Gumbel noise takes V of them (5 times the
  time on CPU). The sums run over blocks, then inside one block, which is faster
  and more exact than one long sum.

  Args:
    scores: float32[B, V].
    uniform: float32[B], in [0, 1).

  Returns:
    int32[B]; never a token of probability 0.
  """
  B, V = scores.shape
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.pad(weights, ((0, 0), (0, -V % _BLOCK)))
  weights = weights.reshape(B, -1, _BLOCK)
  sums = jnp.sum(weights, axis=-1)
  ends = jnp.cumsum(sums, axis=-1)
  target = uniform * ends[:, -1]
  block = jnp.sum(ends <= target[:, None], axis=-1, dtype=jnp.int32)
  rows = jnp.arange(B)
  # Rounding may carry the target before the block's first weight, or past its
  # last one: neither may choose a token without any.
  target = jnp.maximum(target - (ends[rows, block] - sums[rows, block]), 0)
  inside = weights[rows, block]
  place = jnp.sum(jnp.cumsum(inside, axis=-1) <= target[:, None], axis=-1)
  last = jnp.max(jnp.where(inside > 0, jnp.arange(_BLOCK), 0), axis=-1)
  return block * _BLOCK + jnp.minimum(place, last).astype(jnp.int32)


def _keep(
  scores: jax.Array, enough: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Keeps, in each row, the scores from the largest threshold that is enough.

  Args:
    scores: float32[B, V].
    enough: bool[B, V] of what a threshold keeps -> bool[B]; once true it stays
      true for lower thresholds.
  """
  order = _ordered(scores)

  def set_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
    higher = threshold | (jnp.uint32(1) << (jnp.uint32(31) - i))
    return jnp.where(enough(order >= higher[:, None]), higher, threshold)

  lowest = jnp.zeros(scores.shape[:1], jnp.uint32)
  threshold = jax.lax.fori_loop(0, 32, set_bit, lowest)
  # The best token stays whatever is asked for.
  threshold = jnp.minimum(threshold, jnp.max(order, axis=-1))
  return jnp.where(order >= threshold[:, None], scores, REMOVED)


def _ordered(x: jax.Array) -> jax.Array:
  """uint32 that sort as the float32 they stand for."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits & sign, ~bits, bits | sign)
