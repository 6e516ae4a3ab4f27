"""The device mesh: six named axes, most of them of size 1 most of the time.

data     copies of the model, each with its own rows
fsdp     rows and parameters together (ZeRO-3)
context  one row cut along its length
tensor   heads, MLP width and vocabulary
expert   experts of a mixture
stage    layers, one group after another

Nothing is cut over context, expert and stage yet: their size is 1.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType

from yi_jax import spelling

AXES = ('data', 'fsdp', 'context', 'tensor', 'expert', 'stage')
_UNUSED = ('context', 'expert', 'stage')


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
  """Returns the size of every axis, in the order of AXES.

  Args:
    sizes: size by axis name; a missing axis is 1, one may be -1 and takes the
      devices that are left.
    num_devices: how many devices there are.

  Raises:
    ValueError: for an unknown axis, one that nothing is cut over, two -1, or
      sizes that do not fit.
  """
  for name in sizes:
    if name not in AXES:
      raise ValueError(f'no mesh axis {name!r}{spelling.nearest(name, AXES)}')
  for name in _UNUSED:
    if sizes.get(name, 1) != 1:
      raise ValueError(
        f'mesh.{name} must be 1, not {sizes[name]}: nothing is cut over it '
        'yet; use data, fsdp and tensor'
      )
  shape = [int(sizes.get(name, 1)) for name in AXES]
  if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise ValueError(
      f'Mesh sizes must be positive and at most one -1: {dict(sizes)}'
    )
  fixed = math.prod(s for s in shape if s != -1)
  if num_devices % fixed or (-1 not in shape and fixed != num_devices):
    raise ValueError(
      f'The mesh {dict(sizes)} needs '
      f'{"a multiple of " if -1 in shape else ""}{fixed} devices; there are '
      f'{num_devices}. Set one axis to -1 to take what is left.'
    )
  return tuple(num_devices // fixed if s == -1 else s for s in shape)


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
  if devices is None:
    shape = mesh_shape(sizes, jax.device_count())
    _check_processes(dict(zip(AXES, shape, strict=True)))
    return jax.make_mesh(shape, AXES, axis_types=auto)
  shape = mesh_shape(sizes, len(devices))
  return jax.sharding.Mesh(
    np.asarray(devices).reshape(shape), AXES, axis_types=auto
  )


def _check_processes(sizes: Mapping[str, int]) -> None:
  """Raises ValueError unless each process has rows of its own."""
  processes = jax.process_count()
  if sizes['data'] * sizes['fsdp'] % processes:
    raise ValueError(
      f'mesh.data x mesh.fsdp ({sizes["data"]} x {sizes["fsdp"]}) must be a '
      f'multiple of the {processes} processes: each reads rows of its own'
    )
