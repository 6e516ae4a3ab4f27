"""The decoder: equal to transformers, causal, and the same however it is run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import transformer

_TINY = config_lib.get_preset(
  'tiny',
  vocab_size=96,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=1024,
)
_PATTERNS = {
  'dense': (config_lib.LayerSpec(),),
  'sliding': (config_lib.LayerSpec('sliding', 5), config_lib.LayerSpec()),
  'shared': (config_lib.LayerSpec(), config_lib.LayerSpec(kv_from=0)),
}


def _params(config, seed=0):
  """Fresh parameters, larger than usual so that every path matters."""
  params = transformer.init_params(config, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noise = [
    leaf + 0.2 * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, noise)


def _tokens(length, batch=2, vocab=96):
  return jax.random.randint(jax.random.key(7), (batch, length), 0, vocab)


def _logits(config, params, tokens, **kwargs):
  model = transformer.Transformer(config)
  return jax.jit(lambda p, t: model.apply({'params': p}, t, **kwargs).logits)(
    params, tokens
  )


def _llama_names(config, params):
  """LLaMA's flat names, weights as [out, in]; its own little oracle map."""
  flat = {'model.embed_tokens.weight': params['embed_tokens']['embedding']}
  for i in range(config.num_hidden_layers):
    layer = params['layers'][str(i)]
    prefix = f'model.layers.{i}.'
    for part in ('self_attn', 'mlp'):
      for name, leaf in layer[part].items():
        flat[f'{prefix}{part}.{name}.weight'] = leaf['kernel'].T
        if 'bias' in leaf:
          flat[f'{prefix}{part}.{name}.bias'] = leaf['bias']
    for norm in ('input_layernorm', 'post_attention_layernorm'):
      flat[f'{prefix}{norm}.weight'] = layer[norm]['scale']
  flat['model.norm.weight'] = params['norm']['scale']
  if not config.tie_word_embeddings:
    flat['lm_head.weight'] = params['lm_head']['kernel'].T
  return flat


@pytest.mark.parametrize(
  'changes',
  [
    dict(rope_theta=5e6, rms_norm_eps=1e-5),
    dict(rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=True),
    dict(attention_bias=True, num_key_value_heads=1),
  ],
)
def test_logits_and_gradients_equal_transformers_at_600_positions(
  peer, changes
):
  config = _TINY.replace(**changes)
  params = _params(config)
  tokens = _tokens(600)
  cotangent = jax.random.normal(jax.random.key(3), (2, 600, 96))
  flat = _llama_names(config, params)
  want = peer(
    'llama.py',
    config=json.dumps(
      dict(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=dict(rope_type='default', rope_theta=config.rope_theta),
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
      )
    ),
    tokens=np.asarray(tokens),
    cotangent=np.asarray(cotangent),
    **{name: np.asarray(x) for name, x in flat.items()},
  )
  model = transformer.Transformer(config)

  @jax.jit
  def run(params):
    def weighted(p):
      logits = model.apply({'params': p}, tokens).logits
      return jnp.sum(logits * cotangent), logits

    return jax.grad(weighted, has_aux=True)(params)

  grads, logits = run(params)
  np.testing.assert_allclose(logits, want['logits'], atol=1e-4)
  for name, grad in _llama_names(config, grads).items():
    scale = np.abs(want[name]).max()
    np.testing.assert_allclose(
      grad / scale, want[name] / scale, atol=1e-4, err_msg=name
    )


@pytest.mark.parametrize('pattern', _PATTERNS)
def test_scanned_equals_unrolled(pattern):
  config = _TINY.replace(
    num_hidden_layers=4, layer_pattern=_PATTERNS[pattern], scan_layers=False
  )
  params = _params(config)
  p = len(config.layer_pattern)

  def stack(place):
    layers = [params['layers'][str(i)] for i in range(place, 4, p)]
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)

  stacked = {str(i): stack(i) for i in range(p)} if p > 1 else stack(0)
  scanned = config.replace(scan_layers=True)
  got = _logits(scanned, {**params, 'layers': stacked}, _tokens(19))
  want = _logits(config, params, _tokens(19))
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('remat', config_lib.REMATS[1:])
def test_recomputation_changes_nothing(remat, scan):
  config = _TINY.replace(scan_layers=scan)
  params = _params(config)

  def gradients(config):
    model = transformer.Transformer(config)

    def loss(p):
      return jnp.sum(model.apply({'params': p}, _tokens(33)).logits ** 2)

    return jax.jit(jax.grad(loss))(params)

  want, got = gradients(config), gradients(config.replace(remat=remat))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('pattern', _PATTERNS)
def test_a_logit_depends_on_no_later_token(pattern):
  config = _TINY.replace(layer_pattern=_PATTERNS[pattern])
  params = _params(config)
  model = transformer.Transformer(config)
  embeds = jax.random.normal(jax.random.key(2), (1, 12, 32))

  def one(embeds):
    out = model.apply({'params': params}, None, embeds=embeds)
    return out.logits[0, 6].sum()

  reach = jnp.abs(jax.jit(jax.grad(one))(embeds)[0]).sum(-1)
  assert not np.any(reach[7:])
  assert np.all(reach[:7] > 0)


def test_a_sliding_layer_reaches_no_further_than_its_window():
  config = _TINY.replace(
    layer_pattern=(config_lib.LayerSpec('sliding', 3),), num_hidden_layers=2
  )
  params = _params(config)
  model = transformer.Transformer(config)
  embeds = jax.random.normal(jax.random.key(2), (1, 12, 32))

  def one(embeds):
    out = model.apply({'params': params}, None, embeds=embeds)
    return out.logits[0, 10].sum()

  reach = jnp.abs(jax.jit(jax.grad(one))(embeds)[0]).sum(-1)
  # Two layers of three tokens: the token itself and four before it.
  assert np.all(reach[6:11] > 0)
  assert not np.any(reach[:6])


@pytest.mark.parametrize('pattern', _PATTERNS)
def test_a_packed_row_equals_its_separate_rows(pattern):
  config = _TINY.replace(layer_pattern=_PATTERNS[pattern])
  params = _params(config)
  tokens = _tokens(30, batch=1)
  lengths = (11, 13, 4)  # and two of padding
  segments = jnp.asarray(
    [sum(([i + 1] * n for i, n in enumerate(lengths)), [])]
  )
  segments = jnp.pad(segments, ((0, 0), (0, 2)))
  positions = jnp.concatenate([jnp.arange(n) for n in (*lengths, 2)])[None]
  packed = _logits(
    config, params, tokens, segment_ids=segments, positions=positions
  )
  start = 0
  for n in lengths:
    part = slice(start, start + n)
    alone = _logits(config, params, tokens[:, part])
    np.testing.assert_allclose(packed[:, part], alone, atol=1e-4)
    start += n


def test_batch_composition_does_not_matter():
  params = _params(_TINY)
  tokens = _tokens(40, batch=3)
  together = _logits(_TINY, params, tokens)
  for i in range(3):
    alone = _logits(_TINY, params, tokens[i : i + 1])
    np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_on_float32_masters():
  config = _TINY.replace(dtype='bfloat16')
  params = _params(config)
  out = transformer.Transformer(config).apply({'params': params}, _tokens(9))
  assert out.logits.dtype == out.hidden.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  want = _logits(_TINY, params, _tokens(9))
  error = np.abs(out.logits.astype(jnp.float32) - want).mean()
  assert error < 0.05 * np.abs(want).mean()


def test_every_parameter_carries_its_logical_axes():
  for name in ('tiny', 'yi_34b'):
    config = config_lib.get_preset(name)
    shapes = jax.tree.leaves(transformer.abstract_params(config))
    axes = jax.tree.leaves(
      transformer.param_axes(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    assert len(shapes) == len(axes)
    for leaf, names in zip(shapes, axes, strict=True):
      assert len(names) == leaf.ndim
      assert all(isinstance(n, str) for n in names)
