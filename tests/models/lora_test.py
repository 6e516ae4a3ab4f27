"""LoRA: the change is scale * A B, and only A and B learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from yi_jax.models import config as config_lib
from yi_jax.models import layout, lora, transformer

_MODEL = config_lib.get_preset(
  'tiny',
  vocab_size=32,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  scan_layers=True,
)
_LORA = lora.LoraConfig(rank=4, alpha=6.0, targets='.*/(q|up|down)_proj/kernel')
_TOKENS = np.arange(14).reshape(2, 7)


def _logits(config, params):
  model = transformer.Transformer(config)
  return jax.jit(lambda p: model.apply({'params': p}, _TOKENS).logits)(params)


def _random(tree, seed=1):
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32), tree
  )


@pytest.fixture(scope='module')
def params():
  numbers = _random(transformer.abstract_params(_MODEL), seed=0)
  return jax.tree.map(lambda x: jnp.asarray(0.3 * x), numbers)


@pytest.fixture(scope='module')
def gradients(params):
  """Gradients of a loss by the adapter, which is merged inside of it."""

  def loss(adapter):
    merged = lora.merge(params, adapter, _LORA)
    return jnp.mean(jnp.square(_logits(_MODEL, merged)))

  return jax.jit(jax.grad(loss))


@pytest.fixture(scope='module')
def adapter(params):
  return _random(lora.init(_LORA, params, jax.random.key(1)))


def test_a_fresh_adapter_changes_nothing(params):
  fresh = lora.init(_LORA, params, jax.random.key(1))
  assert set(fresh['layers']) == {'self_attn', 'mlp'}
  assert list(fresh['layers']['self_attn']) == ['q_proj']
  for a, b in lora.modules(fresh).values():
    assert not b.any()
    assert len(np.unique(a)) == a.size  # no two layers alike
    bound = a.shape[-2] ** -0.5
    assert 0.9 * bound < np.abs(a).max() <= bound
    assert abs(a.mean()) < 0.2 * bound
  first, second, *_ = (a for a, _ in lora.modules(fresh).values())
  assert first.ravel()[0] != second.ravel()[0]
  merged = lora.merge(params, fresh, _LORA)
  jax.tree.map(np.testing.assert_array_equal, merged, params)


@pytest.mark.parametrize('scan', [True, False])
def test_an_adapter_is_cut_as_its_kernels_are_but_not_along_the_rank(scan):
  model = _MODEL.replace(scan_layers=scan)
  shapes = transformer.abstract_params(model)
  fresh = lora.init(_LORA, shapes, jax.random.key(1))
  axes = lora.param_axes(fresh, transformer.param_axes(model))
  first = axes['layers'] if scan else axes['layers']['0']
  stack = ('layers',) if scan else ()
  assert first['mlp']['down_proj'] == {
    'lora_A': (*stack, 'mlp', None),
    'lora_B': (*stack, None, 'embed'),
  }
  ranks = jax.tree.map(
    lambda names, leaf: len(names) == leaf.ndim,
    axes,
    fresh,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  assert all(jax.tree.leaves(ranks))


def test_shapes_are_enough_and_counted(params):
  shapes = transformer.abstract_params(_MODEL)
  key = jax.random.key(1)
  adapter = lora.init(_LORA, shapes, key)
  wanted = lora.init(_LORA, params, key)
  jax.tree.map(np.testing.assert_array_equal, adapter, wanted)
  abstract = jax.eval_shape(lambda: lora.init(_LORA, shapes, key))
  # q: 16 -> 16, up: 16 -> 24, down: 24 -> 16; rank 4, three layers.
  assert lora.num_params(abstract) == 3 * 4 * (32 + 40 + 40)


@pytest.mark.parametrize(
  ('rslora', 'scale'), [(False, 6 / 4), (True, 6 / 2)], ids=['lora', 'rslora']
)
def test_merged_products_are_those_of_the_paper(params, adapter, rslora, scale):
  config = lora.LoraConfig(4, 6.0, _LORA.targets, rslora)
  merged = jax.jit(lora.merge, static_argnums=2)(params, adapter, config)
  x = np.random.default_rng(2).normal(size=(5, 24))
  changed = {'self_attn/q_proj', 'mlp/up_proj', 'mlp/down_proj'}
  for name in ('q_proj', 'k_proj', 'up_proj', 'gate_proj', 'down_proj'):
    part = 'mlp' if name in params['layers']['mlp'] else 'self_attn'
    before = np.asarray(params['layers'][part][name]['kernel'], np.float64)
    after = np.asarray(merged['layers'][part][name]['kernel'], np.float64)
    if f'{part}/{name}' not in changed:
      np.testing.assert_array_equal(after, before)
      continue
    pair = adapter['layers'][part][name]
    a, b = pair['lora_A'].astype(float), pair['lora_B'].astype(float)
    for layer in range(3):
      inputs = x[:, : before.shape[1]]
      wanted = inputs @ before[layer]
      wanted += (inputs @ a[layer]) @ b[layer] * scale
      np.testing.assert_allclose(inputs @ after[layer], wanted, atol=1e-4)


def test_stacked_and_unrolled_are_the_same(params, adapter):
  wanted = _logits(_MODEL, lora.merge(params, adapter, _LORA))
  config, apart = layout.unroll(_MODEL, params)
  _, adapter_apart = layout.unroll(_MODEL, adapter)
  shapes = lora.init(_LORA, apart, jax.random.key(0))
  assert jax.tree.map(np.shape, adapter_apart) == jax.tree.map(np.shape, shapes)
  merged = lora.merge(apart, adapter_apart, _LORA)
  np.testing.assert_allclose(_logits(config, merged), wanted, atol=1e-4)
  assert np.abs(wanted - _logits(_MODEL, params)).max() > 0.1
  with pytest.raises(ValueError, match=r'stacked as those of the model'):
    lora.merge(apart, adapter, _LORA)


def test_gradients_reach_a_and_b_and_the_base_stays(params, adapter, gradients):
  before = jax.tree.map(np.array, params)
  grads = gradients(adapter)
  assert jax.tree.structure(grads) == jax.tree.structure(adapter)
  for grad in jax.tree.leaves(grads):  # of every layer
    assert (np.abs(grad).max(axis=(1, 2)) > 0).all()
  jax.tree.map(np.testing.assert_array_equal, params, before)


def test_one_step_from_a_fresh_adapter_moves_b_alone(params, gradients):
  fresh = lora.init(_LORA, params, jax.random.key(1))
  grads = gradients(fresh)
  for a, b in lora.modules(grads).values():
    assert not a.any()
    assert b.any()


def test_parameters_keep_their_type_and_are_added_in_float32(params, adapter):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  merged = lora.merge(half, adapter, _LORA)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  wanted = lora.merge(wide, adapter, _LORA)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)),
    merged,
    wanted,
  )


@pytest.mark.parametrize(
  ('targets', 'message'),
  [
    ('query', r"'query', match no parameter; names look like .*/kernel"),
    ('q_proj', r'match no parameter'),  # the whole name must match
    ('.*norm.*', r'match layers/.*norm/scale \[3, 16\], which is no matrix'),
    ('.*', r'which is no matrix .* let them end in /kernel'),
  ],
)
def test_targets_that_cannot_be_are_refused(params, targets, message):
  config = lora.LoraConfig(targets=targets)
  with pytest.raises(ValueError, match=message):
    lora.init(config, params, jax.random.key(0))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(rank=0), 'rank of LoRA is 0'),
    (dict(alpha=-1.0), 'alpha of LoRA is -1.0'),
    (dict(targets='(q'), "targets of LoRA, '\\(q', are no regex"),
  ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    lora.LoraConfig(**settings)


def test_an_adapter_that_does_not_fit_is_refused(params, adapter):
  with pytest.raises(ValueError, match=r'shapes .* follow from .* rank 2'):
    lora.merge(params, adapter, lora.LoraConfig(rank=2))
  half = {'layers': {'mlp': {'up_proj': {'lora_A': np.zeros((16, 4))}}}}
  with pytest.raises(ValueError, match=r'up_proj/lora_A is no half'):
    lora.merge(params, half, _LORA)


@pytest.mark.parametrize('bits', [32, 8])
@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'unrolled'])
def test_a_model_with_adapters_computes_what_the_folded_one_does(
  params, adapter, scan, bits
):
  config = dataclasses.replace(_LORA, base_bits=bits)
  model, both = _MODEL, (params, adapter)
  if not scan:
    model = _MODEL.replace(scan_layers=False)
    apart = layout.unroll(_MODEL, params)[1]
    shapes = lora.init(config, apart, jax.random.key(0))
    both = apart, _random(shapes)
  held = lora.attach(*both, config)
  adapted = model.replace(lora=config)
  want = jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), transformer.abstract_params(adapted)
  )
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), held) == want
  folded = lora.fold(held, config)
  np.testing.assert_allclose(
    _logits(adapted, held), _logits(model, folded), rtol=1e-4, atol=1e-4
  )
  found, again = lora.detach(held)
  jax.tree.map(np.testing.assert_array_equal, again, both[1])
  for name, kernel in traverse_util.flatten_dict(found, sep='/').items():
    was = traverse_util.flatten_dict(both[0], sep='/')[name]
    step = 0.0
    if bits == 8 and lora.is_target(config, name.rpartition('/')[0]):
      step = np.abs(was).max(-2, keepdims=True) / 127
    assert (np.abs(kernel - was) <= step * 0.501).all(), name
  asked = config_lib.ModelConfig.from_dict(adapted.to_dict())
  assert asked == adapted


def test_only_bits_that_there_are():
  with pytest.raises(ValueError, match='8 or 32 bits, not 4'):
    lora.LoraConfig(base_bits=4)
