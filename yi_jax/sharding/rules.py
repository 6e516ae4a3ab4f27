"""Which mesh axes a logical axis is cut over: one table, read top to bottom.

Names are MaxText's words. A parameter's axes are bare (`embed`), those of an
activation begin with `activation_`, because the two are cut differently: FSDP
cuts a matrix along its width, but rows of a batch along the batch.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from yi_jax.models import transformer

Rules = Mapping[str, tuple[str, ...]]

# FSDP, tensor parallel, or both: whichever axes of the mesh are larger than 1.
FSDP_TENSOR: Rules = {
  # Parameters
  'vocab': ('tensor',),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'norm': (),
  'layers': (),
  # Activations
  'activation_batch': ('data', 'fsdp'),
  'activation_length': ('context',),
  'activation_embed': (),
  'activation_heads': ('tensor',),
  'activation_kv_heads': ('tensor',),
  'activation_mlp': ('tensor',),
  'activation_vocab': ('tensor',),
}


def spec(
  mesh: Mesh,
  axes: tuple[str | None, ...],
  shape: tuple[int, ...] | None = None,
  rules: Rules = FSDP_TENSOR,
) -> PartitionSpec:
  """Returns how one array is cut.

  Args:
    mesh: the devices.
    axes: logical name of each dimension, None for one never cut.
    shape: where given, a dimension that its mesh axes do not divide stays
      whole (4 key/value heads on 8 tensor devices, say).
    rules: the table.

  Raises:
    ValueError: for a logical axis without a rule, or one mesh axis used for
      two dimensions of the same array.
  """
  parts, used = [], {}
  for i, name in enumerate(axes):
    if name is None:
      parts.append(None)
      continue
    if name not in rules:
      raise ValueError(f'No sharding rule for the logical axis {name!r}')
    over = tuple(a for a in rules[name] if mesh.shape[a] > 1)
    for a in over:
      if a in used:
        raise ValueError(
          f'Mesh axis {a!r} would cut both {used[a]!r} and {name!r} of one '
          f'array with axes {axes}: change the rules'
        )
      used[a] = name
    devices = math.prod(mesh.shape[a] for a in over)
    if shape is not None and shape[i] % devices:
      over = ()
    parts.append(over if len(over) > 1 else (over[0] if over else None))
  return PartitionSpec(*parts)


def shardings(
  mesh: Mesh, axes: Any, abstract: Any, rules: Rules = FSDP_TENSOR
) -> Any:
  """Returns the NamedSharding of every parameter.

  Args:
    mesh: the devices.
    axes: tree of logical axis names, see transformer.param_axes.
    abstract: the same tree of shapes, see transformer.abstract_params.
    rules: the table.
  """

  def one(names: tuple[str | None, ...], leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, spec(mesh, names, leaf.shape, rules))

  return jax.tree.map(
    one, axes, abstract, is_leaf=lambda x: isinstance(x, tuple)
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a value every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = FSDP_TENSOR) -> NamedSharding:
  """Returns the sharding of [B, T] arrays: tokens, weights, positions."""
  axes = ('activation_batch', 'activation_length')
  return NamedSharding(mesh, spec(mesh, axes, rules=rules))


def constrainer(
  mesh: Mesh, rules: Rules = FSDP_TENSOR
) -> transformer.Constrain:
  """Returns the `constrain` a Transformer pins its activations with."""

  def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    cut = NamedSharding(mesh, spec(mesh, axes, x.shape, rules))
    return jax.lax.with_sharding_constraint(x, cut)

  return constrain
