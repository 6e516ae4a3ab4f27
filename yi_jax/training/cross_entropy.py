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
  B, T, D = hidden_BTD.shape
  V = kernel_DV.shape[1]
  chunk = max(chunk_logits // (V * B), _FEWEST_POSITIONS)
  chunk = min(chunk - chunk % _FEWEST_POSITIONS, T)
  num_chunks = -(-T // chunk)
  pad = ((0, 0), (0, num_chunks * chunk - T))

  def split(x: jax.Array) -> jax.Array:  # [B, T, …] -> [chunks, B, C, …]
    x = jnp.pad(x, pad + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(B, num_chunks, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  weights_BT = weights_BT.astype(jnp.float32)
  total, nll = _summed(
    split(hidden_BTD), kernel_DV, split(targets_BT), split(weights_BT), z_loss
  )
  return total, {
    'nll': jax.lax.stop_gradient(nll),
    'weight': jnp.sum(weights_BT),
  }


class _Chunk(NamedTuple):
  """What one chunk of logits gives.

  Attributes:
    loss: its weighted sum, z-loss included.
    nll: the same without z-loss.
    exponentials: [B, C, V], none above 1; times `inverse` they are the softmax.
    inverse: [B, C], one over their sum.
    log_z: [B, C], log of the softmax's normaliser.
  """

  loss: jax.Array
  nll: jax.Array
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
  nll = jnp.sum(weights * (log_z - chosen))
  loss = nll + z_loss * jnp.sum(weights * log_z**2)
  return _Chunk(loss, nll, exponentials, 1 / total, log_z)


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
