"""Meshes and rules: what is cut where, and by which devices."""

import math
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.sharding import mesh as mesh_lib
from yi_jax.sharding import rules


@pytest.mark.parametrize(
  ('sizes', 'want'),
  [
    (dict(), (1, 4, 1, 1, 1, 1)),
    (dict(data=2, fsdp=1, tensor=2), (2, 1, 1, 2, 1, 1)),
    (dict(fsdp=-1, tensor=2), (1, 2, 1, 2, 1, 1)),
    (dict(fsdp=2, context=-1), (1, 2, 2, 1, 1, 1)),
    (dict(data=-1, strategy='zero1'), (4, 1, 1, 1, 1, 1)),
    (dict(stage=4), (1, 1, 1, 1, 1, 4)),
  ],
)
def test_minus_one_takes_what_is_left(sizes, want):
  sizes = sizes or dict(fsdp=-1)
  assert mesh_lib.mesh_shape(sizes, 4) == want
  assert mesh_lib.make_mesh(sizes).devices.shape == want


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    (dict(fdsp=-1), "did you mean 'fsdp'"),
    (dict(fsdp=-1, data=-1), 'at most one -1'),
    (dict(fsdp=3), 'needs 3 devices; there are 4'),
    (dict(fsdp=-1, tensor=3), 'a multiple of 3 devices'),
    (dict(fsdp=0), 'must be positive'),
    (dict(expert=-1), 'mesh.expert must be 1'),
    (dict(fsdp=4, strategy='zero2'), "no mesh.strategy 'zero2'.*'zero1'"),
    # A strategy must have work for all devices.
    (
      dict(stage=4, strategy='context'),
      "'context' cuts nothing.*take pipeline",
    ),
    (dict(fsdp=4, strategy='zero1'), 'mesh.fsdp is 4, but.*or take fsdp or'),
    (dict(tensor=4, strategy='fsdp'), 'mesh.tensor is 4, but'),
    (dict(context=4, strategy='fsdp_tensor'), 'mesh.context is 4, but'),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(sizes)


def _mesh_of_processes(processes, **sizes):
  """Returns what row_group looks at, devices dealt to processes in order."""
  shape = mesh_lib.mesh_shape(sizes, math.prod(sizes.values()))
  devices = np.empty(math.prod(shape), object)
  for i in range(devices.size):
    owner = i * processes // devices.size
    devices[i] = types.SimpleNamespace(process_index=owner)
  return types.SimpleNamespace(
    axis_names=mesh_lib.AXES,
    devices=devices.reshape(shape),
    shape=dict(zip(mesh_lib.AXES, shape, strict=True)),
  )


@pytest.mark.parametrize(
  ('sizes', 'processes', 'want'),
  [
    (dict(fsdp=8), 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (dict(data=2, tensor=4), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    (dict(context=4), 2, [(0, 1), (0, 1)]),
    (dict(fsdp=2, context=2), 1, [(0, 1)]),
    # Each has one stage of every row, and other rows outside the layers.
    (dict(fsdp=2, stage=2), 2, [(0, 2), (1, 2)]),
  ],
)
def test_processes_that_hold_parts_of_the_same_rows_read_the_same(
  sizes, processes, want
):
  mesh = _mesh_of_processes(processes, **sizes)
  table = rules.strategy('auto', mesh.shape).rules
  got = [mesh_lib.row_group(mesh, table, p) for p in range(processes)]
  assert got == want


def test_processes_that_share_some_rows_only_are_refused():
  mesh = _mesh_of_processes(2, data=3, tensor=2)
  with pytest.raises(ValueError, match='2 processes cannot share 3 groups'):
    mesh_lib.row_group(mesh, rules.FSDP_TENSOR, 0)


def test_the_rules_cut_parameters_over_fsdp_and_tensor():
  config = config_lib.get_preset('yi_6b')
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2))
  tree = rules.shardings(
    mesh, transformer.param_axes(config), transformer.abstract_params(config)
  )
  layers = tree['layers']
  assert layers['self_attn']['q_proj']['kernel'].spec == PartitionSpec(
    None, 'fsdp', 'tensor'
  )
  assert layers['mlp']['down_proj']['kernel'].spec == PartitionSpec(
    None, 'tensor', 'fsdp'
  )
  assert tree['embed_tokens']['embedding'].spec == PartitionSpec(
    'tensor', 'fsdp'
  )
  # Everything large is cut into as many pieces as there are devices.
  shapes = transformer.abstract_params(config)
  for leaf, cut in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(tree), strict=True
  ):
    if leaf.size > 2**20:
      assert np.prod(cut.shard_shape(leaf.shape)) == leaf.size / 4


def test_what_does_not_divide_stays_whole():
  mesh = mesh_lib.make_mesh(dict(tensor=4))
  axes = ('embed', 'kv_heads')
  assert rules.spec(mesh, axes, (8, 6)) == PartitionSpec(None, None)
  assert rules.spec(mesh, axes, (8, 12)) == PartitionSpec(None, 'tensor')


def test_one_mesh_axis_for_two_dimensions_is_a_collision():
  mesh = mesh_lib.make_mesh(dict(tensor=4))
  with pytest.raises(ValueError, match="'tensor' would cut both 'vocab'"):
    rules.spec(mesh, ('vocab', 'mlp'))
  with pytest.raises(ValueError, match="No sharding rule .*'embedd'"):
    rules.spec(mesh, ('embedd',))


def test_a_mesh_that_cuts_an_axis_of_the_machine_is_arranged():
  # 4 x 8 chips without wrap-around, asked for as 16 x 2.
  chips = [
    types.SimpleNamespace(
      platform='tpu',
      device_kind='TPU v6 lite',
      process_index=0,
      id=8 * x + y,
      coords=(x, y, 0),
      core_on_chip=0,
    )
    for x in range(4)
    for y in range(8)
  ]
  found = mesh_lib.arrange((1, 16, 2), ('data', 'fsdp', 'tensor'), chips)
  assert found.shape == (1, 16, 2)
  assert sorted(d.id for d in found.flat) == list(range(32))
  for a, b in found[0]:
    assert sum(abs(i - j) for i, j in zip(a.coords, b.coords, strict=True)) == 1
