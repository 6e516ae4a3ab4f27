"""Reading long rows: what a row shares with the one before is not read again.

Axes: B batch (1 here), T new tokens, D model, V vocabulary.

A Reader holds one row in its cache. The next row keeps the beginning that both
have in common and reads the rest, in chunks of a few sizes, so that there are
few programs and the memory beside the cache is that of one chunk. Rows in an
order in which neighbours share most (that of a depth-first walk through the
tree of their prefixes) are read with each piece of text computed once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import chunked, kv_cache
from yi_jax.models import config as config_lib
from yi_jax.serving import compute

_SIZES = (32, 128, 512)  # tokens of the programs that only read
_SCORED_SIZES = (1, 4, 32, 512)  # and of those that score
_LOGITS = 128  # tokens whose [V] logits are there at once


class Scores(NamedTuple):
  """What a model thinks of the tokens of a text.

  Attributes:
    logprobs: float32[n - 1], of each token but the first, in nats.
    best: int32[n], the likeliest token after each.
  """

  logprobs: np.ndarray
  best: np.ndarray


class Reader:
  """A model with one row in its cache.

  Attributes:
    config: the model as it runs.
    held: int32[n], the ids in the cache.
    tokens_read: computed so far, padding left out.
  """

  def __init__(
    self,
    config: config_lib.ModelConfig,
    params: dict[str, Any],
    *,
    max_length: int,
    vocabulary_size: int | None = None,
  ) -> None:
    """Makes an empty cache; nothing is compiled yet.

    Args:
      config: the model.
      params: its parameters, scanned or unrolled.
      max_length: most tokens a row may hold.
      vocabulary_size: ids from here on are no tokens.

    Raises:
      ValueError: if max_length is below 1, or positions of the model depend on
        how long the row will be.
    """
    if max_length < 1:
      raise ValueError(f'max_length must be at least 1, not {max_length}')
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == 'dynamic':
      raise ValueError(
        "this model's rope scaling is dynamic: its positions turn by an angle "
        'that depends on the length of the whole row, so what was read for one '
        'row is of no use to another; a fixed base (rope_theta) or yarn works'
      )
    self._compute = compute.Compute(
      config, params, vocabulary_size=vocabulary_size
    )
    self.config = self._compute.config
    self.held = np.zeros(0, np.int32)
    self.tokens_read = 0
    self._max_length = max_length
    slots = -(-max_length // chunked.BLOCK) * chunked.BLOCK
    self._layers = kv_cache.init(self.config, 1, slots).layers
    # A ring forgets what left its window: it cannot go back.
    self._goes_back = all(spec.window is None for spec in config.layer_pattern)
    self._read = jax.jit(self._trace_read, donate_argnums=1)
    self._score = jax.jit(self._trace_score, donate_argnums=1)

  def read(self, row: Sequence[int] | np.ndarray) -> int:
    """Brings a row into the cache.

    Args:
      row: token ids.

    Returns:
      How many of them had to be read: those after the beginning that the row
      shares with what was held. All of them, if layers see a window only.

    Raises:
      ValueError: for a row that is too long, or ids that are none.
    """
    row = self._checked(row, 0)
    shared = common_prefix(self.held, row)
    self._keep(shared)
    fresh = row[len(self.held) :]
    while len(self.held) < len(row):
      self._step(self._read, row[len(self.held) :], _SIZES)
    return len(fresh)

  def score(
    self, text: Sequence[int] | np.ndarray, keep: bool = False
  ) -> Scores:
    """Tells how likely a text is after what is held.

    Args:
      text: token ids; the first one is given, so it has no score.
      keep: whether the cache holds the text too from now on; without it is
        forgotten again, for which no layer may have a window.

    Raises:
      ValueError: for a text that is too long, or ids that are none.
    """
    text = self._checked(text, len(self.held))
    start = len(self.held)
    logprobs, best = [], []
    while len(self.held) < start + len(text):
      done = len(self.held) - start
      targets = np.append(text[done + 1 :], 0)
      found = self._step(self._score, text[done:], _SCORED_SIZES, targets)
      logprobs.append(found[0])
      best.append(found[1])
    if not keep:
      self._keep(start)
    return Scores(np.concatenate(logprobs)[:-1], np.concatenate(best))

  def _checked(self, ids: Sequence[int] | np.ndarray, held: int) -> np.ndarray:
    ids = np.asarray(ids, np.int32)
    if held + len(ids) > self._max_length:
      raise ValueError(
        f'{held + len(ids):,} tokens do not fit a cache of {self._max_length:,}'
      )
    wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
    if wrong.size:
      raise ValueError(
        f'id {wrong[0]} is none of the model, which knows 0 to '
        f'{self.config.vocab_size - 1}; is this its vocabulary?'
      )
    return ids

  def _keep(self, length: int) -> None:
    """Forgets what is held beyond `length`, or all of it where it must."""
    if length < len(self.held) and not self._goes_back:
      length = 0
    self.held = self.held[:length]

  def _step(
    self,
    program: Any,
    ids: np.ndarray,
    sizes: Sequence[int],
    targets: np.ndarray | None = None,
  ) -> list[np.ndarray]:
    """Runs one program on as many of the ids as it takes."""
    size = _size(len(ids), sizes)
    count = min(size, len(ids))

    def filled(x: np.ndarray) -> np.ndarray:
      row = np.zeros((1, size), np.int32)
      row[0, :count] = x[:count]
      return row

    arguments = [filled(ids), np.int32(len(self.held)), np.int32(count)]
    if targets is not None:
      arguments.append(filled(targets))
    self._layers, found = program(
      self._compute.params, self._layers, *arguments
    )
    self.held = np.append(self.held, ids[:count])
    self.tokens_read += count
    return [np.asarray(x)[:count] for x in found]

  # -------------------------------------------------------------- on the device

  def _forward(
    self,
    params: Any,
    layers: Any,
    tokens: jax.Array,
    held: jax.Array,
    count: jax.Array,
  ) -> Any:
    real = jnp.arange(tokens.shape[1])[None] < count
    return self._compute.apply(
      params,
      tokens,
      segment_ids=real.astype(jnp.int32),
      cache=kv_cache.Cache(layers, held[None]),
      attention_fn=chunked.chunked,
      logits=False,
    )

  def _trace_read(
    self, params: Any, layers: Any, *where: jax.Array
  ) -> tuple[Any, tuple]:
    return self._forward(params, layers, *where).cache.layers, ()

  def _trace_score(
    self, params: Any, layers: Any, *where: jax.Array
  ) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The cache, log-probabilities of targets [T] and likeliest tokens [T]."""
    *where, targets = where
    out = self._forward(params, layers, *where)

    def some(inputs: tuple[jax.Array, jax.Array]) -> tuple:
      hidden, targets = inputs
      logits = self._compute.logits(params, hidden).astype(jnp.float32)
      chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
      best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
      return chosen - jax.nn.logsumexp(logits, axis=-1), best

    T, D = out.hidden.shape[1:]
    block = min(T, _LOGITS)
    inputs = out.hidden.reshape(-1, block, D), targets.reshape(-1, block)
    logprobs, best = jax.lax.map(some, inputs)
    return out.cache.layers, (logprobs.reshape(T), best.reshape(T))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
  """Returns how many leading ids two rows share.

  Example: common_prefix([5, 6, 7], [5, 6, 8, 9]) -> 2
  """
  length = min(len(a), len(b))
  different = np.flatnonzero(np.asarray(a)[:length] != np.asarray(b)[:length])
  return int(different[0]) if different.size else length


def _size(length: int, sizes: Sequence[int]) -> int:
  """Returns the program for so many tokens: little padding, few steps."""
  for smaller, size in zip((0, *sizes), sizes, strict=False):
    if length <= size:
      # Mostly padding: several steps of the smaller one are cheaper, but not
      # single tokens, each of which reads all weights.
      return size if smaller <= 1 or length > size // 2 else smaller
  return sizes[-1]
