"""config.json: of every version of transformers, read exactly or refused."""

import json

import pytest

from yi_jax.checkpoints import hf_config
from yi_jax.models import config as model_config

# As Yi-6B's first releases have it: no head_dim, theta on the outermost level.
_OLD = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 64_000,
  'hidden_size': 4096,
  'intermediate_size': 11_008,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 4,
  'rms_norm_eps': 1e-5,
  'rope_theta': 5_000_000.0,
  'rope_scaling': None,
  'max_position_embeddings': 4096,
  'hidden_act': 'silu',
  'torch_dtype': 'bfloat16',
}
_NEW = {
  **{key: value for key, value in _OLD.items() if not key.startswith('rope')},
  'head_dim': 128,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 5_000_000.0},
  'dtype': 'bfloat16',
}


@pytest.mark.parametrize('values', [_OLD, _NEW], ids=['old', 'new'])
def test_yi_6b_is_the_preset(values):
  assert hf_config.to_model(values) == model_config.get_preset('yi_6b')


@pytest.mark.parametrize('name', model_config.preset_names())
def test_every_preset_comes_back(name):
  config = model_config.get_preset(name, scan_layers=True)
  values = hf_config.from_model(config, config.dtype, {})
  assert hf_config.to_model(values) == config


def test_defaults_are_those_of_transformers():
  bare = {key: _OLD[key] for key in hf_config._NEEDED}
  found = hf_config.to_model({**bare, 'model_type': 'llama'})
  assert found.rope_theta == 1e4
  assert found.rms_norm_eps == 1e-6
  assert found.max_position_embeddings == 2048
  assert found.num_key_value_heads == 32
  assert not found.tie_word_embeddings


@pytest.mark.parametrize(
  'changes',
  [
    {'rope_scaling': {'type': 'linear', 'factor': 1.0}},
    {'rope_scaling': {'rope_type': 'default'}},
    {'architectures': ['YiForCausalLM'], 'model_type': 'Yi'},
    {'sliding_window': None, 'mlp_bias': False},
  ],
)
def test_what_changes_nothing_is_accepted(changes):
  want = model_config.get_preset('yi_6b')
  assert hf_config.to_model({**_OLD, **changes}) == want


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'architectures': ['MistralForCausalLM'], 'model_type': 'mistral'},
      "architectures is 'MistralForCausalLM'",
    ),
    ({'architectures': None, 'model_type': 'qwen2'}, "model_type is 'qwen2'"),
    (
      {'architectures': None, 'model_type': None},
      'neither architectures nor model_type',
    ),
    (
      {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0, 'mscale': 0.7}},
      'rope_scaling is {"rope_type": "yarn"',
    ),
    (
      {'rope_scaling': {'rope_type': 'linear', 'factor': 0.5}},
      'factor of linear is at least 1',
    ),
    (
      {'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 2}},
      'rope_parameters is {"rope_type": "default"',
    ),
    (
      {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5}},
      'rope_parameters is {"rope_type": "llama3"',
    ),
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'; Yi has 'silu'"),
    ({'mlp_bias': True}, 'mlp_bias is True'),
    ({'sliding_window': 4096}, 'sliding_window is 4096'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config is'),
    ({'num_hidden_layers': None}, 'says nothing of num_hidden_layers'),
    ({'num_key_value_heads': 5}, 'multiple of num_key_value_heads'),
    (
      {'num_attention_heads': 30, 'num_key_value_heads': 30},
      'hidden_size 4096 is no multiple of num_attention_heads 30',
    ),
  ],
)
def test_another_model_is_refused_by_the_key(changes, message):
  with pytest.raises(ValueError, match=f'^a/config.json.*{message}'):
    hf_config.to_model({**_OLD, **changes}, 'a/config.json')


@pytest.mark.parametrize(
  ('rope', 'want'),
  [
    ({'type': 'linear', 'factor': 4.0}, ('linear', 4.0, None)),
    ({'type': 'dynamic', 'factor': 2.0}, ('dynamic', 2.0, 4096)),
    (
      {
        'rope_type': 'yarn',
        'factor': 8.0,
        'original_max_position_embeddings': 512,
        'beta_fast': 20.0,
        'attention_factor': 1.5,
        'truncate': True,
      },
      ('yarn', 8.0, 512, 1.5, 20.0),
    ),
  ],
)
@pytest.mark.parametrize('key', ['rope_scaling', 'rope_parameters'])
def test_stretched_positions_are_read_and_written(key, rope, want):
  found = hf_config.to_model({**_OLD, key: rope})
  assert found.rope_scaling == model_config.RopeScaling(*want)
  assert found.rope_theta == _OLD['rope_theta']
  written = json.loads(json.dumps(hf_config.from_model(found, 'float32', {})))
  assert written['rope_parameters']['rope_theta'] == found.rope_theta
  assert hf_config.to_model(written).rope_scaling == found.rope_scaling


def test_a_length_that_config_json_cannot_hold_is_refused():
  scaling = model_config.RopeScaling('dynamic', 2.0, 4096)
  longer = model_config.get_preset(
    'yi_6b', rope_scaling=scaling, max_position_embeddings=8192
  )
  with pytest.raises(ValueError, match='the length trained for, 4096; here'):
    hf_config.from_model(longer, 'float32', {})


@pytest.mark.parametrize(
  ('config', 'settings', 'ids', 'want'),
  [
    # Yi's chat models: 2 here, 7 there.
    ({'eos_token_id': 2}, {'eos_token_id': 7}, {}, [2, 7]),
    # A base model whose tokenizer knows the mark of a turn.
    ({'eos_token_id': 2}, {}, {'eos_token_id': [2, 2, 7]}, [2, 7]),
    ({}, {'eos_token_id': [0, 5]}, {'eos_token_id': [5]}, [0, 5]),
  ],
)
def test_a_text_ends_wherever_any_file_says(config, settings, ids, want):
  found = hf_config.generation(config, settings, ids)
  assert found['eos_token_id'] == want


def test_settings_of_sampling_are_kept_and_nothing_is_made_up():
  settings = {'temperature': 0.6, 'transformers_version': '4.35'}
  assert hf_config.generation({}, settings, {}) == {'temperature': 0.6}
