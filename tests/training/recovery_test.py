"""A run goes on from the newest of lasting and local checkpoints that is whole."""

import os
import pathlib
import shutil
import types

import jax
import pytest

from yi_jax.sharding import mesh as meshes
from yi_jax.training import checkpointing, recovery, run_config
from yi_jax.training import state as train_state

_LOCK = types.SimpleNamespace(run='aa', start=1)


def _run():
  config = run_config.defaults()
  config['model']['overrides'] |= {
    'vocab_size': 64,
    'hidden_size': 16,
    'intermediate_size': 32,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'num_key_value_heads': 1,
    'head_dim': 8,
  }
  config['data']['vocabulary_size'] = 64
  return run_config.resolve(config)


_RUN = _run()
_MESH = meshes.make_mesh({}, jax.devices()[:1])


def _open(folder, said, **settings):
  settings = {'every': 4, 'local_every': 1, 'keep': 3, **settings}
  return recovery.Checkpoints(
    str(folder / 'run'),
    _LOCK,
    types.SimpleNamespace(local_folder=str(folder / 'local'), **settings),
    said.append,
  )


def _save(folder, steps):
  said = []
  checkpoints = _open(folder, said)
  state = train_state.fresh(_RUN, _MESH, 0)
  for step in steps:
    manifest = checkpointing.manifest(
      identity={},
      model=_RUN.model,
      vocabulary_hash='ab',
      rows_consumed=step,
      rates={},
      rows={},
      seconds=0.0,
    )
    kind = checkpoints.kind(step, end=False)
    state.step = jax.numpy.int32(step)
    checkpoints.save(kind, step, state, manifest)
  checkpoints.close()
  assert said == []


def _restore(folder, **settings):
  """Returns the step gone on from, and what was wrong with newer ones."""
  said, checked = [], []
  checkpoints = _open(folder, said, **settings)
  abstract = train_state.abstract(_RUN, _MESH)
  found = checkpoints.restore(abstract, checked.append)
  checkpoints.close()
  if found is None:
    return 0, said
  state, manifest, complaints = found
  assert manifest['rows_consumed'] == int(state.step)
  assert manifest in checked or len(checked) == 1
  return int(state.step), complaints


def _cut(folder, step):
  """Damages what was saved of a step."""
  [path] = [
    path
    for path in pathlib.Path(folder).rglob(f'{step}*')
    if path.name in (str(step), f'{step}.state')
  ]
  for file in [p for p in path.rglob('d/*') if p.is_file()] or [path]:
    os.truncate(file, file.stat().st_size // 2)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Steps 4 and 8 are lasting; 9 and 10 are local, as the newest two."""
  folder = tmp_path_factory.mktemp('saved')
  _save(folder, range(4, 11))
  return folder


@pytest.mark.parametrize(
  ('damaged', 'want', 'complaints'),
  [
    ([], 10, 0),
    ([10], 9, 1),
    ([10, 9], 8, 2),
    ([10, 9, 8], 4, 3),
  ],
)
def test_the_newest_that_is_whole_is_taken(
  saved, tmp_path, damaged, want, complaints
):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  # A copy has a workdir of its own: its local files as well.
  _adopt(saved, tmp_path)
  for step in damaged:
    _cut(tmp_path, step)
  step, told = _restore(tmp_path)
  assert (step, len(told)) == (want, complaints)
  # Nothing newer is left to be mixed up with what is computed next.
  assert _restore(tmp_path)[0] == want


def _adopt(source, target):
  """Moves copied local checkpoints to where the copied workdir looks."""
  key = _open(target, [])._local._run_folder
  [copied] = (target / 'local').iterdir()
  copied.rename(key)


def test_a_lost_local_disk_costs_the_steps_since_the_lasting_one(
  saved, tmp_path
):
  shutil.copytree(saved / 'run', tmp_path / 'run')
  assert _restore(tmp_path) == (8, [])


def test_without_local_ones_asked_for_none_is_taken(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  _adopt(saved, tmp_path)
  assert _restore(tmp_path, local_every=0)[0] == 8


def test_a_lasting_one_that_is_damaged_gives_way_to_a_local_one(tmp_path):
  _save(tmp_path, [4, 6, 7, 8])
  _cut(tmp_path / 'run', 8)
  step, complaints = _restore(tmp_path)
  assert step == 7
  assert 'checkpoint 8 cannot be read' in complaints[0]


def test_damaged_ones_alone_are_told_before_a_fresh_start(tmp_path):
  _save(tmp_path, [1])
  _cut(tmp_path, 1)
  step, said = _restore(tmp_path)
  assert step == 0
  assert 'local checkpoint of step 1 is not complete' in said[0]
