"""Arrays that are still in a file: shape and type now, the numbers on demand.

A checkpoint is opened as a *lazy tree*: the nested dict of the parameters,
whose leaves are `Leaf` or, for layers stacked on a leading axis, `Stack`. Both
have `.shape`, `.dtype`, `.read() -> np.ndarray` and `.astype(dtype)`; a Stack
is read one layer at a time wherever that is enough. So a conversion holds a
tensor or two in memory, whatever the size of the model, and every format
(safetensors, PyTorch, GGUF, Orbax) is a source as soon as it yields leaves.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import config as model_config
from yi_jax.models import layout

# What a checkpoint may hold, by the names of config.json.
DTYPES = ('float32', 'bfloat16', 'float16')

# Nested dict of Leaf and Stack.
LazyTree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array.

  Attributes:
    name: as its file calls it, for messages.
    shape: of the array.
    dtype: of what `read` returns.
    read: gives the numbers; called anew each time they are needed.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def ndim(self) -> int:
    """Number of dimensions."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes once read."""
    return self.size * np.dtype(self.dtype).itemsize

  @property
  def parts(self) -> tuple['Leaf', ...]:
    """What it is read in: itself."""
    return (self,)

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    """Returns the numbers to NumPy."""
    return np.asarray(self.read(), dtype)

  def map(
    self,
    change: Callable[[np.ndarray], np.ndarray],
    *,
    shape: tuple[int, ...] | None = None,
    dtype: Any = None,
  ) -> 'Leaf':
    """Returns a leaf whose numbers are changed when they are read.

    Args:
      change: from the array to another.
      shape: afterwards; None is as before.
      dtype: afterwards; None is as before.
    """
    return Leaf(
      self.name,
      self.shape if shape is None else shape,
      self.dtype if dtype is None else jnp.dtype(dtype),
      lambda: change(self.read()),
    )

  def transpose(self) -> 'Leaf':
    """Returns the transposed matrix."""
    return self.map(_transpose, shape=self.shape[::-1])

  def astype(self, dtype: Any) -> 'Leaf':
    """Returns the array in another type, see `cast`."""
    if jnp.dtype(dtype) == self.dtype:
      return self
    return self.map(lambda x: cast(x, dtype, self.name), dtype=dtype)


class Stack:
  """Arrays of one shape on a new leading axis, e.g. the same of every layer."""

  def __init__(self, parts: Sequence[Leaf]) -> None:
    """Takes the arrays in their order.

    Raises:
      ValueError: if their shapes differ.
    """
    self.parts = tuple(parts)
    shapes = {leaf.shape for leaf in self.parts}
    if len(shapes) != 1:
      names = ', '.join(leaf.name for leaf in self.parts)
      raise ValueError(f'{names} differ in shape: {sorted(shapes)}')
    self.name = f'{self.parts[0].name} and its like'
    self.shape = (len(self.parts), *self.parts[0].shape)
    self.dtype = jnp.result_type(*(leaf.dtype for leaf in self.parts))

  ndim, size, nbytes = Leaf.ndim, Leaf.size, Leaf.nbytes
  __array__ = Leaf.__array__

  def __getitem__(self, index: int) -> Leaf:
    """Returns one of the arrays."""
    return self.parts[index].astype(self.dtype)

  def read(self) -> np.ndarray:
    """Returns all of it; one part more than that is in memory meanwhile."""
    whole = np.empty(self.shape, self.dtype)
    for i in range(len(self.parts)):
      whole[i] = self[i].read()
    return whole

  def astype(self, dtype: Any) -> 'Stack':
    """Returns the arrays in another type, see `cast`."""
    return Stack([leaf.astype(dtype) for leaf in self.parts])


def cast(x: np.ndarray, dtype: Any, name: str) -> np.ndarray:
  """Returns an array rounded to another float type, ties to even.

  Args:
    x: the array.
    dtype: the type.
    name: of the tensor.

  Raises:
    ValueError: if a finite number is too large for the type.
  """
  with np.errstate(over='ignore', invalid='ignore'):
    changed = x.astype(jnp.dtype(dtype))
  if changed.dtype == np.float16 and not is_finite(changed):
    lost = np.isfinite(x.astype(np.float32)) & ~np.isfinite(changed)
    if lost.any():
      raise ValueError(
        f'{name} has numbers beyond the range of float16 (65,504), up to '
        f'{np.abs(x[lost].astype(np.float32)).max():g}; choose bfloat16 or '
        'float32'
      )
  return changed


def is_finite(x: np.ndarray) -> bool:
  """Returns whether an array has neither NaN nor infinity.

  The exponent is all ones in those and in nothing else, so that integers tell,
  at a fraction of the time that a conversion would take.
  """
  exponent, kind = {
    'float32': (0x7F800000, np.uint32),
    'bfloat16': (0x7F80, np.uint16),
    'float16': (0x7C00, np.uint16),
  }[x.dtype.name]
  return not np.any((x.view(kind) & kind(exponent)) == exponent)


def from_params(config: model_config.ModelConfig, params: Any) -> LazyTree:
  """Returns a parameter tree as a lazy one.

  Args:
    config: the model.
    params: nested dict of NumPy arrays or of jax arrays, wherever those are:
      they are fetched one by one, stacked ones layer by layer. Leaves stay.

  Raises:
    ValueError: for an array of which other processes hold parts, or that is
      only a shape.
  """

  def wrap(path: Any, x: Any) -> Leaf | Stack:
    if isinstance(x, Leaf | Stack):
      return x
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if isinstance(x, jax.ShapeDtypeStruct):
      raise ValueError(f'{name} has a shape but no numbers: it is not loaded')
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      raise ValueError(
        f'{name} is spread over several processes: gather it first, or save a '
        'checkpoint and convert that in one process'
      )
    kind = np.dtype(x.dtype)
    if not (config.scan_layers and name.startswith('layers/')):
      return Leaf(name, x.shape, kind, lambda: _fetch(x, ...))
    return Stack(
      [
        Leaf(f'{name}[{i}]', x.shape[1:], kind, lambda i=i: _fetch(x, i))
        for i in range(x.shape[0])
      ]
    )

  return jax.tree_util.tree_map_with_path(wrap, params)


def _fetch(x: Any, index: Any) -> np.ndarray:
  # Indexed even for all of it: a jax array keeps what it once gave to NumPy,
  # and host memory would come to hold the whole model.
  return np.asarray(x[index])


def relayout(
  config: model_config.ModelConfig, tree: LazyTree, scan_layers: bool
) -> tuple[model_config.ModelConfig, LazyTree]:
  """Returns the model with stacked layers, or with one leaf a layer."""
  if scan_layers:
    return layout.stack(config, tree, join=Stack)
  return layout.unroll(config, tree)


def leaves(tree: Any, name: str = '') -> Iterator[tuple[str, Leaf | Stack]]:
  """Yields (path joined by '/', leaf), in the order of the dicts."""
  if not isinstance(tree, dict):
    yield name, tree
    return
  for key, value in tree.items():
    yield from leaves(value, f'{name}/{key}' if name else key)


def astype(tree: LazyTree, dtype: Any) -> LazyTree:
  """Returns a tree in another type; None leaves each leaf as it is."""
  if dtype is None:
    return tree
  if jnp.dtype(dtype).name not in DTYPES:
    raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, not {dtype}')
  return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def watch(tree: LazyTree, seen: Callable[[np.ndarray], None]) -> LazyTree:
  """Returns a tree that shows each array, or layer of one, as it is read."""

  def look(numbers: np.ndarray) -> np.ndarray:
    seen(numbers)
    return numbers

  def wrap(leaf: Leaf | Stack) -> Leaf | Stack:
    if isinstance(leaf, Stack):
      return Stack([part.map(look) for part in leaf.parts])
    return leaf.map(look)

  return jax.tree.map(wrap, tree)


def read_ahead(arrays: Iterable[Leaf]) -> Iterator[np.ndarray]:
  """Reads arrays in their order, each while the caller works on the one before.

  Two are in memory, not counting what the caller keeps.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    before = None
    for leaf in arrays:
      after = reader.submit(leaf.read)
      if before is not None:
        yield before.result()
      before = after
    if before is not None:
      yield before.result()


def load(tree: LazyTree, shardings: Any = None) -> dict[str, Any]:
  """Reads a tree onto devices, leaf after leaf.

  In host memory is one leaf (of it only what this process's devices shall
  have) and one part of it more.

  Args:
    tree: what to read.
    shardings: where each array shall be, a tree as `tree`; None puts all on the
      first local device.

  Returns:
    Nested dict of jax arrays.
  """
  if shardings is None:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, tree)
  return jax.tree.map(_put, tree, shardings)


def _put(leaf: Leaf | Stack, sharding: jax.sharding.Sharding) -> jax.Array:
  """Reads one leaf, giving each device its piece."""
  indices = sharding.addressable_devices_indices_map(leaf.shape)
  # Replicas share a piece, so they go by their bounds.
  pieces = dict.fromkeys(_bounds(x, leaf.shape) for x in indices.values())
  if isinstance(leaf, Stack):
    for bounds in pieces:
      shape = [stop - start for start, stop in bounds]
      pieces[bounds] = np.empty(shape, leaf.dtype)
    for i in range(len(leaf.parts)):
      numbers = leaf[i].read()
      for ((start, stop), *inner), piece in pieces.items():
        if start <= i < stop:
          piece[i - start] = numbers[tuple(slice(*b) for b in inner)]
  else:
    numbers = leaf.read()
    for bounds in pieces:
      pieces[bounds] = numbers[tuple(slice(*b) for b in bounds)]
  arrays = [
    jax.device_put(pieces[_bounds(index, leaf.shape)], device)
    for device, index in indices.items()
  ]
  # Not more than one leaf on its way at a time.
  return jax.block_until_ready(
    jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)
  )


def _bounds(
  index: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
  """Returns (start, stop) of each dimension."""
  return tuple(
    piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True)
  )


def _transpose(x: np.ndarray) -> np.ndarray:
  """Returns x.T in row order; in strips, which is five times as fast."""
  strip = 8  # rows: what is written of a row of the result fills a cache line
  turned = np.empty(x.shape[::-1], x.dtype)
  for i in range(0, len(x), strip):
    turned[:, i : i + strip] = x[i : i + strip].T
  return turned
