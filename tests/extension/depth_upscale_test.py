"""Depth upscaling: whose layers stand where, and how much each one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.extension import depth_upscale
from yi_jax.models import config as model_config
from yi_jax.models import layout, transformer

_MODEL = model_config.get_preset(
  'tiny',
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=6,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  initializer_range=0.3,
)
_TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9))


@pytest.fixture(scope='module')
def params():
  return transformer.init_params(_MODEL, jax.random.key(0))


def _logits(config, params):
  model = transformer.Transformer(config)
  return jax.jit(lambda p: model.apply({'params': p}, _TOKENS).logits)(params)


def test_yi_6b_becomes_yi_9b():
  source = model_config.get_preset('yi_6b')
  order = depth_upscale.parse(depth_upscale.YI_9B, 32)
  # Report, figure 8: the copies of layers 12 to 27 stand at 28 to 43.
  assert order[28:44] == tuple(range(12, 28))
  assert order[:28] == tuple(range(28))
  assert order[44:] == (28, 29, 30, 31)
  made, shapes = (
    jax.eval_shape(
      lambda p: depth_upscale.take(source, p, order)[1],
      transformer.abstract_params(source),
    ),
    transformer.abstract_params(model_config.get_preset('yi_9b')),
  )
  assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shapes)
  count = sum(leaf.size for leaf in jax.tree.leaves(made))
  assert count == 8_829_407_232
  config, _ = depth_upscale.take(
    source.replace(scan_layers=False),
    layout.unroll(source, {'layers': _Places()})[1],
    order,
  )
  # Base and epsilon stay those of the source.
  assert config.replace(scan_layers=True) == source.replace(
    num_hidden_layers=48
  )


class _Places:
  """Stands for a stacked array: its layers are their numbers."""

  def __getitem__(self, index):
    return index


@pytest.mark.parametrize('scan', [False, True])
def test_every_layer_is_the_one_the_order_says(params, scan):
  config, given = layout.stack(_MODEL, params) if scan else (_MODEL, params)
  order = depth_upscale.parse('0:4,2:5,5', 6)
  made, found = depth_upscale.take(config, given, order)
  assert made == config.replace(num_hidden_layers=8)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, transformer.abstract_params(made)
  )
  _, flat = layout.unroll(made, found)
  for i, layer in enumerate((0, 1, 2, 3, 2, 3, 4, 5)):
    jax.tree.map(
      np.testing.assert_array_equal,
      flat['layers'][str(i)],
      params['layers'][str(layer)],
    )
  for name in ('embed_tokens', 'norm', 'lm_head'):
    jax.tree.map(np.testing.assert_array_equal, found[name], params[name])


def test_layers_that_do_nothing_may_be_there_twice(params):
  still = dict(params, layers=dict(params['layers']))
  for name in ('2', '3'):
    layer = jax.tree.map(lambda x: x, still['layers'][name])
    layer['self_attn']['o_proj'] = {'kernel': jnp.zeros((32, 16))}
    layer['mlp']['down_proj'] = {'kernel': jnp.zeros((24, 16))}
    still['layers'][name] = layer
  means = depth_upscale.layer_means(
    depth_upscale.cosines(_MODEL, still, _TOKENS)
  )
  np.testing.assert_allclose(means[2:4], 1, atol=1e-6)
  assert depth_upscale.choose(means, 2) == (2, 4)
  text = depth_upscale.duplicated(2, 4, 6)
  made = depth_upscale.take(_MODEL, still, depth_upscale.parse(text, 6))
  assert made[0].num_hidden_layers == 8
  np.testing.assert_array_equal(_logits(*made), _logits(_MODEL, still))
  # The same of layers that do something is another model.
  other = depth_upscale.parse(depth_upscale.duplicated(0, 2, 6), 6)
  other = depth_upscale.take(_MODEL, still, other)
  assert np.abs(_logits(*other) - _logits(_MODEL, still)).max() > 0.01


@pytest.mark.parametrize('scan', [False, True])
def test_cosines_are_between_the_input_and_the_output_of_a_layer(params, scan):
  """Against the stream of models that are cut off after each layer."""
  streams = [jnp.take(params['embed_tokens']['embedding'], _TOKENS, axis=0)]
  for depth in range(1, 7):
    # A final norm of ones only scales each token, which no cosine sees.
    config, cut = depth_upscale.take(_MODEL, params, range(depth))
    out = transformer.Transformer(config).apply({'params': cut}, _TOKENS)
    streams.append(out.hidden)
  want = []
  for before, after in zip(streams[:-1], streams[1:], strict=True):
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    want.append(np.sum(before * after, axis=-1) / norms)
  given = layout.stack(_MODEL, params) if scan else (_MODEL, params)
  found = depth_upscale.cosines(*given, _TOKENS)
  np.testing.assert_allclose(found, want, atol=1e-5)


def test_the_first_token_and_the_outer_layers_do_not_count():
  values = np.zeros((5, 1, 3))
  values[:, :, 0] = 9
  values[0, :, 1:], values[4, :, 1:] = 5, 7
  values[2, :, 1:] = [0.5, 1.0]
  means = depth_upscale.layer_means(values)
  np.testing.assert_allclose(means, [5, 0, 0.75, 0, 7])
  assert depth_upscale.model_mean(means) == 0.25
  assert depth_upscale.choose(means, 1) == (2, 3)


def test_a_block_holds_whole_repeats_of_the_pattern():
  means = np.array([9, 1, 0, 5, 4, 0, 1, 9])  # 3 and 4 are no repeat of two
  assert depth_upscale.choose(means, 2) == (3, 5)
  assert depth_upscale.choose(means, 2, width=2) == (2, 4)
  with pytest.raises(ValueError, match='from 2 to 4 .* whole repeats of 2'):
    depth_upscale.choose(means, 3, width=2)


def test_a_pattern_is_repeated_whole_or_not_at_all():
  spec = model_config.LayerSpec
  config = _MODEL.replace(layer_pattern=(spec('sliding', 4), spec()))
  params = transformer.init_params(config, jax.random.key(0))
  order = depth_upscale.parse('0:4,2:6', 6)
  made, found = depth_upscale.take(config, params, order)
  assert made.num_repeats == 4
  assert _logits(made, found).shape == (2, 9, 40)
  with pytest.raises(ValueError, match=r'layers \(1, 2\) are no repeat'):
    depth_upscale.take(config, params, (0, 1, 1, 2))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('0:28,12:33', "'12:33' is not within the 32 layers of the source, 0:32"),
    ('5:5', "'5:5' is not within"),
    ('0:4,x', "'x' is neither a layer nor a slice"),
    ('', "'' is neither"),
    ('-1:4', "'-1:4' is neither"),
  ],
)
def test_an_order_that_makes_no_sense_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    depth_upscale.parse(text, 32)


def test_blocks_that_make_no_sense_are_refused():
  with pytest.raises(ValueError, match='28:12 holds no layer'):
    depth_upscale.duplicated(28, 12, 32)
  with pytest.raises(ValueError, match="'12:40' is not within|'0:40' is not"):
    depth_upscale.duplicated(12, 40, 32)
  with pytest.raises(ValueError, match='from 1 to 3 of these 5 layers'):
    depth_upscale.choose(np.ones(5), 4)
  with pytest.raises(ValueError, match='2 layers has none between'):
    depth_upscale.choose(np.ones(2), 1)


def test_ids_of_another_vocabulary_are_refused(params):
  with pytest.raises(ValueError, match='id 40 is none of the model'):
    depth_upscale.cosines(_MODEL, params, np.full((1, 4), 40))
