"""config.json and generation_config.json of a LLaMA, to and from ModelConfig.

The base of RoPE, the norm's epsilon and the length differ between the models of
one family, so they are read, never assumed; a key that changes what is computed
and that we do not compute is refused by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from yi_jax.models import config as model_config

CONFIG_FILE = 'config.json'
GENERATION_FILE = 'generation_config.json'

_CLASSES = {
  'LlamaForCausalLM': 'llama',
  'YiForCausalLM': 'Yi',  # the first upload, with code of its own
}
_NEEDED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
# What transformers takes for a key that is not there.
_DEFAULTS = {
  'rms_norm_eps': 1e-6,
  'max_position_embeddings': 2048,
  'tie_word_embeddings': False,
  'attention_bias': False,
  'initializer_range': 0.02,
}
_DEFAULT_THETA = 1e4
# Keys that change the model, and the only values that we compute.
_FIXED: dict[str, tuple[Any, ...]] = {
  'hidden_act': ('silu',),
  'mlp_bias': (False, None),
  'sliding_window': (None,),
  'use_sliding_window': (False, None),
  'partial_rotary_factor': (1, None),
  'quantization_config': (None,),
  'num_local_experts': (None,),
}


def to_model(
  values: Mapping[str, Any], name: str = CONFIG_FILE
) -> model_config.ModelConfig:
  """Returns the model that a config.json describes.

  Args:
    values: its content, of any version of transformers.
    name: of the file, for messages.

  Raises:
    ValueError: if it is of another architecture, naming the key.
  """
  _refuse_other_family(values, name)
  missing = [key for key in _NEEDED if not isinstance(values.get(key), int)]
  if missing:
    raise ValueError(f'{name} says nothing of {", ".join(missing)}')
  fields = {key: values[key] for key in _NEEDED}
  for key, default in _DEFAULTS.items():
    found = values.get(key)
    fields[key] = default if found is None else found
  heads, width = fields['num_attention_heads'], fields['hidden_size']
  fields['num_key_value_heads'] = values.get('num_key_value_heads') or heads
  head_dim = values.get('head_dim')
  if head_dim is None:
    if heads < 1 or width % heads:
      raise ValueError(
        f'{name}: hidden_size {width} is no multiple of num_attention_heads '
        f'{heads}, and there is no head_dim'
      )
    head_dim = width // heads
  try:
    return model_config.ModelConfig(
      **fields,
      head_dim=head_dim,
      **_rope(values, fields['max_position_embeddings'], name),
      dtype=stored_dtype(values) or 'float32',
    )
  except (ValueError, TypeError) as error:
    raise ValueError(f'{name}: {error}') from error


def stored_dtype(values: Mapping[str, Any]) -> str | None:
  """Returns the type that a config.json names for the weights, if we have it."""
  name = str(values.get('torch_dtype') or values.get('dtype') or '')
  name = name.removeprefix('torch.')
  return name if name in ('float32', 'bfloat16', 'float16') else None


def from_model(
  config: model_config.ModelConfig,
  dtype: str,
  ids: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the config.json of a model.

  Args:
    config: the model.
    dtype: of the weights.
    ids: bos_token_id, eos_token_id and pad_token_id, as far as known; of
      several ends of a text the first is taken, as some tools read one number.

  Raises:
    ValueError: for stretched positions that the file has no words for.
  """
  eos = ids.get('eos_token_id')
  scaling = _scaling(config)
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'bos_token_id': ids.get('bos_token_id'),
    'eos_token_id': eos[0] if isinstance(eos, list) and eos else eos,
    'pad_token_id': ids.get('pad_token_id'),
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size,
    'num_hidden_layers': config.num_hidden_layers,
    'num_attention_heads': config.num_attention_heads,
    'num_key_value_heads': config.num_key_value_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'max_position_embeddings': config.max_position_embeddings,
    'initializer_range': config.initializer_range,
    'rms_norm_eps': config.rms_norm_eps,
    # Both: transformers 5 reads rope_parameters, all before and llama.cpp the
    # others.
    'rope_theta': config.rope_theta,
    **({'rope_scaling': scaling} if scaling else {}),
    'rope_parameters': {
      **(scaling or {'rope_type': 'default'}),
      'rope_theta': config.rope_theta,
    },
    'tie_word_embeddings': config.tie_word_embeddings,
    'attention_bias': config.attention_bias,
    'attention_dropout': 0.0,
    'mlp_bias': False,
    'pretraining_tp': 1,
    'use_cache': True,
    'torch_dtype': dtype,
  }


def generation(
  config: Mapping[str, Any],
  settings: Mapping[str, Any],
  ids: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns a generation_config.json that stops wherever a text or turn ends.

  Yi's chat models name <|endoftext|> (2) in config.json and <|im_end|> (7) in
  generation_config.json, and tools that read one of them never stopped.

  Args:
    config: config.json of the source, or {}.
    settings: generation_config.json of the source, or {}; what it says of
      sampling is kept.
    ids: bos_token_id, pad_token_id and eos_token_id of the tokenizer.
  """
  merged = {k: v for k, v in settings.items() if k != 'transformers_version'}
  stops = []
  for values in (config, settings, ids):
    for key in ('bos_token_id', 'pad_token_id'):
      if merged.get(key) is None and values.get(key) is not None:
        merged[key] = values[key]
    found = values.get('eos_token_id')
    stops += found if isinstance(found, list) else [found]
  # In this order: the first becomes the one number of config.json.
  stops = [i for i in dict.fromkeys(stops) if i is not None]
  return {**merged, 'eos_token_id': stops} if stops else merged


def _refuse_other_family(values: Mapping[str, Any], name: str) -> None:
  """Raises ValueError, naming the key, for what is no LLaMA."""
  classes = values.get('architectures') or []
  for key, found, known in (
    ('architectures', [c for c in classes if c not in _CLASSES], _CLASSES),
    (
      'model_type',
      [
        kind
        for kind in [values.get('model_type')]
        if kind is not None and kind not in _CLASSES.values()
      ],
      _CLASSES.values(),
    ),
  ):
    if found:
      raise ValueError(
        f'{name}: {key} is {found[0]!r}; only {" and ".join(known)} have the '
        'architecture of Yi'
      )
  if not classes and values.get('model_type') is None:
    raise ValueError(
      f'{name} names neither architectures nor model_type: is it the config of '
      'a model?'
    )
  for key, allowed in _FIXED.items():
    if values.get(key, allowed[0]) not in allowed:
      raise ValueError(
        f'{name}: {key} is {values[key]!r}; Yi has {allowed[0]!r}, and this '
        'code computes nothing else'
      )


def _rope(values: Mapping[str, Any], length: int, name: str) -> dict[str, Any]:
  """Returns rope_theta and rope_scaling; refuses what is not computed."""
  theta, scaling = values.get('rope_theta'), None
  for key in ('rope_scaling', 'rope_parameters'):
    rope = values.get(key)
    if rope is None:
      continue
    if not isinstance(rope, dict):
      raise ValueError(f'{name}: {key} is {rope!r}, not an object')
    kind = rope.get('rope_type', rope.get('type', 'default'))
    theta = rope.get('rope_theta', theta)
    known = {'type', 'rope_type', 'rope_theta', 'partial_rotary_factor'}
    if kind in model_config.ROPE_TYPES:
      known |= {f.name for f in dataclasses.fields(model_config.RopeScaling)}
    unread = {k: v for k, v in rope.items() if k not in known and v is not None}
    if kind == 'yarn' and unread.get('truncate') is True:
      del unread['truncate']  # the default
    if (
      (kind != 'default' and kind not in model_config.ROPE_TYPES)
      or (kind != 'default' and unread)
      or rope.get('partial_rotary_factor', 1) != 1
    ):
      raise ValueError(
        f'{name}: {key} is {json.dumps(rope)}; this code computes '
        f'{", ".join(model_config.ROPE_TYPES)} of all planes, and no other '
        'scaling'
      )
    if kind != 'default' and rope.get('factor') != 1:
      scaling = _read_scaling(kind, rope, values, length)
  theta = float(_DEFAULT_THETA if theta is None else theta)
  return {'rope_theta': theta, 'rope_scaling': scaling}


def _read_scaling(
  kind: str, rope: Mapping[str, Any], values: Mapping[str, Any], length: int
) -> model_config.RopeScaling:
  """Returns one entry of rope_scaling or rope_parameters."""
  fields = {
    field.name: rope[field.name]
    for field in dataclasses.fields(model_config.RopeScaling)
    if rope.get(field.name) is not None
  }
  # As transformers takes what is not said; 'dynamic' knows one length only.
  trained = values.get('original_max_position_embeddings') or length
  if kind == 'yarn':
    fields.setdefault('original_max_position_embeddings', trained)
  else:
    fields.pop('original_max_position_embeddings', None)
  if kind == 'dynamic':
    fields['original_max_position_embeddings'] = length
  return model_config.RopeScaling(**{**fields, 'rope_type': kind})


def _scaling(config: model_config.ModelConfig) -> dict[str, Any] | None:
  """Returns the stretching of positions in the words of config.json."""
  scaling = config.rope_scaling
  if scaling is None:
    return None
  keys = ['rope_type', 'factor']
  if scaling.rope_type == 'yarn':
    keys += ['original_max_position_embeddings', 'beta_fast', 'beta_slow']
    if scaling.attention_factor is not None:
      keys.append('attention_factor')
  length = scaling.original_max_position_embeddings
  if scaling.rope_type == 'dynamic' and length != (
    config.max_position_embeddings
  ):
    raise ValueError(
      f"under 'dynamic', max_position_embeddings of config.json is the length "
      f'trained for, {length}; here it is {config.max_position_embeddings}: '
      'set it to that'
    )
  return {key: getattr(scaling, key) for key in keys}
