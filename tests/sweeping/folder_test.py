"""The folder of a sweep: what it accepts, and who may work in it."""

import json

import pytest

from yi_jax.sweeping import folder as sweep_folder

_ONE, _TWO, _THREE = ({'seed': 1}, {'seed': 2}, {'seed': 1, 'init_from': 'x'})


def _names(folder):
  return [point.name for point in folder.points]


def test_more_points_extend_a_sweep_and_keep_its_names(tmp_path):
  folder = sweep_folder.Folder(str(tmp_path / 'sweep'))
  assert folder.agree('a.py', [], [_ONE, _TWO]) == 2
  again = sweep_folder.Folder(str(tmp_path / 'sweep'))
  assert again.agree('a.py', [], [_THREE, _TWO, _ONE]) == 1
  assert _names(again) == ['seed=1', 'seed=2', 'seed=1,init_from=x']
  assert [point.changes for point in again.points] == [_ONE, _TWO, _THREE]


def test_points_may_be_named_by_something_else(tmp_path):
  folder = sweep_folder.Folder(str(tmp_path))
  assert folder.points == []
  labels = [{'share': 0.5}, {'share': 0.25}]
  folder.agree('a.py', [], [_ONE, _TWO], labels=labels)
  assert _names(folder) == ['share=0.5', 'share=0.25']
  # A label that is taken gets a name of its own.
  folder.agree('a.py', [], [_ONE, _TWO, _THREE], labels=[*labels, labels[0]])
  assert _names(folder)[:2] == ['share=0.5', 'share=0.25']
  assert _names(folder)[2].startswith('share=0.5-')


@pytest.mark.parametrize(
  ('config', 'assignments', 'wanted', 'message'),
  [
    ('b.py', ['train.steps=5'], [_ONE, _TWO], "config = 'a.py'; here .*'b.py'"),
    ('a.py', ['train.steps=6'], [_ONE, _TWO], 'overrides = .*train.steps=5'),
    ('a.py', ['train.steps=5'], [_ONE], 'seed=2, which this one does not have'),
  ],
)
def test_another_sweep_in_the_same_folder_is_refused(
  tmp_path, config, assignments, wanted, message
):
  folder = sweep_folder.Folder(str(tmp_path))
  folder.agree('a.py', ['train.steps=5'], [_ONE, _TWO])
  before = (tmp_path / 'sweep.json').read_text()
  with pytest.raises(ValueError, match=message):
    sweep_folder.Folder(str(tmp_path)).agree(config, assignments, wanted)
  assert (tmp_path / 'sweep.json').read_text() == before


def test_a_dry_run_leaves_no_trace(tmp_path):
  folder = sweep_folder.Folder(str(tmp_path / 'sweep'))
  folder.agree('a.py', [], [_ONE], write=False)
  assert _names(folder) == ['seed=1']
  assert not (tmp_path / 'sweep').exists()


def test_jobs_are_remembered_for_each_cluster(tmp_path):
  folder = sweep_folder.Folder(str(tmp_path))
  folder.agree('a.py', [], [_ONE])
  folder.note_job('Slurm', 'seed=1', '17')
  folder.note_job('Slurm', 'seed=1', '18')
  again = sweep_folder.Folder(str(tmp_path))
  again.agree('a.py', [], [_ONE])
  assert again.jobs('Slurm') == {'seed=1': '18'}
  assert again.jobs('SkyPilot') == {}


def test_one_sweep_at_a_time_works_in_a_folder(tmp_path):
  first, second = (sweep_folder.Folder(str(tmp_path)) for _ in range(2))
  with first.locked() as lock:
    assert isinstance(lock, int)
    with pytest.raises(BlockingIOError, match='at work'), second.locked():
      pass
  with second.locked():
    pass


def test_a_run_is_finished_by_its_report(tmp_path):
  folder = sweep_folder.Folder(str(tmp_path))
  (tmp_path / 'seed=1').mkdir()
  assert not folder.finished('seed=1')
  (tmp_path / 'seed=1/report.json').write_text(json.dumps({}))
  assert folder.finished('seed=1')
