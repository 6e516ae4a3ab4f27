"""Every kind of checkpoint is opened with the tokenizer that belongs to it."""

import json
import shutil

import gguf
import jax
import numpy as np
import pytest

from yi_jax.checkpoints import hf, lazy, naming
from yi_jax.data import vocabulary
from yi_jax.models import config as model_config
from yi_jax.models import transformer
from yi_jax.serving import opening
from yi_jax.sharding import mesh as meshes
from yi_jax.training import checkpointing, run_config, run_identity, weights
from yi_jax.training import state as train_state

_TEXTS = ('the king said that his horse and crown were lost at sea',) * 50
_MODEL = dict(
  vocab_size=300,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
)


@pytest.fixture(scope='module')
def model():
  config = model_config.ModelConfig(scan_layers=False, **_MODEL)
  return config, transformer.init_params(config, jax.random.key(0))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A data root with a vocabulary."""
  folder = tmp_path_factory.mktemp('opening')
  vocabulary.train(_TEXTS, 300, folder / 'data/vocabularies/small')
  return folder


@pytest.fixture(scope='module')
def words(place):
  return vocabulary.load(place / 'data/vocabularies/small')


@pytest.fixture(scope='module')
def trained(place, words):
  """A workdir as `train` leaves it."""
  config = run_config.defaults()
  config['data'].update(
    root=str(place / 'data'),
    vocabulary='small',
    vocabulary_size=300,
    length=32,
    batch_tokens=256,
  )
  config['model']['overrides'].update(_MODEL)
  run = run_config.resolve(config)
  mesh = meshes.make_mesh({'fsdp': 1}, jax.devices()[:1])
  checkpoints = checkpointing.Checkpointer(str(place / 'run'), keep=1)
  state = train_state.fresh(run, mesh, seed=0)
  checkpoints.save(
    3,
    state,
    checkpointing.manifest(
      identity=run_identity.identity(config, run),
      model=run.model,
      vocabulary_hash=words.hash,
      rows_consumed=24,
      rows={},
      rates={'en_other_x': 1.0},
      seconds=1.0,
    ),
  )
  checkpoints.close()
  words.save(place / 'run')
  return place / 'run', jax.device_get(state.params)


def _same(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_run_is_opened_without_its_data(trained, words, place):
  workdir, expected = trained
  shutil.move(place / 'data', place / 'elsewhere')
  try:
    found = opening.open_checkpoint(str(workdir))
  finally:
    shutil.move(place / 'elsewhere', place / 'data')
  assert found.tokenizer.hash == words.hash
  assert found.start == (2,)  # as documents begin in training
  _same(found.load()[1], expected)


def test_an_older_run_has_its_tokenizer_with_the_data(
  trained, words, place, tmp_path
):
  shutil.copytree(trained[0] / 'checkpoints', tmp_path / 'checkpoints')
  assert opening.open_checkpoint(str(tmp_path)).tokenizer.hash == words.hash
  shutil.move(place / 'data', place / 'elsewhere')
  try:
    with pytest.raises(FileNotFoundError, match=f'tokenizer of {tmp_path}'):
      opening.open_checkpoint(str(tmp_path))
  finally:
    shutil.move(place / 'elsewhere', place / 'data')


def test_another_tokenizer_is_refused(trained, tmp_path):
  shutil.copytree(trained[0] / 'checkpoints', tmp_path / 'checkpoints')
  other = vocabulary.train(_TEXTS + ('zebra',) * 50, 300, tmp_path / 'other')
  other.save(tmp_path)
  with pytest.raises(ValueError, match=f'{tmp_path} is not the one that .* wa'):
    opening.open_checkpoint(str(tmp_path))


def test_an_imported_workdir_puts_nothing_before_a_text(model, words, tmp_path):
  config, params = model
  tree = lazy.from_params(config, params)
  origin = {'converted_from': {}}
  weights.save(
    tmp_path, config, tree, vocabulary_hash=words.hash, origin=origin
  )
  words.save(tmp_path)
  found = opening.open_checkpoint(str(tmp_path))
  assert (found.start, found.tokenizer.hash) == ((), words.hash)
  _same(found.load()[1], params)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_folder_of_hugging_face_is_opened(model, words, tmp_path, dtype):
  config, params = model
  hf.save_pretrained(config, params, tmp_path / 'a', words, dtype=dtype)
  found = opening.open_checkpoint(str(tmp_path / 'a'))
  assert (found.start, found.tokenizer.hash) == ((), words.hash)
  assert found.tokenizer.stop_ids == (2, 7)
  loaded, numbers = found.load()
  assert (loaded.dtype, loaded.scan_layers) == ('float32', False)
  _same(numbers, jax.tree.map(lambda x: x.astype(dtype), params))


def test_a_gguf_file_is_opened(model, words, tmp_path):
  config, params = model
  path = tmp_path / 'x.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_context_length(4096)
  writer.add_embedding_length(16)
  writer.add_block_count(2)
  writer.add_feed_forward_length(24)
  writer.add_head_count(2)
  writer.add_head_count_kv(1)
  writer.add_rope_freq_base(5e6)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model('llama')
  writer.add_token_list([piece.piece for piece in words._model.pieces])
  writer.add_token_scores([piece.score for piece in words._model.pieces])
  writer.add_token_types([piece.type for piece in words._model.pieces])
  tensors = naming.from_params(config, lazy.from_params(config, params))
  names = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    'model.layers': 'blk',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'self_attn.o_proj': 'attn_output',
  }
  names |= {f'self_attn.{x}_proj': f'attn_{x}' for x in 'qkv'}
  names |= {f'mlp.{x}_proj': f'ffn_{x}' for x in ('gate', 'up', 'down')}
  for name, leaf in tensors.items():
    numbers = leaf.read()
    if 'attn.q' in name or 'attn.k' in name:  # interleaved halves of heads
      heads = numbers.reshape(-1, 2, 4, 16).swapaxes(1, 2)
      numbers = heads.reshape(numbers.shape)
    for theirs, mine in names.items():
      name = name.replace(theirs, mine)
    writer.add_tensor(name, numbers)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  found = opening.open_checkpoint(str(path))
  assert found.start == ()
  text = 'the king <|im_end|>'
  assert found.tokenizer.encode(text) == words.encode(text)
  loaded, numbers = found.load()
  assert loaded == config
  _same(numbers, params)


def test_what_is_no_checkpoint_is_named(tmp_path, model, words):
  with pytest.raises(FileNotFoundError, match='no checkpoint: there is no .*x'):
    opening.open_checkpoint(str(tmp_path / 'x'))
  with pytest.raises(FileNotFoundError, match=f'no checkpoint in {tmp_path}'):
    opening.open_checkpoint(str(tmp_path))
  # A tokenizer that is missing shows before any weights are read.
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
  with pytest.raises(FileNotFoundError, match=f'no tokenizer: .* {tmp_path}'):
    opening.open_checkpoint(str(tmp_path))
