"""Collectives read from a program's text: kinds, axes, rounds and bytes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from yi_jax.sharding import collectives
from yi_jax.sharding import mesh as mesh_lib

_SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
"""


def _program(*lines, more=''):
  body = '\n'.join(f'  {line}' for line in lines)
  return f'HloModule m\n{_SUM}{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n'


@pytest.mark.parametrize(
  ('groups', 'axes'),
  [
    ('{{0,1},{2,3}}', ('tensor',)),
    ('{{0,2},{1,3}}', ('fsdp',)),
    ('{}', ('fsdp', 'tensor')),
    ('[2,2]<=[4]', ('tensor',)),
    ('[2,2]<=[2,2]T(1,0)', ('fsdp',)),
    ('[1,4]<=[4]', ('fsdp', 'tensor')),
    ("mesh['a'=2,'b'=2] {'a'}", ('fsdp',)),
    ("mesh['a'=2,'b'=2] {'b'}", ('tensor',)),
    ("mesh['a'=2,'b'=2] {'a','b'}", ('fsdp', 'tensor')),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ('tensor',)),
    ("mesh['a'=4] {'a':(1)2}", ('fsdp',)),
    ("mesh['a'=4] {'a':(2)2}", ('tensor',)),
  ],
)
def test_groups_in_every_notation(groups, axes):
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2))
  text = _program(
    f'%g = f32[8]{{0}} all-gather(%p), replica_groups={groups}, dimensions={{0}}'
  )
  devices = 2 ** len(axes)
  sent = 32 * (devices - 1) // devices
  want = [collectives.Collective('all-gather', axes, 1, sent)]
  assert collectives.collectives(text, mesh) == want


@pytest.mark.parametrize(
  ('line', 'kind', 'sent'),
  [
    ('f32[8]{0} all-reduce(%p), to_apply=%sum', 'all-reduce', 48),
    # Asynchronous: some have their operands in the shape too.
    ('f32[8]{0} all-reduce-start(%p), to_apply=%sum', 'all-reduce', 48),
    ('(f32[8], bf16[4]) all-reduce(%p, %q), to_apply=%sum', 'all-reduce', 60),
    ('(f32[2]{0:T(8)}, f32[8]) all-gather-start(%p)', 'all-gather', 24),
    (
      '((f32[2], s8[1]), (f32[8], s8[4])) all-gather-start(%p)',
      'all-gather',
      27,
    ),
    ('f32[2]{0} reduce-scatter(%p), to_apply=%sum', 'reduce-scatter', 24),
    ('(pred[4], pred[4]) all-to-all(%p, %q)', 'all-to-all', 6),
  ],
)
def test_bytes_a_device_sends(line, kind, sent):
  mesh = mesh_lib.make_mesh(dict(fsdp=4))
  text = _program(f'%x = {line}, replica_groups=[1,4]<=[4]')
  want = [collectives.Collective(kind, ('fsdp',), 1, sent)]
  assert collectives.collectives(text, mesh) == want


def test_groups_of_one_send_nothing():
  mesh = mesh_lib.make_mesh(dict(fsdp=4))
  text = _program(
    '%x = f32[8] all-gather(%p), replica_groups={{0},{1},{2},{3}}'
  )
  assert collectives.collectives(text, mesh) == []


def test_what_a_loop_calls_counts_in_every_round():
  mesh = mesh_lib.make_mesh(dict(fsdp=4))

  @jax.jit
  @jax.shard_map(
    mesh=mesh,
    in_specs=PartitionSpec('fsdp'),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  def program(x):
    def turn(x, _):
      ring = [(i, (i + 1) % 4) for i in range(4)]
      return jax.lax.ppermute(x, 'fsdp', ring), None

    def outer(x, _):
      return jax.lax.scan(turn, x, length=3)

    x, _ = jax.lax.scan(outer, x, length=5)
    return jax.lax.psum(x, 'fsdp')

  place = NamedSharding(mesh, PartitionSpec('fsdp'))
  x = jax.ShapeDtypeStruct((400,), jnp.float32, sharding=place)
  text = program.lower(x).compile().as_text()
  assert collectives.collectives(text, mesh) == [
    collectives.Collective('collective-permute', ('fsdp',), 15, 15 * 400),
    collectives.Collective('all-reduce', ('fsdp',), 1, 600),
  ]


def test_a_loop_of_the_tpu_compiler_counts_up_to_a_constant():
  mesh = mesh_lib.make_mesh(dict(fsdp=4))
  loop = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %other = s32[] constant(3)
  %end = s32[]{:T(128)} constant(60)
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}
"""
  text = _program(
    '%w = (s32[], f32[8]) while(%t), condition=%condition, body=%body',
    more=loop,
  )
  want = [collectives.Collective('all-gather', ('fsdp',), 60, 60 * 24)]
  assert collectives.collectives(text, mesh) == want


def test_a_fused_reduce_scatter_is_one():
  mesh = mesh_lib.make_mesh(dict(fsdp=4))
  fused = """
%all-reduce-scatter.1 (input: f32[8]) -> f32[2] {
  %all-reduce.1 = f32[8]{0} all-reduce(%input), to_apply=%sum
  ROOT %part = f32[2]{0} dynamic-slice(%all-reduce.1, %i)
}
"""
  text = _program(
    '%f = f32[2]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1',
    more=fused,
  )
  want = [collectives.Collective('reduce-scatter', ('fsdp',), 1, 24)]
  assert collectives.collectives(text, mesh) == want
