"""Attention kernels that come with JAX, behind the house's interface.

Axes: B batch, T query length, S key length, N query heads, K key/value heads,
H head dim.

Both serve training and prefill, where the index is the order. With a cache
(explicit positions) or prefix groups they refuse: take 'blockwise' there.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from yi_jax.models import attention

_LANES = 128  # splash works on tiles of a multiple of so many tokens
_TILE = 512  # the largest; larger ones reread keys and values less


def _refuse(name: str, mask: attention.Mask) -> None:
  if mask.q_positions is not None or mask.q_groups is not None:
    raise ValueError(
      f"attention {name!r} knows neither a cache's positions nor prefix "
      "groups; use 'blockwise' or 'reference' for this call"
    )


def splash(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: attention.Mask,
  interpret: bool = False,
) -> jax.Array:
  """Attends with the Pallas splash kernel on TPU.

  Rows are padded to whole tiles and cut again, see `padded`.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys, S = T.
    v_BSKH: values.
    mask: segments and window only.
    interpret: run the kernel's Python on any backend (tests).

  Returns:
    [B, T, N, H] in q's type.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )

  _refuse('splash', mask)
  B, T, N, H = q_BTNH.shape
  if k_BSKH.shape[1] != T:
    raise ValueError('splash attends over rows as long as the queries')
  more = padded(T) - T
  pad = functools.partial(
    jnp.pad, pad_width=((0, 0), (0, more), (0, 0), (0, 0))
  )
  q, k, v = (
    pad(x).transpose(0, 2, 1, 3) for x in (q_BTNH * H**-0.5, k_BSKH, v_BSKH)
  )
  segments = mask.q_segments
  if segments is None:
    segments = jnp.ones((B, T), jnp.int32)
  # Padding is segment 0: it never meets a real token in either direction.
  segments = jnp.pad(segments, ((0, 0), (0, more)))
  attend = _splash_kernel(N, T + more, mask.window, interpret)
  ids = kernel.SegmentIds(q=segments, kv=segments)
  out = jax.vmap(attend)(q, k, v, ids)
  return out.transpose(0, 2, 1, 3)[:, :T].astype(q_BTNH.dtype)


def padded(length: int) -> int:
  """Returns the length of rows that are whole tiles of splash.

  Short rows become a multiple of the smallest tile. In long ones that would
  leave small tiles, so these become a multiple of the largest: 200,000 tokens
  are no multiple of either, and become 200,192.

  Args:
    length: tokens a row.
  """
  return length + -length % (_LANES if length <= 8 * _TILE else _TILE)


def _splash_kernel(
  num_heads: int, length: int, window: int | None, interpret: bool
) -> Callable[..., jax.Array]:
  """Returns attend(q, k, v, segment_ids) for one row, heads first."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  shape = (length, length)
  if window is None:
    one = masks.CausalMask(shape)
  else:
    one = masks.LocalMask(shape, window_size=(window - 1, 0), offset=0)
  block = next(b for b in (_TILE, 256, _LANES) if length % b == 0)
  sizes = kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  return kernel.make_splash_mha(
    masks.MultiHeadMask([one] * num_heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )


def cudnn(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: attention.Mask,
) -> jax.Array:
  """Attends with cuDNN's flash attention on GPU (bfloat16 or float16).

  Segments become a boolean [B, 1, T, S], because the public interface of
  jax.nn has no segment ids; without segments no mask array exists.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys, S = T.
    v_BSKH: values.
    mask: segments and window only.

  Returns:
    [B, T, N, H] in q's type.
  """
  return through_jax_nn(q_BTNH, k_BSKH, v_BSKH, mask, 'cudnn')


def through_jax_nn(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: attention.Mask,
  implementation: str,
) -> jax.Array:
  """Attends with jax.nn.dot_product_attention; see `cudnn`.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys, S = T.
    v_BSKH: values.
    mask: segments and window only.
    implementation: 'cudnn', which computes in a half type, or 'xla', which
      runs anywhere in the type it is given (the tests' way in).
  """
  _refuse('cudnn', mask)
  if q_BTNH.shape[1] != k_BSKH.shape[1]:
    raise ValueError('cudnn attends over rows as long as the queries')
  dtype = q_BTNH.dtype
  if implementation == 'cudnn' and dtype == jnp.float32:
    dtype = jnp.bfloat16
  segments = None
  if mask.q_segments is not None:
    same = mask.q_segments[:, :, None] == mask.kv_segments[:, None, :]
    segments = same[:, None]
  out = jax.nn.dot_product_attention(
    *(x.astype(dtype) for x in (q_BTNH, k_BSKH, v_BSKH)),
    mask=segments,
    is_causal=True,
    local_window_size=None if mask.window is None else (mask.window - 1, 0),
    implementation=implementation,
  )
  return out.astype(q_BTNH.dtype)
