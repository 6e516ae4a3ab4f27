"""What a layout makes of a model: a table of it, and refusal of bad ones.

What does not divide stays whole (rules.py), which is right for two key/value
heads on four devices and wrong for a matrix of a gigabyte. So `check` refuses,
before anything is compiled,

  1. a `tensor` axis that does not divide the query heads, the MLP's width or
     the vocabulary (key/value heads may be fewer: they are repeated);
  2. a parameter above 1 MiB that one of the mesh axes its table names for it
     does not divide;
  3. a parameter above 1 MiB and 1/64 of all bytes that no mesh axis cuts while
     others are cut.

A table that names no axis for parameters, as ZeRO-1's for the width, replicates
on purpose; of its moments the same is asked.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import TextIO

import jax
from jax.sharding import Mesh, PartitionSpec

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.sharding import rules as rules_lib

_LARGE = 2**20  # bytes
_LARGE_SHARE = 1 / 64  # of all parameters
_BYTES = 4  # float32 master weights and moments


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter, or its moments, on a mesh.

  Attributes:
    name: path joined with '/'.
    shape: of all of it.
    axes: logical name of each dimension.
    spec: how it is cut.
    bytes: on one device, in float32.
  """

  name: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  spec: PartitionSpec
  bytes: int


def parameters(
  config: config_lib.ModelConfig, mesh: Mesh, rules: rules_lib.Rules
) -> list[Parameter]:
  """Returns every parameter of a model as a table cuts it."""
  found = []
  for name, shape, axes in _leaves(config):
    spec = rules_lib.spec(mesh, axes, shape, rules)
    pieces = math.prod(mesh.shape[axis] for axis in _used(spec))
    size = math.prod(shape) * _BYTES
    found.append(Parameter(name, shape, axes, spec, size // pieces))
  return found


def print_sharding(
  config: config_lib.ModelConfig,
  mesh: Mesh,
  strategy: str = 'auto',
  file: TextIO | None = None,
) -> None:
  """Prints each parameter with its shape, its cut and its bytes a device.

  Args:
    config: the model.
    mesh: the devices.
    strategy: `mesh.strategy` of a run.
    file: where to; None is stdout.
  """
  found = rules_lib.strategy(strategy, mesh.shape)
  params = parameters(config, mesh, found.rules)
  moments = parameters(config, mesh, found.moments)
  rows = [('parameter', 'shape', 'cut over', 'a device', 'its moments')]
  for one, both in zip(params, moments, strict=True):
    cut = ' '.join(_entry(entry) for entry in one.spec)
    shape = ' x '.join(map(str, one.shape))
    rows.append((one.name, shape, cut, _mib(one.bytes), _mib(2 * both.bytes)))
  total = (
    sum(one.bytes for one in params),
    sum(2 * one.bytes for one in moments),
  )
  rows.append(('sum', '', '', *map(_mib, total)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [
      cell.rjust(width) if i > 2 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    print('  '.join(cells).rstrip(), file=file)


def summary(
  config: config_lib.ModelConfig,
  mesh: Mesh,
  strategy: str = 'auto',
  trainable: str = '.*',
) -> str:
  """Returns one line: the mesh, the strategy and the bytes a device.

  Args:
    config: the model.
    mesh: the devices.
    strategy: see rules.py.
    trainable: regex over the names of parameters that have moments.
  """
  found = rules_lib.strategy(strategy, mesh.shape)
  params = parameters(config, mesh, found.rules)
  moments = parameters(config, mesh, found.moments)
  learn = [p for p in moments if re.fullmatch(trainable, p.name)]
  axes = [f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1]
  return (
    f'{found.name} over {" x ".join(axes) or "one device"}: '
    f'{_mib(sum(p.bytes for p in params))} of parameters and '
    f'{_mib(sum(2 * p.bytes for p in learn))} of moments a device'
  )


def check(
  config: config_lib.ModelConfig, mesh: Mesh, strategy: str = 'auto'
) -> None:
  """Refuses layouts that would waste memory or work; see above for the rules.

  Args:
    config: the model.
    mesh: the devices.
    strategy: `mesh.strategy` of a run.

  Raises:
    ValueError: naming what does not divide, and the cure.
  """
  found = rules_lib.strategy(strategy, mesh.shape)
  _check_tensor(config, mesh.shape['tensor'])
  _check_whole(config, mesh, found.rules, '')
  _check_whole(config, mesh, found.moments, 'the moments of ')


def _check_tensor(config: config_lib.ModelConfig, tensor: int) -> None:
  for key, size in (
    ('num_attention_heads', config.num_attention_heads),
    ('intermediate_size', config.intermediate_size),
    ('vocab_size', config.vocab_size),
  ):
    if size % tensor:
      cure = f'take a mesh.tensor that divides it ({math.gcd(size, tensor)})'
      if key == 'vocab_size':
        more = size + -size % tensor
        cure += f', or model.overrides.vocab_size={more}'
      raise ValueError(
        f'mesh.tensor ({tensor}) does not divide {key} ({size}); {cure}'
      )


def _check_whole(
  config: config_lib.ModelConfig,
  mesh: Mesh,
  rules: rules_lib.Rules,
  what: str,
) -> None:
  found = parameters(config, mesh, rules)
  sizes = [math.prod(one.shape) * _BYTES for one in found]
  cuts = any(_used(one.spec) for one in found)
  for one, size in zip(found, sizes, strict=True):
    if size <= _LARGE:
      continue
    shown = f'{what}{one.name} {list(one.shape)} ({_mib(size)})'
    for dim, axis in enumerate(one.axes):
      over = rules_lib.meant(mesh, axis, rules) if axis else ()
      devices = math.prod(mesh.shape[a] for a in over)
      if one.shape[dim] % devices:
        named = ' x '.join(f'mesh.{a}' for a in over)
        good = math.gcd(one.shape[dim], devices)
        raise ValueError(
          f'{shown} would not be cut over {named} = {devices}, which does not '
          f'divide its {axis} of {one.shape[dim]}; take one that does ({good})'
        )
    if cuts and not _used(one.spec) and size > _LARGE_SHARE * sum(sizes):
      raise ValueError(
        f'{shown} would be whole on every device: none of its axes '
        f'{one.axes} is cut over a mesh axis that is in use ('
        f'{", ".join(a for a, n in mesh.shape.items() if n > 1)}); give it one '
        'in yi_jax/sharding/rules.py, or take another mesh.strategy'
      )


def _leaves(
  config: config_lib.ModelConfig,
) -> Iterator[tuple[str, tuple[int, ...], tuple[str | None, ...]]]:
  """Yields name, shape and logical axes of each parameter."""
  shapes = transformer.abstract_params(config)
  axes = jax.tree.leaves(
    transformer.param_axes(config), is_leaf=lambda x: isinstance(x, tuple)
  )
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  for (path, leaf), names in zip(leaves, axes, strict=True):
    yield '/'.join(entry.key for entry in path), leaf.shape, names


def _used(spec: PartitionSpec) -> list[str]:
  """Returns the mesh axes a spec cuts over."""
  return [axis for entry in spec for axis in _axes(entry)]


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def _entry(entry: str | tuple[str, ...] | None) -> str:
  return '*'.join(_axes(entry)) or '-'


def _mib(size: int) -> str:
  return f'{size / 2**20:,.1f} MiB'
