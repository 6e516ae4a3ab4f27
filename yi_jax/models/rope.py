"""Rotary position embedding (RoPE) in the rotate-half layout.

Axes: B batch, T positions, N heads, H head dim.

Yi lengthens its context only by raising the base ("RoPE ABF", Yi report 2.3
and 7.1): 1e4 in Yi-9B, 5e6 in Yi-6B and 34B, 1e7 in the later 200K models. The
base is read from each checkpoint and has no default here. Models of the same
architecture that stretch their positions otherwise are computed as well, see
`config.RopeScaling`.
"""

import math

import jax
import jax.numpy as jnp

from yi_jax.models import config as config_lib


def rotation_speeds(head_dim: int, theta: float) -> jax.Array:
  """Returns how fast each plane turns, in radians a position.

  Args:
    head_dim: H, even.
    theta: base; a larger one turns slower, so far positions stay distinct.

  Returns:
    float32[H/2], falling from 1 to about 1/theta.

  Raises:
    ValueError: if head_dim is odd.
  """
  if head_dim % 2:
    raise ValueError(f'RoPE turns pairs: head_dim must be even, not {head_dim}')
  exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  # Division, not theta**-exponent: the roundings differ, and at 200,000 tokens
  # the angles would drift from the ones transformers computes.
  return 1.0 / theta**exponent


def scaled_speeds(
  positions_BT: jax.Array,
  head_dim: int,
  theta: float,
  scaling: config_lib.RopeScaling,
) -> tuple[jax.Array, float]:
  """Returns speeds for stretched positions, and a factor for cosine and sine.

  The order of operations is that of transformers, whose float32 rounding turns
  into radians at far positions.

  Args:
    positions_BT: the longest row among them decides the base of 'dynamic'.
    head_dim: H.
    theta: base.
    scaling: how they are stretched.

  Returns:
    (float32[H/2] in radians a position, factor).
  """
  factor, length = scaling.factor, scaling.original_max_position_embeddings
  if scaling.rope_type == 'linear':
    return rotation_speeds(head_dim, theta) / factor, 1.0
  if scaling.rope_type == 'dynamic':
    longest = jnp.maximum(jnp.max(positions_BT) + 1, length)
    grown = factor * longest / length - (factor - 1)
    power = head_dim / (head_dim - 2)
    return rotation_speeds(head_dim, theta * grown**power), 1.0

  def plane(turns: float) -> float:
    """The plane, a fraction, that turns so often over the trained tokens."""
    wavelength = length / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(theta))

  low = max(math.floor(plane(scaling.beta_fast)), 0)
  high = min(math.ceil(plane(scaling.beta_slow)), head_dim - 1)
  planes = jnp.arange(head_dim // 2, dtype=jnp.float32)
  ramp = jnp.clip((planes - low) / (high - low or 0.001), 0, 1)
  exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  wavelengths = theta**exponent
  kept = 1 - ramp
  speeds = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
  size = scaling.attention_factor
  return speeds, 0.1 * math.log(factor) + 1 if size is None else size


def rotations(
  positions_BT: jax.Array,
  head_dim: int,
  theta: float,
  scaling: config_lib.RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosines and sines that `rotate` needs, once for all layers.

  Args:
    positions_BT: integer positions, in tokens; they restart in packed rows.
    head_dim: H.
    theta: base, see `rotation_speeds`.
    scaling: how positions are stretched, see `scaled_speeds`.

  Returns:
    Two arrays float32[B, T, 1, H/2].
  """
  if scaling is None:
    speeds, size = rotation_speeds(head_dim, theta), 1.0
  else:
    speeds, size = scaled_speeds(positions_BT, head_dim, theta, scaling)
  # float32 on purpose, although near position 200,000 an angle is only good to
  # 1e-2 radian: the released models were trained with this very rounding.
  positions = positions_BT[..., None, None].astype(jnp.float32)
  angles_BT1h = positions * speeds
  cos, sin = jnp.cos(angles_BT1h), jnp.sin(angles_BT1h)
  return (cos, sin) if size == 1.0 else (cos * size, sin * size)


def rotate(x_BTNH: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates queries or keys by their positions (Su et al. 2021, eq. 34).

  Plane i pairs dims i and i + H/2, as LLaMA checkpoints expect.

  Args:
    x_BTNH: queries or keys, any float type.
    turns: cosines and sines from `rotations`.

  Returns:
    Array of x's shape and type.
  """
  cos, sin = turns
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
