"""Lazy trees: read when needed, in pieces, and rounded as JAX rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from yi_jax.checkpoints import lazy
from yi_jax.sharding import mesh as meshes


def _leaf(x, name='x'):
  return lazy.Leaf(name, x.shape, x.dtype, lambda: x)


def test_a_matrix_of_any_shape_is_transposed():
  for shape in ((1, 5), (7, 3), (8, 8), (20, 9), (33, 1)):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    turned = _leaf(x).transpose()
    assert turned.shape == shape[::-1]
    np.testing.assert_array_equal(turned.read(), x.T)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_types_are_rounded_as_jax_rounds(dtype):
  x = np.random.default_rng(0).normal(size=999).astype(np.float32)
  found = _leaf(x).astype(dtype).read()
  np.testing.assert_array_equal(found, np.asarray(jnp.asarray(x, dtype)))


def test_numbers_beyond_float16_are_refused_but_infinity_stays():
  with pytest.raises(ValueError, match=r'w has numbers beyond.*up to 70000'):
    _leaf(np.float32([1, -7e4]), 'w').astype('float16').read()
  found = _leaf(np.float32([np.inf, np.nan])).astype('float16').read()
  np.testing.assert_array_equal(found, np.float16([np.inf, np.nan]))


@pytest.mark.parametrize('dtype', lazy.DTYPES)
def test_what_is_not_finite_is_found(dtype):
  largest = float(jnp.finfo(dtype).max)
  smallest = float(jnp.finfo(dtype).smallest_subnormal)
  fine = np.array([0, -0.0, largest, -largest, smallest], jnp.dtype(dtype))
  assert lazy.is_finite(fine)
  for bad in (np.nan, np.inf, -np.inf):
    assert not lazy.is_finite(np.append(fine, np.array(bad, fine.dtype)))


@pytest.mark.parametrize(
  'spec', [(), ('fsdp',), (None, 'fsdp'), (None, 'fsdp', 'tensor')]
)
def test_a_stack_lands_on_devices_as_the_array_it_stands_for(spec):
  x = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
  mesh = meshes.make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])
  place = NamedSharding(mesh, PartitionSpec(*spec))
  stack = lazy.Stack([_leaf(part) for part in x])
  for leaf in (stack, _leaf(x)):
    [found] = jax.tree.leaves(lazy.load({'x': leaf}, {'x': place}))
    assert found.sharding == place
    np.testing.assert_array_equal(found, x)


def test_stacked_types_are_joined_without_loss():
  parts = [np.ones(3, np.float32), np.ones(3, jnp.bfloat16)]
  stack = lazy.Stack([_leaf(x) for x in parts])
  assert (
    stack.dtype == stack.read().dtype == stack[1].read().dtype == np.float32
  )
  with pytest.raises(ValueError, match='a, b differ in shape'):
    lazy.Stack([_leaf(np.ones(2), 'a'), _leaf(np.ones(3), 'b')])


def test_reading_ahead_keeps_the_order_and_tells_of_errors():
  leaves = [_leaf(np.full(2, i)) for i in range(5)]
  assert [x[0] for x in lazy.read_ahead(leaves)] == [0, 1, 2, 3, 4]
  assert list(lazy.read_ahead([])) == []

  def fail():
    raise OSError('gone')

  broken = lazy.Leaf('x', (2,), np.dtype(np.float32), fail)
  with pytest.raises(OSError, match='gone'):
    list(lazy.read_ahead([*leaves, broken]))


def test_an_unknown_type_is_refused():
  with pytest.raises(ValueError, match='not int8'):
    lazy.astype({'x': _leaf(np.ones(2))}, 'int8')
