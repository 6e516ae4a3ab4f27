"""Ring attention: one row over many devices, keys and values going round.

Axes: B batch, T query length, S key length, N query heads, K key/value heads,
G = N/K queries a key head, H head dim; all lengths are those on one device.
C devices of the mesh axis `context`; Q queries or keys of a block.

Each device keeps its queries; keys and values travel from device to device, so
that after C rounds every query has met every key, and nothing of size [T, S]
exists anywhere (Liu et al. 2023). A row is cut into 2C chunks, and device i
holds chunks i and 2C-1-i: of what is left under the causal mask each device then
has the same share, in every round (`zigzag`; Llama 3 report, section 3.3.2).

Inside a round blocks of queries meet blocks of keys with an online softmax, and
only blocks that the causal mask and the window leave anything of. Chunks that
are no whole number of blocks are padded, and the padding is not seen.

The backward pass is ours, because it must weigh by the log-sum-exp of the whole
row, not of one round: gradients of keys and values travel with them and arrive
at home after C rounds.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import attention

_BLOCK = 512
# From so many blocks on padding the last one costs little.
_MANY = 16
# Blocks are multiples of this, for the registers of a TPU.
_LANES = 8


def zigzag(length: int, devices: int) -> np.ndarray:
  """Returns where each token of a row stands once it is cut over devices.

  Example: zigzag(8, 2) == [0, 1, 6, 7, 2, 3, 4, 5]: the first device has the
  first and the last of four chunks.

  Args:
    length: tokens of a row, a multiple of 2 * devices.
    devices: C; a row on one device keeps its order.

  Returns:
    int[length], the token at each place.
  """
  if devices == 1:
    return np.arange(length)
  chunks = np.arange(length).reshape(2 * devices, -1)
  order = [c for i in range(devices) for c in (i, 2 * devices - 1 - i)]
  return chunks[order].ravel()


def padded(length: int, devices: int) -> int:
  """Returns the length of rows that can be cut over so many devices.

  Example: padded(30, 4) is 32; padded(200_000, 8) is 204,800, whose 16 chunks
  are 25 whole blocks each.

  Chunks of many blocks become whole blocks: cut evenly, those of 200,000 tokens
  would be of 504, which the units of a TPU work on as if they were of 512.

  Args:
    length: tokens a row.
    devices: C.
  """
  if devices == 1:
    return length
  chunks = 2 * devices
  whole = _BLOCK if length >= chunks * _MANY * _BLOCK else 1
  return length + -length % (chunks * whole)


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: attention.Mask,
  axis: str,
  devices: int,
) -> jax.Array:
  """Attends to whole rows from inside a shard_map; else as `reference`.

  Args:
    q_BTNH: rotated queries of this device, in zigzag order, not yet scaled.
    k_BSKH: rotated keys, likewise; K divides N.
    v_BSKH: values.
    mask: what each query sees; its arrays are this device's part.
    axis: the mesh axis rows are cut over.
    devices: C, its size.

  Returns:
    [B, T, N, H] in q's type.

  Raises:
    ValueError: for a mask with positions, as a cache has them.
  """
  if mask.q_positions is not None:
    raise ValueError(
      'ring attention is for training, without a cache: generate with '
      'mesh.context = 1'
    )
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  cut = _Cut(T // 2)
  q = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  k, v = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  kinds = ('segments', 'groups')
  q_ids, kv_ids = (
    {
      kind: cut.blocks(ids, 1)
      for kind in kinds
      if (ids := getattr(mask, f'{side}_{kind}')) is not None
    }
    for side in ('q', 'kv')
  )
  out = _ring(
    _Plan(axis, devices, cut, mask.window),
    cut.blocks(q, 3),
    cut.blocks(k, 2),
    cut.blocks(v, 2),
    q_ids,
    kv_ids,
  )
  out = cut.joined(out, 3)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


class _Cut(NamedTuple):
  """How the two chunks of a device become blocks.

  Attributes:
    chunk: tokens of a chunk.
  """

  chunk: int

  @property
  def num_blocks(self) -> int:
    """Blocks of a chunk."""
    return -(-self.chunk // _BLOCK)

  @property
  def block(self) -> int:
    """Q, tokens of a block; the last one of a chunk may be padded."""
    whole = -(-self.chunk // self.num_blocks)
    return whole + -whole % _LANES

  def blocks(self, x: jax.Array, dim: int) -> jax.Array:
    """[..., T, ...] -> [blocks, ..., Q, ...]; T stands at `dim`."""
    shape = x.shape
    x = x.reshape(*shape[:dim], 2, self.chunk, *shape[dim + 1 :])
    widths = [(0, 0)] * x.ndim
    widths[dim + 1] = (0, self.num_blocks * self.block - self.chunk)
    x = jnp.pad(x, widths)
    x = x.reshape(*shape[:dim], -1, self.block, *shape[dim + 1 :])
    return jnp.moveaxis(x, dim, 0)

  def joined(self, x: jax.Array, dim: int) -> jax.Array:
    """Undoes `blocks`."""
    x = jnp.moveaxis(x, 0, dim)
    shape = x.shape
    x = x.reshape(*shape[:dim], 2, -1, *shape[dim + 2 :])
    x = jax.lax.slice_in_dim(x, 0, self.chunk, axis=dim + 1)
    return x.reshape(*shape[:dim], -1, *shape[dim + 2 :])


class _Plan(NamedTuple):
  """All that is known when compiling.

  Attributes:
    axis: mesh axis the ring lies along.
    devices: C.
    cut: blocks of the device's tokens.
    window: tokens a query sees, or None.
  """

  axis: str
  devices: int
  cut: _Cut
  window: int | None

  def starts(self, device: jax.Array) -> jax.Array:
    """int32[2], the place in the row where each chunk of a device begins."""
    chunks = jnp.stack([device, 2 * self.devices - 1 - device])
    return chunks * self.cut.chunk

  def pass_on(self, tree: Any) -> Any:
    """Gives arrays to the next device, and takes those of the one before."""
    ring = [(i, (i + 1) % self.devices) for i in range(self.devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, ring), tree)


class _Round(NamedTuple):
  """Where queries and keys of one round stand.

  Attributes:
    plan: what is known when compiling.
    q_starts: int32[2], places where the chunks of the queries begin.
    kv_starts: int32[2], those of the keys.
  """

  plan: _Plan
  q_starts: jax.Array
  kv_starts: jax.Array

  def places(self, starts: jax.Array, block: jax.Array) -> jax.Array:
    """int32[Q], places of a block's tokens; -1 is padding."""
    cut = self.plan.cut
    chunk, inside = block // cut.num_blocks, block % cut.num_blocks
    index = inside * cut.block + jnp.arange(cut.block)
    return jnp.where(index < cut.chunk, starts[chunk] + index, -1)

  def visible(
    self, i: jax.Array, j: jax.Array, q_ids: dict, kv_ids: dict
  ) -> jax.Array:
    """Returns what query block i sees of key block j, [B, Q, Q] or [1, Q, Q].

    Args:
      i: block of queries.
      j: block of keys.
      q_ids: 'segments' and 'groups' [B, Q] of those queries, if there are any.
      kv_ids: the same of all keys, [blocks, B, Q].
    """
    ids = {f'q_{kind}': x for kind, x in q_ids.items()}
    ids |= {f'kv_{kind}': x[j] for kind, x in kv_ids.items()}
    mask = attention.Mask(
      **ids,
      q_positions=self.places(self.q_starts, i)[None],
      kv_positions=self.places(self.kv_starts, j)[None],
      window=self.plan.window,
    )
    return mask.visible(self.plan.cut.block, self.plan.cut.block)

  def over_keys(self, i: jax.Array, meet: Any, carry: Any) -> Any:
    """Folds `meet(j, carry)` over the key blocks that query block i can see.

    Places within a chunk are in order, so these are one stretch of blocks in
    each of both chunks.
    """
    cut, window = self.plan.cut, self.plan.window
    first = self.q_starts[i // cut.num_blocks]
    first += i % cut.num_blocks * cut.block  # place of the first query
    last = first + cut.block - 1
    hi = (last - self.kv_starts) // cut.block + 1
    hi = jnp.clip(hi, 0, cut.num_blocks)
    lo = jnp.zeros_like(hi)
    if window is not None:
      lo = (first - window + 1 - self.kv_starts) // cut.block
      lo = jnp.clip(lo, 0, cut.num_blocks)
    counts = jnp.maximum(hi - lo, 0)

    def step(n: jax.Array, carry: Any) -> Any:
      early = lo[0] + n
      late = cut.num_blocks + lo[1] + n - counts[0]
      return meet(jnp.where(n < counts[0], early, late), carry)

    return jax.lax.fori_loop(0, counts[0] + counts[1], step, carry)


def _scores(q: jax.Array, k: jax.Array, seen: jax.Array) -> jax.Array:
  """float32[B, K, G, Q, Q], with what is not seen far below everything."""
  scores = jnp.einsum(
    'BKGQH,BKCH->BKGQC', q, k, preferred_element_type=jnp.float32
  )
  return jnp.where(seen[:, None, None], scores, attention.MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(
  plan: _Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_ids: dict[str, jax.Array],
  kv_ids: dict[str, jax.Array],
) -> jax.Array:
  """Attends in blocks: q [blocks, B, K, G, Q, H], k and v without G."""
  return _ring_forward(plan, q, k, v, q_ids, kv_ids)[0]


def _ring_forward(
  plan: _Plan,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_ids: dict[str, jax.Array],
  kv_ids: dict[str, jax.Array],
) -> tuple[jax.Array, tuple]:
  here = jax.lax.axis_index(plan.axis)

  def one_round(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
    state, arrived = carry
    # Sent on while this round computes.
    following = plan.pass_on(arrived)
    source = (here - number) % plan.devices
    where = _Round(plan, plan.starts(here), plan.starts(source))
    return (_meet_all(where, q, q_ids, *arrived, state), following), None

  state = (
    jnp.zeros(q.shape, jnp.float32),
    jnp.full(q.shape[:-1], attention.MASKED, jnp.float32),
    jnp.zeros(q.shape[:-1], jnp.float32),
  )
  (state, _), _ = jax.lax.scan(
    one_round, (state, (k, v, kv_ids)), jnp.arange(plan.devices)
  )
  acc, top, total = state
  # Only padding may have met no key at all.
  total = jnp.where(total > 0, total, 1.0)
  out = (acc / total[..., None]).astype(q.dtype)
  return out, (q, k, v, q_ids, kv_ids, out, top + jnp.log(total))


def _meet_all(
  where: _Round,
  q: jax.Array,
  q_ids: dict[str, jax.Array],
  k: jax.Array,
  v: jax.Array,
  kv_ids: dict[str, jax.Array],
  state: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the online softmax's sums, maxima and totals after one round."""

  def one_query_block(_: None, block: tuple) -> tuple[None, tuple]:
    i, q_i, ids_i, state_i = block

    def meet(j: jax.Array, carry: tuple) -> tuple:
      acc, top, total = carry
      scores = _scores(q_i, k[j], where.visible(i, j, ids_i, kv_ids))
      new_top = jnp.maximum(top, scores.max(axis=-1))
      weights = jnp.exp(scores - new_top[..., None])
      shrink = jnp.exp(top - new_top)
      acc = acc * shrink[..., None] + jnp.einsum(
        'BKGQC,BKCH->BKGQH',
        weights.astype(v.dtype),
        v[j],
        preferred_element_type=jnp.float32,
      )
      return acc, new_top, total * shrink + weights.sum(axis=-1)

    return None, where.over_keys(i, meet, state_i)

  blocks = (jnp.arange(len(q)), q, q_ids, state)
  return jax.lax.scan(one_query_block, None, blocks)[1]


def _ring_backward(plan: _Plan, saved: tuple, out_grad: jax.Array) -> tuple:
  q, k, v, q_ids, kv_ids, out, lse = saved
  here = jax.lax.axis_index(plan.axis)
  product = out.astype(jnp.float32) * out_grad.astype(jnp.float32)
  queries = (q, q_ids, lse, out_grad, jnp.sum(product, axis=-1))

  def one_round(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
    q_grad, arrived, grads = carry
    following = plan.pass_on(arrived)
    source = (here - number) % plan.devices
    where = _Round(plan, plan.starts(here), plan.starts(source))
    # What earlier devices found for these keys is on its way meanwhile.
    grads = plan.pass_on(grads)
    q_grad, *more = _gradients(where, queries, *arrived, q_grad)
    grads = jax.tree.map(jnp.add, grads, tuple(more))
    return (q_grad, following, grads), None

  def zeros(x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32)

  start = (zeros(q), (k, v, kv_ids), (zeros(k), zeros(v)))
  (q_grad, _, grads), _ = jax.lax.scan(
    one_round, start, jnp.arange(plan.devices)
  )
  k_grad, v_grad = plan.pass_on(grads)  # home
  return (
    q_grad.astype(q.dtype),
    k_grad.astype(k.dtype),
    v_grad.astype(v.dtype),
    None,
    None,
  )


def _gradients(
  where: _Round,
  queries: tuple,
  k: jax.Array,
  v: jax.Array,
  kv_ids: dict[str, jax.Array],
  q_grad: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns q_grad with this round's share, and gradients of its k and v."""
  f32 = dict(preferred_element_type=jnp.float32)

  def one_query_block(kv_grads: tuple, block: tuple) -> tuple[tuple, jax.Array]:
    i, (q_i, ids_i, lse_i, grad_i, delta_i), q_grad_i = block

    def meet(j: jax.Array, carry: tuple) -> tuple:
      dq, dk, dv = carry
      scores = _scores(q_i, k[j], where.visible(i, j, ids_i, kv_ids))
      weights = jnp.exp(scores - lse_i[..., None])
      dv_j = jnp.einsum(
        'BKGQC,BKGQH->BKCH', weights.astype(v.dtype), grad_i, **f32
      )
      weight_grad = jnp.einsum('BKGQH,BKCH->BKGQC', grad_i, v[j], **f32)
      score_grad = weights * (weight_grad - delta_i[..., None])
      score_grad = score_grad.astype(q_i.dtype)
      dq += jnp.einsum('BKGQC,BKCH->BKGQH', score_grad, k[j], **f32)
      dk_j = jnp.einsum('BKGQC,BKGQH->BKCH', score_grad, q_i, **f32)
      return dq, dk.at[j].add(dk_j), dv.at[j].add(dv_j)

    dq, *kv_grads = where.over_keys(i, meet, (q_grad_i, *kv_grads))
    return tuple(kv_grads), dq

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  blocks = (jnp.arange(len(q_grad)), queries, q_grad)
  kv_grads, q_grad = jax.lax.scan(one_query_block, zeros, blocks)
  return q_grad, *kv_grads


_ring.defvjp(_ring_forward, _ring_backward)
