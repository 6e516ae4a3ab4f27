"""A model laid out for the machine it writes on: products, and logits.

Axes: B batch, T length, D model, F ffn, V vocabulary.

On CPU kernels are stored transposed, as the products of few rows read them, and
those of one input as one array; elsewhere they stay as they are. Generation and
whatever else runs a model with a cache share this.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from yi_jax.models import config as config_lib
from yi_jax.models import layout, linear, transformer
from yi_jax.serving import sampling


class Compute:
  """A model ready to run.

  Attributes:
    config: the model as it runs: unrolled, in the type it computes in.
    params: its parameters as `apply` wants them.
    vocabulary_size: ids from here on are no tokens.
  """

  def __init__(
    self,
    config: config_lib.ModelConfig,
    params: dict[str, Any],
    *,
    vocabulary_size: int | None = None,
    dtype: str | None = None,
  ) -> None:
    """Lays out the parameters; nothing is compiled yet.

    Args:
      config: the model.
      params: its parameters, scanned or unrolled.
      vocabulary_size: see the class; None means that every row of the
        embedding is a token.
      dtype: of the computation, the matrices and the cache; None takes float32
        on CPU (bfloat16 is slower there) and config.dtype elsewhere.
    """
    if dtype is None:
      on_cpu = jax.default_backend() == 'cpu'
      dtype = 'float32' if on_cpu else config.dtype
    config, params = layout.unroll(config, params)
    self.config = config.replace(dtype=dtype, remat='none')
    self.vocabulary_size = vocabulary_size or config.vocab_size
    # Vectors (norms, biases) keep their precision: they cost no bandwidth.
    params = jax.tree.map(
      lambda x: jnp.asarray(x, dtype if x.ndim > 1 else None), params
    )
    self._apply = _apply
    if jax.default_backend() == 'cpu':
      params['layers'] = _transposed(params['layers'])
      self._apply = _apply_transposed
    self.params = params
    self._model = transformer.Transformer(self.config)

  def apply(
    self, params: Any, tokens: jax.Array, **inputs: Any
  ) -> transformer.Output:
    """Runs the model; see Transformer.

    Args:
      params: `self.params`, handed in so that programs take them as arguments.
      tokens: int32[B, T].
      **inputs: as Transformer's.
    """
    return self._apply(self._model, params, tokens, **inputs)

  def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
    """[n, V] of hidden [n, D]; the model's, with no id that is no token."""
    if self.config.tie_word_embeddings:
      logits = _times_transposed(hidden, params['embed_tokens']['embedding'])
    else:
      logits = hidden @ params['lm_head']['kernel']
    if self.vocabulary_size == self.config.vocab_size:
      return logits
    is_token = jnp.arange(self.config.vocab_size) < self.vocabulary_size
    return jnp.where(is_token, logits, sampling.REMOVED)


def _apply(
  model: transformer.Transformer, params: Any, tokens: jax.Array, **inputs: Any
) -> transformer.Output:
  return model.apply({'params': params}, tokens, **inputs)


# Products of one input that become one: where, the first, those that follow.
_TOGETHER = (
  ('self_attn', 'q_proj', ('k_proj', 'v_proj')),
  ('mlp', 'gate_proj', ('up_proj',)),
)


def _transposed(layers: dict[str, Any]) -> dict[str, Any]:
  """Returns layers with kernels as [out, in], those of one input in one array.

  One array that is read at a stretch takes a tenth less time than three.
  """
  layers = jax.tree.map(lambda x: x.T if x.ndim == 2 else x, layers)
  for layer in layers.values():
    for place, first, others in _TOGETHER:
      projections = layer.get(place, {})
      if first in projections and all(name in projections for name in others):
        joined = [projections.pop(name) for name in (first, *others)]
        projections[first] = jax.tree.map(
          lambda *parts: jnp.concatenate(parts), *joined
        )
  return layers


def _apply_transposed(
  model: transformer.Transformer, params: Any, tokens: jax.Array, **inputs: Any
) -> transformer.Output:
  """Runs the model on layers whose kernels are stored by `_transposed`."""
  waiting = {}  # path of a projection -> its part of a product already made
  after = {first: others for _, first, others in _TOGETHER}

  def product(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    module = context.module
    if not isinstance(module, linear.Linear):
      return call(*arguments, **named)
    [x] = arguments
    *parent, name = module.path
    if module.path in waiting:
      return waiting.pop(module.path)
    kernel = module.get_variable('params', 'kernel')
    y = _times_transposed(x.reshape(-1, x.shape[-1]), kernel)
    if module.use_bias:
      y += module.get_variable('params', 'bias').astype(y.dtype)
    y = y.reshape(*x.shape[:-1], -1)
    if y.shape[-1] == module.features:
      return y
    # The model asks for the others with the same input right after this.
    ends = [module.features]
    if name == 'q_proj':
      ends.append((module.features + y.shape[-1]) // 2)
    y, *rest = jnp.split(y, ends, axis=-1)
    for other, part in zip(after[name], rest, strict=True):
      waiting[(*parent, other)] = part
    return y

  with nn.intercept_methods(product):
    return _apply(model, params, tokens, **inputs)


# Above, a product is bound by arithmetic and its form does not matter.
_FEW = 64


def _times_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[n, D] times the transpose of [F, D].

  XLA:CPU packs a copy of a product's right side. With few rows that is most of
  the work, so here the kernel stands on the left and is read as it lies (1.5 to
  2 times as fast for 8 rows). The barrier keeps XLA from turning it back.
  """
  if x.shape[0] > _FEW or jax.default_backend() != 'cpu':
    return jnp.einsum('ND,FD->NF', x, kernel)
  return jax.lax.optimization_barrier(kernel @ x.T).T
