"""Objectives: from parameters and a batch to a sum of losses.

An objective returns sums, never means: the training step adds them up over
microbatches and devices and divides once by the weight of the whole batch, so
that every token counts the same wherever it landed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from yi_jax.models import attention, transformer
from yi_jax.models import config as model_config
from yi_jax.training import cross_entropy

# Arrays of a batch by name; see `train_step.abstract_batch`.
Batch = dict[str, jax.Array]
# (params, batch) -> (sum of losses, {'nll': sum, 'weight': sum, ...}).
Objective = Callable[[dict[str, Any], Batch], tuple[jax.Array, dict[str, Any]]]


def next_token(
  params: dict[str, Any],
  batch: Batch,
  config: model_config.ModelConfig,
  attention_fn: attention.AttentionFn | None = None,
  constrain: transformer.Constrain | None = None,
  layers_fn: transformer.LayersFn | None = None,
  z_loss: float = 0.0,
  neftune_alpha: float = 0.0,
  loss_fn: Callable[..., Any] = cross_entropy.cross_entropy,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sums the cross-entropy of each row's next tokens.

  Args:
    params: the model's.
    batch: tokens, targets, segment_ids, positions int32[B, T], loss_weights
      float32[B, T], and noise_key if there shall be noise.
    config: the model.
    attention_fn: attention to use instead of the model's default.
    constrain: pins activations to logical axes; None does nothing.
    layers_fn: runs the layers in stages; None runs one after the other.
    z_loss: weight of log(Z)^2, see `cross_entropy`.
    neftune_alpha: of the noise, see `noisy_embeds`.
    loss_fn: `cross_entropy`, or that for a mesh (sharding/loss.py).

  Returns:
    Sum over tokens of weight * loss (float32 scalar, nats), and the float32
    scalars 'nll' (the same without z-loss) and 'weight'.
  """
  embeds = None
  if 'noise_key' in batch:
    table = params['embed_tokens']['embedding']
    if constrain is not None:
      table = constrain(table, ('vocab', None))
    embeds = noisy_embeds(table, batch, neftune_alpha)
  output = transformer.Transformer(config).apply(
    {'params': params},
    batch['tokens'],
    embeds=embeds,
    segment_ids=batch['segment_ids'],
    positions=batch['positions'],
    attention_fn=attention_fn,
    constrain=constrain,
    layers_fn=layers_fn,
    logits=False,
  )
  hidden = output.hidden
  if constrain is not None:
    places = ('activation_batch', 'activation_length', 'activation_embed')
    hidden = constrain(hidden, places)
  return loss_fn(
    hidden,
    transformer.output_kernel(config, params),
    batch['targets'],
    batch['loss_weights'],
    z_loss=z_loss,
  )


def noisy_embeds(table: jax.Array, batch: Batch, alpha: float) -> jax.Array:
  """Looks tokens up and adds NEFTune's noise (Jain et al. 2023).

  Each number gets one of its own, uniform between +-alpha / sqrt(L D), L being
  the tokens of its segment: a conversation among others in a row gets the noise
  it would get alone.

  Args:
    table: embeddings float32[V, D].
    batch: tokens and segment_ids int32[B, T], and noise_key uint32[2].
    alpha: of the noise; the Yi report takes 5 for 6B and 45 for 34B.

  Returns:
    float32[B, T, D].
  """
  segments = batch['segment_ids']
  rows = jnp.arange(len(segments))[:, None]
  sizes = jnp.zeros((len(segments), segments.shape[1] + 1), jnp.float32)
  sizes = sizes.at[rows, segments].add(1.0)[rows, segments]
  key = jax.random.wrap_key_data(batch['noise_key'])
  shape = *segments.shape, table.shape[1]
  noise = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)
  bound = alpha / jnp.sqrt(sizes * table.shape[1])
  return jnp.take(table, batch['tokens'], axis=0) + noise * bound[..., None]
