"""GGUF checkpoints: every packing, every shape, and a real model."""

import json
import os
import pathlib

import gguf as gguf_package
import jax
import ml_dtypes
import numpy as np
import pytest

from yi_jax import paths
from yi_jax.checkpoints import gguf, lazy, naming
from yi_jax.data import chatml, raw, tokenizer
from yi_jax.models import config as model_config
from yi_jax.models import transformer
from yi_jax.serving import generation

_TYPES = gguf_package.GGMLQuantizationType
_TINY = model_config.ModelConfig(
  vocab_size=96,
  hidden_size=256,  # a block of the K types
  intermediate_size=256,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  rope_theta=5e6,
  max_position_embeddings=128,
)


def _weights(config, seed=0):
  """Returns random weights of a LLaMA, by its names."""
  draw = np.random.default_rng(seed)
  return {
    entry.name: draw.normal(size=entry.shape).astype(np.float32)
    for entry in naming.entries(config)
  }


def _interleaved(x, heads):
  """What llama.cpp's converter makes of a query or key projection."""
  rows = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
  return rows.swapaxes(1, 2).reshape(x.shape)


def _gguf_name(name):
  for theirs, mine in (*gguf._OUTSIDE.items(), *gguf._INSIDE.items()):
    name = name.replace(f'{mine}.', f'{theirs}.')
  return name.replace('model.layers.', 'blk.')


def _write(path, config, weights, pack=None, **metadata):
  """Writes a GGUF file as llama.cpp's converter does."""
  writer = gguf_package.GGUFWriter(path, metadata.pop('arch', 'llama'))
  values = dict(
    context_length=config.max_position_embeddings,
    embedding_length=config.hidden_size,
    block_count=config.num_hidden_layers,
    feed_forward_length=config.intermediate_size,
    head_count=config.num_attention_heads,
    head_count_kv=config.num_key_value_heads,
    key_length=config.head_dim,
    value_length=config.head_dim,
    rope_dimension_count=config.head_dim,
    rope_freq_base=config.rope_theta,
    layer_norm_rms_eps=config.rms_norm_eps,
  )
  for name, value in {**values, **metadata}.items():
    if value is not None:
      getattr(writer, f'add_{name}')(value)
  for name, x in weights.items():
    for part, heads in (
      ('q_proj', config.num_attention_heads),
      ('k_proj', config.num_key_value_heads),
    ):
      if part in name:
        x = _interleaved(x, heads)
    kind = pack if pack is not None and x.ndim > 1 else _TYPES.F32
    writer.add_tensor(
      _gguf_name(name), gguf_package.quantize(x, kind), raw_dtype=kind
    )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(num_key_value_heads=4, tie_word_embeddings=True),
    dict(num_attention_heads=3, num_key_value_heads=1, head_dim=16),
    dict(attention_bias=True, rms_norm_eps=1e-6, rope_theta=1e7),
  ],
)
def test_weights_and_config_are_those_of_the_llama(
  tmp_path, changes, scan_layers
):
  config = _TINY.replace(scan_layers=scan_layers, **changes)
  weights = _weights(config)
  _write(tmp_path / 'x.gguf', config, weights)
  found, params = gguf.load_gguf(tmp_path / 'x.gguf', scan_layers=scan_layers)
  assert found == config
  leaves = {
    name: lazy.Leaf(name, x.shape, x.dtype, lambda x=x: x)
    for name, x in weights.items()
  }
  expected = naming.to_params(config, leaves)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  jax.tree.map(
    lambda x, leaf: np.testing.assert_array_equal(x, leaf.read()),
    params,
    expected,
  )


@pytest.mark.parametrize(
  ('kind', 'tolerance', 'dtype'),
  [
    (_TYPES.F32, 0, 'float32'),
    (_TYPES.F16, 2e-3, 'float16'),
    (_TYPES.BF16, 1e-2, 'bfloat16'),
    (_TYPES.Q8_0, 0.02, 'float32'),
    (_TYPES.Q5_0, 0.15, 'float32'),
    (_TYPES.Q5_1, 0.1, 'float32'),
    (_TYPES.Q4_0, 0.3, 'float32'),
    (_TYPES.Q4_1, 0.2, 'float32'),
  ],
)
def test_packed_weights_come_close(
  tmp_path, monkeypatch, kind, tolerance, dtype
):
  monkeypatch.setattr(gguf, '_ROWS_BYTES', 1000)  # several stretches a tensor
  weights = _weights(_TINY)
  _write(tmp_path / 'x.gguf', _TINY, weights, kind)
  _, tree = gguf.open_checkpoint(tmp_path / 'x.gguf', scan_layers=False)
  tensors = naming.from_params(_TINY.replace(scan_layers=False), tree)
  assert tensors['model.norm.weight'].dtype == np.float32
  for name, x in weights.items():
    found = tensors[name].read()
    if x.ndim > 1:
      assert found.dtype.name == dtype
    # Of a block's largest number, as the packing goes.
    error = np.abs(found.astype(np.float32) - x).max() / np.abs(x).max()
    assert error <= tolerance / 2, name


def _pack_4_bits(draw, blocks):
  """Returns Q4_K blocks of random bits, and their numbers by the format.

  256 numbers in eight groups: d * scale * q - dmin * minimum, with six bits for
  scale and minimum and four for q (ggml-common.h, block_q4_K).
  """
  d = draw.uniform(0.01, 0.1, (blocks, 2)).astype(np.float16)
  scale, minimum = draw.integers(0, 64, (2, blocks, 8))
  q = draw.integers(0, 16, (blocks, 8, 32))
  packed = np.zeros((blocks, 12), np.uint8)
  packed[:, 0:4] = scale[:, :4] | (scale[:, 4:] >> 4 << 6)
  packed[:, 4:8] = minimum[:, :4] | (minimum[:, 4:] >> 4 << 6)
  packed[:, 8:12] = (scale[:, 4:] & 15) | ((minimum[:, 4:] & 15) << 4)
  low, high = q[:, 0::2], q[:, 1::2]  # two groups share their bytes
  nibbles = (low | high << 4).reshape(blocks, 128).astype(np.uint8)
  content = np.concatenate([d.view(np.uint8), packed, nibbles], axis=1)
  wide = d.astype(np.float32)[..., None, None]
  numbers = wide[:, 0] * scale[..., None] * q - wide[:, 1] * minimum[..., None]
  return content, numbers.reshape(blocks, 256)


def _pack_6_bits(draw, blocks):
  """Returns Q6_K blocks: d * scale * (q - 32), sixteen groups of sixteen."""
  d = draw.uniform(0.01, 0.1, (blocks, 1)).astype(np.float16)
  scale = draw.integers(-128, 128, (blocks, 16)).astype(np.int8)
  q = draw.integers(0, 64, (blocks, 2, 4, 32))  # halves of four stretches
  low = q & 15
  low = np.stack(
    [low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2
  )
  high = sum(q[:, :, i] >> 4 << (2 * i) for i in range(4))
  content = np.concatenate(
    [
      low.reshape(blocks, 128).astype(np.uint8),
      high.reshape(blocks, 64).astype(np.uint8),
      scale.view(np.uint8),
      d.view(np.uint8),
    ],
    axis=1,
  )
  wide = d.astype(np.float32) * scale
  numbers = wide[..., None] * (q.reshape(blocks, 16, 16) - 32)
  return content, numbers.reshape(blocks, 256)


@pytest.mark.parametrize(
  ('kind', 'pack'), [(_TYPES.Q4_K, _pack_4_bits), (_TYPES.Q6_K, _pack_6_bits)]
)
def test_the_k_types_are_unpacked_by_their_format(tmp_path, kind, pack):
  weights = _weights(_TINY)
  _write(tmp_path / 'x.gguf', _TINY, weights)
  content, numbers = pack(np.random.default_rng(1), blocks=256)
  writer = gguf_package.GGUFWriter(tmp_path / 'y.gguf', 'llama')
  writer.add_tensor('blk.0.ffn_up.weight', content, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  leaf = gguf._leaf(
    gguf.gguf_file.File(tmp_path / 'y.gguf'), 'blk.0.ffn_up.weight'
  )
  assert leaf.shape == (256, 256)
  np.testing.assert_allclose(leaf.read(), numbers, rtol=1e-6, atol=1e-6)


def test_parameters_come_in_the_type_that_is_asked_for(tmp_path):
  path = tmp_path / 'x.gguf'
  _write(path, _TINY, _weights(_TINY), _TYPES.Q8_0)
  config, params = gguf.load_gguf(path, 'bfloat16')
  assert config.dtype == 'bfloat16'
  kinds = {x.dtype for x in jax.tree.leaves(params)}
  assert kinds == {np.dtype(ml_dtypes.bfloat16)}


def test_metadata_that_older_files_leave_out_is_known(tmp_path):
  config = _TINY.replace(rope_theta=1e4, num_key_value_heads=4)
  absent = dict.fromkeys(
    ['key_length', 'value_length', 'rope_freq_base', 'head_count_kv']
  )
  _write(tmp_path / 'x.gguf', config, _weights(config), **absent)
  assert gguf.open_checkpoint(tmp_path / 'x.gguf')[0] == config


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    ({'arch': 'qwen2'}, "general.architecture is 'qwen2'; Yi has 'llama'"),
    ({'expert_count': 8}, 'llama.expert_count is 8; Yi has 0'),
    (
      {'rope_scaling_factor': 4.0},
      'llama.rope.scaling.factor is 4.0; Yi has 1',
    ),
    ({'rope_dimension_count': 32}, 'rope.dimension_count is 32; Yi has 64'),
    ({'block_count': None}, 'does not say llama.block_count'),
    ({'head_count_kv': 3}, 'must be a multiple of num_key_value_heads'),
    ({'block_count': 3}, 'model.layers.2.input_layernorm.weight .* is missing'),
    ({'feed_forward_length': 99}, r'ffn_down.weight has shape \[256, 256\]'),
  ],
)
def test_metadata_of_another_model_is_refused(tmp_path, metadata, message):
  _write(tmp_path / 'x.gguf', _TINY, _weights(_TINY), **metadata)
  with pytest.raises(ValueError, match=rf'x\.gguf.*{message}'):
    gguf.open_checkpoint(tmp_path / 'x.gguf')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('rope_freqs.weight', 'scales its positions'),
    ('blk.0.attn_sinks.weight', 'blk.0.attn_sinks.weight belongs to no param'),
    ('blk.9.attn_norm.weight', r'blk.9.attn_norm.weight \[256\] belongs to no'),
  ],
)
def test_an_unknown_tensor_is_named(tmp_path, name, message):
  weights = {**_weights(_TINY), name: np.zeros(256, np.float32)}
  _write(tmp_path / 'x.gguf', _TINY, weights)
  with pytest.raises(ValueError, match=rf'x\.gguf.*{message}'):
    gguf.open_checkpoint(tmp_path / 'x.gguf')


def test_a_missing_tensor_is_named(tmp_path):
  path, weights = tmp_path / 'x.gguf', _weights(_TINY)
  del weights['model.layers.1.self_attn.k_proj.weight']
  _write(path, _TINY, weights)
  with pytest.raises(ValueError, match=r'layers\.1\.self_attn\.k_proj'):
    gguf.open_checkpoint(path)
  del weights['model.embed_tokens.weight']
  _write(path, _TINY, weights)
  with pytest.raises(ValueError, match=r'no token_embd\.weight'):
    gguf.open_checkpoint(path)


def test_a_file_that_is_cut_off_or_packed_unknown_is_named(tmp_path):
  path = tmp_path / 'x.gguf'
  _write(path, _TINY, _weights(_TINY), _TYPES.Q4_0)
  content = path.read_bytes()
  path.write_bytes(content[:-100])
  with pytest.raises(ValueError, match=r'x\.gguf is cut off: .* ends at byte'):
    gguf.open_checkpoint(path)
  name = b'blk.1.ffn_up.weight'
  place = content.index(name) + len(name) + 4 + 16  # after both dimensions
  for number, shown in ((16, 'IQ2_XXS'), (99, '99')):
    changed = bytearray(content)
    changed[place : place + 4] = number.to_bytes(4, 'little')
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f'is packed as {shown}; read are F32'):
      gguf.open_checkpoint(path)


# ------------------------------------------------------------- a real model


@pytest.fixture(scope='module')
def smollm2():
  """Path of SmolLM2-135M-Instruct, fetched once into data/raw."""
  folder = pathlib.Path(paths.in_repository('data/raw'))
  try:
    raw.fetch(['model'], folder)
  except OSError as error:
    if os.environ.get('YI_REQUIRE_PEER'):
      raise
    pytest.skip(f'no model to compare: {error}')
  return folder / 'SmolLM2-135M-Instruct.Q4_1.gguf'


def test_smollm2_computes_and_continues_as_in_transformers(smollm2, peer):
  words = tokenizer.open_tokenizer(smollm2)
  text = (paths.REPOSITORY / 'LICENSE').read_text()
  tokens = np.array([words.encode(text)[:600]])
  question = [{'role': 'user', 'content': 'Why is the sky blue?'}]
  template = chatml.of_checkpoint(words)
  prompt = chatml.render(template, question, words, generate=True).ids
  config, params = gguf.load_gguf(smollm2)
  generator = generation.Generator(config, params, max_length=256)
  [ids] = generator.generate([prompt], 128, stop_ids=())
  theirs = peer(
    'gguf_llama.py',
    path=str(smollm2),
    tokens=tokens,
    text=np.array([[*prompt, *ids]]),
  )
  # Each is the likeliest after those before it: that is greedy decoding.
  assert len(ids) == 128
  assert ids == theirs['best'][len(prompt) - 1 : -1].tolist()
  # And what it says is an answer.
  assert 'blue' in words.decode(ids)
  model = transformer.Transformer(config)
  logits = jax.jit(lambda p, t: model.apply({'params': p}, t).logits)(
    params, tokens
  )
  assert tokens.shape == (1, 600)
  np.testing.assert_allclose(logits[0], theirs['logits'], rtol=0, atol=1e-3)


def test_smollm2_s_chats_are_tokenized_as_in_transformers(
  smollm2, peer, tmp_path
):
  words = tokenizer.open_tokenizer(smollm2)
  words.save(tmp_path / 'a')
  texts = (paths.REPOSITORY / 'README.md').read_text().split('\n\n')
  user = {'role': 'user', 'content': 'What is 2 + 2?\n\nSay it in 中文 😀.'}
  chats = [
    [user],
    [{'role': 'system', 'content': 'Be  brief.\n'}, user],
    [user, {'role': 'assistant', 'content': 'Four.'}, user],
  ]
  requests = [
    {'conversation': chat, 'add_generation_prompt': True} for chat in chats
  ]
  job = {'folder': str(tmp_path / 'a'), 'texts': texts, 'chats': requests}
  found = peer('tokenizer.py', jobs=json.dumps([job]))['found']
  [theirs] = json.loads(str(found))
  template = chatml.of_checkpoint(words)
  assert template.name == 'smollm2'
  assert theirs['chats'] == [
    chatml.render(template, chat, words, generate=True).ids for chat in chats
  ]
  assert theirs['texts'] == list(map(words.encode, texts))
  assert theirs['decoded'] == texts
