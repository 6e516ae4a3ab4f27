"""What decoding remembers: keys and values of every layer, rows of any length.

Axes: B batch, T new tokens, S slots, K key/value heads, H head dim.

Each layer has the kind its LayerSpec asks for: a full layer keeps every token,
a sliding one a ring of its window, a layer that borrows keys and values keeps
nothing. Paging and narrow types change this file, not the model.

Keys are stored as [B, K, H, S] and values as [B, K, S, H], as the two products
of attention read them: on CPU any other order is copied at every step. A Memory
shows them as [B, S, K, H], views that `attention.cached` turns back for free.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from yi_jax.models import attention
from yi_jax.models import config as config_lib


class Cache(NamedTuple):
  """Everything a batch of rows has decoded so far.

  Attributes:
    layers: {layer: {'k', 'v'}} (one dict a layer, or with scanned layers one
      stacked on a leading axis).
    lengths: int32[B], tokens each row holds; None while nothing is in it. That
      is known when compiling, so the first call attends by index alone and
      may use any kernel.
  """

  layers: Any
  lengths: jax.Array | None


class Memory(NamedTuple):
  """Keys and values one layer attends to, and where they stand.

  Attributes:
    k: [B, S, K, H], rotated.
    v: [B, S, K, H].
    positions: int32[B, S], -1 for an empty slot; None if order is the index.
    segments: int32[B, S] or None.
    groups: int32[B, S] or None.
  """

  k: jax.Array
  v: jax.Array
  positions: jax.Array | None = None
  segments: jax.Array | None = None
  groups: jax.Array | None = None


def init(
  config: config_lib.ModelConfig,
  batch: int,
  length: int,
  dtype: str | None = None,
) -> Cache:
  """Returns an empty cache.

  Args:
    config: the model.
    batch: B, rows.
    length: S, the most tokens a row will hold.
    dtype: of keys and values; None takes the model's compute type.
  """
  K, H = config.num_key_value_heads, config.head_dim

  def layer(spec: config_lib.LayerSpec, stack: tuple[int, ...]) -> dict:
    if spec.kv_from is not None:
      return {}
    S = length if spec.window is None else min(length, spec.window)
    shapes = {'k': (batch, K, H, S), 'v': (batch, K, S, H)}
    kind = dtype or config.dtype
    return {n: jnp.zeros((*stack, *s), kind) for n, s in shapes.items()}

  pattern = config.layer_pattern
  if not config.scan_layers:
    specs = pattern * config.num_repeats
    layers = {str(i): layer(spec, ()) for i, spec in enumerate(specs)}
  elif len(pattern) == 1:
    layers = layer(pattern[0], (config.num_repeats,))
  else:
    layers = {
      str(i): layer(spec, (config.num_repeats,))
      for i, spec in enumerate(pattern)
    }
  return Cache(layers, None)


def length(cache: Cache) -> int:
  """Returns the slots of the roomiest layer."""
  return max(x['k'].shape[3] for x in cache.layers.values() if x)


def grow(config: config_lib.ModelConfig, cache: Cache, length: int) -> Cache:
  """Returns a cache with room for longer rows.

  Args:
    config: the model.
    cache: the cache.
    length: S, as in `init`, not below the present one.
  """
  batch = cache.lengths.shape[0]
  wanted = jax.eval_shape(lambda: init(config, batch, length)).layers

  def longer(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    # A ring that was not at its window yet has not turned either.
    widths = [
      (0, new - old) for old, new in zip(x.shape, like.shape, strict=True)
    ]
    return jnp.pad(x, widths)

  return Cache(jax.tree.map(longer, cache.layers, wanted), cache.lengths)


def update(
  spec: config_lib.LayerSpec,
  layer: dict[str, jax.Array],
  fresh: Memory,
  lengths: jax.Array | None,
) -> tuple[dict[str, jax.Array], Memory]:
  """Writes new keys and values and returns what to attend to.

  Args:
    spec: the layer's kind.
    layer: its slots, {'k', 'v'}.
    fresh: the new tokens; positions are given, -1 for padding.
    lengths: int32[B], tokens held before; None if the cache is empty.

  Returns:
    The layer's new slots, and the memory for these queries.
  """
  slots = layer['k'].shape[3]
  ring = spec.window is not None
  places = fresh.positions % slots if ring else fresh.positions
  keep = fresh.positions >= 0
  if ring:
    # Of more new tokens than slots only the last ones stay.
    last = jnp.max(fresh.positions, axis=1, keepdims=True)
    keep &= fresh.positions > last - slots
  places = jnp.where(keep, places, slots)  # out of range: dropped
  rows = jnp.arange(places.shape[0])[:, None]
  k_new, v_new = fresh.k, fresh.v
  if places.size == 1:
    # XLA:CPU makes a scatter of one token an update that it fuses into every
    # user of the cache, each with a copy of its own. Two tokens stay in place.
    places, k_new, v_new = (
      jnp.repeat(x, 2, axis=1) for x in (places, k_new, v_new)
    )
  k, v = layer['k'], layer['v']
  new = {
    'k': k.at[rows, :, :, places].set(k_new.astype(k.dtype), mode='drop'),
    'v': v.at[rows, :, places].set(v_new.astype(v.dtype), mode='drop'),
  }
  if lengths is None:
    # Order is the index: padding is kept out by segment 0.
    return new, fresh._replace(positions=None)
  held_now = jnp.maximum(lengths, jnp.max(fresh.positions, axis=1) + 1)
  if not ring:
    index = jnp.arange(slots)[None]
    positions = jnp.where(index < held_now[:, None], index, -1)
    return new, Memory(*_views(new), positions=positions)
  if fresh.positions.shape[1] == 1:
    # What a single new token pushed out of the ring is out of its sight.
    return new, Memory(*_views(new), positions=_ring_positions(held_now, slots))
  joined = [
    jnp.concatenate([old.astype(x.dtype), x], axis=1)
    for old, x in zip(_views(layer), (fresh.k, fresh.v), strict=True)
  ]
  held = _ring_positions(lengths, slots)
  positions = jnp.concatenate([held, fresh.positions], axis=1)
  return new, Memory(*joined, positions=positions)


def _views(layer: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Keys and values as [B, S, K, H]."""
  return layer['k'].transpose(0, 3, 1, 2), layer['v'].transpose(0, 2, 1, 3)


def _ring_positions(lengths: jax.Array, slots: int) -> jax.Array:
  """int32[B, S]: the newest position of each slot, -1 where there is none."""
  newest = lengths[:, None] - 1
  age = (newest - jnp.arange(slots)[None]) % slots
  return jnp.where(newest - age >= 0, newest - age, -1)


def mask(queries: Memory, memory: Memory, window: int | None) -> attention.Mask:
  """Returns the mask between new tokens and a memory."""
  by_index = memory.positions is None
  groups = None if memory.groups is None else queries.groups
  segments = None if memory.segments is None else queries.segments
  return attention.Mask(
    q_segments=segments,
    kv_segments=memory.segments,
    q_positions=None if by_index else queries.positions,
    kv_positions=memory.positions,
    q_groups=groups,
    kv_groups=memory.groups,
    window=window,
  )
