"""Learning rates by step: warm up, then one of three ways to go on."""

import jax
import jax.numpy as jnp

NAMES = ('cosine', 'constant', 'wsd')


def learning_rate(
  step: jax.typing.ArrayLike,
  *,
  schedule: str,
  peak: float,
  steps: int,
  warmup_steps: int,
  final_fraction: float,
  decay_fraction: float,
) -> jax.Array:
  """Returns the rate of one update.

  The warm-up is linear and its first update already moves: peak / warmup. Then
  'constant' stays at the peak, 'cosine' falls along half a cosine (Loshchilov
  and Hutter 2017), and 'wsd' stays and falls linearly over the last
  `decay_fraction` of the steps (warm up, stay, decay: Hu et al. 2024). The
  last update of the falling ones has final_fraction * peak.

  Args:
    step: updates made so far, from 0.
    schedule: one of NAMES.
    peak: the largest rate.
    steps: updates in all.
    warmup_steps: updates of the warm-up.
    final_fraction: last rate as a share of the peak.
    decay_fraction: share of `steps` in which 'wsd' decays.

  Returns:
    float32 scalar.
  """
  step = jnp.asarray(step, jnp.float32)
  warm = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
  if schedule == 'constant':
    return peak * warm
  if schedule == 'cosine':
    start = warmup_steps
  else:
    start = max(warmup_steps, steps - round(decay_fraction * steps))
  # 0 up to `start`, 1 at the last update.
  progress = jnp.clip((step - start) / max(steps - 1 - start, 1), 0.0, 1.0)
  if schedule == 'cosine':
    progress = 0.5 * (1 - jnp.cos(jnp.pi * progress))
  return peak * warm * (1 - (1 - final_fraction) * progress)
