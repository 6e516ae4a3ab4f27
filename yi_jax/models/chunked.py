"""Attention of a chunk of new tokens to a long cache.

Axes: B batch, T query length, S slots, N query heads, K key/value heads,
G = N/K queries a key head, R = G·T, H head dim; C a block of keys.

`attention.cached` makes [T, S] scores, `blockwise` meets every slot of a cache,
full or empty. Here a loop meets blocks of slots, with an online softmax, up to
the last one that holds anything: time follows what was read, not the room there
is, and memory is that of one block. It is forward only: nothing is learned here.

Keys and values are taken as the cache has them, [B, K, H, S] and [B, K, S, H]:
a cache is never turned round, and a block of it is one copy.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from yi_jax.models import attention

BLOCK = 512  # keys; a larger one wastes more of the last, which is masked
_LARGE = 2048  # keys, for few queries: fewer turns of the loop
_FEW = 8  # queries


def chunked(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: attention.Mask,
  block: int | None = None,
) -> jax.Array:
  """Attends to a cache; same arguments and result as `attention.cached`.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys; K divides N.
    v_BSKH: values.
    mask: what each query sees, by positions.
    block: of keys; None takes BLOCK, or more for few queries. A cache that is no
      whole number of blocks is copied.

  Returns:
    [B, T, N, H] in q's type. What padding (position -1) gets means nothing.

  Raises:
    ValueError: for a mask whose order is the index; `blockwise` is for those.
  """
  if mask.q_positions is None:
    raise ValueError('chunked attention needs the positions of a cache')
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  if block is None:
    block = BLOCK if T > _FEW else max(BLOCK, math.gcd(S, _LARGE))
  more = -S % block
  if more:
    k_BSKH, v_BSKH = (
      jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (k_BSKH, v_BSKH)
    )
    mask = _padded(mask, more)
  q = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  k, v = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)
  out = _attend(q, k, v, mask, block)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def _padded(mask: attention.Mask, more: int) -> attention.Mask:
  """Returns the mask with empty slots at the end."""

  def pad(x: jax.Array | None, value: int) -> jax.Array | None:
    if x is None:
      return None
    return jnp.pad(x, ((0, 0), (0, more)), constant_values=value)

  return dataclasses.replace(
    mask,
    kv_positions=pad(mask.kv_positions, -1),
    kv_segments=pad(mask.kv_segments, 0),
    kv_groups=pad(mask.kv_groups, 0),
  )


def _attend(
  q_BKGTH: jax.Array,
  k_BKHS: jax.Array,
  v_BKSH: jax.Array,
  mask: attention.Mask,
  block: int,
) -> jax.Array:
  """float32[B, K, G, T, H]."""
  B, K, G, T, H = q_BKGTH.shape
  q_BKRH = q_BKGTH.reshape(B, K, G * T, H)
  whole, end = _blocks(mask, block)

  def meet(j: jax.Array, carry: tuple, everything: bool) -> tuple:
    out, top, total = carry
    k_BKHC = jax.lax.dynamic_slice_in_dim(k_BKHS, j * block, block, 3)
    v_BKCH = jax.lax.dynamic_slice_in_dim(v_BKSH, j * block, block, 2)
    scores = jnp.einsum(
      'BKRH,BKHC->BKRC', q_BKRH, k_BKHC, preferred_element_type=jnp.float32
    )
    if not everything:
      seen = _visible(mask, j, block, T)[:, None, None]
      scores = scores.reshape(B, K, G, T, block)
      scores = jnp.where(seen, scores, attention.MASKED)
      scores = scores.reshape(B, K, G * T, block)
    new_top = jnp.maximum(top, jnp.max(scores, axis=3, keepdims=True))
    weights = jnp.exp(scores - new_top)
    shrink = jnp.exp(top - new_top)
    more = jnp.einsum(
      'BKRC,BKCH->BKRH',
      weights.astype(v_BKCH.dtype),
      v_BKCH,
      preferred_element_type=jnp.float32,
    )
    total = total * shrink + jnp.sum(weights, axis=3, keepdims=True)
    return out * shrink + more, new_top, total

  start = (
    jnp.zeros((B, K, G * T, H), jnp.float32),
    jnp.full((B, K, G * T, 1), attention.MASKED, jnp.float32),
    jnp.zeros((B, K, G * T, 1), jnp.float32),
  )
  # Most blocks are seen whole and need no mask.
  carry = jax.lax.fori_loop(
    0, whole, functools.partial(meet, everything=True), start
  )
  out, _, total = jax.lax.fori_loop(
    whole, end, functools.partial(meet, everything=False), carry
  )
  return (out / total).reshape(B, K, G, T, H)


def _blocks(
  mask: attention.Mask, block: int
) -> tuple[jax.Array | int, jax.Array]:
  """How many leading blocks every query sees whole, and how many hold tokens.

  At least one block is met, so that no query is divided by nothing.
  """
  places = mask.kv_positions.reshape(mask.kv_positions.shape[0], -1, block)
  last = jnp.max(places, axis=(0, 2))
  index = jnp.arange(last.shape[0])
  # A block beyond what any query may see is as good as empty.
  newest = jnp.max(mask.q_positions)
  first = jnp.min(places, axis=(0, 2))
  reached = jnp.any((places >= 0) & (places <= newest), axis=(0, 2))
  end = jnp.maximum(jnp.max(jnp.where(reached, index + 1, 0)), 1)
  if any(x is not None for x in (mask.window, mask.q_segments, mask.q_groups)):
    return 0, end
  oldest = jnp.min(jnp.where(mask.q_positions < 0, newest, mask.q_positions))
  seen = (first >= 0) & (last <= oldest)
  whole = jnp.sum(jnp.cumprod(seen.astype(jnp.int32)))
  return jnp.minimum(whole, end), end


def _visible(
  mask: attention.Mask, j: jax.Array, block: int, num_queries: int
) -> jax.Array:
  """Boolean that broadcasts to [B, Q, C]: what is seen of block j."""

  def cut(x: jax.Array | None) -> jax.Array | None:
    if x is None:
      return None
    return jax.lax.dynamic_slice_in_dim(x, j * block, block, 1)

  part = dataclasses.replace(
    mask,
    kv_positions=cut(mask.kv_positions),
    kv_segments=cut(mask.kv_segments),
    kv_groups=cut(mask.kv_groups),
  )
  return part.visible(num_queries, block)
