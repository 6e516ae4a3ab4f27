"""The step of decoding, from shapes alone: one token for every row.

Weights in the model's compute type, cut by the rules of training; the cache
over rows and key/value heads, donated and so updated in place. A real server
adds choosing tokens, which is small beside it.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from yi_jax.models import attention, kv_cache, transformer
from yi_jax.models import config as model_config
from yi_jax.sharding import rules

_CACHE = ('layers', 'activation_batch', 'activation_kv_heads', None, None)


def arguments(
  config: model_config.ModelConfig,
  mesh: jax.sharding.Mesh,
  rows: int,
  length: int,
) -> tuple:
  """Returns shapes and shardings of (params, cache, tokens).

  Args:
    config: the model, with stacked layers.
    mesh: the devices.
    rows: B.
    length: tokens a row the cache has room for.
  """

  def placed(
    leaf: jax.ShapeDtypeStruct, cut: NamedSharding, dtype: str
  ) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=cut)

  shapes = transformer.abstract_params(config)
  cuts = rules.shardings(mesh, transformer.param_axes(config), shapes)
  params = jax.tree.map(
    lambda leaf, cut: placed(leaf, cut, config.dtype), shapes, cuts
  )
  empty = jax.eval_shape(lambda: kv_cache.init(config, rows, length))

  def part(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    cut = rules.spec(mesh, _CACHE[-leaf.ndim :], leaf.shape)
    return placed(leaf, NamedSharding(mesh, cut), leaf.dtype)

  by_row = NamedSharding(mesh, rules.spec(mesh, ('activation_batch',), (rows,)))
  each = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row)
  cache = kv_cache.Cache(jax.tree.map(part, empty.layers), each)
  return params, cache, each


def lower(
  config: model_config.ModelConfig,
  mesh: jax.sharding.Mesh,
  rows: int,
  length: int,
) -> jax.stages.Lowered:
  """Lowers the step; see `arguments`."""
  config = config.replace(remat='none', scan_layers=True)
  constrain = rules.constrainer(mesh) if mesh.size > 1 else None

  def step(
    params: dict, cache: kv_cache.Cache, tokens: jax.Array
  ) -> tuple[kv_cache.Cache, jax.Array]:
    output = transformer.Transformer(config).apply(
      {'params': params},
      tokens[:, None],
      cache=cache,
      attention_fn=attention.cached,
      constrain=constrain,
    )
    chosen = jnp.argmax(output.logits[:, -1], axis=-1).astype(jnp.int32)
    return output.cache, chosen

  given = arguments(config, mesh, rows, length)
  cuts = jax.tree.map(lambda leaf: leaf.sharding, given)
  compiled = jax.jit(
    step, in_shardings=cuts, out_shardings=cuts[1:], donate_argnums=1
  )
  return compiled.lower(*given)
