"""The decoder of the whole Yi family.

Axes: B batch, T query length, N query heads, K key/value heads, H head dim,
D model, F ffn, V vocabulary, L layers.

LLaMA's layout and names: pre-norm RMSNorm, RoPE, grouped-query attention,
SwiGLU, no biases (Yi report 2.3). Layers follow `config.layer_pattern`: inside
a repeat they are named 0..p-1 (no level when p = 1) and the repeats are
scanned; with `scan_layers=False` they are named 0..L-1 under `layers`.

The model knows no mesh. What depends on one is injected: `attention_fn`,
`constrain`, which pins an activation to logical axes, and `layers_fn`, which
runs the stacked layers. Parameters carry logical axis names (MaxText's words),
see `param_axes`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from yi_jax.models import attention, kv_cache, linear, rope
from yi_jax.models import config as config_lib

# Between blocks the length may be cut further than where tokens meet.
_STREAM = ('activation_batch', 'activation_norm_length', 'activation_embed')

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]


# run(params, x_BTD, context, attention_fn, constrain) -> (x_BTD, aux) takes the
# stream through a stack of repeats, as many as the leaves of params have in
# front. Leaves of the context are [B, ...] or scalars.
RunRepeats = Callable[..., tuple[jax.Array, dict[str, Any]]]
# layers_fn(run, params, x_BTD, context) -> (x_BTD, aux): all the repeats.
LayersFn = Callable[
  [RunRepeats, dict[str, Any], jax.Array, Any],
  tuple[jax.Array, dict[str, Any]],
]


class Output(NamedTuple):
  """What a forward pass gives.

  Attributes:
    logits: [B, T, V] in the compute type, or None if not asked for.
    hidden: [B, T, D] after the final norm.
    aux: {name: array}, extra losses of the layers (empty for a dense Yi).
    cache: the updated cache, or None.
  """

  logits: jax.Array | None
  hidden: jax.Array
  aux: dict[str, jax.Array]
  cache: kv_cache.Cache | None


class _Context(NamedTuple):
  """What every layer of one forward pass shares."""

  turns: tuple[jax.Array, jax.Array]
  tokens: kv_cache.Memory  # k and v unset: places of the new tokens
  lengths: jax.Array | None


def _unpinned(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  del axes
  return x


class RMSNorm(nn.Module):
  """Root-mean-square norm (Zhang and Sennrich 2019), in float32."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = nn.with_logical_partitioning(nn.initializers.ones, ('norm',))
    scale = self.param('scale', ones, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(
      x.dtype
    )


class Attention(nn.Module):
  """Grouped-query attention with RoPE, a cache and, if asked, borrowed K/V."""

  config: config_lib.ModelConfig
  spec: config_lib.LayerSpec
  attention_fn: attention.AttentionFn
  constrain: Constrain

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    context: _Context,
    slots: dict[str, jax.Array],
    borrowed: kv_cache.Memory | None,
  ) -> tuple[jax.Array, dict[str, jax.Array], kv_cache.Memory]:
    """Returns [B, T, D], the updated slots, and what was attended to."""
    c = self.config
    B, T, _ = x_BTD.shape

    def project(name: str, heads: int, axis: str) -> jax.Array:
      one = linear.Linear(
        heads * c.head_dim, ('embed', axis), c, c.attention_bias, name=name
      )
      y = one(x_BTD).reshape(B, T, heads, c.head_dim)
      places = ('activation_batch', 'activation_length')
      return self.constrain(y, (*places, f'activation_{axis}', None))

    q = rope.rotate(
      project('q_proj', c.num_attention_heads, 'heads'), context.turns
    )
    if borrowed is not None:
      memory = borrowed
    else:
      k = rope.rotate(
        project('k_proj', c.num_key_value_heads, 'kv_heads'), context.turns
      )
      v = project('v_proj', c.num_key_value_heads, 'kv_heads')
      memory = context.tokens._replace(k=k, v=v)
      if slots:
        slots, memory = kv_cache.update(
          self.spec, slots, memory, context.lengths
        )
      else:
        memory = memory._replace(positions=None)
    mask = kv_cache.mask(context.tokens, memory, self.spec.window)
    k, v = memory.k.astype(q.dtype), memory.v.astype(q.dtype)
    out = self.attention_fn(q, k, v, mask).reshape(B, T, -1)
    o_proj = linear.Linear(
      c.hidden_size, ('heads', 'embed'), c, c.attention_bias, name='o_proj'
    )
    return o_proj(out), slots, memory


class MLP(nn.Module):
  """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

  config: config_lib.ModelConfig
  constrain: Constrain

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    c = self.config
    wide = (c.intermediate_size, ('embed', 'mlp'), c)
    gate_BTF = linear.Linear(*wide, name='gate_proj')(x_BTD)
    up_BTF = linear.Linear(*wide, name='up_proj')(x_BTD)
    # Only its two inputs are kept for the backward pass: making the rest again
    # is cheaper than storing it.
    gated = jax.checkpoint(lambda gate, up: nn.silu(gate) * up)
    y_BTF = self.constrain(
      gated(gate_BTF, up_BTF),
      ('activation_batch', 'activation_length', 'activation_mlp'),
    )
    return linear.Linear(c.hidden_size, ('mlp', 'embed'), c, name='down_proj')(
      y_BTF
    )


class DecoderLayer(nn.Module):
  """Attention and MLP, each behind its norm and around a residual."""

  config: config_lib.ModelConfig
  spec: config_lib.LayerSpec
  attention_fn: attention.AttentionFn
  constrain: Constrain

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    slots: dict[str, jax.Array],
    context: _Context,
    borrowed: kv_cache.Memory | None = None,
  ) -> tuple[jax.Array, dict, kv_cache.Memory, dict[str, jax.Array]]:
    """Returns the stream, the new slots, the layer's memory, and its losses."""
    c = self.config
    y = RMSNorm(c.rms_norm_eps, name='input_layernorm')(x_BTD)
    attend = Attention(
      c, self.spec, self.attention_fn, self.constrain, name='self_attn'
    )
    y, slots, memory = attend(y, context, slots, borrowed)
    x_BTD = self.constrain(x_BTD + y, _STREAM)
    y = RMSNorm(c.rms_norm_eps, name='post_attention_layernorm')(x_BTD)
    x_BTD = x_BTD + MLP(c, self.constrain, name='mlp')(y)
    return self.constrain(x_BTD, _STREAM), slots, memory, {}


class _Repeat(nn.Module):
  """One repeat of the layer pattern: the body of the scan."""

  config: config_lib.ModelConfig
  attention_fn: attention.AttentionFn
  constrain: Constrain

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, slots: dict, context: _Context
  ) -> tuple[jax.Array, tuple[dict, dict]]:
    c = self.config
    layer = _remat(c)
    if len(c.layer_pattern) == 1:
      one = layer(c, c.layer_pattern[0], self.attention_fn, self.constrain)
      # No level of its own: the parameters of p = 1 sit right under `layers`.
      nn.share_scope(self, one)
      x_BTD, slots, _, aux = one(x_BTD, slots, context)
      return x_BTD, (slots, aux)
    return _in_order(
      c,
      c.layer_pattern,
      x_BTD,
      slots,
      context,
      self.attention_fn,
      self.constrain,
    )


class _Unrolled(nn.Module):
  """All layers one after another, each with its own arrays."""

  config: config_lib.ModelConfig
  attention_fn: attention.AttentionFn
  constrain: Constrain

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, slots: dict, context: _Context
  ) -> tuple[jax.Array, tuple[dict, dict]]:
    c = self.config
    return _in_order(
      c,
      c.layer_pattern * c.num_repeats,
      x_BTD,
      slots,
      context,
      self.attention_fn,
      self.constrain,
    )


def _in_order(
  config: config_lib.ModelConfig,
  specs: tuple[config_lib.LayerSpec, ...],
  x_BTD: jax.Array,
  slots: dict,
  context: _Context,
  attention_fn: attention.AttentionFn,
  constrain: Constrain,
) -> tuple[jax.Array, tuple[dict, dict]]:
  """Runs layers named 0, 1, … below the module that calls this.

  Returns:
    The stream, and the layers' new slots and losses by their names.
  """
  layer = _remat(config)
  memories, new_slots, auxes = [], {}, {}
  for i, spec in enumerate(specs):
    borrowed = None
    if spec.kv_from is not None:
      borrowed = memories[i - i % len(config.layer_pattern) + spec.kv_from]
    name = str(i)
    one = layer(config, spec, attention_fn, constrain, name=name)
    x_BTD, new_slots[name], memory, auxes[name] = one(
      x_BTD, slots.get(name, {}), context, borrowed
    )
    memories.append(memory)
  return x_BTD, (new_slots, auxes)


def _layers(
  config: config_lib.ModelConfig,
  num_repeats: int,
  attention_fn: attention.AttentionFn,
  constrain: Constrain,
  **where: Any,
) -> nn.Module:
  """Returns all layers as one module; `where` is its name or parent."""
  if not config.scan_layers:
    return _Unrolled(config, attention_fn, constrain, **where)
  scanned = nn.scan(
    _Repeat,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=(0, nn.broadcast),
    length=num_repeats,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return scanned(config, attention_fn, constrain, **where)


def _run_repeats(
  config: config_lib.ModelConfig,
  params: dict[str, Any],
  x_BTD: jax.Array,
  context: _Context,
  attention_fn: attention.AttentionFn,
  constrain: Constrain,
) -> tuple[jax.Array, dict[str, Any]]:
  """Runs a stack of repeats by itself; see `RunRepeats`."""
  num_repeats = len(jax.tree.leaves(params)[0])
  layers = _layers(config, num_repeats, attention_fn, constrain, parent=None)
  x_BTD, (_, aux) = layers.apply({'params': params}, x_BTD, {}, context)
  return x_BTD, aux


def _remat(config: config_lib.ModelConfig) -> type[DecoderLayer]:
  """Returns DecoderLayer, wrapped to recompute what the config asks for."""
  policies = jax.checkpoint_policies
  if config.remat == 'none':
    return DecoderLayer
  policy = {
    'full': policies.nothing_saveable,
    'dots': policies.dots_with_no_batch_dims_saveable,
    'offload': policies.offload_dot_with_no_batch_dims('device', 'pinned_host'),
  }[config.remat]
  # A scan body cannot be merged with its recomputation anyway.
  return nn.remat(
    DecoderLayer, policy=policy, prevent_cse=not config.scan_layers
  )


class Transformer(nn.Module):
  """A decoder; `Transformer(config).apply({'params': params}, tokens)`."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array | None,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    embeds: jax.Array | None = None,
    cache: kv_cache.Cache | None = None,
    attention_fn: attention.AttentionFn | None = None,
    constrain: Constrain | None = None,
    layers_fn: LayersFn | None = None,
    groups: jax.Array | None = None,
    logits: bool = True,
  ) -> Output:
    """Runs the decoder.

    Args:
      tokens: int32[B, T]; may be None when embeds are given.
      segment_ids: int32[B, T], 0 for padding; None is one segment a row. With
        a cache they say which new tokens are real (1) and which padding (0),
        which must stand on the right.
      positions: int32[B, T]; None counts from 0, or from the cache's lengths.
      embeds: [B, T, D] to use in place of the lookup (images, NEFTune).
      cache: from kv_cache.init or an earlier Output.
      attention_fn: see models/attention.py; None takes the backend's default.
      constrain: pins an activation to logical axes; None does nothing.
      layers_fn: runs the stacked layers, with an attention and a constrain of
        its own (see sharding/pipeline.py); None runs one after the other.
      groups: int32[B, T], prefix groups of `attention.Mask`.
      logits: False for losses that take the hidden states instead.

    Returns:
      An Output.

    Raises:
      ValueError: for a layers_fn where layers are not stacked, or with a cache.
    """
    c = self.config
    attention_fn = attention_fn or attention.get()
    constrain = constrain or _unpinned
    init = nn.initializers.normal(c.initializer_range)
    embedding = _Matrix(
      'embedding',
      (c.vocab_size, c.hidden_size),
      ('vocab', 'embed'),
      init,
      name='embed_tokens',
    )()
    if embeds is None:
      # Whole rows for the lookup: gathering from a table that is sharded on
      # its width would replicate the result.
      embedding_rows = constrain(embedding, ('vocab', None))
      embeds = jnp.take(embedding_rows, tokens, axis=0)
    x_BTD = constrain(embeds.astype(c.dtype), _STREAM)

    context, new_lengths = _places(
      c, x_BTD.shape[:2], segment_ids, positions, groups, cache
    )
    slots = {} if cache is None else cache.layers
    if layers_fn is None:
      layers = _layers(c, c.num_repeats, attention_fn, constrain, name='layers')
      x_BTD, (slots, aux) = layers(x_BTD, slots, context)
    else:
      if cache is not None or not c.scan_layers:
        raise ValueError('layers_fn needs stacked layers and takes no cache')
      run = functools.partial(_run_repeats, c)
      stacked = self.variables['params']['layers']
      x_BTD, aux = layers_fn(run, stacked, x_BTD, context)
    hidden = RMSNorm(c.rms_norm_eps, name='norm')(x_BTD)

    if c.tie_word_embeddings:
      kernel = embedding.T
    else:
      # Made even when a loss multiplies by it elsewhere.
      kernel = _Matrix(
        'kernel',
        (c.hidden_size, c.vocab_size),
        ('embed', 'vocab'),
        init,
        name='lm_head',
      )()
    scores = None
    if logits:
      scores = hidden @ kernel.astype(hidden.dtype)
      scores = constrain(
        scores, ('activation_batch', 'activation_length', 'activation_vocab')
      )
    new_cache = None if cache is None else kv_cache.Cache(slots, new_lengths)
    return Output(scores, hidden, _flat(aux), new_cache)


class _Matrix(nn.Module):
  """One parameter matrix: the embedding or the output."""

  leaf: str
  shape: tuple[int, int]
  axes: tuple[str, str]
  init: nn.initializers.Initializer

  @nn.compact
  def __call__(self) -> jax.Array:
    init = nn.with_logical_partitioning(self.init, self.axes)
    return self.param(self.leaf, init, self.shape, jnp.float32)


def _places(
  config: config_lib.ModelConfig,
  shape: tuple[int, int],
  segment_ids: jax.Array | None,
  positions: jax.Array | None,
  groups: jax.Array | None,
  cache: kv_cache.Cache | None,
) -> tuple[_Context, jax.Array | None]:
  """Works out where the new tokens stand, and the cache's new lengths."""
  B, T = shape
  lengths = None if cache is None else cache.lengths
  if positions is None:
    start = jnp.zeros((B, 1), jnp.int32)
    start = start if lengths is None else lengths[:, None]
    positions = start + jnp.arange(T, dtype=jnp.int32)[None]
  turns = rope.rotations(
    positions, config.head_dim, config.rope_theta, config.rope_scaling
  )
  # Or XLA takes them again in every layer, for every head.
  turns = jax.lax.optimization_barrier(turns)
  new_lengths = None
  slots = positions
  if cache is not None:
    real = jnp.ones(shape, bool) if segment_ids is None else segment_ids > 0
    slots = jnp.where(real, positions, -1)
    held = 0 if lengths is None else lengths
    new_lengths = held + jnp.sum(real, axis=1, dtype=jnp.int32)
  nothing = jnp.zeros(())
  tokens = kv_cache.Memory(nothing, nothing, slots, segment_ids, groups)
  return _Context(turns, tokens, lengths), new_lengths


def _flat(aux: dict[str, Any]) -> dict[str, jax.Array]:
  """Joins nested names with '/'; empty dicts vanish."""
  flat = {}
  for path, value in jax.tree_util.tree_leaves_with_path(aux):
    flat['/'.join(str(entry.key) for entry in path)] = value
  return flat


# -------------------------------------------------------------- parameter trees


@functools.lru_cache(maxsize=16)  # plan asks for every layout it considers
def _boxed(config: config_lib.ModelConfig) -> Any:
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  model = Transformer(config)
  return jax.eval_shape(
    lambda key, t: model.init(key, t)['params'], jax.random.key(0), tokens
  )


def _is_box(x: Any) -> bool:
  return isinstance(x, nn.LogicallyPartitioned)


def param_axes(config: config_lib.ModelConfig) -> Any:
  """Returns the parameter tree with each array's logical axis names."""
  return jax.tree.map(lambda box: box.names, _boxed(config), is_leaf=_is_box)


def abstract_params(config: config_lib.ModelConfig) -> Any:
  """Returns the parameter tree as shapes; nothing is allocated."""
  return jax.tree.map(lambda box: box.value, _boxed(config), is_leaf=_is_box)


def init_params(config: config_lib.ModelConfig, key: jax.Array) -> Any:
  """Returns fresh parameters: a plain nested dict of float32 arrays.

  Args:
    config: the model.
    key: of jax.random.
  """
  tokens = jnp.zeros((1, 1), jnp.int32)
  return nn.unbox(Transformer(config).init(key, tokens)['params'])


def output_kernel(config: config_lib.ModelConfig, params: Any) -> jax.Array:
  """Returns the [D, V] matrix that turns hidden states into logits."""
  if config.tie_word_embeddings:
    return params['embed_tokens']['embedding'].T
  return params['lm_head']['kernel']
