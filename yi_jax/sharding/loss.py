"""The loss on a mesh: each device takes the chunks of its own rows.

The chunks of `training/cross_entropy.py` are rounds of a loop. Left to the
compiler, every round would gather the output matrix and add up its gradient over
the devices: for 34B parameters on 128 chips 22 GB a step and chip that need not
be sent. Here the matrix is gathered once, in the compute type, and the gradient
is scattered once, in float32; the vocabulary stays cut over the tensor axis, by
the compiler.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from yi_jax.sharding import rules as rules_lib

# (hidden, kernel, targets, weights, z_loss) -> (sum, sums by name), and takes
# `whole`, `share` and `chunk_logits`.
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

# The more positions a round has, the less often a device reads and writes the
# gradient of the whole matrix: about a thousand positions are enough.
CHUNK_LOGITS = 2**26


def sharded(
  loss: Loss, mesh: Mesh, rules: rules_lib.Rules = rules_lib.FSDP_TENSOR
) -> Loss:
  """Returns `loss` for arrays that are cut over a mesh.

  Args:
    loss: `cross_entropy.cross_entropy`.
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
    cut = tuple(axis for axis in _axes(places[0]) if axis in manual)

    def whole(part: jax.Array) -> jax.Array:
      return jax.lax.all_gather(part, cut, tiled=True) if cut else part

    def share(grad: jax.Array) -> jax.Array:
      return jax.lax.psum_scatter(grad, cut, tiled=True) if cut else grad

    def local(*arrays: jax.Array) -> Any:
      made = loss(
        *arrays, z_loss, whole=whole, share=share, chunk_logits=CHUNK_LOGITS
      )
      return jax.tree.map(lambda x: x[None], made)

    made = jax.shard_map(
      local,
      mesh=mesh,
      axis_names=set(manual),
      in_specs=(
        PartitionSpec(*rows, None),
        PartitionSpec(cut or None, None),
        rows,
        rows,
      ),
      out_specs=PartitionSpec(manual),
      check_vma=False,
    )(hidden_BTD, kernel_DV, targets_BT, weights_BT)
    return jax.tree.map(lambda x: x.sum(), made)

  return call


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes of one entry of a PartitionSpec."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)
