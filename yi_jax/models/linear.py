"""Products with a matrix of parameters, and what may stand beside it.

Axes: D in, F out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from yi_jax.models import config as config_lib
from yi_jax.models import lora


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[..., D] times [D, F], with a backward pass that suits the platform."""
  return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple:
  return x @ kernel, (x, kernel)


def _product_backward(saved: tuple, grad: jax.Array) -> tuple:
  x, kernel = saved

  def flat(x: jax.Array, grad: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1]).T @ grad.reshape(-1, grad.shape[-1])

  def whole(x: jax.Array, grad: jax.Array) -> jax.Array:
    return jnp.einsum('...D,...F->DF', x, grad)

  # XLA:CPU transposes both operands of a sum over several axes, element by
  # element (a tenth of a step); elsewhere it need not, and T may be cut over
  # devices, which no longer shows in a flat one.
  kernel_grad = jax.lax.platform_dependent(x, grad, cpu=flat, default=whole)
  return grad @ kernel.T, kernel_grad


_product.defvjp(_product_forward, _product_backward)


class Linear(nn.Module):
  """A product with a [in, out] kernel, a bias or an adapter if asked for."""

  features: int
  axes: tuple[str, str]
  config: config_lib.ModelConfig
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c, shape = self.config, (x.shape[-1], self.features)
    adapted = lora.is_target(c.lora, '/'.join(self.path))
    rounded = adapted and c.lora.base_bits == 8
    init = nn.initializers.normal(c.initializer_range)
    if rounded:  # never trained, nor made anew: see lora.attach
      init = nn.initializers.zeros
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(init, self.axes),
      shape,
      jnp.int8 if rounded else jnp.float32,
    )
    y = _product(x, kernel.astype(x.dtype))
    if rounded:
      ones = nn.with_logical_partitioning(nn.initializers.ones, self.axes[1:])
      scale = self.param('kernel_scale', ones, shape[1:], jnp.float32)
      y *= scale.astype(x.dtype)
    if adapted:
      y += self._adapter(x, shape)
    if self.use_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      bias = self.param('bias', zeros, (self.features,), jnp.float32)
      y += bias.astype(x.dtype)
    return y

  def _adapter(self, x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    config = self.config.lora

    def uniform(key: jax.Array, size: tuple[int, int], dtype: Any) -> jax.Array:
      bound = size[0] ** -0.5
      return jax.random.uniform(key, size, dtype, -bound, bound)

    a = self.param(
      'lora_A',
      nn.with_logical_partitioning(uniform, (self.axes[0], None)),
      (shape[0], config.rank),
      jnp.float32,
    )
    b = self.param(
      'lora_B',
      nn.with_logical_partitioning(nn.initializers.zeros, (None, self.axes[1])),
      (config.rank, shape[1]),
      jnp.float32,
    )
    narrow = _product(x, a.astype(x.dtype)) * config.scale
    return _product(narrow, b.astype(x.dtype))
