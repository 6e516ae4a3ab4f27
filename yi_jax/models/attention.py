"""What attention is: the mask, the plain oracle, and implementations by name.

Axes: B batch, T query length, S key length, N query heads, K key/value heads,
G = N/K queries a key head, H head dim.

Every implementation is a function attend(q, k, v, mask) that a model receives
as an argument, so that kernels and meshes can change without touching it:

  reference  plain softmax over a boolean [B, T, S]; the oracle of all others
  blockwise  blocks of queries, exact skipping of what no query sees, memory
             linear in length; the default on CPU (models/blockwise.py)
  splash     the Pallas kernel of JAX for TPU          (models/kernels.py)
  cudnn      flash attention of cuDNN through jax.nn   (models/kernels.py)

`cached`, beside them, is for the steps of decoding: few queries, a long cache;
`chunked` (models/chunked.py) for many queries and a very long one.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from yi_jax import spelling

# float32, finite: a row that sees nothing then averages instead of giving NaN.
MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
  """Which keys each query sees; every implementation expands it as it needs.

  A query sees a key that is not after it, in its own segment, inside its
  window, and in its own prefix group or in the shared group 0.

  Attributes:
    q_segments: int32[B, T] or None for one segment; 0 marks padding.
    kv_segments: int32[B, S] or None, as q_segments.
    q_positions: int32[B, T] or None; None means that the index is the order
      (packed rows: their positions restart, their order does not).
    kv_positions: int32[B, S] or None; -1 marks an empty slot of a cache.
    q_groups: int32[B, T] or None. Group 0 is a prefix that all groups share,
      e.g. one prompt with two answers that must not see each other (DPO).
    kv_groups: int32[B, S] or None.
    window: tokens a query sees, itself included; None is all before it.
  """

  q_segments: jax.Array | None = None
  kv_segments: jax.Array | None = None
  q_positions: jax.Array | None = None
  kv_positions: jax.Array | None = None
  q_groups: jax.Array | None = None
  kv_groups: jax.Array | None = None
  window: int | None = dataclasses.field(
    default=None, metadata=dict(static=True)
  )

  def slice(self, queries: slice, keys: slice) -> 'Mask':
    """Returns the mask of some queries and keys (slices along T and S).

    Where the index is the order, `visible` must be told where they begin.
    """

    def cut(x: jax.Array | None, where: slice) -> jax.Array | None:
      return None if x is None else x[:, where]

    return dataclasses.replace(
      self,
      q_segments=cut(self.q_segments, queries),
      kv_segments=cut(self.kv_segments, keys),
      q_positions=cut(self.q_positions, queries),
      kv_positions=cut(self.kv_positions, keys),
      q_groups=cut(self.q_groups, queries),
      kv_groups=cut(self.kv_groups, keys),
    )

  def visible(
    self,
    num_queries: int,
    num_keys: int,
    first_query: int | jax.Array = 0,
    first_key: int | jax.Array = 0,
  ) -> jax.Array:
    """Returns what is visible as a boolean that broadcasts to [B, T, S].

    Args:
      num_queries: T of the (sliced) queries.
      num_keys: S of the (sliced) keys.
      first_query: index of the first query where the index is the order.
      first_key: index of the first key, likewise.
    """
    if self.q_positions is None:
      q_place = (first_query + jnp.arange(num_queries))[None, :, None]
      kv_place = (first_key + jnp.arange(num_keys))[None, None, :]
    else:
      q_place = self.q_positions[:, :, None]
      kv_place = self.kv_positions[:, None, :]
    seen = kv_place <= q_place
    if self.kv_positions is not None:
      seen &= kv_place >= 0
    if self.window is not None:
      seen &= q_place - kv_place < self.window
    if self.q_segments is not None:
      seen &= self.q_segments[:, :, None] == self.kv_segments[:, None, :]
    if self.q_groups is not None:
      key_group = self.kv_groups[:, None, :]
      seen &= (key_group == 0) | (key_group == self.q_groups[:, :, None])
    return seen


AttentionFn = Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array]


def reference(
  q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask
) -> jax.Array:
  """Attends with a whole [B, N, T, S] of scores in float32.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys; K divides N.
    v_BSKH: values.
    mask: what each query sees.

  Returns:
    [B, T, N, H] in q's type. A query that sees nothing averages all values.
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  q = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H)
  scores = jnp.einsum(
    'BTKGH,BSKH->BKGTS', q, k_BSKH, preferred_element_type=jnp.float32
  )
  seen = mask.visible(T, S)[:, None, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1)
  out = jnp.einsum('BKGTS,BSKH->BTKGH', weights.astype(v_BSKH.dtype), v_BSKH)
  return out.reshape(B, T, N, H).astype(q_BTNH.dtype)


def cached(
  q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask
) -> jax.Array:
  """Attends with few queries to a long cache; as `reference` in all else.

  Each product takes keys and values in the order the cache stores them (see
  models/kv_cache.py), so that a step reads them once and copies nothing.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys; K divides N.
    v_BSKH: values.
    mask: what each query sees.

  Returns:
    [B, T, N, H] in q's type.
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  q = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  scores = jnp.einsum(
    'BKQH,BKHS->BKQS',
    q.reshape(B, K, -1, H),
    k_BSKH.transpose(0, 2, 3, 1),
    preferred_element_type=jnp.float32,
  )
  seen = mask.visible(T, S)[:, None, None]
  scores = jnp.where(seen, scores.reshape(B, K, -1, T, S), MASKED)
  weights = jax.nn.softmax(scores, axis=-1).reshape(B, K, -1, S)
  out = jnp.einsum(
    'BKQS,BKSH->BKQH',
    weights.astype(v_BSKH.dtype),
    v_BSKH.transpose(0, 2, 1, 3),
  )
  out = out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4)
  return out.reshape(B, T, N, H).astype(q_BTNH.dtype)


def get(name: str = 'auto') -> AttentionFn:
  """Returns an implementation by name.

  Args:
    name: 'reference', 'blockwise', 'splash', 'cudnn', or 'auto' for the one
      that suits the default backend.

  Raises:
    ValueError: for an unknown name.
  """
  from yi_jax.models import blockwise, kernels

  by_backend = {'tpu': kernels.splash, 'gpu': kernels.cudnn}
  known = {
    'reference': reference,
    'blockwise': blockwise.blockwise,
    'splash': kernels.splash,
    'cudnn': kernels.cudnn,
    'auto': by_backend.get(jax.default_backend(), blockwise.blockwise),
  }
  if name not in known:
    raise ValueError(f'no attention {name!r}{spelling.nearest(name, known)}')
  return known[name]
