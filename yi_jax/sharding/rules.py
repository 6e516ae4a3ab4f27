"""Which mesh axes a logical axis is cut over: one table a strategy.

Names are MaxText's words. A parameter's axes are bare (`embed`), those of an
activation begin with `activation_`, because the two are cut differently: FSDP
cuts a matrix along its width, but rows of a batch along the batch. The stream
between blocks has a length of its own, `activation_norm_length`: norms and
residual sums there need no whole rows, so tensor parallelism cuts them along
the length (Korthikanti et al. 2022, sequence parallelism).

A table is read as it stands: the mesh axes of an entry, in their order, those
of size 1 left out. Each table is the one before it with some entries changed.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from yi_jax import spelling
from yi_jax.models import transformer

Rules = Mapping[str, tuple[str, ...]]

FSDP: Rules = {
  # Parameters
  'vocab': (),
  'embed': ('fsdp',),
  'heads': (),
  'kv_heads': (),
  'mlp': (),
  'norm': (),
  'expert': (),
  'layers': (),
  # Activations
  'activation_batch': ('data', 'fsdp'),
  'activation_length': (),
  'activation_norm_length': (),
  'activation_embed': (),
  'activation_heads': (),
  'activation_kv_heads': (),
  'activation_mlp': (),
  'activation_vocab': (),
}
FSDP_TENSOR: Rules = {
  **FSDP,
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'activation_norm_length': ('tensor',),
  'activation_heads': ('tensor',),
  'activation_kv_heads': ('tensor',),
  'activation_mlp': ('tensor',),
  'activation_vocab': ('tensor',),
}
CONTEXT: Rules = {
  **FSDP_TENSOR,
  'activation_length': ('context',),
  'activation_norm_length': ('context', 'tensor'),
}
EXPERT: Rules = {**CONTEXT, 'expert': ('expert',)}
# Outside the layers the stages are further copies, each with rows of its own;
# they share in storing the embedding and the output matrix.
PIPELINE: Rules = {
  **CONTEXT,
  'layers': ('stage',),
  'vocab': ('tensor', 'stage'),
  'activation_batch': ('data', 'fsdp', 'stage'),
}
# Every device of `data` has all parameters, but only its share of the moments.
ZERO1: Rules = {
  **FSDP_TENSOR,
  'embed': (),
  'activation_batch': ('data',),
}


@dataclasses.dataclass(frozen=True)
class Strategy:
  """How a run is spread over its mesh.

  Attributes:
    name: what `mesh.strategy` calls it.
    rules: the table of parameters and activations.
    moments: the table of the optimizer's moments and of the update made from
      them.
  """

  name: str
  rules: Rules
  moments: Rules

  @property
  def axes(self) -> frozenset[str]:
    """Mesh axes that something is cut over."""
    return frozenset(
      axis
      for table in (self.rules, self.moments)
      for over in table.values()
      for axis in over
    )


STRATEGIES = {
  'zero1': Strategy('zero1', ZERO1, {**ZERO1, 'embed': ('data',)}),
  'fsdp': Strategy('fsdp', FSDP, FSDP),
  'fsdp_tensor': Strategy('fsdp_tensor', FSDP_TENSOR, FSDP_TENSOR),
  'context': Strategy('context', CONTEXT, CONTEXT),
  'expert': Strategy('expert', EXPERT, EXPERT),
  'pipeline': Strategy('pipeline', PIPELINE, PIPELINE),
}
# What 'auto' takes: the first whose axis is in use, or fsdp_tensor.
_BY_AXIS = (('stage', 'pipeline'), ('expert', 'expert'), ('context', 'context'))


def strategy(name: str, sizes: Mapping[str, int]) -> Strategy:
  """Returns a strategy by name.

  Args:
    name: a key of STRATEGIES, or 'auto' for the one that a mesh calls for:
      'pipeline' if it has stages, 'expert', 'context', else 'fsdp_tensor'.
    sizes: of the mesh axes, `mesh.shape`.

  Raises:
    ValueError: for an unknown name, or a mesh axis that the strategy cuts
      nothing over: its devices would all do the same work.
  """
  if name == 'auto':
    used = [n for axis, n in _BY_AXIS if sizes.get(axis, 1) > 1]
    name = used[0] if used else 'fsdp_tensor'
  if name not in STRATEGIES:
    nearest = spelling.nearest(name, ('auto', *STRATEGIES))
    raise ValueError(f'no mesh.strategy {name!r}{nearest}')
  found = STRATEGIES[name]
  for axis, size in sizes.items():
    if size > 1 and axis not in found.axes:
      others = [n for n, s in STRATEGIES.items() if axis in s.axes]
      raise ValueError(
        f'mesh.{axis} is {size}, but mesh.strategy {name!r} cuts nothing over '
        f'it: set it to 1, or take {" or ".join(others)}'
      )
  return found


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
    shape: where given, a dimension is cut over as many of its mesh axes, from
      the first, as divide it (4 key/value heads on 8 tensor devices stay
      whole, say).
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
    over = meant(mesh, name, rules)
    for a in over:
      if a in used:
        raise ValueError(
          f'Mesh axis {a!r} would cut both {used[a]!r} and {name!r} of one '
          f'array with axes {axes}: change the rules'
        )
      used[a] = name
    while shape is not None and shape[i] % math.prod(map(mesh.shape.get, over)):
      over = over[:-1]
    parts.append(over if len(over) > 1 else (over[0] if over else None))
  return PartitionSpec(*parts)


def meant(mesh: Mesh, name: str, rules: Rules) -> tuple[str, ...]:
  """Returns the mesh axes, larger than 1, that shall cut a logical axis."""
  if name not in rules:
    raise ValueError(f'No sharding rule for the logical axis {name!r}')
  return tuple(a for a in rules[name] if mesh.shape[a] > 1)


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
