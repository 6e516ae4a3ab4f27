"""Presets are the published sizes, to the last parameter."""

import jax
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import transformer

# Yi report, table 1, and the released config files.
_PUBLISHED = {
  'yi_6b': 6_061_035_520,
  'yi_6b_200k': 6_061_035_520,
  'yi_1_5_6b': 6_061_035_520,
  'yi_9b': 8_829_407_232,
  'yi_9b_200k': 8_829_407_232,
  'yi_1_5_9b': 8_829_407_232,
  'yi_coder_9b': 8_829_407_232,
  'yi_34b': 34_388_917_248,
  'yi_34b_200k': 34_388_917_248,
  'yi_1_5_34b': 34_388_917_248,
  'yi_coder_1_5b': 1_476_495_360,
}


@pytest.mark.parametrize('name', config_lib.preset_names())
def test_the_decoder_has_exactly_the_counted_parameters(name):
  config = config_lib.get_preset(name)
  leaves = jax.tree.leaves(transformer.abstract_params(config))
  total = sum(leaf.size for leaf in leaves)
  assert total == config_lib.num_params(config)
  assert total == _PUBLISHED.get(name, total)


def test_every_published_size_is_a_preset():
  assert set(_PUBLISHED) == set(config_lib.preset_names()) - {'tiny'}


@pytest.mark.parametrize(
  ('name', 'theta', 'eps', 'length'),
  [
    ('yi_6b', 5e6, 1e-5, 4096),
    ('yi_9b', 1e4, 1e-6, 4096),
    ('yi_34b_200k', 1e7, 1e-5, 200_000),
    ('yi_1_5_34b', 5e6, 1e-6, 4096),
    ('yi_coder_9b', 1e7, 1e-5, 131_072),
  ],
)
def test_siblings_keep_their_own_base_epsilon_and_length(
  name, theta, eps, length
):
  config = config_lib.get_preset(name)
  assert (config.rope_theta, config.rms_norm_eps) == (theta, eps)
  assert config.max_position_embeddings == length


def test_flops_are_six_a_weight_plus_causal_attention():
  config = config_lib.get_preset('yi_6b')
  weights = config_lib.num_params(config) - 64_000 * 4096  # not the lookup
  norms = 65 * 4096
  # Per layer and token: two products of 4096 over half of the keys, thrice.
  attention = 32 * 3 * 2 * 2 * 4096 * (4097 / 2)
  want = 6 * (weights - norms) + attention
  assert config_lib.flops_per_token(config, 4096) == pytest.approx(want)


def test_a_window_bounds_the_flops_of_attention():
  full = config_lib.get_preset('tiny')
  windowed = full.replace(layer_pattern=(config_lib.LayerSpec('sliding', 1),))
  per_key = 4 * 3 * 2 * 2 * 256  # layers, passes, products, operations, width
  gained = config_lib.flops_per_token(full, 512) - config_lib.flops_per_token(
    windowed, 512
  )
  assert gained == pytest.approx(per_key * (513 / 2 - 1))


def test_a_config_survives_json():
  config = config_lib.get_preset(
    'tiny',
    layer_pattern=(
      config_lib.LayerSpec('sliding', 8),
      config_lib.LayerSpec(kv_from=0),
    ),
  )
  assert config_lib.ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: config_lib.get_preset('yi_6'), "did you mean 'yi_6b'"),
    (
      lambda: config_lib.get_preset('tiny', rope_tetha=1e6),
      "did you mean 'rope_theta'",
    ),
    (
      lambda: config_lib.get_preset('tiny', num_key_value_heads=3),
      r'num_attention_heads \(8\) must be a multiple of .*\(3\)',
    ),
    (lambda: config_lib.get_preset('tiny', head_dim=7), 'even head_dim'),
    (lambda: config_lib.get_preset('tiny', remat='ful'), "mean 'full'"),
    (lambda: config_lib.get_preset('tiny', vocab_size=0), 'vocab_size'),
    (lambda: config_lib.LayerSpec('sliding'), 'needs a window'),
    (
      lambda: config_lib.get_preset(
        'tiny', layer_pattern=(config_lib.LayerSpec(kv_from=0),)
      ),
      'must be an earlier layer',
    ),
    (
      lambda: config_lib.get_preset(
        'tiny', layer_pattern=(config_lib.LayerSpec(),) * 3
      ),
      'multiple of the layer pattern',
    ),
  ],
)
def test_a_wrong_size_is_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()
