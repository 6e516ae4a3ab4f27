"""Two layouts of one parameter tree: stacked for scan, one array a layer.

A scanned model keeps the repeats of its pattern stacked on a leading axis
(`layers/self_attn/...`, or `layers/PLACE/self_attn/...` for patterns of several
layers), an unrolled one has `layers/LAYER/self_attn/...`. Decoding on CPU wants
separate arrays: slices of a stacked one are copies.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import config as config_lib


def unroll(
  config: config_lib.ModelConfig, params: dict[str, Any]
) -> tuple[config_lib.ModelConfig, dict[str, Any]]:
  """Returns the model with one array a layer; unchanged if it has that.

  Args:
    config: the model.
    params: its parameter tree, of jax or numpy arrays, or other leaves whose
      x[i] is a layer.

  Returns:
    (config with scan_layers=False, params). NumPy slices share memory.
  """
  if not config.scan_layers:
    return config, params
  width = len(config.layer_pattern)
  layers = {}
  for i in range(config.num_hidden_layers):
    repeat, place = divmod(i, width)
    stacked = params['layers'] if width == 1 else params['layers'][str(place)]
    layers[str(i)] = jax.tree.map(lambda x, r=repeat: x[r], stacked)
  return config.replace(scan_layers=False), {**params, 'layers': layers}


def stack(
  config: config_lib.ModelConfig,
  params: dict[str, Any],
  join: Callable[[Sequence[Any]], Any] | None = None,
) -> tuple[config_lib.ModelConfig, dict[str, Any]]:
  """Returns the model with stacked layers; unchanged if it has those.

  Args:
    config: the model.
    params: its parameter tree, of jax or numpy arrays.
    join: stacks the layers where leaves are no arrays.

  Returns:
    (config with scan_layers=True, params).
  """
  if config.scan_layers:
    return config, params
  width = len(config.layer_pattern)
  places = {}
  for place in range(width):
    repeats = [
      params['layers'][str(i)]
      for i in range(place, config.num_hidden_layers, width)
    ]
    places[str(place)] = jax.tree.map(
      lambda *xs: (join or _stack)(xs), *repeats
    )
  layers = places['0'] if width == 1 else places
  return config.replace(scan_layers=True), {**params, 'layers': layers}


def _stack(arrays: Sequence[Any]) -> Any:
  """Stacks in host memory what is there, on devices what is on devices."""
  on_host = all(isinstance(x, np.ndarray) for x in arrays)
  return (np if on_host else jnp).stack(arrays)
