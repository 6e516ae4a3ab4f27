"""The `params` item of an Orbax checkpoint, written and read leaf by leaf.

Orbax takes and gives whole trees in memory. What is written here is a normal
Orbax checkpoint, but its arrays come from a lazy tree, one after the other and
stacked ones layer by layer; a chunk of the file is a layer, so that it can be
read the same way.
"""

import asyncio
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts

from yi_jax.checkpoints import lazy

# Metadata of arrays that are open; chunks are not kept.
_CONTEXT = ts.Context({'cache_pool': {'total_bytes_limit': 0}})


def write(folder: pathlib.Path, tree: lazy.LazyTree) -> None:
  """Writes a tree; the folder appears when it is whole.

  Args:
    folder: of the item, absolute; it may not be there.
    tree: the parameters.
  """
  handler = _LeafHandler()
  registry = ocp.type_handlers.create_type_handler_registry(
    (lazy.Leaf, handler), (lazy.Stack, handler)
  )
  axes = jax.tree.map(
    lambda leaf: ocp.SaveArgs(
      shard_axes=(0,) if isinstance(leaf, lazy.Stack) else ()
    ),
    tree,
  )
  quiet = logging.getLogger('absl')
  level = quiet.level
  quiet.setLevel(logging.ERROR)
  try:
    with ocp.Checkpointer(
      ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry
      )
    ) as writer:
      writer.save(folder, args=ocp.args.PyTreeSave(tree, save_args=axes))
  finally:
    quiet.setLevel(level)


def read(folder: pathlib.Path, stacked: Callable[[str], bool]) -> lazy.LazyTree:
  """Opens the parameters of a checkpoint.

  Args:
    folder: of the item, absolute.
    stacked: whether a parameter, named by its path, has an axis of layers.

  Raises:
    OSError: if there is no such checkpoint, or it cannot be read.
  """
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    found = reader.metadata(folder).item_metadata.tree

  def leaf(path: Any, entry: Any) -> lazy.Leaf | lazy.Stack:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    store = ts.open(_spec(folder, entry.name), context=_CONTEXT).result()
    kind = store.dtype.numpy_dtype
    if not stacked(name):
      return lazy.Leaf(name, store.shape, kind, lambda: store.read().result())
    return lazy.Stack(
      [
        lazy.Leaf(
          f'{name}[{i}]',
          store.shape[1:],
          kind,
          lambda i=i: store[i].read().result(),
        )
        for i in range(store.shape[0])
      ]
    )

  return jax.tree_util.tree_map_with_path(leaf, found)


class _LeafHandler(ocp.type_handlers.NumpyHandler):
  """Writes leaves where Orbax would write arrays of NumPy."""

  def __init__(self) -> None:
    super().__init__(deepcopy_host_arrays=False)
    self._alone = asyncio.Lock()

  async def _open_and_write(
    self, value: lazy.Leaf | lazy.Stack, tspec: Any, ts_context: ts.Context
  ) -> None:
    """Writes one leaf, while no other is in memory."""
    store = await ts.open(
      ts.Spec(tspec), create=True, open=True, context=ts_context
    )
    async with self._alone:
      if isinstance(value, lazy.Leaf):
        await store.write(value.read())
        return
      before = None  # is written while the next layer is read
      for i in range(len(value.parts)):
        numbers = value[i].read()
        if before is not None:
          await before
        before = store[i].write(numbers)
      await before


def _spec(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """Returns where TensorStore finds an array that Orbax has written."""
  return {
    'driver': 'zarr',
    'kvstore': {'driver': 'ocdbt', 'base': f'file://{folder}/', 'path': name},
    'open': True,
  }
