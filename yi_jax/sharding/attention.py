"""Attention on a mesh: each device attends with its own rows and heads.

Kernels cannot be cut by the compiler, so the call is wrapped by hand: rows over
the batch axes, heads over the tensor axis, and every device runs the kernel on
what it holds. Rows that are cut along their length too, over the context axis,
go through ring attention (ring.py) instead of that kernel.
"""

import dataclasses
import functools

import jax
from jax.sharding import Mesh, PartitionSpec

from yi_jax.models import attention
from yi_jax.sharding import ring
from yi_jax.sharding import rules as rules_lib


def sharded(
  attend: attention.AttentionFn,
  mesh: Mesh,
  rules: rules_lib.Rules = rules_lib.FSDP_TENSOR,
) -> attention.AttentionFn:
  """Returns `attend` for arrays that are cut over a mesh.

  Args:
    attend: any implementation of models/attention.py.
    mesh: the devices; one device needs no wrapping. Where `context` is larger
      than 1, rows must be in the order of `ring.zigzag`.
    rules: which mesh axes cut the batch, the length and the heads.
  """
  if mesh.size == 1:
    return attend
  devices = mesh.shape['context']
  if devices > 1:
    attend = functools.partial(ring.attend, axis='context', devices=devices)

  def call(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: attention.Mask,
  ) -> jax.Array:
    def cut(x: jax.Array, heads: str) -> PartitionSpec:
      axes = ('activation_batch', 'activation_length', heads, None)
      return rules_lib.spec(mesh, axes, x.shape, rules)

    q_cut = cut(q_BTNH, 'activation_heads')
    kv_cut = cut(k_BSKH, 'activation_kv_heads')
    if q_cut[2] != kv_cut[2]:
      # Fewer key/value heads than tensor devices: one for each query head, so
      # that a device holds the heads its queries need.
      groups = q_BTNH.shape[2] // k_BSKH.shape[2]
      k_BSKH, v_BSKH = (x.repeat(groups, axis=2) for x in (k_BSKH, v_BSKH))
      kv_cut = q_cut
    rows = PartitionSpec(*q_cut[:2])
    arrays = {
      field.name: x
      for field in dataclasses.fields(mask)
      if isinstance(x := getattr(mask, field.name), jax.Array)
    }

    def local(
      q: jax.Array, k: jax.Array, v: jax.Array, arrays: dict[str, jax.Array]
    ) -> jax.Array:
      return attend(q, k, v, dataclasses.replace(mask, **arrays))

    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(q_cut, kv_cut, kv_cut, dict.fromkeys(arrays, rows)),
      out_specs=q_cut,
      check_vma=False,  # Pallas calls carry no such types
    )(q_BTNH, k_BSKH, v_BSKH, arrays)

  return call
