"""Imported checkpoints: workdirs that everything else reads as a run's."""

import json

import jax
import numpy as np
import pytest
import tensorstore as ts

from yi_jax.checkpoints import hf, lazy
from yi_jax.data import vocabulary
from yi_jax.models import config as model_config
from yi_jax.models import layout, transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.training import checkpointing, weights
from yi_jax.training import state as train_state

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


def _params(config):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    transformer.abstract_params(config),
  )


def _save(workdir, config, params, dtype=None):
  tree = lazy.astype(lazy.from_params(config, params), dtype)
  weights.save(
    workdir, config, tree, vocabulary_hash='ab', origin={'from': 'a test'}
  )


def _assert_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def _mesh():
  return meshes.make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_what_is_saved_is_a_checkpoint_of_step_0(tmp_path, dtype, scan_layers):
  config = _MODEL.replace(scan_layers=scan_layers)
  params = _params(config)
  _save(tmp_path, config, params, dtype)
  found, loaded, manifest = checkpointing.load_params(str(tmp_path))
  assert found == config
  assert manifest['run'] == {'from': 'a test'}
  assert manifest['vocabulary_hash'] == 'ab'
  rounded = jax.tree.map(
    lambda x: lazy.cast(x, dtype, 'x').astype(np.float32), params
  )
  _assert_equal(loaded, rounded)
  assert checkpointing.newest(str(tmp_path)) == (0, manifest)
  # Leaf by leaf they are the same, in the type of the file.
  _, tree, _ = weights.open_checkpoint(str(tmp_path))
  assert {leaf.dtype.name for _, leaf in lazy.leaves(tree)} == {dtype}
  _assert_equal(lazy.load(lazy.astype(tree, 'float32')), loaded)


def test_numbers_that_have_changed_are_noticed(tmp_path):
  _save(tmp_path, _MODEL, _params(_MODEL), 'bfloat16')
  path = tmp_path / 'checkpoints/0/manifest/metadata'
  manifest = json.loads(path.read_text())
  manifest['digests']['params'] ^= 1
  path.write_text(json.dumps(manifest))
  with pytest.raises(OSError, match='not those that were saved'):
    checkpointing.load_params(str(tmp_path))


def test_a_stacked_parameter_is_read_one_layer_at_a_time(tmp_path):
  # Those of a run as well, on whatever mesh it was.
  mesh = _mesh()
  _save(tmp_path / 'source', _MODEL, _params(_MODEL))
  params = weights.load_into(str(tmp_path / 'source'), _MODEL, mesh)
  checkpoints = checkpointing.Checkpointer(str(tmp_path / 'run'), keep=1)
  state = train_state.TrainState(
    step=np.int32(4), params=params, opt_state=(), guard=()
  )
  manifest = checkpointing.manifest(
    identity={},
    model=_MODEL,
    vocabulary_hash='',
    rows_consumed=0,
    rates={},
    rows={},
    seconds=0.0,
  )
  checkpoints.save(4, state, manifest)
  checkpoints.close()
  for workdir in ('source', 'run'):
    _, tree, _ = weights.open_checkpoint(str(tmp_path / workdir))
    sizes = []
    _assert_equal(
      lazy.load(lazy.watch(tree, lambda x: sizes.append(x.size))),  # noqa: B023
      _params(_MODEL),
    )
    assert max(sizes) == 48 * 16
    folder = tmp_path / workdir / 'checkpoints'
    [folder] = folder.iterdir()
    name = 'layers.mlp.up_proj.kernel'
    place = {
      'driver': 'ocdbt',
      'base': f'file://{folder}/params/',
      'path': name,
    }
    store = ts.open({'driver': 'zarr', 'kvstore': place}).result()
    assert store.shape[0] == 3
    assert store.chunk_layout.read_chunk.shape[0] == 1
  with pytest.raises(FileNotFoundError, match='no checkpoint 7'):
    weights.open_checkpoint(str(tmp_path / 'run'), 7)


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('kind', ['workdir', 'hf'])
def test_a_run_starts_from_either_kind_in_either_layout(
  tmp_path, kind, scan_layers
):
  params = _params(_MODEL)
  if kind == 'hf':
    hf.save_pretrained(_MODEL, params, tmp_path / 'x')
  else:
    _save(tmp_path / 'x', _MODEL, params)
  config = _MODEL.replace(scan_layers=scan_layers)
  loaded = weights.load_into(str(tmp_path / 'x'), config, _mesh())
  want = params if scan_layers else layout.unroll(_MODEL, params)[1]
  _assert_equal(loaded, want)
  with pytest.raises(ValueError, match='does not fit the model: embed_tokens'):
    weights.load_into(
      str(tmp_path / 'x'), config.replace(vocab_size=50), _mesh()
    )


def test_weights_say_what_their_tokens_mean(tmp_path):
  text = 'the king said that his horse was lost, 国家保护公民的合法权益 '
  words = vocabulary.train([text] * 50, 330, tmp_path / 'words')
  config = _MODEL.replace(vocab_size=330)
  hf.save_pretrained(config, _params(config), tmp_path / 'x', words)
  found = weights.describe(str(tmp_path / 'x'))
  assert found['vocabulary_hash'] == words.hash
  checkpointing.refuse_other_vocabulary(found, words.hash)
  assert weights.differences(found, config) == []
  other = config.replace(rope_theta=5e6)
  assert weights.differences(found, other) == [
    'rope_theta was 10000, here it is 5e+06'
  ]
  hf.save_pretrained(config, _params(config), tmp_path / 'y')
  with pytest.raises(OSError, match='nobody can tell what the token ids mean'):
    weights.describe(str(tmp_path / 'y'))
