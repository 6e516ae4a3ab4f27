"""Next-token loss that never holds all logits.

Axes: B batch, T positions, C positions of one chunk, D model, V vocabulary.

At V = 64,000 the float32 logits of a row of 4,096 tokens are 1 GB and their
gradient another. Here positions are taken a chunk at a time, and the gradients
with respect to the hidden states and the output kernel are made in the forward
pass, while the chunk's logits are at hand: three products in all, none done
twice, and [B, T, V] never exists.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Logits held at a time, and the fewest positions that keep a product efficient.
_CHUNK_LOGITS = 2**24
_FEWEST_POSITIONS = 128


def cross_entropy(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  z_loss: float = 0.0,
  chunk_logits: int = _CHUNK_LOGITS,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the weighted sum of the negative log-likelihoods.

  The sum, not the mean: callers add sums and weights over microbatches and
  hosts and divide once.

  Args:
    hidden_BTD: final hidden states, any float type.
    kernel_DV: output matrix; used in the type of `hidden_BTD`.
    targets_BT: int32, the token that follows each position.
    weights_BT: float32, 0 where there is no target.
    z_loss: adds z_loss * log(Z)^2 a token, which keeps the softmax's
      normaliser Z near 1 (PaLM, section 5).
    chunk_logits: logits held at a time.

  Returns:
    The loss summed over tokens, in nats, differentiable with respect to
    hidden_BTD and kernel_DV; and {'nll': the same without z_loss, 'weight':
    the sum of weights}.
  """
  weights_BT = weights_BT.astype(jnp.float32)
  hidden, targets, weights = _chunks(
    (hidden_BTD, targets_BT, weights_BT), kernel_DV.shape[1], chunk_logits
  )
  total, nll = _summed(hidden, kernel_DV, targets, weights, z_loss)
  return total, {
    'nll': jax.lax.stop_gradient(nll),
    'weight': jnp.sum(weights_BT),
  }


def by_bucket(
  hidden_BTD: jax.Array,
  kernel_DV: jax.Array,
  targets_BT: jax.Array,
  weights_BT: tuple[jax.Array, jax.Array],
  z_loss: float = 0.0,
  chunk_logits: int = _CHUNK_LOGITS,
  *,
  num_buckets: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns what `cross_entropy` does, and the sums of each bucket.

  For evaluation: it has no gradient of its own, and its one pass over the
  logits is that of `cross_entropy`.

  Args:
    hidden_BTD: as there, like all others.
    kernel_DV: as there.
    targets_BT: as there.
    weights_BT: (weights, int32[B, T] bucket of each target).
    z_loss: not of use here.
    chunk_logits: as there.
    num_buckets: how many there are.

  Returns:
    The sum in nats, and beside 'nll' and 'weight' the float32[num_buckets]
    'bucket_nll' and 'bucket_weight'.
  """
  del z_loss
  narrow = kernel_DV.astype(hidden_BTD.dtype)

  def step(sums: jax.Array, chunk: tuple) -> tuple[jax.Array, None]:
    hidden, targets, weights, buckets = chunk
    made = _chunk_loss(_logits(hidden, narrow), targets, weights, 0.0)
    is_in = jax.nn.one_hot(buckets, num_buckets)
    pairs = jnp.stack([weights * made.each, weights], axis=-1)
    return sums + jnp.einsum('BCX,BCN->XN', pairs, is_in), None

  weights, buckets = weights_BT
  rows = hidden_BTD, targets_BT, weights.astype(jnp.float32), buckets
  nll, weight = jax.lax.scan(
    step,
    jnp.zeros((2, num_buckets), jnp.float32),
    _chunks(rows, kernel_DV.shape[1], chunk_logits),
  )[0]
  return nll.sum(), {
    'nll': nll.sum(),
    'weight': weight.sum(),
    'bucket_nll': nll,
    'bucket_weight': weight,
  }


def _chunks(
  arrays: tuple[jax.Array, ...], vocabulary: int, chunk_logits: int
) -> tuple[jax.Array, ...]:
  """Returns arrays [B, T, …] as [chunks, B, C, …], padded with zeros."""
  B, T = arrays[0].shape[:2]
  chunk = max(chunk_logits // (vocabulary * B), _FEWEST_POSITIONS)
  chunk = min(chunk - chunk % _FEWEST_POSITIONS, T)
  num_chunks = -(-T // chunk)
  pad = ((0, 0), (0, num_chunks * chunk - T))

  def split(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, pad + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(B, num_chunks, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  return tuple(split(x) for x in arrays)


class _Chunk(NamedTuple):
  """What one chunk of logits gives.

  Attributes:
    loss: its weighted sum, z-loss included.
    nll: the same without z-loss.
    each: [B, C], the loss of each position, neither weighted nor with z-loss.
    exponentials: [B, C, V], none above 1; times `inverse` they are the softmax.
    inverse: [B, C], one over their sum.
    log_z: [B, C], log of the softmax's normaliser.
  """

  loss: jax.Array
  nll: jax.Array
  each: jax.Array
  exponentials: jax.Array
  inverse: jax.Array
  log_z: jax.Array


def _chunk_loss(
  logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float
) -> _Chunk:
  """Takes float32[B, C, V] logits; exponentials are made once."""
  top = jnp.max(logits, axis=-1, keepdims=True)
  exponentials = jnp.exp(logits - top)
  total = jnp.sum(exponentials, axis=-1)
  log_z = top[..., 0] + jnp.log(total)
  # A gather where it is the faster; elsewhere a sum, as the vocabulary may be
  # cut over devices.
  chosen = jax.lax.platform_dependent(
    logits, targets, cpu=_gathered, default=_summed_up
  )
  each = log_z - chosen
  nll = jnp.sum(weights * each)
  loss = nll + z_loss * jnp.sum(weights * log_z**2)
  return _Chunk(loss, nll, each, exponentials, 1 / total, log_z)


def _gathered(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _summed_up(logits: jax.Array, targets: jax.Array) -> jax.Array:
  chosen = jnp.where(_is_target(targets, logits), logits, 0.0)
  return jnp.sum(chosen, axis=-1)


def _is_target(targets: jax.Array, logits: jax.Array) -> jax.Array:
  words = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2)
  return targets[..., None] == words


def _logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
  return jnp.einsum(
    'BCD,DV->BCV', hidden, kernel, preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed(
  hidden: jax.Array,
  kernel: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  z_loss: float,
) -> tuple[jax.Array, jax.Array]:
  narrow = kernel.astype(hidden.dtype)

  def step(sums: tuple, chunk: tuple) -> tuple[tuple, None]:
    h, t, w = chunk
    made = _chunk_loss(_logits(h, narrow), t, w, z_loss)
    return (sums[0] + made.loss, sums[1] + made.nll), None

  zero = jnp.zeros((), jnp.float32)
  sums, _ = jax.lax.scan(step, (zero, zero), (hidden, targets, weights))
  return sums


def _summed_forward(
  hidden: jax.Array,
  kernel: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  z_loss: float,
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
  narrow = kernel.astype(hidden.dtype)

  def step(carry: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
    loss_sum, nll_sum, kernel_grad = carry
    h, t, w = chunk
    logits = _logits(h, narrow)
    made = _chunk_loss(logits, t, w, z_loss)
    # d loss / d logits = w (softmax (1 + 2 z log Z) - one_hot)
    scale = w * (1.0 + 2.0 * z_loss * made.log_z) * made.inverse
    soft = made.exponentials * scale[..., None]
    is_target = _is_target(t, logits)
    grad = (soft - jnp.where(is_target, w[..., None], 0.0)).astype(h.dtype)
    h_grad = jnp.einsum('BCV,DV->BCD', grad, narrow)
    kernel_grad += jnp.einsum(
      'BCD,BCV->DV', h, grad, preferred_element_type=jnp.float32
    )
    sums = loss_sum + made.loss, nll_sum + made.nll
    return (*sums, kernel_grad), h_grad

  zero = jnp.zeros((), jnp.float32)
  start = (zero, zero, jnp.zeros(kernel.shape, jnp.float32))
  chunks = (hidden, targets, weights)
  (loss, nll, kernel_grad), hidden_grad = jax.lax.scan(step, start, chunks)
  return (loss, nll), (hidden_grad, kernel_grad.astype(kernel.dtype))


def _summed_backward(z_loss: float, saved: tuple, outer: tuple) -> tuple:
  del z_loss  # already inside the saved gradients
  hidden_grad, kernel_grad = saved
  scale = outer[0]
  return (
    hidden_grad * scale.astype(hidden_grad.dtype),
    kernel_grad * scale.astype(kernel_grad.dtype),
    None,
    None,
  )


_summed.defvjp(_summed_forward, _summed_backward)
