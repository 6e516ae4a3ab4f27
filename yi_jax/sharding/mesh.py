"""The device mesh: six named axes, most of them of size 1 most of the time.

data     copies of the model, each with its own rows
fsdp     rows and parameters together (ZeRO-3)
context  one row cut along its length
tensor   heads, MLP width and vocabulary
expert   experts of a mixture
stage    layers, one group after another

Nothing is cut over `expert` yet: its size is 1. What is cut over the others is
told by the tables of rules.py.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from yi_jax import spelling
from yi_jax.sharding import rules as rules_lib

AXES = ('data', 'fsdp', 'context', 'tensor', 'expert', 'stage')
# Keys of a run's section `mesh` that are no axes.
OPTIONS = ('strategy', 'microbatches')


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
  """Returns the size of every axis, in the order of AXES.

  Args:
    sizes: size by axis name; a missing axis is 1, one may be -1 and takes the
      devices that are left. OPTIONS may stand beside them: of those only
      'strategy' is looked at, to see that it uses every axis.
    num_devices: how many devices there are.

  Raises:
    ValueError: for an unknown axis, one that nothing is cut over, two -1, or
      sizes that do not fit.
  """
  known = (*AXES, *OPTIONS)
  for name in sizes:
    if name not in known:
      raise ValueError(f'no mesh axis {name!r}{spelling.nearest(name, known)}')
  if sizes.get('expert', 1) != 1:
    raise ValueError(
      f'mesh.expert must be 1, not {sizes["expert"]}: no model here has '
      'experts; use data, fsdp, context, tensor and stage'
    )
  shape = [int(sizes.get(name, 1)) for name in AXES]
  shown = dict(zip(AXES, shape, strict=True))
  if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise ValueError(f'Mesh sizes must be positive and at most one -1: {shown}')
  fixed = math.prod(s for s in shape if s != -1)
  if num_devices % fixed or (-1 not in shape and fixed != num_devices):
    raise ValueError(
      f'The mesh {shown} needs '
      f'{"a multiple of " if -1 in shape else ""}{fixed} devices; there are '
      f'{num_devices}. Set one axis to -1 to take what is left.'
    )
  shape = tuple(num_devices // fixed if s == -1 else s for s in shape)
  rules_lib.strategy(
    sizes.get('strategy', 'auto'), dict(zip(AXES, shape, strict=True))
  )
  return shape


def make_mesh(
  sizes: Mapping[str, int], devices: list[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Builds the mesh.

  Args:
    sizes: see `mesh_shape`, e.g. dict(fsdp=-1, tensor=4).
    devices: None takes all, those of other processes too, arranged by jax so
      that neighbours are near.

  Returns:
    A mesh with all of AXES, each of type Auto (the compiler places what is
    not pinned).
  """
  auto = (AxisType.Auto,) * len(AXES)
  count = jax.device_count() if devices is None else len(devices)
  *others, stages = mesh_shape(sizes, count)
  # Stages send the least, so that the slowest links, those between the halves
  # of the device list, are for them.
  shape, names = (stages, *others), ('stage', *AXES[:-1])
  if devices is None:
    placed = arrange(shape, names, jax.devices())
  else:
    placed = np.asarray(devices).reshape(shape)
  return jax.sharding.Mesh(np.moveaxis(placed, 0, -1), AXES, axis_types=auto)


def arrange(
  shape: tuple[int, ...],
  names: tuple[str, ...],
  devices: Sequence[jax.Device],
) -> np.ndarray:
  """Returns devices so that neighbours along an axis are near each other.

  jax wants each axis to be whole axes of the machine first; 16 x 2 on a slice
  of 4 x 8 is not, and there an axis of the machine is cut.

  Args:
    shape: of the mesh.
    names: of its axes.
    devices: all of them.
  """
  auto = (AxisType.Auto,) * len(names)
  try:
    return jax.make_mesh(shape, names, axis_types=auto, devices=devices).devices
  except NotImplementedError:
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )


def row_group(
  mesh: jax.sharding.Mesh, rules: rules_lib.Rules, process: int | None = None
) -> tuple[int, int]:
  """Returns which rows a process reads: its group, and how many there are.

  Processes that only hold other parts of the same rows (cut over `context`), or
  other parts of the model (over `tensor`), are one group and read the same.

  Args:
    mesh: the devices of all processes.
    rules: the table that cuts the batch.
    process: its index; None is this one.

  Returns:
    Index of the group, from 0, and the number of groups.

  Raises:
    ValueError: if processes share some rows but not all.
  """
  process = jax.process_index() if process is None else process
  over = [mesh.axis_names.index(a) for a in rules['activation_batch']]
  rest = [i for i in range(mesh.devices.ndim) if i not in over]
  blocks = mesh.devices.transpose(over + rest).reshape(
    math.prod(mesh.devices.shape[i] for i in over), -1
  )
  held: dict[int, set[int]] = {}
  for block, devices in enumerate(blocks):
    for device in devices:
      held.setdefault(device.process_index, set()).add(block)
  groups = sorted({tuple(sorted(blocks)) for blocks in held.values()})
  if len({len(group) for group in groups}) > 1 or len(
    {block for group in groups for block in group}
  ) != sum(map(len, groups)):
    named = ' x '.join(f'mesh.{a}' for a in rules['activation_batch'])
    raise ValueError(
      f'{len(held)} processes cannot share {len(blocks)} groups of rows '
      f'({named}) evenly: take a multiple or a divisor of their number'
    )
  return groups.index(tuple(sorted(held[process]))), len(groups)
