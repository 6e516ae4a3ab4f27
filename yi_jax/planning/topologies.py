"""Machines to plan for: slices of TPUs by generation, nodes of GPUs.

A TPU slice is a box of chips with links to their neighbours, `v5p:4x4x8`; GPUs
are nodes by GPUs a node, `h100:8x8`. Figures are a JAX *device's*, which is a
chip but for tpu7x, whose chips have two.

Sources. TPU: the pages of each generation in Google Cloud's documentation (HBM
and its bandwidth; interconnect a chip, of which a link has its part: a chip has
two links for each dimension of the torus, and each runs both ways at once).
Capacity is what the TPU compiler says is available, a little below the chip's.
NVIDIA: data sheets of A100 SXM 80 GB, H100 SXM, H200 SXM and B200; the network
is the usual one port a GPU. Peaks: `training/metrics.py`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from yi_jax.training import metrics

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  Attributes:
    name: as in a topology, e.g. 'v5p'.
    kind: JAX's device_kind, which names the peak.
    hbm: bytes a device can use.
    hbm_bandwidth: bytes/s a device.
    link: bytes/s, one way, of one link of a device: to a neighbour of the
      torus, or all of NVLink of a GPU.
    dimensions: of the torus; 0 for GPUs.
    devices: JAX devices a chip.
    across: bytes/s between the devices of one chip (TPU), or of a GPU's port to
      other nodes, one way.
    slices: sizes one can have, smallest first.
  """

  name: str
  kind: str
  hbm: float
  hbm_bandwidth: float
  link: float
  dimensions: int
  devices: int = 1
  across: float = 0.0
  slices: tuple[str, ...] = ()

  @property
  def peak(self) -> float:
    """bfloat16 FLOP/s of a device."""
    return metrics.peak_flops(self.kind)


_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16', '16x16x16'),
)
_PLANES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')

CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 'TPU v4', 30.75 * GIB, 1228e9, 50e9, 3, slices=_CUBES),
    Chip('v5e', 'TPU v5 lite', 15.75 * GIB, 819e9, 50e9, 2, slices=_PLANES),
    Chip('v5p', 'TPU v5p', 95.74 * GIB, 2765e9, 100e9, 3, slices=_CUBES),
    Chip('v6e', 'TPU v6 lite', 31.25 * GIB, 1638e9, 100e9, 2, slices=_PLANES),
    # A chip's links and its memory are shared by its two devices, which are
    # joined by six times the bandwidth of a link.
    Chip(
      *('tpu7x', 'TPU7x', 94.75 * GIB, 3690e9, 50e9, 3),
      devices=2,
      across=600e9,
      slices=_CUBES,
    ),
    Chip('a100', 'NVIDIA A100', 80e9, 2039e9, 300e9, 0, across=25e9),
    Chip('h100', 'NVIDIA H100', 80e9, 3350e9, 450e9, 0, across=50e9),
    Chip('h200', 'NVIDIA H200', 141e9, 4800e9, 450e9, 0, across=50e9),
    Chip('b200', 'NVIDIA B200', 180e9, 8000e9, 900e9, 0, across=50e9),
  )
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips and how they stand.

  Attributes:
    chip: their kind.
    shape: chips along each dimension, or (nodes, GPUs a node).
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def is_tpu(self) -> bool:
    return self.chip.dimensions > 0

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def num_devices(self) -> int:
    return self.num_chips * self.chip.devices

  def next(self) -> 'Topology | None':
    """Returns the next larger slice of these chips, None if there is none."""
    for text in self.chip.slices:
      larger = Topology(self.chip, tuple(map(int, text.split('x'))))
      if larger.num_chips > self.num_chips:
        return larger
    return None


def parse(text: str) -> Topology:
  """Returns the topology of a text such as 'v5p:4x4x8' or 'h100:8x8'.

  Raises:
    ValueError: for an unknown chip or a shape it cannot have; the known ones
      are listed.
  """
  name, _, shape_text = text.partition(':')
  if name not in CHIPS:
    raise ValueError(
      f'no topology {text!r}: no chip {name!r}; there are:\n{known()}'
    )
  chip = CHIPS[name]
  wanted = chip.dimensions or 2
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape_text):
    raise ValueError(f'no topology {text!r}; {_example(chip)}')
  shape = tuple(map(int, shape_text.split('x')))
  if chip.dimensions == 3 and len(shape) == 2:
    shape = (*shape, 1)
  topology = Topology(chip, shape)
  if len(shape) != wanted or (chip.slices and not _on_hosts(shape)):
    raise ValueError(f'no topology {text!r}; {_example(chip)}')
  return topology


def known() -> str:
  """Returns a line for each chip with the slices one can have."""
  lines = []
  for chip in CHIPS.values():
    shapes = ', '.join(chip.slices) or 'NODESxGPUS, e.g. 8x8'
    lines.append(f'  {chip.name}: {shapes}')
  return '\n'.join(lines)


def _example(chip: Chip) -> str:
  if not chip.slices:
    return f'{chip.name} takes NODESxGPUS, e.g. {chip.name}:8x8'
  return f'{chip.name} has the slices {", ".join(chip.slices)}'


def _on_hosts(shape: tuple[int, ...]) -> bool:
  """Whether hosts of 2 x 2 chips fill it; a plane may be one chip alone."""
  plane = shape[:2]
  return shape == (1, 1) or all(size % 2 == 0 for size in plane)


def wraps(topology: Topology) -> tuple[bool, ...]:
  """Returns for each dimension whether its ends are joined to a ring.

  A cube of 4 x 4 x 4 is the unit whose faces can be joined; a plane is a torus
  where it is as long as the pod, 16.
  """
  if topology.chip.dimensions == 3:
    whole = all(size % 4 == 0 for size in topology.shape)
    return (whole,) * 3
  return tuple(size == 16 for size in topology.shape)


def bandwidth(topology: Topology, places: Sequence[Sequence[int]]) -> float:
  """Returns bytes/s at which rings among some devices send, a device.

  A closed ring sends both ways at once; a line has the bandwidth of one link,
  because its ends have no more. Dimensions work at the same time.

  Args:
    topology: where they stand.
    places: coordinates of each device of one group: along every dimension of
      the torus, then the number of the device on its chip; or (node, GPU).
  """
  chip = topology.chip
  moves = [len(set(along)) for along in np.transpose(np.asarray(places))]
  if not topology.is_tpu:
    return chip.across if moves[0] > 1 else chip.link
  total = 0.0
  ends = zip(moves, topology.shape, wraps(topology), strict=False)
  for size, whole, closed in ends:
    if size > 1:
      total += chip.link * (2 if closed and size == whole else 1)
  if total == 0.0:
    return chip.across or chip.link
  return total
