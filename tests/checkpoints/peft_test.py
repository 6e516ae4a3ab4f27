"""PEFT's adapters: the same logits both ways, and a clear no."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from yi_jax.checkpoints import hf, peft
from yi_jax.models import config as model_config
from yi_jax.models import layout, lora, transformer

_MODEL = model_config.get_preset(
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
_LORA = lora.LoraConfig(rank=4, alpha=6.0, targets='.*/(q|down)_proj/kernel')
_PEER = dict(
  vocab_size=96,
  hidden_size=32,
  intermediate_size=40,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
)
# Settings of PEFT, whether the layers are stacked here, and our targets.
_SETTINGS = (
  (
    dict(r=4, lora_alpha=6, target_modules=['q_proj', 'v_proj', 'lm_head']),
    True,
    r'lm_head/kernel|layers/(\d+/)?self_attn/q_proj/kernel|'
    r'layers/(\d+/)?self_attn/v_proj/kernel',
  ),
  (
    dict(
      r=3,
      lora_alpha=5,
      use_rslora=True,
      target_modules=r'.*\.[02]\.mlp\.(up|down)_proj',
    ),
    False,
    'layers/(0|2)/mlp/down_proj/kernel|layers/(0|2)/mlp/up_proj/kernel',
  ),
  (
    dict(
      r=4, target_modules=['self_attn.o_proj', 'up_proj'], layers_to_transform=1
    ),
    False,
    'layers/(1)/mlp/up_proj/kernel|layers/(1)/self_attn/o_proj/kernel',
  ),
)


def _adapter(config, settings=_LORA, seed=0):
  """Returns a random adapter, no two numbers of it alike."""
  random = np.random.default_rng(seed)
  shapes = transformer.abstract_params(config)
  fresh = lora.init(settings, shapes, jax.random.key(0))
  return jax.tree.map(
    lambda x: random.normal(size=x.shape).astype(np.float32), fresh
  )


def _logits(config, params, tokens):
  model = transformer.Transformer(config)
  apply = jax.jit(lambda p, t: model.apply({'params': p}, t).logits)
  return np.asarray(apply(params, tokens))


@pytest.fixture
def saved(tmp_path):
  """An adapter of q_proj and down_proj, in a folder."""
  folder = tmp_path / 'saved'
  peft.save_adapter(_MODEL, _LORA, _adapter(_MODEL), folder)
  return folder


def _edit(folder, **changes):
  path = folder / 'adapter_config.json'
  values = json.loads(path.read_text())
  path.write_text(json.dumps({**values, **changes}))


def _resave(folder, change):
  path = folder / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def test_logits_are_those_of_peft_both_ways(peer, tmp_path):
  tokens = np.random.default_rng(0).integers(0, 96, (2, 40))
  made, read = [], []
  for i, (settings, *_) in enumerate(_SETTINGS):
    job = dict(model=str(tmp_path / f'model{i}'))
    adapter = str(tmp_path / f'made{i}')
    made.append(dict(job, config=_PEER, lora=settings, adapter=adapter))
    read.append(dict(job, adapter=str(tmp_path / f'read{i}')))
  wanted = peer('peft_llama.py', tokens=tokens, jobs=json.dumps(made))
  for i, (settings, scan, targets) in enumerate(_SETTINGS):
    base, params = hf.load_pretrained(made[i]['model'], scan_layers=scan)
    config, adapter = peft.load_adapter(made[i]['adapter'], base)
    assert (config.rank, config.targets) == (settings['r'], targets)
    merged = lora.merge(params, adapter, config)
    found = _logits(base, merged, tokens)
    np.testing.assert_allclose(
      found, wanted[f'logits_{i}'], atol=1e-4, rtol=0, err_msg=str(settings)
    )
    assert np.abs(found - _logits(base, params, tokens)).max() > 0.1
    # The targets that were read choose the same modules again.
    fresh = lora.init(config, params, jax.random.key(0))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, adapter)
    peft.save_adapter(base, config, adapter, read[i]['adapter'])
  again = peer('peft_llama.py', tokens=tokens, jobs=json.dumps(read))
  for i in range(len(_SETTINGS)):
    np.testing.assert_allclose(
      again[f'logits_{i}'], wanted[f'logits_{i}'], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize('scan', [True, False], ids=['stacked', 'unrolled'])
def test_saved_and_loaded_is_bit_identical(tmp_path, scan):
  base = _MODEL.replace(scan_layers=scan)
  adapter = _adapter(base)
  peft.save_adapter(base, _LORA, adapter, tmp_path / 'saved')
  config, again = peft.load_adapter(tmp_path / 'saved', base)
  assert (config.rank, config.alpha, config.rslora) == (4, 6.0, False)
  assert jax.tree.structure(again) == jax.tree.structure(adapter)
  jax.tree.map(np.testing.assert_array_equal, again, adapter)


def test_files_are_named_and_shaped_as_peft_does(saved):
  tensors = safetensors.numpy.load_file(saved / 'adapter_model.safetensors')
  names = {
    f'base_model.model.model.layers.{i}.{module}.lora_{half}.weight'
    for i in range(3)
    for module in ('self_attn.q_proj', 'mlp.down_proj')
    for half in 'AB'
  }
  assert set(tensors) == names
  start = 'base_model.model.model.layers.2.mlp.down_proj.lora_'
  assert tensors[f'{start}A.weight'].shape == (4, 24)
  assert tensors[f'{start}B.weight'].shape == (16, 4)
  pair = _adapter(_MODEL)['layers']['mlp']['down_proj']
  np.testing.assert_array_equal(
    tensors[f'{start}A.weight'], pair['lora_A'][2].T
  )
  values = json.loads((saved / 'adapter_config.json').read_text())
  assert values['target_modules'] == ['down_proj', 'q_proj']
  assert (values['r'], values['lora_alpha']) == (4, 6)
  assert values['peft_type'] == 'LORA'


def test_an_adapter_fits_both_layouts(saved):
  config, stacked = peft.load_adapter(saved, _MODEL)
  apart = _MODEL.replace(scan_layers=False)
  again, unrolled = peft.load_adapter(saved, apart)
  assert config == again
  wanted = layout.unroll(_MODEL, stacked)[1]
  jax.tree.map(np.testing.assert_array_equal, unrolled, wanted)


def test_what_is_there_is_not_written_over(saved):
  before = (saved / 'adapter_config.json').read_bytes()
  with pytest.raises(FileExistsError, match='is there already'):
    peft.save_adapter(_MODEL, _LORA, _adapter(_MODEL, seed=1), saved)
  assert (saved / 'adapter_config.json').read_bytes() == before


@pytest.mark.parametrize(
  ('other', 'message'),
  [
    (dict(hidden_size=24), r'_proj.lora_B.weight has shape \[16, 4\], but'),
    (dict(num_hidden_layers=2), r'lora_A of .* has 3 layers, the model 2'),
  ],
)
def test_nothing_is_written_for_another_model(tmp_path, other, message):
  with pytest.raises(ValueError, match=message):
    peft.save_adapter(
      _MODEL.replace(**other), _LORA, _adapter(_MODEL), tmp_path / 'saved'
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(peft_type='IA3'), r"peft_type is 'IA3'; only LORA"),
    (dict(use_dora=True), r'use_dora is true; only plain LoRA'),
    (dict(bias='all'), r'bias is "all"'),
    (dict(modules_to_save=['lm_head']), r'modules_to_save is \["lm_head"\]'),
    (dict(rank_pattern={'q_proj': 2}), r'rank_pattern is \{"q_proj": 2\}'),
    (dict(trainable_token_indices=[1]), r'trainable_token_indices is \[1\]'),
    (dict(something_new=3), r'something_new is 3'),
    (dict(init_lora_weights='pissa'), r"init_lora_weights is 'pissa'"),
    (dict(target_modules=['query']), r'\["query"\] match no product'),
    (dict(target_modules='(q'), r"target_modules '\(q' is no regex"),
    (dict(target_modules=None), r'target_modules is null, neither'),
    (dict(r='many'), r'says nothing of r'),
    (dict(r=0), r'rank of LoRA is 0'),
    (dict(r=2), r'_proj.lora_A.weight has shape \[4, \d+\], but \[2, \d+\]'),
    (
      dict(target_modules=['q_proj']),
      r'down_proj.lora_[AB].weight .* belongs to no module',
    ),
    (
      dict(target_modules=['q_proj', 'v_proj', 'down_proj']),
      r'layers.0.self_attn.v_proj.lora_A.weight \[4, 16\] is missing',
    ),
    (dict(layers_to_transform=[0, 2]), r'in the layers 0, 2 of 3; load it for'),
  ],
  ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_other_adapters_are_refused_by_key(saved, change, message):
  _edit(saved, **change)
  with pytest.raises(ValueError, match=message):
    peft.load_adapter(saved, _MODEL)


def test_tensors_that_do_not_fit_are_refused_by_name(saved):
  name = 'base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'

  def narrow(tensors):
    tensors[name] = tensors[name][:8].copy()

  _resave(saved, narrow)
  with pytest.raises(ValueError, match=r'layers.1.*lora_B.weight has shape'):
    peft.load_adapter(saved, _MODEL)
  _resave(saved, lambda tensors: tensors.pop(name))
  with pytest.raises(ValueError, match=r'layers.1.*lora_B.weight .* missing'):
    peft.load_adapter(saved, _MODEL)


def test_weights_of_the_model_itself_are_refused(saved):
  name = 'base_model.model.lm_head.base_layer.weight'
  matrix = np.zeros((32, 16), np.float32)
  _resave(saved, lambda tensors: tensors.update({name: matrix}))
  with pytest.raises(
    ValueError, match=r'base_layer.* is a weight of the model'
  ):
    peft.load_adapter(saved, _MODEL)


@pytest.mark.parametrize(
  'name', ['adapter_config.json', 'adapter_model.safetensors']
)
def test_a_missing_file_is_named(saved, name):
  (saved / name).unlink()
  with pytest.raises(FileNotFoundError, match=name):
    peft.load_adapter(saved, _MODEL)
