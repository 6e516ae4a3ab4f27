"""The loss on a mesh: the same numbers, and the matrix is sent only once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from yi_jax.sharding import collectives, loss, rules
from yi_jax.sharding import mesh as mesh_lib
from yi_jax.training import cross_entropy

_B, _T, _D, _V = 4, 256, 8, 32


def _arrays():
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (_B, _T, _D))
  kernel = jax.random.normal(keys[1], (_D, _V))
  targets = jax.random.randint(keys[2], (_B, _T), 0, _V)
  weights = jax.random.uniform(keys[3], (_B, _T))
  return hidden, kernel, targets, weights


def _gradient(loss_fn):
  def total(hidden, kernel, targets, weights):
    total, sums = loss_fn(hidden, kernel, targets, weights, 1e-3)
    return total, sums

  return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)


def _compiled(mesh, table=rules.FSDP_TENSOR):
  batch = ('activation_batch', 'activation_length')
  kinds = ((*batch, None), ('embed', 'vocab'), batch, batch)
  cuts = tuple(
    NamedSharding(mesh, rules.spec(mesh, axes, x.shape, table))
    for axes, x in zip(kinds, _arrays(), strict=True)
  )
  everywhere = NamedSharding(mesh, PartitionSpec())
  step = jax.jit(
    _gradient(loss.sharded(cross_entropy.cross_entropy, mesh, table)),
    in_shardings=cuts,
    out_shardings=(everywhere, cuts[:2]),
  )
  return step.lower(*_arrays()).compile()


@pytest.mark.parametrize(
  ('sizes', 'table'),
  [
    (dict(fsdp=4), rules.FSDP_TENSOR),
    (dict(fsdp=2, tensor=2), rules.FSDP_TENSOR),
    (dict(data=2, fsdp=2), rules.FSDP_TENSOR),
    (dict(tensor=4), rules.FSDP_TENSOR),
    (dict(fsdp=2, context=2), rules.CONTEXT),
    (dict(data=4), rules.ZERO1),
  ],
)
def test_a_mesh_changes_no_number(sizes, table):
  mesh = mesh_lib.make_mesh(sizes)
  want = _gradient(cross_entropy.cross_entropy)(*_arrays())
  got = _compiled(mesh, table)(*_arrays())
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_matrix_is_gathered_once_however_many_chunks(monkeypatch):
  monkeypatch.setattr(loss, 'CHUNK_LOGITS', 1)  # two chunks of 128 positions
  mesh = mesh_lib.make_mesh(dict(fsdp=4))
  text = _compiled(mesh).as_text()
  assert 'while' in text
  matrix = _D * _V * jnp.dtype(jnp.float32).itemsize
  found = collectives.collectives(text, mesh)
  gathered = [c for c in found if c.kind == 'all-gather']
  assert sum(c.bytes for c in gathered) == matrix * 3 // 4
  # Scattered, or what XLA makes of it, but once.
  added = [c for c in found if c.kind in ('reduce-scatter', 'all-reduce')]
  assert 0 < sum(c.bytes for c in added) < 2 * matrix


def test_the_vocabulary_stays_cut_over_the_tensor_axis():
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2))
  found = collectives.collectives(_compiled(mesh).as_text(), mesh)
  matrix = _D * _V * jnp.dtype(jnp.float32).itemsize
  # Half of the words, of which a device has half.
  gathered = sum(c.bytes for c in found if c.kind == 'all-gather')
  assert gathered == matrix // 4
