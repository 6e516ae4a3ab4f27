"""Checkpoints: back on any mesh, from the newest that is whole, or a clear no."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest

from yi_jax.models import config as model_config
from yi_jax.models import layout, transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import rules
from yi_jax.training import checkpointing, faults
from yi_jax.training import state as train_state

_MODEL = model_config.get_preset(
  'tiny',
  vocab_size=64,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=2,
  head_dim=8,
)


def _params(config, mesh, scale):
  """Returns parameters in which every number is another one."""
  shapes = transformer.abstract_params(config)
  places = rules.shardings(mesh, transformer.param_axes(config), shapes)
  return jax.tree.map(
    lambda leaf, place: jax.device_put(
      scale * np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape), place
    ),
    shapes,
    places,
  )


def _state(mesh, step, config=_MODEL):
  params = _params(config, mesh, float(step))
  adam = optax.scale_by_adam().init(params)
  moved = adam._replace(mu=jax.tree.map(lambda x: x + 1, params))
  everywhere = rules.replicated(mesh)
  step, count, guard = jax.device_put(
    (np.int32(step), np.int32(step), faults.fresh_guard()), everywhere
  )
  return train_state.TrainState(
    step=step,
    params=params,
    opt_state=moved._replace(count=count),
    guard=guard,
  )


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def _manifest(step, config=_MODEL, vocabulary_hash='ab' * 32):
  return checkpointing.manifest(
    identity={'seed': 0},
    model=config,
    vocabulary_hash=vocabulary_hash,
    rows_consumed=8 * step,
    rows={'en_web_x': 'abc'},
    rates={'en_other_x': 1.0},
    seconds=1.5,
  )


def _mesh(fsdp):
  return meshes.make_mesh({'fsdp': fsdp}, jax.devices()[:fsdp])


def _save(workdir, steps, keep=3, config=_MODEL):
  checkpoints = checkpointing.Checkpointer(str(workdir), keep)
  for step in steps:
    state = _state(_mesh(1), step, config)
    checkpoints.save(step, state, _manifest(step, config))
  checkpoints.close()


def _restore(workdir, fsdp=1):
  checkpoints = checkpointing.Checkpointer(str(workdir), 3)
  target = _abstract(_state(_mesh(fsdp), 0))
  restored = checkpoints.restore(target)
  checkpoints.close()
  return restored


def _files(workdir, step, part='params'):
  """Returns the files of a checkpoint that hold arrays, largest first."""
  folder = pathlib.Path(workdir, 'checkpoints', str(step), part)
  files = (folder / 'ocdbt.process_0/d').iterdir()
  return sorted(files, key=lambda path: -path.stat().st_size)


def _assert_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize('fsdp', [1, 4])
def test_a_state_comes_back_on_any_mesh(tmp_path, fsdp):
  _save(tmp_path, [5])
  state, manifest, complaints = _restore(tmp_path, fsdp)
  want = _state(_mesh(fsdp), 5)
  _assert_equal(state, want)
  assert jax.tree.structure(state) == jax.tree.structure(want)
  kernel = state.params['lm_head']['kernel']
  assert kernel.sharding.shard_shape(kernel.shape) == (16 // fsdp, 64)
  del manifest['digests']
  assert manifest == _manifest(5)
  assert complaints == []


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert _restore(tmp_path) is None


def test_a_state_that_is_donated_right_after_is_saved_as_it_was(tmp_path):
  checkpoints = checkpointing.Checkpointer(str(tmp_path), 3)
  state = _state(_mesh(1), 7)
  checkpoints.save(7, state, _manifest(7))
  overwrite = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0
  )
  for _ in range(5):
    state = overwrite(state)
  checkpoints.close()
  _assert_equal(_restore(tmp_path)[0], _state(_mesh(1), 7))


def test_only_the_newest_are_kept(tmp_path):
  _save(tmp_path, [1, 2, 3, 4], keep=2)
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['3', '4']


@pytest.mark.parametrize(
  ('part', 'how'),
  [
    ('params', 'truncated'),
    ('params', 'altered'),
    ('progress', 'gone'),
    ('manifest', 'truncated'),
  ],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
  tmp_path, part, how
):
  _save(tmp_path, [1, 2])
  file = tmp_path / 'checkpoints/2/manifest/metadata'
  if part != 'manifest':
    file = _files(tmp_path, 2, part)[0]
  content = bytearray(file.read_bytes())
  half = len(content) // 2
  content[half] ^= 255
  file.unlink()
  if how != 'gone':
    file.write_bytes(content if how == 'altered' else content[:half])
  state, manifest, complaints = _restore(tmp_path)
  assert (int(state.step), manifest['rows_consumed']) == (1, 8)
  assert len(complaints) == 1
  assert 'checkpoint 2 cannot be read' in complaints[0]
  # Step 2 can be written again, and what was there is not thrown away.
  assert os.listdir(tmp_path / 'damaged') == ['2']
  _save(tmp_path, [2])
  assert int(_restore(tmp_path)[0].step) == 2


def test_a_digest_notices_a_changed_number_whatever_the_layout():
  config = _MODEL.replace(scan_layers=True)
  params = _params(config, _mesh(1), 1.0)
  _, unrolled = layout.unroll(config, params)
  digests = checkpointing._digests({'a': params, 'b': unrolled})
  assert digests['a'] == digests['b']
  scale = params['norm']['scale']
  params['norm']['scale'] = scale.at[3].set(np.nextafter(scale[3], 9))
  assert checkpointing._digests({'a': params})['a'] != digests['a']


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
  _save(tmp_path, [1])
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '1', folder / '2.orbax-checkpoint-tmp')
  assert int(_restore(tmp_path)[0].step) == 1


def test_when_none_can_be_read_nothing_starts_afresh(tmp_path):
  _save(tmp_path, [1, 2])
  for step in (1, 2):
    os.truncate(_files(tmp_path, step)[0], 10)
  with pytest.raises(OSError, match='no checkpoint .* can be read'):
    _restore(tmp_path)
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1', '2']


@pytest.mark.parametrize('content', ['', '{"format": ', '{}', '[]'])
def test_when_no_manifest_can_be_read_that_is_said_of_each(tmp_path, content):
  with pytest.raises(FileNotFoundError, match='no checkpoint in'):
    checkpointing.newest_manifest(str(tmp_path))
  for step in ('1', '2'):
    folder = tmp_path / 'checkpoints' / step / 'manifest'
    folder.mkdir(parents=True)
    (folder / 'metadata').write_text(content)
  with pytest.raises(OSError, match=r'can be read: 2 \(.*; 1 \('):
    checkpointing.newest_manifest(str(tmp_path))


def test_a_newer_format_is_refused_and_not_called_damaged(tmp_path):
  _save(tmp_path, [1, 2])
  path = tmp_path / 'checkpoints/2/manifest/metadata'
  path.write_text(json.dumps({**_manifest(2), 'format': 99}))
  for use in (
    lambda: _restore(tmp_path),
    lambda: checkpointing.load_params(str(tmp_path)),
    lambda: checkpointing.newest_manifest(str(tmp_path)),
  ):
    with pytest.raises(ValueError, match='format 99'):
      use()


def test_parameters_are_loaded_without_the_optimizer(tmp_path):
  _save(tmp_path, [1, 2])
  shutil.rmtree(tmp_path / 'checkpoints/2/progress')
  config, params, manifest = checkpointing.load_params(str(tmp_path))
  assert config == _MODEL
  assert manifest['vocabulary_hash'] == 'ab' * 32
  _assert_equal(params, _params(_MODEL, _mesh(1), 2.0))
  _, params, _ = checkpointing.load_params(str(tmp_path), step=1)
  _assert_equal(params, _params(_MODEL, _mesh(1), 1.0))


def test_loading_skips_a_damaged_checkpoint_and_says_so(tmp_path, caplog):
  _save(tmp_path, [1, 2])
  os.truncate(_files(tmp_path, 2)[0], 10)
  _, params, _ = checkpointing.load_params(str(tmp_path))
  _assert_equal(params, _params(_MODEL, _mesh(1), 1.0))
  assert 'skipped damaged checkpoint 2' in caplog.text


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=f'no checkpoint in {tmp_path}'):
    checkpointing.load_params(str(tmp_path))
  _save(tmp_path, [1])
  with pytest.raises(FileNotFoundError, match=r'checkpoint 9 .*are: \[1\]'):
    checkpointing.load_params(str(tmp_path), step=9)


@pytest.mark.parametrize('scan_layers', [True, False])
def test_weights_go_into_a_model_of_the_other_layout(tmp_path, scan_layers):
  _save(tmp_path, [1], config=_MODEL.replace(scan_layers=not scan_layers))
  here = _MODEL.replace(scan_layers=scan_layers)
  params = checkpointing.load_into(str(tmp_path), here, _mesh(4))
  saved = _params(_MODEL.replace(scan_layers=not scan_layers), _mesh(1), 1.0)
  path = ('mlp', 'up_proj', 'kernel')
  layers, saved_layers = params['layers'], saved['layers']
  for i in range(2):
    got = layers if scan_layers else layers[str(i)]
    want = saved_layers[str(i)] if scan_layers else saved_layers
    for name in path:
      got, want = got[name], want[name]
    got = got[i] if scan_layers else got
    want = want if scan_layers else want[i]
    np.testing.assert_array_equal(got, want)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
  _save(tmp_path, [1])
  wider = _MODEL.replace(intermediate_size=48)
  with pytest.raises(ValueError, match='layers/0/mlp/down_proj/kernel'):
    checkpointing.load_into(str(tmp_path), wider, _mesh(1))
  # What changes no shape may change: a longer context starts this way.
  checkpointing.load_into(
    str(tmp_path), _MODEL.replace(rope_theta=1e7), _mesh(1)
  )


def test_another_vocabulary_is_refused():
  checkpointing.refuse_other_vocabulary(_manifest(1), 'ab' * 32)
  with pytest.raises(ValueError, match='another vocabulary .*abab'):
    checkpointing.refuse_other_vocabulary(_manifest(1), 'cd' * 32)


_FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import checkpointing_test as test
test._save(sys.argv[2], [1])
# No file may grow beyond 2 kB from here on: as far as a writer can tell, the
# disk is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
  test._save(sys.argv[2], [2])
except OSError as error:
  print('ERROR', error)
"""


def test_a_full_disk_is_told_and_older_checkpoints_stay(tmp_path):
  here = os.path.dirname(__file__)
  done = subprocess.run(
    [sys.executable, '-c', _FULL_DISK, here, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert 'could not be written' in done.stdout, done.stderr[-2000:]
  assert 'Complete checkpoints: 1.' in done.stdout
  assert int(_restore(tmp_path)[0].step) == 1


def test_after_a_save_that_failed_the_next_one_is_tried(tmp_path):
  checkpoints = checkpointing.Checkpointer(str(tmp_path), 3)
  assert checkpoints.save(1, _state(_mesh(1), 1), _manifest(1)) == ''
  checkpoints.wait()
  folder = tmp_path / 'checkpoints'
  moved = tmp_path / 'moved'
  # No checkpoint can be made where there is a file.
  folder.rename(moved)
  folder.write_text('')
  state = _state(_mesh(1), 2)
  said = checkpoints.save(2, state, _manifest(2))
  for thread in threading.enumerate():
    if thread.name == 'save_finalize':  # it fails, in its own time
      threading.Thread.join(thread)  # its own join would raise
  folder.unlink()
  moved.rename(folder)
  said += checkpoints.save(3, _state(_mesh(1), 3), _manifest(3))
  assert said.count('could not be written') == 1
  checkpoints.close()
  assert int(_restore(tmp_path)[0].step) == 3


def test_later_checkpoints_are_forgotten(tmp_path):
  _save(tmp_path, [1, 2, 3])
  checkpoints = checkpointing.Checkpointer(str(tmp_path), 3)
  checkpoints.forget_after(1)
  assert checkpoints.steps() == [1]
  assert checkpoints.save(2, _state(_mesh(1), 2), _manifest(2)) == ''
  checkpoints.close()
  assert int(_restore(tmp_path)[0].step) == 2


@pytest.mark.parametrize(
  ('rates', 'rows', 'message'),
  [
    ({'en_other_x': 0.5}, {'en_web_x': 'abc'}, 'the rate of en_other_x'),
    ({'en_other_x': 1.0}, {'en_web_x': 'abd'}, 'the text of en_web_x'),
    ({'en_other_x': 1.0}, {}, 'the text of en_web_x .* absent here'),
  ],
)
def test_other_rows_or_rates_are_refused_by_task(rates, rows, message):
  manifest = _manifest(3)
  checkpointing.refuse_other_data(
    manifest, {'en_other_x': 1.0}, {'en_web_x': 'abc'}
  )
  with pytest.raises(ValueError, match=message):
    checkpointing.refuse_other_data(manifest, rates, rows)
