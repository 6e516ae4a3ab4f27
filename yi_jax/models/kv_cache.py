"""What decoding remembers: keys and values of every layer, rows of any length.

Axes: B batch, T new tokens, S slots, K key/value heads, H head dim.

Each layer has the kind its LayerSpec asks for: a full layer keeps every token,
a sliding one a ring of its window, a layer that borrows keys and values keeps
nothing. Paging and narrow types change this file, not the model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from yi_jax.models import attention
from yi_jax.models import config as config_lib


class Cache(NamedTuple):
  """Everything a batch of rows has decoded so far.

  Attributes:
    layers: {layer: {'k', 'v'}}, arrays [B, S, K, H] (one dict a layer, or with
      scanned layers one stacked on a leading axis).
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
  heads = (config.num_key_value_heads, config.head_dim)

  def layer(spec: config_lib.LayerSpec, stack: tuple[int, ...]) -> dict:
    if spec.kv_from is not None:
      return {}
    slots = length if spec.window is None else min(length, spec.window)
    shape = (*stack, batch, slots, *heads)
    zeros = jnp.zeros(shape, dtype or config.dtype)
    return {'k': zeros, 'v': zeros}

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
  slots = layer['k'].shape[1]
  ring = spec.window is not None
  places = fresh.positions % slots if ring else fresh.positions
  keep = fresh.positions >= 0
  if ring:
    # Of more new tokens than slots only the last ones stay.
    last = jnp.max(fresh.positions, axis=1, keepdims=True)
    keep &= fresh.positions > last - slots
  places = jnp.where(keep, places, slots)  # out of range: dropped
  rows = jnp.arange(places.shape[0])[:, None]
  new = {
    name: layer[name]
    .at[rows, places]
    .set(x.astype(layer[name].dtype), mode='drop')
    for name, x in (('k', fresh.k), ('v', fresh.v))
  }
  if lengths is None:
    # Order is the index: padding is kept out by segment 0.
    return new, fresh._replace(positions=None)
  if ring:
    held = _ring_positions(lengths, slots)
    joined = [
      jnp.concatenate([layer[name].astype(x.dtype), x], axis=1)
      for name, x in (('k', fresh.k), ('v', fresh.v))
    ]
    positions = jnp.concatenate([held, fresh.positions], axis=1)
    return new, Memory(*joined, positions=positions)
  held_now = jnp.maximum(lengths, jnp.max(fresh.positions, axis=1) + 1)
  index = jnp.arange(slots)[None]
  positions = jnp.where(index < held_now[:, None], index, -1)
  return new, Memory(new['k'], new['v'], positions=positions)


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
