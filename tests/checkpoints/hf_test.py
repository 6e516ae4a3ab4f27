"""Hugging Face's checkpoints: the same logits both ways, and a clear no."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from yi_jax.checkpoints import hf, lazy, naming
from yi_jax.models import config as model_config
from yi_jax.models import layout, transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import rules

_GOLDEN = pathlib.Path(__file__).parent / 'golden'
_MODEL = model_config.get_preset(
  'tiny',
  vocab_size=48,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  scan_layers=True,
)
_BASE = dict(
  vocab_size=96,
  hidden_size=32,
  intermediate_size=40,
  num_hidden_layers=2,
  max_position_embeddings=1024,
)
# Groups of 1, 3 and 8 heads; tied and not; head_dim is D/N or not; theta, eps
# and biases as they come; files of both kinds.
_SHAPES = (
  (dict(num_attention_heads=4, num_key_value_heads=4), 1e4, 1e-5, '1GB'),
  (dict(num_attention_heads=6, num_key_value_heads=2, head_dim=16, hidden_size=48), 5e6, 1e-6, '20KB'),
  (
    dict(num_attention_heads=8, num_key_value_heads=1, attention_bias=True),
    1e7,
    1e-5,
    '1GB',
  ),
  (
    dict(num_attention_heads=9, num_key_value_heads=3, hidden_size=72, tie_word_embeddings=True),
    1e5,
    1e-5,
    'bin',
  ),
  (
    dict(num_attention_heads=2, num_key_value_heads=1, head_dim=64, tie_word_embeddings=True, attention_bias=True),
    1e7,
    1e-6,
    '1GB',
  ),
  (dict(num_attention_heads=3, num_key_value_heads=1, head_dim=4, hidden_size=36), 5e6, 1e-5, 'bin'),
  # Positions stretched; rows are longer than what was trained for.
  (
    dict(num_attention_heads=2, num_key_value_heads=2, rope_scaling=dict(
      rope_type='yarn', factor=4.0, original_max_position_embeddings=256)),
    1e4, 1e-5, '1GB',
  ),
  (
    dict(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
         rope_scaling=dict(rope_type='dynamic', factor=2.0)),
    1e4, 1e-5, '1GB',
  ),
)  # fmt: skip


def _params(config, seed=0):
  """Returns random parameters, no two numbers of them alike."""
  random = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    transformer.abstract_params(config),
  )


def _assert_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def _logits(config, params, tokens):
  model = transformer.Transformer(config)
  apply = jax.jit(lambda p, t: model.apply({'params': p}, t).logits)
  return np.asarray(apply(params, tokens))


@pytest.fixture
def saved(tmp_path):
  """A checkpoint of three layers in several files."""
  folder = tmp_path / 'saved'
  hf.save_pretrained(_MODEL, _params(_MODEL), folder, shard_bytes=8_000)
  return folder


def _edit(path, **changes):
  values = json.loads(path.read_text())
  values.update(changes)
  path.write_text(json.dumps(values))


def _resave(folder, change):
  """Replaces the weights of a folder by others, in one file."""
  tensors = {}
  for file in folder.glob('*.safetensors'):
    tensors.update(safetensors.numpy.load_file(file))
    file.unlink()
  (folder / 'model.safetensors.index.json').unlink()
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


def test_logits_are_those_of_transformers_both_ways(peer, tmp_path):
  tokens = np.random.default_rng(0).integers(0, 96, (1, 600))
  made, read = [], []
  for i, (shape, theta, eps, form) in enumerate(_SHAPES):
    config = dict(rope_theta=theta, rms_norm_eps=eps, **{**_BASE, **shape})
    made.append(
      dict(folder=str(tmp_path / f'made{i}'), config=config, form=form)
    )
    read.append(dict(folder=str(tmp_path / f'read{i}'), config=None))
  wanted = peer('checkpoint.py', tokens=tokens, jobs=json.dumps(made))
  for i, (shape, theta, eps, _) in enumerate(_SHAPES):
    scan = i % 2 == 0
    config, params = hf.load_pretrained(made[i]['folder'], scan_layers=scan)
    asked = dict(rope_theta=theta, rms_norm_eps=eps, scan_layers=scan, **shape)
    if stretched := asked.pop('rope_scaling', None):
      assert config.rope_scaling.rope_type == stretched['rope_type']
    assert {key: getattr(config, key) for key in asked} == asked
    np.testing.assert_allclose(
      _logits(config, params, tokens),
      wanted[f'logits_{i}'],
      atol=1e-4,
      rtol=0,
      err_msg=str(_SHAPES[i]),
    )
    hf.save_pretrained(config, params, read[i]['folder'], shard_bytes=30_000)
  again = peer('checkpoint.py', tokens=tokens, jobs=json.dumps(read))
  for i, info in enumerate(json.loads(str(again['infos']))):
    assert info['missing'] == info['unexpected'] == [], _SHAPES[i]
    np.testing.assert_allclose(
      again[f'logits_{i}'], wanted[f'logits_{i}'], atol=1e-5, rtol=0
    )


def test_logits_of_a_bin_file_are_those_of_transformers():
  config, params = hf.load_pretrained(_GOLDEN)
  assert (config.rope_theta, config.rms_norm_eps) == (5e6, 1e-5)
  with np.load(_GOLDEN / 'logits.npz') as golden:
    logits = _logits(config, params, golden['tokens'])
    np.testing.assert_allclose(
      logits[:, -40:], golden['logits'], atol=1e-4, rtol=0
    )


def _yi_6b():
  """Returns the tensors of Yi-6B, written down by hand."""
  wanted = {
    'model.embed_tokens.weight': (64_000, 4096),
    'model.norm.weight': (4096,),
    'lm_head.weight': (64_000, 4096),
  }
  for i in range(32):
    for name, shape in (
      ('input_layernorm', (4096,)),
      ('post_attention_layernorm', (4096,)),
      ('self_attn.q_proj', (4096, 4096)),
      ('self_attn.k_proj', (512, 4096)),
      ('self_attn.v_proj', (512, 4096)),
      ('self_attn.o_proj', (4096, 4096)),
      ('mlp.gate_proj', (11_008, 4096)),
      ('mlp.up_proj', (11_008, 4096)),
      ('mlp.down_proj', (4096, 11_008)),
    ):
      wanted[f'model.layers.{i}.{name}.weight'] = shape
  return wanted


@pytest.mark.parametrize('scan_layers', [True, False])
def test_the_tensors_of_yi_6b_have_their_names_and_shapes(scan_layers):
  config = model_config.get_preset('yi_6b', scan_layers=scan_layers)
  wanted = _yi_6b()
  dtype = np.dtype(ml_dtypes.bfloat16)
  tensors = {
    name: lazy.Leaf(name, shape, dtype, lambda: None)
    for name, shape in wanted.items()
  }
  tree = naming.to_params(config, tensors)
  ours = transformer.abstract_params(config.replace(scan_layers=True))
  if not scan_layers:
    stacked = config.replace(scan_layers=True)
    ours = jax.eval_shape(lambda x: layout.unroll(stacked, x)[1], ours)
  assert jax.tree.structure(tree) == jax.tree.structure(ours)
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), tree, ours
  )
  back = naming.from_params(config, tree)
  assert {name: leaf.shape for name, leaf in back.items()} == wanted


@pytest.mark.parametrize('scan_layers', [True, False])
def test_loading_onto_a_mesh_equals_loading_onto_one_device(saved, scan_layers):
  config = hf.read_config(saved, scan_layers)
  mesh = meshes.make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])
  places = rules.shardings(
    mesh, transformer.param_axes(config), transformer.abstract_params(config)
  )
  _, whole = hf.load_pretrained(saved, scan_layers=scan_layers)
  _, cut = hf.load_pretrained(saved, 'float32', places, scan_layers=scan_layers)
  _assert_equal(whole, cut)
  jax.tree.map(
    lambda x, place: np.testing.assert_equal(x.sharding, place), cut, places
  )
  kernel = jax.tree.leaves(cut['layers'])[-1]
  assert kernel.addressable_shards[0].data.size < kernel.size


@pytest.mark.parametrize('scan_layers', [True, False])
def test_either_layout_comes_back(tmp_path, scan_layers):
  config = _MODEL.replace(scan_layers=scan_layers)
  params = _params(config)
  hf.save_pretrained(config, params, tmp_path / 'x')
  found, again = hf.load_pretrained(tmp_path / 'x', scan_layers=scan_layers)
  assert found == config
  _assert_equal(again, params)


def test_files_are_as_large_as_asked_and_others_can_read_them(saved):
  files = sorted(saved.glob('*.safetensors'))
  assert len(files) > 2
  assert files[0].name == f'model-00001-of-{len(files):05d}.safetensors'
  index = json.loads((saved / 'model.safetensors.index.json').read_text())
  found = {}
  for file in files:
    with safetensors.safe_open(file, 'numpy') as shard:
      assert shard.metadata() == {'format': 'pt'}
      found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
      assert {index['weight_map'][name] for name in shard.keys()} == {file.name}  # noqa: SIM118
      sizes = [shard.get_tensor(name).nbytes for name in shard.keys()]  # noqa: SIM118
    assert sum(sizes) <= 8_000 or len(sizes) == 1
  assert index['metadata']['total_size'] == sum(
    x.nbytes for x in found.values()
  )
  params = _params(_MODEL)
  np.testing.assert_array_equal(
    found['model.layers.1.mlp.up_proj.weight'],
    params['layers']['mlp']['up_proj']['kernel'][1].T,
  )


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_a_type_is_rounded_to_and_read_back(saved, tmp_path, dtype):
  config, params = hf.load_pretrained(saved)
  hf.save_pretrained(config, params, tmp_path / 'x', dtype=dtype)
  config, again = hf.load_pretrained(tmp_path / 'x', dtype=None)
  assert config.dtype == dtype
  _assert_equal(again, jax.tree.map(lambda x: x.astype(dtype), params))
  file = safetensors.numpy.load_file(tmp_path / 'x' / 'model.safetensors')
  assert {x.dtype.name for x in file.values()} == {dtype}


def test_early_names_of_norms_and_buffers_are_understood(saved):
  _, params = hf.load_pretrained(saved)

  def change(tensors):
    for name in list(tensors):
      early = name.replace('input_layernorm', 'ln1')
      early = early.replace('post_attention_layernorm', 'ln2')
      tensors[early] = tensors.pop(name)
    tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(
      4, np.float32
    )

  _resave(saved, change)
  _edit(saved / 'config.json', architectures=['YiForCausalLM'], model_type='Yi')
  _assert_equal(hf.load_pretrained(saved)[1], params)


def test_a_tied_output_may_be_there_twice_but_not_differ(tmp_path):
  config = _MODEL.replace(tie_word_embeddings=True)
  params = _params(config)
  folder = tmp_path / 'x'
  hf.save_pretrained(config, params, folder, shard_bytes=9_000)

  def twice(tensors):
    assert 'lm_head.weight' not in tensors
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()

  _resave(folder, twice)
  _assert_equal(hf.load_pretrained(folder)[1], params)
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  tensors['lm_head.weight'][3, 5] += 1
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(ValueError, match='lm_head.weight differs'):
    hf.open_checkpoint(folder)


def _second(folder):
  """Returns the second file of weights."""
  return sorted(folder.glob('*.safetensors'))[1]


def _drop_shard(folder):
  _second(folder).unlink()


def _cut_shard(folder):
  file = _second(folder)
  file.write_bytes(file.read_bytes()[:-1])


def _cut_header(folder):
  file = _second(folder)
  file.write_bytes(file.read_bytes()[:40])


def _garble_header(folder):
  file = _second(folder)
  content = bytearray(file.read_bytes())
  content[8:12] = b'oops'
  file.write_bytes(content)


def _turn(tensors):
  name = 'model.layers.1.mlp.up_proj.weight'
  tensors[name] = np.ascontiguousarray(tensors[name].T)


def _drop(tensors):
  del tensors['model.layers.2.self_attn.o_proj.weight']


def _add(tensors):
  tensors['model.layers.3.mlp.up_proj.weight'] = np.ones((24, 16), np.float32)


def _quantize(tensors):
  tensors['model.norm.weight'] = np.ones(16, np.int8)


def _untie(tensors):
  del tensors['lm_head.weight']


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_drop_shard, r'model-00002-of-.* is missing: .* holds model'),
    (_cut_shard, r'00002.* is cut off: its header describes [\d,]+ bytes'),
    (_cut_header, '00002.* is cut off inside its header'),
    (_garble_header, '00002.* is no safetensors file, or is damaged'),
    (
      lambda folder: _resave(folder, _turn),
      r'layers.1.mlp.up_proj.weight has shape \[16, 24\], but \[24, 16\]',
    ),
    (
      lambda folder: _resave(folder, _drop),
      r'layers.2.self_attn.o_proj.weight \[16, 32\] is missing',
    ),
    (
      lambda folder: _resave(folder, _add),
      r'layers.3.mlp.up_proj.weight \[24, 16\] belongs to no parameter',
    ),
    (lambda folder: _resave(folder, _quantize), 'model.norm.weight .* type I8'),
    (
      lambda folder: _resave(folder, _untie),
      r'lm_head.weight \[48, 16\] is missing.*not tied',
    ),
    (
      lambda folder: _edit(folder / 'config.json', vocab_size=51),
      r'embed_tokens.weight has shape \[48, 16\].*vocab_size is 51 there.*48 rows',
    ),
    (
      lambda folder: _edit(folder / 'config.json', attention_bias=True),
      r'k_proj.bias \[16\] is missing.*attention_bias',
    ),
    (
      lambda folder: _edit(
        folder / 'model.safetensors.index.json',
        weight_map={'model.norm.weight': '../x.safetensors'},
      ),
      'a file outside of its folder',
    ),
    (lambda folder: (folder / 'config.json').unlink(), 'there is no .*config.json'),
    (lambda folder: (folder / 'config.json').write_text('{'), 'config.json is damaged'),
    (
      lambda folder: [x.unlink() for x in folder.glob('*model*')],
      'no weights in .*looked for model.safetensors, pytorch_model.bin',
    ),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(saved, damage, message):
  damage(saved)
  with pytest.raises((ValueError, OSError), match=message):
    hf.open_checkpoint(saved)


def test_nothing_is_half_written(tmp_path):
  config = _MODEL
  params = _params(config)
  params['norm']['scale'] = np.full(16, 1e6, np.float32)
  with pytest.raises(ValueError, match=r'norm/scale|model.norm.weight'):
    hf.save_pretrained(config, params, tmp_path / 'x', dtype='float16')
  assert list(tmp_path.iterdir()) == []
  (tmp_path / 'x').mkdir()
  with pytest.raises(FileExistsError):
    hf.save_pretrained(config, _params(config), tmp_path / 'x')


def test_a_model_that_is_no_llama_or_not_loaded_is_not_written(tmp_path):
  sliding = model_config.LayerSpec('sliding', window=8)
  config = _MODEL.replace(layer_pattern=(sliding,))
  with pytest.raises(ValueError, match='full attention'):
    hf.save_pretrained(config, _params(config), tmp_path / 'x')
  with pytest.raises(ValueError, match='embed_tokens/embedding .*not loaded'):
    hf.save_pretrained(
      _MODEL, transformer.abstract_params(_MODEL), tmp_path / 'x'
    )
  params = _params(_MODEL)
  del params['layers']['mlp']['up_proj']
  with pytest.raises(ValueError, match='lack layers/0/mlp/up_proj/kernel'):
    hf.save_pretrained(_MODEL, params, tmp_path / 'x')
  assert list(tmp_path.iterdir()) == []


def test_one_tensor_is_read_at_a_time(saved):
  # Of a stacked parameter too: what is waited for is a layer.
  sizes = []
  _, tree = hf.open_checkpoint(saved)
  tree = lazy.watch(tree, lambda x: sizes.append(x.size))
  lazy.load(tree)
  entries = naming.entries(_MODEL)
  assert sorted(sizes) == sorted(np.prod(entry.shape) for entry in entries)


def test_files_of_a_tokenizer_come_along(saved, tmp_path):
  source = tmp_path / 'source'
  shutil.copytree(saved, source)
  (source / 'tokenizer_config.json').write_text('{"a": "b"}')
  (source / 'vocab.json').write_text('{"c": 1}')
  settings = {'eos_token_id': 7, 'bos_token_id': 6, 'temperature': 0.6}
  (source / 'generation_config.json').write_text(json.dumps(settings))
  _edit(source / 'config.json', eos_token_id=2, bos_token_id=1, pad_token_id=0)
  config, params = hf.load_pretrained(source)
  hf.save_pretrained(config, params, tmp_path / 'x', tokenizer=source)
  for name in ('tokenizer_config.json', 'vocab.json'):
    assert (tmp_path / 'x' / name).read_text() == (source / name).read_text()
  found = json.loads((tmp_path / 'x/generation_config.json').read_text())
  assert found == {
    'eos_token_id': [2, 7],
    'bos_token_id': 6,
    'pad_token_id': 0,
    'temperature': 0.6,
  }
  assert (
    json.loads((tmp_path / 'x/config.json').read_text())['eos_token_id'] == 2
  )
