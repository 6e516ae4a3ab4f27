"""The loss on a mesh: each device takes the chunks of its own rows.

The chunks of `training/cross_entropy.py` are rounds of a loop. Left to the
compiler, every round would gather the output matrix and add up its gradient over
the devices: for 34B parameters on 128 chips 22 GB a step and chip that need not
be sent. Here the matrix is gathered once, in the compute type, and its gradient
(rounded to that type once a device, like any other) added up once, in float32;
the vocabulary stays cut over the tensor axis, by the compiler.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from yi_jax.sharding import rules as rules_lib

# (hidden, kernel, targets, weights, z_loss, chunk_logits) -> (sum, sums by name).
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

# The more positions a round has, the less often a device reads and writes the
# gradient of the whole matrix: about a thousand positions are enough.
CHUNK_LOGITS = 2**26


def sharded(
  loss: Loss, mesh: Mesh, rules: rules_lib.Rules = rules_lib.FSDP_TENSOR
) -> Loss:
  """Returns `loss` for arrays that are cut over a mesh.

  Args:
    loss: `cross_entropy.cross_entropy`, or `by_bucket` there, whose weights
      are a tuple.
    mesh: the devices; one device needs no wrapping.
    rules: which mesh axes cut rows, their length, and the output matrix.
  """
  if mesh.size == 1:
    return loss

  def call(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    z_loss: float = 0.0,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    axes = ('activation_batch', 'activation_length')
    rows = rules_lib.spec(mesh, axes, targets_BT.shape, rules)
    manual = (*_axes(rows[0]), *_axes(rows[1]))
    if not manual:
      return loss(hidden_BTD, kernel_DV, targets_BT, weights_BT, z_loss)
    places = rules_lib.spec(mesh, ('embed', 'vocab'), kernel_DV.shape, rules)

    def local(hidden: jax.Array, kernel: jax.Array, *rest: jax.Array) -> Any:
      made = loss(hidden, kernel[0], *rest, z_loss, chunk_logits=CHUNK_LOGITS)
      return jax.tree.map(lambda x: x[None], made)

    first = PartitionSpec(manual)
    made = jax.shard_map(
      local,
      mesh=mesh,
      axis_names=set(manual),
      in_specs=(PartitionSpec(*rows, None), first, rows, rows),
      out_specs=first,
      check_vma=False,
    )(
      hidden_BTD,
      _copies(kernel_DV.astype(hidden_BTD.dtype), mesh, manual, places),
      targets_BT,
      weights_BT,
    )
    return jax.tree.map(lambda x: x.sum(axis=0), made)

  return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _copies(
  kernel_DV: jax.Array,
  mesh: Mesh,
  over: tuple[str, ...],
  places: PartitionSpec,
) -> jax.Array:
  """Returns [devices, D, V]: a copy for each device along the axes `over`.

  Copies rather than one array that `shard_map` takes to be the same everywhere:
  the compiler then adds up the gradients, of the words that a device has. A sum
  inside `shard_map` would first gather the vocabulary.

  Args:
    kernel_DV: the matrix, cut as `places` says.
    mesh: the devices.
    over: mesh axes that cut rows.
    places: how the matrix is cut.
  """
  words = _words(places, over)
  whole = _pin(kernel_DV, mesh, PartitionSpec(None, words))
  count = math.prod(mesh.shape[axis] for axis in over)
  copies = jnp.broadcast_to(whole, (count, *whole.shape))
  return _pin(copies, mesh, PartitionSpec(over, None, words))


def _copies_forward(kernel_DV: jax.Array, *where: Any) -> tuple:
  return _copies(kernel_DV, *where), None


def _copies_backward(
  mesh: Mesh,
  over: tuple[str, ...],
  places: PartitionSpec,
  saved: None,
  grads: jax.Array,
) -> tuple[jax.Array]:
  del saved
  grads = _pin(grads, mesh, PartitionSpec(over, None, _words(places, over)))
  total = jnp.sum(grads, axis=0, dtype=jnp.float32)
  return (_pin(total, mesh, places).astype(grads.dtype),)


_copies.defvjp(_copies_forward, _copies_backward)


def _words(places: PartitionSpec, over: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the axes that cut the vocabulary of a copy: those of no rows."""
  return tuple(axis for axis in _axes(places[1]) if axis not in over)


def _pin(x: jax.Array, mesh: Mesh, places: PartitionSpec) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, places))


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes of one entry of a PartitionSpec."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)
