"""Exact attention in blocks of queries, for CPU and for very long rows.

Axes: B batch, T query length, S key length, N query heads, K key/value heads,
G = N/K queries a key head, H head dim; Q and C a block of queries and of keys.

Nothing of size [T, S] is ever made. The backward pass recomputes each block's
weights from the saved log-sum-exp (Dao et al. 2022, algorithm 4), so what is
kept is linear in length. Two regimes share that mathematics:

  few blocks   unrolled, so that each block meets exactly the keys it may see;
  many blocks  a double loop with an online softmax (a program of constant
               size, also at 200,000 tokens), skipping blocks nothing sees.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from yi_jax.models import attention

# More blocks than this make large programs: loop instead of unrolling.
_MOST_UNROLLED = 16
_LONG = 4096  # tokens; beyond, larger blocks waste little and cost less


def blockwise(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: attention.Mask,
  block: int | None = None,
) -> jax.Array:
  """Attends block by block; same arguments and result as `reference`.

  Args:
    q_BTNH: rotated queries, not yet scaled.
    k_BSKH: rotated keys; K divides N.
    v_BSKH: values.
    mask: what each query sees.
    block: queries a block; None takes 64 for short rows, 256 beyond, and 512
      for long ones.

  Returns:
    [B, T, N, H] in q's type.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  if block is None:
    block = 64 if T <= 64 * _MOST_UNROLLED else 256 if T <= _LONG else 512
  if mask.q_positions is not None and T == 1:
    return attention.reference(q_BTNH, k_BSKH, v_BSKH, mask)
  # Heads first: each product is then one [G·Q, H] x [H, C] a batch and head.
  q = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  k, v = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  unrolled = -(-T // block) <= _MOST_UNROLLED
  attend = _unrolled if unrolled else _looped
  out = attend(q, k, v, mask, block)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


# --------------------------------------------------- what the loop does a block


def _scores(q: jax.Array, k: jax.Array, seen: jax.Array) -> jax.Array:
  """float32[B, K, G, Q, C], with what is not seen far below everything."""
  scores = jnp.einsum(
    'BKGQH,BKCH->BKGQC', q, k, preferred_element_type=jnp.float32
  )
  return jnp.where(seen[:, None, None], scores, attention.MASKED)


def _block_gradients(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  seen: jax.Array,
  lse: jax.Array,
  out_grad: jax.Array,
  delta: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of one block's q, k, v.

  Args:
    q: [B, K, G, Q, H], scaled.
    k: [B, K, C, H].
    v: [B, K, C, H].
    seen: boolean that broadcasts to [B, Q, C].
    lse: float32[B, K, G, Q], log of the summed exponentials of each query.
    out_grad: [B, K, G, Q, H].
    delta: float32[B, K, G, Q], sum over H of out_grad times out.

  Returns:
    Gradients shaped as q, k and v, in float32.
  """
  f32 = dict(preferred_element_type=jnp.float32)
  weights = jnp.exp(_scores(q, k, seen) - lse[..., None])
  v_grad = jnp.einsum(
    'BKGQC,BKGQH->BKCH', weights.astype(v.dtype), out_grad, **f32
  )
  weight_grad = jnp.einsum('BKGQH,BKCH->BKGQC', out_grad, v, **f32)
  score_grad = (weights * (weight_grad - delta[..., None])).astype(q.dtype)
  q_grad = jnp.einsum('BKGQC,BKCH->BKGQH', score_grad, k, **f32)
  k_grad = jnp.einsum('BKGQC,BKGQH->BKCH', score_grad, q, **f32)
  return q_grad, k_grad, v_grad


def _delta(out: jax.Array, out_grad: jax.Array) -> jax.Array:
  product = out.astype(jnp.float32) * out_grad.astype(jnp.float32)
  return jnp.sum(product, axis=-1)


# ------------------------------------------------------------------ few blocks
#
# Scores stand transposed here, keys before queries: [C, G·Q]. Then every large
# product, backward too, takes its operands as they lie in memory, and only
# [·, H] slivers are ever transposed (a quarter of the time on CPU).


def _key_range(
  start: int, stop: int, num_keys: int, mask: attention.Mask
) -> tuple[int, int]:
  """First and last key that queries [start, stop) can see by index."""
  if mask.q_positions is not None:  # a cache: the index says nothing
    return 0, num_keys
  first = 0 if mask.window is None else max(0, start - mask.window + 1)
  return min(first, num_keys), min(stop, num_keys)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """[B, K, m, n] times [B, K, n, p], summed in float32."""
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _weights_of_block(
  q_HR: jax.Array,
  k_CH: jax.Array,
  mask: attention.Mask,
  start: int,
  stop: int,
  lo: int,
) -> jax.Array:
  """Exponentials of one block's scores, none above 1.

  Args:
    q_HR: [B, K, H, G·Q], scaled.
    k_CH: [B, K, C, H].
    mask: of the whole rows.
    start: first query of the block.
    stop: query after its last.
    lo: first of the C keys.

  Returns:
    float32[B, K, C, G·Q], not yet divided by each query's sum.
  """
  Q, C = stop - start, k_CH.shape[2]
  part = mask.slice(slice(start, stop), slice(lo, lo + C))
  seen = part.visible(Q, C, start, lo).swapaxes(1, 2)[:, None, :, None]
  scores = _product(k_CH, q_HR)
  # With G apart, the mask repeats over an outer axis and loops stay vectors.
  scores = scores.reshape(*scores.shape[:3], -1, Q)
  scores = jnp.where(seen, scores, attention.MASKED)
  top = jnp.max(scores, axis=2, keepdims=True)
  weights = jnp.exp(scores - top)
  return weights.reshape(*weights.shape[:3], -1)


def _rows_of_block(x: jax.Array, start: int, stop: int) -> jax.Array:
  """[B, K, G, T, H] to [B, K, H, G·Q], the queries of one block."""
  part = jnp.moveaxis(x[:, :, :, start:stop], -1, 2)
  return part.reshape(*part.shape[:3], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _unrolled(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: attention.Mask, block: int
) -> jax.Array:
  return _unrolled_forward(q, k, v, mask, block)[0]


def _unrolled_forward(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: attention.Mask, block: int
) -> tuple[jax.Array, tuple]:
  B, K, G, T, H = q.shape
  v_HS = v.swapaxes(2, 3)
  outs, totals = [], []
  for start in range(0, T, block):
    stop = min(start + block, T)
    lo, hi = _key_range(start, stop, k.shape[2], mask)
    q_HR = _rows_of_block(q, start, stop)
    weights = _weights_of_block(q_HR, k[:, :, lo:hi], mask, start, stop, lo)
    total = jnp.sum(weights, axis=2, keepdims=True)
    # Divided by the sum here, where H numbers a query are left of C.
    out_HR = _product(v_HS[:, :, :, lo:hi], weights.astype(v.dtype)) / total
    out = out_HR.reshape(B, K, H, G, stop - start)
    outs.append(jnp.moveaxis(out, 2, -1))
    totals.append(total)
  out = jnp.concatenate(outs, axis=3).astype(q.dtype)
  return out, (q, k, v, mask, out, totals)


def _unrolled_backward(block: int, saved: tuple, out_grad: jax.Array) -> tuple:
  q, k, v, mask, out, totals = saved
  B, K, G, T, H = q.shape
  k_HS = k.swapaxes(2, 3)
  delta = _delta(out, out_grad)[..., None]
  q_grads = []
  k_grad = jnp.zeros(k.shape, jnp.float32)
  v_grad = jnp.zeros(v.shape, jnp.float32)
  for start, total in zip(range(0, T, block), totals, strict=True):
    stop = min(start + block, T)
    lo, hi = _key_range(start, stop, k.shape[2], mask)
    q_HR, grad_HR, delta_1R = (
      _rows_of_block(x, start, stop) for x in (q, out_grad, delta)
    )
    weights = _weights_of_block(q_HR, k[:, :, lo:hi], mask, start, stop, lo)
    grad_HR = (grad_HR / total).astype(q.dtype)
    weight_grad = _product(v[:, :, lo:hi], grad_HR)
    score_grad = (weights * (weight_grad - delta_1R / total)).astype(q.dtype)
    dv = _product(weights.astype(v.dtype), grad_HR.swapaxes(2, 3))
    dk = _product(score_grad, q_HR.swapaxes(2, 3))
    dq = _product(k_HS[:, :, :, lo:hi], score_grad)
    q_grads.append(jnp.moveaxis(dq.reshape(B, K, H, G, stop - start), 2, -1))
    v_grad = v_grad.at[:, :, lo:hi].add(dv)
    k_grad = k_grad.at[:, :, lo:hi].add(dk)
  q_grad = jnp.concatenate(q_grads, axis=3).astype(q.dtype)
  return q_grad, k_grad.astype(k.dtype), v_grad.astype(v.dtype), None


_unrolled.defvjp(_unrolled_forward, _unrolled_backward)


# ----------------------------------------------------------------- many blocks


def _looped(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: attention.Mask, block: int
) -> jax.Array:
  """Pads to whole blocks, loops, and cuts the padding off again."""
  T, S = q.shape[3], k.shape[2]
  more_q, more_k = -T % block, -S % block

  def pad(
    x: jax.Array | None, axis: int, more: int, value: int = 0
  ) -> jax.Array | None:
    if x is None or not more:
      return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, more)
    return jnp.pad(x, widths, constant_values=value)

  # Padded keys stand after every real query, or at the empty position -1.
  padded = dataclasses.replace(
    mask,
    q_segments=pad(mask.q_segments, 1, more_q),
    kv_segments=pad(mask.kv_segments, 1, more_k),
    q_positions=pad(mask.q_positions, 1, more_q),
    kv_positions=pad(mask.kv_positions, 1, more_k, -1),
    q_groups=pad(mask.q_groups, 1, more_q),
    kv_groups=pad(mask.kv_groups, 1, more_k),
  )
  q = pad(q, 3, more_q)
  k, v = pad(k, 2, more_k), pad(v, 2, more_k)
  return _double_loop(q, k, v, padded, block)[:, :, :, :T]


def _block_range(
  i: jax.Array, block: int, num_blocks: int, mask: attention.Mask
) -> tuple[jax.Array | int, jax.Array | int]:
  """First and last (exclusive) key block that query block i can see."""
  if mask.q_positions is not None:
    return 0, num_blocks
  if mask.window is None:
    return 0, jnp.minimum(i + 1, num_blocks)
  first = jnp.maximum(0, i * block - mask.window + 1) // block
  return first, jnp.minimum(i + 1, num_blocks)


def _cut(x: jax.Array, i: jax.Array, block: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _visible_blocks(
  mask: attention.Mask, i: jax.Array, j: jax.Array, block: int
) -> jax.Array:
  part = dataclasses.replace(
    mask,
    **{
      name: _cut(x, i if name.startswith('q_') else j, block, 1)
      for name in _MASK_ARRAYS
      if (x := getattr(mask, name)) is not None
    },
  )
  return part.visible(block, block, i * block, j * block)


_MASK_ARRAYS = (
  'q_segments',
  'kv_segments',
  'q_positions',
  'kv_positions',
  'q_groups',
  'kv_groups',
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _double_loop(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: attention.Mask, block: int
) -> jax.Array:
  return _double_loop_forward(q, k, v, mask, block)[0]


def _double_loop_forward(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: attention.Mask, block: int
) -> tuple[jax.Array, tuple]:
  B, K, G, T, H = q.shape
  num_blocks = k.shape[2] // block

  def one_query_block(i: jax.Array) -> tuple[jax.Array, jax.Array]:
    q_i = _cut(q, i, block, 3)

    def meet(j: jax.Array, carry: tuple) -> tuple:
      acc, top, total = carry
      seen = _visible_blocks(mask, i, j, block)
      scores = _scores(q_i, _cut(k, j, block, 2), seen)
      new_top = jnp.maximum(top, scores.max(axis=-1))
      weights = jnp.exp(scores - new_top[..., None])
      shrink = jnp.exp(top - new_top)
      v_j = _cut(v, j, block, 2)
      acc = acc * shrink[..., None] + jnp.einsum(
        'BKGQC,BKCH->BKGQH',
        weights.astype(v.dtype),
        v_j,
        preferred_element_type=jnp.float32,
      )
      return acc, new_top, total * shrink + weights.sum(axis=-1)

    start = (
      jnp.zeros((B, K, G, block, H), jnp.float32),
      jnp.full((B, K, G, block), -jnp.inf, jnp.float32),
      jnp.zeros((B, K, G, block), jnp.float32),
    )
    lo, hi = _block_range(i, block, num_blocks, mask)
    acc, top, total = jax.lax.fori_loop(lo, hi, meet, start)
    return (acc / total[..., None]).astype(q.dtype), top + jnp.log(total)

  out, lse = jax.lax.map(one_query_block, jnp.arange(T // block))
  out = jnp.moveaxis(out, 0, 3).reshape(B, K, G, T, H)
  lse = jnp.moveaxis(lse, 0, 3).reshape(B, K, G, T)
  return out, (q, k, v, mask, out, lse)


def _double_loop_backward(
  block: int, saved: tuple, out_grad: jax.Array
) -> tuple:
  q, k, v, mask, out, lse = saved
  num_blocks = k.shape[2] // block
  delta = _delta(out, out_grad)

  def one_query_block(kv_grads: tuple, i: jax.Array) -> tuple:
    q_i, lse_i, grad_i, delta_i = (
      _cut(x, i, block, 3) for x in (q, lse, out_grad, delta)
    )

    def meet(j: jax.Array, carry: tuple) -> tuple:
      dq, dk, dv = carry
      more = _block_gradients(
        q_i,
        _cut(k, j, block, 2),
        _cut(v, j, block, 2),
        _visible_blocks(mask, i, j, block),
        lse_i,
        grad_i,
        delta_i,
      )

      def add(total: jax.Array, part: jax.Array) -> jax.Array:
        part += _cut(total, j, block, 2)
        return jax.lax.dynamic_update_slice_in_dim(total, part, j * block, 2)

      return dq + more[0], add(dk, more[1]), add(dv, more[2])

    start = (jnp.zeros(q_i.shape, jnp.float32), *kv_grads)
    lo, hi = _block_range(i, block, num_blocks, mask)
    dq, *kv_grads = jax.lax.fori_loop(lo, hi, meet, start)
    return tuple(kv_grads), dq.astype(q.dtype)

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  query_blocks = jnp.arange(q.shape[3] // block)
  (dk, dv), dq = jax.lax.scan(one_query_block, zeros, query_blocks)
  dq = jnp.moveaxis(dq, 0, 3).reshape(q.shape)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_double_loop.defvjp(_double_loop_forward, _double_loop_backward)
