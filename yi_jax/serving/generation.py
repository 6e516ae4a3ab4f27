"""Generation: a batch of prompts in, their continuations out.

Axes: B batch, T prompt length, D model, V vocabulary.

Two kinds of programs are compiled, and kept for later calls. `prefill` reads
the prompts, padded on the right to a power of two, and chooses the first tokens.
`decode` makes up to 16 more with one dispatch: a loop on the device that leaves
when no row goes on. Rows may differ in length and in every setting, and what a
row gets does not depend on the others. The cache is donated and so stays in
place, and tokens are chosen where the logits are.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import attention, kv_cache
from yi_jax.models import config as config_lib
from yi_jax.serving import compute, sampling

END_OF_TEXT = 2  # <|endoftext|>: documents of pretraining begin after it
STOP_IDS = (2, 7)  # <|endoftext|> ends a text, <|im_end|> a turn of a chat
_STEPS = 16  # tokens a row that one dispatch makes at most
_SHORTEST = 16  # tokens of the smallest program
_SCORED = 256  # positions whose logits are held at a time, in `score`
_NOTHING = -1  # in place of a token where a row is at its end


class _Rows(NamedTuple):
  """What each row was asked for; stays the same while it is generated.

  Attributes:
    sampling: how tokens are chosen.
    budget: int32[B], tokens to make at most.
    stop_ids: int32[B, n], ids that end a row, filled up with -1.
  """

  sampling: sampling.Settings
  budget: jax.Array
  stop_ids: jax.Array


class _State(NamedTuple):
  """How far each row is.

  Attributes:
    cache: keys and values of all tokens but the newest.
    newest: int32[B], the token chosen last.
    made: int32[B], tokens chosen so far.
    alive: bool[B], whether the row goes on.
    seen: bool[B, V], tokens of the prompt and those made.
  """

  cache: kv_cache.Cache
  newest: jax.Array
  made: jax.Array
  alive: jax.Array
  seen: jax.Array


class Generator:
  """A model ready to generate.

  Attributes:
    config: the model as it runs: unrolled, in the type it computes in.
    max_length: most tokens a row may hold, prompt and continuation.
    programs: what was compiled so far, e.g. 'decode 4 x 256'.
    compile_seconds: time that took.
  """

  def __init__(
    self,
    config: config_lib.ModelConfig,
    params: dict[str, Any],
    *,
    max_length: int,
    vocabulary_size: int | None = None,
    attention_fn: attention.AttentionFn | None = None,
    dtype: str | None = None,
  ) -> None:
    """Lays out the parameters for decoding; nothing is compiled yet.

    Args:
      config: the model.
      params: its parameters, scanned or unrolled.
      max_length: most tokens a row may hold, prompt and continuation.
      vocabulary_size: ids from here on are never chosen; None means that every
        row of the embedding is a token.
      attention_fn: for the prompts, see models/attention.py; None takes the
        backend's default.
      dtype: of the computation, the matrices and the cache; None takes float32
        on CPU (bfloat16 is slower there) and config.dtype elsewhere.

    Raises:
      ValueError: if max_length leaves no room for a prompt and one token.
    """
    if max_length < 2:
      raise ValueError(f'max_length must be at least 2, not {max_length}')
    self._compute = compute.Compute(
      config, params, vocabulary_size=vocabulary_size, dtype=dtype
    )
    self.config = self._compute.config
    self.max_length = max_length
    self.programs: list[str] = []
    self.compile_seconds = 0.0
    self._attention_fn = attention_fn
    self._prefill = jax.jit(self._trace_prefill)
    self._grow = jax.jit(self._trace_grow, static_argnums=1)
    self._decode = jax.jit(self._trace_decode, donate_argnums=1)
    self._score = jax.jit(self._trace_score)

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    **settings: Any,
  ) -> list[list[int]]:
    """Continues every prompt.

    Args:
      prompts: token ids a row; an empty one starts a new text.
      max_new_tokens: tokens a row at most; it ends sooner at a stop id, or
        when it holds `max_length` tokens.
      **settings: see `stream`.

    Returns:
      The new ids of each row, without the stop id.
    """
    rows = [[] for _ in prompts]
    settings.setdefault('steps', _STEPS)
    for chunk in self.stream(prompts, max_new_tokens, **settings):
      for row, ids in zip(rows, chunk, strict=True):
        row.extend(ids)
    return rows

  def stream(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    repetition_penalty: float | Sequence[float] = 1.0,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = STOP_IDS,
    seed: int | Sequence[int] = 0,
    steps: int = 1,
  ) -> Iterator[list[list[int]]]:
    """Continues every prompt, a few tokens at a time.

    Each setting is one value for all rows, or one a row.

    Args:
      prompts: as in `generate`.
      max_new_tokens: as in `generate`.
      temperature: 0 takes the best token, 1 samples from the model.
      top_k: samples from the k best tokens; 0 from all.
      top_p: samples from the likeliest tokens that reach this probability.
      repetition_penalty: above 1 makes tokens less likely that were there.
      stop_ids: ids that end a row.
      seed: one for all gives each row draws of its own; given a row, equal
        seeds draw alike.
      steps: tokens a row between two yields, up to 16.

    Returns:
      Iterator of the new ids of each row, without the stop id; [] for a row at
      its end. Computing starts with the first.

    Raises:
      ValueError: for a prompt or setting out of range, at once.
    """
    prompts = [list(prompt) or [END_OF_TEXT] for prompt in prompts]
    if not prompts:
      return iter(())
    self._check(prompts, max_new_tokens, steps)
    rows = _rows(
      [min(max_new_tokens, self.max_length - len(ids)) for ids in prompts],
      stop_ids,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      repetition_penalty=repetition_penalty,
      seed=seed,
    )
    return self._stream(prompts, rows, steps)

  def score(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns how likely each token is after those before it.

    Args:
      rows: token ids.

    Returns:
      Log-probabilities in nats, float32[length - 1] a row: its first token has
      nothing before it.

    Raises:
      ValueError: for a row that is too long, or ids that are none.
    """
    rows = [list(row) for row in rows]
    if not any(map(len, rows)):
      return [np.zeros(0, np.float32) for _ in rows]
    self._check(rows, 1, 1)
    width = _bucket(max(map(len, rows)), self.max_length)
    size = _bucket(len(rows), most=2 * len(rows), least=1)
    tokens, lengths = np.zeros((size, width), np.int32), np.zeros(size, int)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      lengths[i] = len(row)
    found = np.asarray(
      self._timed(self._score, self._compute.params, tokens, lengths)
    )
    return [found[i, 1 : max(1, len(row))] for i, row in enumerate(rows)]

  def _check(
    self, prompts: list[list[int]], max_new_tokens: int, steps: int
  ) -> None:
    if max_new_tokens < 1:
      raise ValueError(
        f'max_new_tokens must be at least 1, not {max_new_tokens}'
      )
    if not 1 <= steps <= _STEPS:
      raise ValueError(f'steps must be from 1 to {_STEPS}, not {steps}')
    for i, prompt in enumerate(prompts):
      if len(prompt) >= self.max_length:
        raise ValueError(
          f'prompt {i} has {len(prompt):,} tokens, and a row may hold '
          f'{self.max_length:,} with its continuation; shorten it or raise '
          'max_length'
        )
      for token in prompt:
        if not 0 <= token < self.config.vocab_size:
          raise ValueError(
            f'prompt {i} holds id {token}, but the model knows 0 to '
            f'{self.config.vocab_size - 1}; is this its vocabulary?'
          )
    longest = max(map(len, prompts)) + max_new_tokens
    longest = min(longest, self.max_length)
    if longest > self.config.max_position_embeddings:
      logging.warning(
        'up to %d tokens a row, but the model was trained on %d: expect worse '
        'text beyond',
        longest,
        self.config.max_position_embeddings,
      )

  def _stream(
    self, prompts: list[list[int]], rows: _Rows, steps: int
  ) -> Iterator[list[list[int]]]:
    count, size = len(prompts), rows.budget.shape[0]
    lengths = np.zeros(size, np.int32)  # 0 where a row only fills the batch
    lengths[:count] = [len(prompt) for prompt in prompts]
    width = _bucket(int(lengths.max()), self.max_length)
    tokens = np.zeros((size, width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
      row[: len(prompt)] = prompt
    state, chosen = self._timed(
      self._prefill, self._compute.params, tokens, lengths, rows
    )
    room = int(np.max(lengths + np.asarray(rows.budget)))
    room = _room(room, self.max_length)
    if room > width:
      cache = self._timed(self._grow, state.cache, room)
      state = state._replace(cache=cache)
    yield _lists(np.asarray(chosen)[None], count)
    while np.any(state.alive):
      state, chosen = self._timed(
        self._decode, self._compute.params, state, rows, steps
      )
      yield _lists(np.asarray(chosen), count)

  def _timed(self, program: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a program; if that compiles it, the time is counted."""
    known, started = len(self.programs), time.perf_counter()
    result = program(*arguments)
    if len(self.programs) > known:
      self.compile_seconds += time.perf_counter() - started
    return result

  # -------------------------------------------------------------- on the device

  def _trace_prefill(
    self, params: Any, tokens: jax.Array, lengths: jax.Array, rows: _Rows
  ) -> tuple[_State, jax.Array]:
    """Reads prompts [B, T]; chooses each row's first token, int32[B]."""
    B, T = tokens.shape
    self.programs.append(f'prefill {B} x {T}')
    real = jnp.arange(T) < lengths[:, None]
    out = self._compute.apply(
      params,
      tokens,
      segment_ids=real.astype(jnp.int32),
      cache=kv_cache.init(self.config, B, T),
      attention_fn=self._attention_fn,
      logits=False,
    )
    every = jnp.arange(B)
    seen = jnp.zeros((B, self.config.vocab_size), bool)
    state = _State(
      cache=out.cache,
      newest=jnp.zeros(B, jnp.int32),
      made=jnp.zeros(B, jnp.int32),
      alive=lengths > 0,
      seen=seen.at[every[:, None], tokens].max(real),
    )
    # Only a row's last token needs logits: [B, V], not [B, T, V].
    return self._advance(params, out.hidden[every, lengths - 1], state, rows)

  def _trace_grow(self, cache: kv_cache.Cache, length: int) -> kv_cache.Cache:
    """Makes room in the cache for `length` tokens a row."""
    self.programs.append(f'grow {cache.lengths.shape[0]} to {length}')
    return kv_cache.grow(self.config, cache, length)

  def _trace_decode(
    self, params: Any, state: _State, rows: _Rows, steps: int
  ) -> tuple[_State, jax.Array]:
    """Makes up to `steps` tokens a row, int32[16, B]."""
    B = state.newest.shape[0]
    self.programs.append(f'decode {B} x {kv_cache.length(state.cache)}')

    def goes_on(carry: tuple) -> jax.Array:
      i, state, _ = carry
      return (i < steps) & jnp.any(state.alive)

    def step(carry: tuple) -> tuple:
      i, state, chosen = carry
      out = self._compute.apply(
        params,
        state.newest[:, None],
        # Rows at their end leave the cache alone.
        segment_ids=state.alive[:, None].astype(jnp.int32),
        cache=state.cache,
        attention_fn=attention.cached,
        logits=False,
      )
      state = state._replace(cache=out.cache)
      state, tokens = self._advance(params, out.hidden[:, 0], state, rows)
      return i + 1, state, chosen.at[i].set(tokens)

    nothing = jnp.full((_STEPS, B), _NOTHING, jnp.int32)
    _, state, chosen = jax.lax.while_loop(goes_on, step, (0, state, nothing))
    return state, chosen

  def _trace_score(
    self, params: Any, tokens: jax.Array, lengths: jax.Array
  ) -> jax.Array:
    """Returns log-probabilities [B, T] of tokens [B, T]; 0 of the first."""
    B, T = tokens.shape
    self.programs.append(f'score {B} x {T}')
    out = self._compute.apply(
      params,
      tokens,
      segment_ids=(jnp.arange(T) < lengths[:, None]).astype(jnp.int32),
      attention_fn=self._attention_fn,
      logits=False,
    )

    def one(place: tuple[jax.Array, jax.Array]) -> jax.Array:
      hidden, chosen = place  # of one position, [B, D] and [B]
      logits = self._compute.logits(params, hidden).astype(jnp.float32)
      return jax.nn.log_softmax(logits)[jnp.arange(B), chosen]

    # A few positions at a time: [B, T, V] would not fit.
    most = max(1, min(T - 1, _SCORED // B))
    places = out.hidden[:, :-1].swapaxes(0, 1), tokens[:, 1:].T
    found = jax.lax.map(one, places, batch_size=most)
    return jnp.pad(found.T, ((0, 0), (1, 0)))

  def _advance(
    self, params: Any, hidden: jax.Array, state: _State, rows: _Rows
  ) -> tuple[_State, jax.Array]:
    """Chooses the next tokens from hidden [B, D].

    Returns:
      The state after them, and those that rows keep, int32[B].
    """
    logits = self._compute.logits(params, hidden)
    tokens = sampling.choose(logits, state.seen, state.made, rows.sampling)
    stops = jnp.any(tokens[:, None] == rows.stop_ids, axis=-1)
    kept = state.alive & ~stops
    made = state.made + kept
    state = state._replace(
      newest=tokens,
      made=made,
      alive=kept & (made < rows.budget),
      seen=state.seen.at[jnp.arange(tokens.shape[0]), tokens].set(True),
    )
    return state, jnp.where(kept, tokens, _NOTHING)


# ------------------------------------------------------------------ on the host


def _bucket(length: int, most: int, least: int = _SHORTEST) -> int:
  """Returns the power of two, or `most`, that has room for `length`."""
  return min(max(least, 1 << (length - 1).bit_length()), most)


def _room(length: int, most: int) -> int:
  """Returns a size of the cache: four a doubling, as all of it is read."""
  step = max(_SHORTEST, 1 << max(0, (length - 1).bit_length() - 3))
  return min(-(-length // step) * step, most)


def _lists(chosen: np.ndarray, count: int) -> list[list[int]]:
  """Returns the ids of each row of int32[steps, B], the filling left out."""
  columns = chosen.T[:count].tolist()
  return [[i for i in column if i != _NOTHING] for column in columns]


def _rows(
  budgets: list[int],
  stop_ids: Sequence[int] | Sequence[Sequence[int]],
  **settings: Any,
) -> _Rows:
  """Spreads what was asked for over a batch, filled up to a power of two."""
  count = len(budgets)
  size = _bucket(count, most=2 * count, least=1)
  one_for_all = all(isinstance(entry, (int, np.integer)) for entry in stop_ids)
  stops = [stop_ids] * count if one_for_all else list(stop_ids)
  if len(stops) != count:
    raise ValueError(f'{len(stops)} lists of stop_ids for {count} prompts')
  longest = max(map(len, stops))
  width = _bucket(longest, most=longest + 4, least=4)
  table = np.full((size, width), _NOTHING, np.int32)
  for row, ids in zip(table, stops, strict=False):
    row[: len(ids)] = ids
  budget = np.zeros(size, np.int32)
  budget[:count] = budgets
  chosen = sampling.make_settings(count, size, **settings)
  return jax.device_put(_Rows(chosen, budget, table))
