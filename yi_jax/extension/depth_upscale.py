"""A deeper model out of a trained one: layers said twice (Yi-9B, report 7.3).

Axes: L layers, B batch, T tokens, D model.

Yi-9B is Yi-6B with layers 12 to 27 (from 0) repeated right behind themselves:
layers that hardly turn their input may as well be there twice, so that the
deeper model begins where the old one was and continued training has somewhere to
go. Which layers those are is measured by the cosine between what enters a layer
and what leaves it.

An order says which layer of the source stands where, '0:28,12:32' for Yi-9B:
slices as Python has them, one after the other. It works on parameters of any
kind, in memory or still in a file; `convert --layers` applies it to checkpoints.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from yi_jax.models import config as config_lib
from yi_jax.models import layout, transformer

YI_9B = '0:28,12:32'  # of the 32 layers of Yi-6B


def parse(text: str, num_layers: int) -> tuple[int, ...]:
  """Returns the layers that an order names.

  Example: parse('0:3,1:4', 4) == (0, 1, 2, 1, 2, 3).

  Args:
    text: slices first:end of layers, joined by commas; a number is one layer.
    num_layers: of the source.

  Raises:
    ValueError: for what is no slice, or is not within the source.
  """
  order = []
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\d+)(?::(\d+))?\s*', part)
    if not match:
      raise ValueError(
        f'{part!r} is neither a layer nor a slice first:end of layers; Yi-9B '
        f'is {YI_9B!r}'
      )
    first = int(match[1])
    end = first + 1 if match[2] is None else int(match[2])
    if not first < end <= num_layers:
      raise ValueError(
        f'{part.strip()!r} is not within the {num_layers} layers of the '
        f'source, 0:{num_layers}'
      )
    order.extend(range(first, end))
  return tuple(order)


def duplicated(first: int, end: int, num_layers: int) -> str:
  """Returns the order that says layers first to end - 1 twice in a row.

  Example: duplicated(12, 28, 32) == '0:28,12:32', Yi-9B.

  Raises:
    ValueError: if they are not within the source.
  """
  order = f'0:{end},{first}:{num_layers}'
  if not 0 <= first < end:
    raise ValueError(f'{first}:{end} holds no layer')
  parse(order, num_layers)
  return order


def take(
  config: config_lib.ModelConfig,
  params: dict[str, Any],
  order: Sequence[int],
  join: Callable[[Sequence[Any]], Any] | None = None,
) -> tuple[config_lib.ModelConfig, dict[str, Any]]:
  """Returns the model whose layers are those of another, in an order.

  Everything else, the layout included, stays as it is.

  Args:
    config: of the source.
    params: its parameters: arrays, shapes, or lazy leaves.
    order: for each new layer the one it is a copy of, see `parse`.
    join: see layout.stack.

  Returns:
    (config, parameters); copies share memory where layers are apart.

  Raises:
    ValueError: if a repeat of the layer pattern would be torn apart.
  """
  width = len(config.layer_pattern)
  repeats = [tuple(order[i : i + width]) for i in range(0, len(order), width)]
  for repeat in repeats:
    whole = tuple(range(repeat[0], repeat[0] + width))
    if repeat != whole or repeat[0] % width:
      raise ValueError(
        f'layers {repeat} are no repeat of the pattern, which is {width} layers '
        'long: take whole ones'
      )
  _, flat = layout.unroll(config, params)
  layers = {str(i): flat['layers'][str(layer)] for i, layer in enumerate(order)}
  made = config.replace(num_hidden_layers=len(order), scan_layers=False)
  params = {**params, 'layers': layers}
  if config.scan_layers:
    return layout.stack(made, params, join)
  return made, params


def cosines(
  config: config_lib.ModelConfig, params: dict[str, Any], tokens: Any
) -> np.ndarray:
  """Returns how little each layer turns its input, token by token.

  Args:
    config: the model.
    params: its parameters.
    tokens: int[B, T].

  Returns:
    float32[L, B, T], cosines between a layer's input and its output.

  Raises:
    ValueError: for ids that are none of the model.
  """
  if np.max(tokens) >= config.vocab_size:
    raise ValueError(
      f'id {np.max(tokens)} is none of the model, which knows 0 to '
      f'{config.vocab_size - 1}; is this its vocabulary?'
    )
  config, params = layout.unroll(config, params)
  model = transformer.Transformer(config.replace(remat='none'))

  def run(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    found = []

    def look(
      call: Callable[..., Any],
      arguments: tuple[Any, ...],
      named: dict[str, Any],
      context: nn.module.InterceptorContext,
    ) -> Any:
      result = call(*arguments, **named)
      if isinstance(context.module, transformer.DecoderLayer):
        before, after = (
          x.astype(jnp.float32) for x in (arguments[0], result[0])
        )
        norms = [jnp.linalg.norm(x, axis=-1) for x in (before, after)]
        product = jnp.sum(before * after, axis=-1)
        found.append(product / jnp.maximum(norms[0] * norms[1], 1e-30))
      return result

    with nn.intercept_methods(look):
      model.apply({'params': params}, tokens, logits=False)
    return jnp.stack(found)

  return np.asarray(jax.jit(run)(params, jnp.asarray(tokens)))


def layer_means(values: np.ndarray) -> np.ndarray:
  """Returns the mean cosine of each layer, float[L].

  Args:
    values: from `cosines`. The first token of a row is left out, as 01.AI did:
      it attends to nothing but itself.
  """
  return values[:, :, 1:].mean(axis=(1, 2))


def model_mean(means: np.ndarray) -> float:
  """Returns the mean over layers without the first and the last.

  Yi-34B and LLaMA-2-70B had many layers near 1, which 01.AI read as a sign of
  capacity not yet used (Yi-9B's notes).
  """
  return float(means[1:-1].mean())


def choose(means: np.ndarray, count: int, width: int = 1) -> tuple[int, int]:
  """Returns the block of layers that changes its input least.

  Args:
    means: from `layer_means`.
    count: layers of the block.
    width: layers of the model's pattern, of which a block holds whole repeats.

  Returns:
    (first, end), for `duplicated`; never with the first or the last layer.

  Raises:
    ValueError: if there is no such block.
  """
  check_block(len(means), count, width)
  first = max(
    range(width, len(means) - count, width),
    key=lambda first: means[first : first + count].sum(),
  )
  return first, first + count


def check_block(
  num_layers: int, count: int, width: int = 1, name: str = 'a block'
) -> None:
  """Raises ValueError if `choose` has no block of `count` layers."""
  # The first and the last layer stand alone, with the rest of their repeats.
  most = num_layers - 1 - width
  most -= most % width
  repeats = f' in whole repeats of {width}' if width > 1 else ''
  if most < 1:
    raise ValueError(
      f'a model of {num_layers} layers has none{repeats} between the first and '
      'the last, so none to say twice'
    )
  if not 0 < count <= most or count % width:
    raise ValueError(
      f'{name} takes from {width} to {most} of these {num_layers} layers'
      f'{repeats} (neither the first nor the last), not {count}'
    )
