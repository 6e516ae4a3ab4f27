"""Fast checkpoints on the hosts: back exactly, or not at all."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.sharding import mesh as meshes
from yi_jax.training import local_checkpoints

_ALL = jax.sharding.PartitionSpec('fsdp')


def _state(step, devices=4):
  """Returns arrays of several types: cut, whole, and a scalar."""
  mesh = meshes.make_mesh({'fsdp': devices}, jax.devices()[:devices])
  cut = jax.sharding.NamedSharding(mesh, _ALL)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  numbers = np.arange(8 * 3, dtype=np.float32).reshape(8, 3) + step
  return {
    'kernel': jax.device_put(numbers, cut),
    'moment': jax.device_put(numbers.astype(jnp.bfloat16), cut),
    'scale': jax.device_put(np.float32([1, 2, 3]) * step, whole),
    'step': jax.device_put(np.int32(step), whole),
  }


def _abstract(devices):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    _state(0, devices),
  )


def _open(folder, workdir='/runs/a', run='aa', start=1):
  return local_checkpoints.LocalCheckpoints(str(folder), workdir, run, start)


def _save(folder, steps, **which):
  checkpoints = _open(folder, **which)
  for step in steps:
    assert checkpoints.save(step, _state(step), {'rows_consumed': step}) == ''
  assert checkpoints.wait() == ''
  return checkpoints


def _file(folder, step):
  [path] = pathlib.Path(folder).rglob(f'{step}.state')
  return path


@pytest.mark.parametrize('devices', [4, 2, 1])
def test_a_state_comes_back_bit_for_bit_on_any_local_mesh(tmp_path, devices):
  _save(tmp_path, [5])
  state, manifest = _open(tmp_path, start=2).restore(5, _abstract(devices))
  assert manifest == {'rows_consumed': 5}
  want = _state(5, devices)
  for name, array in state.items():
    assert array.dtype == want[name].dtype
    assert array.sharding == want[name].sharding
    np.testing.assert_array_equal(array, want[name])


def test_a_state_that_is_donated_right_after_is_saved_as_it_was(tmp_path):
  checkpoints, state = _open(tmp_path), _state(5)
  checkpoints.save(5, state, {})
  overwrite = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0
  )
  for _ in range(5):
    state = overwrite(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(5, _abstract(4))
  np.testing.assert_array_equal(restored['kernel'], _state(5)['kernel'])


def test_the_newest_two_are_kept_and_found(tmp_path):
  checkpoints = _save(tmp_path, [2, 10, 9, 11])
  assert {path.name for path in tmp_path.rglob('*.state')} == {
    '10.state',
    '11.state',
  }
  assert checkpoints.newest() == 11
  assert checkpoints.newest(before=11) == 10
  checkpoints.forget_after(10)
  assert checkpoints.newest() == 10
  checkpoints.remove()
  assert checkpoints.newest() == 0
  assert os.listdir(tmp_path) == []


def test_those_of_another_run_are_not_taken(tmp_path):
  _save(tmp_path, [5])
  assert _open(tmp_path, run='bb').newest() == 0
  assert _open(tmp_path, workdir='/runs/copy').newest() == 0
  assert _open(tmp_path).newest() == 5


@pytest.mark.parametrize('how', ['truncated', 'altered', 'empty'])
def test_a_damaged_file_is_not_taken(tmp_path, how):
  _save(tmp_path, [4, 5])
  path = _file(tmp_path, 5)
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  size = {'truncated': len(content) - 3, 'altered': len(content), 'empty': 0}
  path.write_bytes(content[: size[how]])
  checkpoints = _open(tmp_path)
  if how == 'empty':  # not even a header
    assert checkpoints.newest() == 4
  else:
    assert checkpoints.restore(5, _abstract(4)) is None
  assert checkpoints.restore(4, _abstract(4)) is not None


def test_parts_that_another_host_has_are_missed(tmp_path, monkeypatch):
  # As on the first of two hosts: half of what is cut is elsewhere.
  parts = local_checkpoints._parts
  monkeypatch.setattr(
    local_checkpoints,
    '_parts',
    lambda array: parts(array)[: max(len(parts(array)) // 2, 1)],
  )
  _save(tmp_path, [5])
  assert _open(tmp_path).restore(5, _abstract(4)) is None


def test_a_disk_that_is_full_is_told_and_leaves_the_older_one(
  tmp_path, monkeypatch
):
  checkpoints = _save(tmp_path, [4])

  def full(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  assert checkpoints.save(5, _state(5), {}) == ''  # not known yet
  assert 'No space left' in checkpoints.wait()
  monkeypatch.undo()
  assert checkpoints.newest() == 4
  assert not list(tmp_path.rglob('*.part'))
  assert checkpoints.save(6, _state(6), {}) == ''
  assert checkpoints.wait() == ''
  assert checkpoints.newest() == 6
