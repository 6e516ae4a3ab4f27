"""Low-rank adapters (LoRA, Hu et al. 2021) as surgery on the parameter tree.

Axes: I in, O out, R rank, L layers where they are stacked.

An adapter is a small tree beside that of the model: where a module has a
`kernel` [..., I, O], the adapter has `lora_A` [..., I, R] and `lora_B`
[..., R, O] for it. `merge` gives the parameters of the adapted model, so that
whatever takes parameters takes an adapter too.

To train one, a model with `config.lora` holds both trees in one (`attach`,
`detach`) and computes x W + scale (x A) B, which needs no gradient of W. Its W
may be 8-bit numbers: int8 `kernel` with `kernel_scale` [..., O]. `fold` turns
such a model into a plain one.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Params = dict[str, Any]

_KERNEL = 'kernel'


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What is adapted, and how.

  Attributes:
    rank: of the change to each matrix.
    alpha: the change is alpha / rank times A B.
    targets: regex that the whole '/'-joined name of a kernel must match. The
      default is attention's four in every layer, stacked or not.
    rslora: whether it is alpha / sqrt(rank) instead (Kalajdzievski 2023).
    base_bits: of the numbers of adapted kernels while an adapter is trained: 32
      or 8, one scale a column.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: str = '.*/self_attn/.*/kernel'
  rslora: bool = False
  base_bits: int = 32

  def __post_init__(self) -> None:
    """Raises ValueError for what cannot be, naming it."""
    if not isinstance(self.rank, int) or self.rank < 1:
      raise ValueError(f'the rank of LoRA is {self.rank!r}, not 1 or more')
    if self.base_bits not in (8, 32):
      raise ValueError(
        f'the base of LoRA has numbers of 8 or 32 bits, not {self.base_bits!r}'
      )
    if not 0 < self.alpha < math.inf:
      raise ValueError(f'the alpha of LoRA is {self.alpha!r}, not positive')
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(
        f'the targets of LoRA, {self.targets!r}, are no regex: {error}'
      ) from error

  @property
  def scale(self) -> float:
    """What A B is multiplied with."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def init(config: LoraConfig, params: Params, key: jax.Array) -> Params:
  """Returns a fresh adapter, which changes nothing as B is zero.

  Args:
    config: of the adapter.
    params: of the model, scanned or unrolled; shapes are enough.
    key: for A, uniform in +-1 / sqrt(I).

  Returns:
    Nested dict of float32.

  Raises:
    ValueError: if no parameter is targeted, or one that is no kernel.
  """
  names = _targets(config, params)
  flat = _flat(params)
  adapter = {}
  for name, one in zip(names, jax.random.split(key, len(names)), strict=True):
    *stack, width, out = flat[name].shape
    bound = 1 / math.sqrt(width)
    module = name.removesuffix(_KERNEL)
    adapter[f'{module}lora_A'] = jax.random.uniform(
      one, (*stack, width, config.rank), jnp.float32, -bound, bound
    )
    adapter[f'{module}lora_B'] = jnp.zeros(
      (*stack, config.rank, out), jnp.float32
    )
  return traverse_util.unflatten_dict(adapter, sep='/')


def merge(params: Params, adapter: Params, config: LoraConfig) -> Params:
  """Returns the parameters with the adapter added to them.

  Args:
    params: of the model. Leaves that are not adapted are taken as they are.
    adapter: from `init` on parameters of the same layout.
    config: of the adapter; its targets are not asked again.

  Returns:
    Tree as params: W + scale * A B, in float32, rounded to the type of W.

  Raises:
    ValueError: if the adapter does not fit, naming the parameter.
  """
  merged = _flat(params)
  for module, pair in modules(adapter).items():
    name = f'{module}/{_KERNEL}'
    if name not in merged:
      raise ValueError(
        f'the adapter changes {name}, which the model does not have; are its '
        'layers stacked as those of the model?'
      )
    kernel = merged[name]
    *stack, width, out = kernel.shape
    wanted = (*stack, width, config.rank), (*stack, config.rank, out)
    shapes = tuple(x.shape for x in pair)
    if shapes != wanted:
      raise ValueError(
        f'the adapter of {name} has the shapes {shapes}; {wanted} follow from '
        f'the model and rank {config.rank}'
      )
    a, b = (x.astype(jnp.float32) for x in pair)
    change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    wide = kernel.astype(jnp.float32) + config.scale * change
    merged[name] = wide.astype(kernel.dtype)
  return traverse_util.unflatten_dict(merged, sep='/')


def attach(params: Params, adapter: Params, config: LoraConfig) -> Params:
  """Returns one tree of a model and its adapter, as `config.lora` wants it.

  Args:
    params: of the plain model, in float32.
    adapter: from `init`.
    config: of the adapter; with base_bits = 8 the kernels are rounded.
  """
  flat = {**_flat(params), **_flat(adapter)}
  if config.base_bits == 8:
    for module in modules(adapter):
      name = f'{module}/{_KERNEL}'
      flat[name], flat[f'{name}_scale'] = quantize(flat[name])
  return traverse_util.unflatten_dict(flat, sep='/')


def detach(params: Params) -> tuple[Params, Params]:
  """Undoes `attach`: (parameters of the plain model, adapter)."""
  flat = _flat(params)
  adapter = {k: v for k, v in flat.items() if is_adapter(k)}
  plain = {k: v for k, v in flat.items() if k not in adapter}
  for name in [k for k in plain if k.endswith(f'/{_KERNEL}_scale')]:
    kernel = name.removesuffix('_scale')
    plain[kernel] = dequantize(plain[kernel], plain.pop(name))
  return tuple(
    traverse_util.unflatten_dict(half, sep='/') for half in (plain, adapter)
  )


def fold(params: Params, config: LoraConfig | None) -> Params:
  """Returns the plain parameters that do what a model with adapters does."""
  if config is None:
    return params
  return merge(*detach(params), config)


def is_adapter(name: str) -> bool:
  """Returns whether a parameter is one half of an adapter."""
  return name.endswith(('/lora_A', '/lora_B'))


def is_target(config: LoraConfig | None, module: str) -> bool:
  """Returns whether the kernel of a module is adapted.

  Args:
    config: of the adapter; None adapts nothing.
    module: '/'-joined name.
  """
  return bool(config and re.fullmatch(config.targets, f'{module}/{_KERNEL}'))


def quantize(kernel: Any) -> tuple[jax.Array, jax.Array]:
  """Rounds a kernel to int8, to the nearest of 255 steps a column.

  Args:
    kernel: [..., I, O].

  Returns:
    (int8 [..., I, O], float32 [..., O]); their product is the kernel, but for
    half a step.
  """
  wide = jnp.asarray(kernel, jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=-2) / 127
  steps = wide / jnp.maximum(scale, 1e-30)[..., None, :]
  return jnp.round(steps).astype(jnp.int8), scale


def dequantize(kernel: Any, scale: Any) -> jax.Array:
  """Undoes `quantize`: float32 [..., I, O]."""
  return jnp.asarray(kernel, jnp.float32) * jnp.asarray(scale)[..., None, :]


def param_axes(adapter: Params, axes: Params) -> Params:
  """Returns the logical axes of an adapter, for the rules of sharding.

  Args:
    adapter: from `init`; shapes are enough.
    axes: of the model's parameters, see transformer.param_axes.

  Returns:
    Tree as the adapter, a name a dimension; the rank is never cut.
  """
  kernels = _flat(axes)
  found = {}
  for module in modules(adapter):
    *stack, width, out = kernels[f'{module}/{_KERNEL}']
    found[f'{module}/lora_A'] = (*stack, width, None)
    found[f'{module}/lora_B'] = (*stack, None, out)
  return traverse_util.unflatten_dict(found, sep='/')


def num_params(adapter: Params) -> int:
  """Returns how many numbers an adapter has; shapes are enough."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapter))


def modules(adapter: Params) -> dict[str, tuple[Any, Any]]:
  """Returns '/'-joined name of a module -> (A, B).

  Raises:
    ValueError: if a tree is no adapter, naming the leaf.
  """
  flat = _flat(adapter)
  found = {}
  for name in flat:
    module, _, leaf = name.rpartition('/')
    pair = f'{module}/lora_A', f'{module}/lora_B'
    if leaf not in ('lora_A', 'lora_B') or not flat.keys() >= set(pair):
      raise ValueError(
        f'{name} is no half of an adapter: each module has lora_A and lora_B'
      )
    found[module] = tuple(flat[half] for half in pair)
  return found


def _targets(config: LoraConfig, params: Params) -> list[str]:
  """Returns the names of the kernels that are adapted."""
  flat = _flat(params)
  names = [name for name in flat if re.fullmatch(config.targets, name)]
  kernels = [name for name in flat if name.endswith(f'/{_KERNEL}')]
  if not names:
    raise ValueError(
      f'the targets of LoRA, {config.targets!r}, match no parameter; names '
      f'look like {", ".join(kernels[:3])}'
    )
  for name in names:
    if name not in kernels:
      raise ValueError(
        f'the targets of LoRA, {config.targets!r}, match {name} '
        f'{list(flat[name].shape)}, which is no matrix that something is '
        f'multiplied with; let them end in /{_KERNEL}'
      )
  return names


def _flat(params: Params) -> dict[str, Any]:
  """Returns '/'-joined name -> leaf."""
  return traverse_util.flatten_dict(params, sep='/')
