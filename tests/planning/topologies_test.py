"""Machines: what can be asked for, and how fast their devices send."""

import itertools

import pytest

from yi_jax.planning import topologies


def _box(*sizes, device=(0,)):
  """Coordinates of a box of chips at the corner, with the device of each."""
  return list(itertools.product(*map(range, sizes), device))


@pytest.mark.parametrize(
  'chip', topologies.CHIPS.values(), ids=lambda c: c.name
)
def test_every_slice_of_the_list_can_be_asked_for(chip):
  sizes = []
  for shape in chip.slices or ('1x8', '8x8'):
    topology = topologies.parse(f'{chip.name}:{shape}')
    assert topology.name == f'{chip.name}:{shape}'
    sizes.append(topology.num_chips)
  assert sizes == sorted(set(sizes))
  assert chip.peak > 1e14


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v9:2x2', "no chip 'v9'; there are:\n.*v5p: 2x2x1, .*h100: NODESxGPUS"),
    ('', 'no chip'),
    ('v5p', 'v5p has the slices 2x2x1, 2x2x2'),
    ('v5p:4', 'v5p has the slices'),
    ('v5p:3x3x3', 'v5p has the slices'),
    ('v5e:2x2x2', 'v5e has the slices 1x1, 2x2'),
    ('h100:8', 'h100:8x8'),
    ('v5e:0x2', 'v5e has the slices'),
  ],
)
def test_an_unknown_topology_names_the_known(text, message):
  with pytest.raises(ValueError, match=f'(?s){message}'):
    topologies.parse(text)


def test_the_next_slice_is_the_next_larger():
  assert topologies.parse('v5e:4x8').next().name == 'v5e:8x8'
  assert topologies.parse('v5p:2x2x1').next().name == 'v5p:2x2x2'
  assert topologies.parse('v5e:16x16').next() is None


@pytest.mark.parametrize(
  ('name', 'places', 'links'),
  [
    # 100 GB/s a link and direction. A closed ring sends both ways.
    ('v5p:4x4x8', _box(1, 1, 8), 2),
    ('v5p:4x4x8', _box(4, 1, 8), 4),
    ('v5p:4x4x8', _box(4, 4, 8), 6),
    # Half of a dimension is a line, and so is a slice below a cube.
    ('v5p:4x4x8', _box(1, 1, 4), 1),
    ('v5p:2x4x4', _box(1, 4, 4), 2),
    # A plane closes where it is 16 long.
    ('v6e:8x16', _box(8, 1), 1),
    ('v6e:8x16', _box(1, 16), 2),
    # Two devices of one chip.
    ('tpu7x:2x2x1', _box(1, 1, 1, device=(0, 1)), 6),
  ],
)
def test_bandwidth_counts_the_links_of_a_ring(name, places, links):
  assert topologies.bandwidth(topologies.parse(name), places) == links * 100e9


def test_nodes_of_gpus_talk_over_the_network():
  topology = topologies.parse('h100:2x8')
  inside = [(0, gpu) for gpu in range(8)]
  assert topologies.bandwidth(topology, inside) == 450e9
  assert topologies.bandwidth(topology, [(0, 0), (1, 0)]) == 50e9
