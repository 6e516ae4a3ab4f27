"""Metrics: files others can read, resumed runs without doubles, MFU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from yi_jax.models import config as model_config
from yi_jax.training import metrics


def _line(loss):
  return {'loss': loss, 'mfu': None, 'bits_per_byte': {'en': loss / 2}}


def _write(folder, first_step, steps):
  writer = metrics.Writer(str(folder), first_step)
  for step in steps:
    writer.write(step, _line(float(step)))
  writer.close()


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
  _write(tmp_path, 0, [1, 2, 3, 4])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 5, "lo')  # killed in the middle of a line
  _write(tmp_path, 2, [3])
  lines = metrics.read(tmp_path / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [1, 2, 3]
  assert lines[2] == {'step': 3, **_line(3.0)}


def test_a_run_made_anew_drops_its_step_0_too(tmp_path):
  for _ in range(2):
    _write(tmp_path, 0, [0, 1])
  lines = metrics.read(tmp_path / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [0, 1]


def test_tensorboard_reads_the_events_and_forgets_dropped_steps(tmp_path):
  _write(tmp_path, 0, [1, 2, 3])
  _write(tmp_path, 2, [3])
  # In a process of its own: TensorBoard would bring TensorFlow in here.
  code = (
    'import sys, json\n'
    'from tensorboard.backend.event_processing import event_accumulator as e\n'
    'a = e.EventAccumulator(sys.argv[1]); a.Reload()\n'
    'tags = a.Tags()["scalars"]\n'
    'print(json.dumps({t: [(s.step, s.value) for s in a.Scalars(t)]'
    ' for t in tags}))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'tensorboard')],
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(out.stdout.splitlines()[-1]) == {
    'loss': [[1, 1.0], [2, 2.0], [3, 3.0]],
    'bits_per_byte/en': [[1, 0.5], [2, 1.0], [3, 1.5]],
  }


def test_writing_events_does_not_import_tensorflow(tmp_path):
  code = (
    'import sys; from yi_jax.training import metrics\n'
    f'metrics.Writer({str(tmp_path)!r}, 0).write(1, dict(loss=1.0))\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_remote_workdir_is_filled_from_a_stand_in(tmp_path):
  workdir, local = str(tmp_path / 'bucket'), str(tmp_path / 'local')
  folder = metrics.Folder(workdir, stand_in=local)
  _write(folder.path, 0, [1, 2])
  folder.push()
  again = metrics.Folder(workdir, stand_in=str(tmp_path / 'other_machine'))
  _write(again.path, 2, [3])
  again.push()
  lines = metrics.read(os.path.join(workdir, 'metrics.jsonl'))
  assert [line['step'] for line in lines] == [1, 2, 3]
  assert len(os.listdir(os.path.join(workdir, 'tensorboard'))) == 2


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('TPU v5p', 459e12),
    ('TPU v5', 459e12),
    ('TPU v5 lite', 197e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('cpu', None),
  ],
)
def test_peaks_go_by_the_name_jax_gives_a_device(kind, peak):
  assert metrics.peak_flops(kind) == peak


def test_mfu_is_the_share_of_all_devices_peaks():
  config = model_config.get_preset('yi_6b')
  per_token = model_config.flops_per_token(config, 4096)
  got = metrics.mfu(config, 4096, 1000.0, 'TPU v4', 8)
  assert got == pytest.approx(1000 * per_token / (8 * 275e12))
  assert metrics.mfu(config, 4096, 1000.0, 'cpu', 8) is None


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(59.4, '59 s'), (190, '3 min 10 s'), (7500, '2 h 5 min')],
)
def test_durations_are_for_people(seconds, text):
  assert metrics.duration(seconds) == text


def test_lines_wait_until_there_is_room(tmp_path, monkeypatch):
  writer = metrics.Writer(str(tmp_path), 0)
  assert writer.write(1, {'loss': 1.0})
  file, full = writer._lines._file, [True]

  class Disk:
    """Takes half of a line, and then no more."""

    def write(self, piece):
      if not full[0]:
        return file.write(piece)
      file.write(piece[: len(piece) // 2])
      raise OSError(28, 'No space left on device')

    def __getattr__(self, name):
      return getattr(file, name)

  monkeypatch.setattr(writer._lines, '_file', Disk())
  assert not writer.write(2, {'loss': 2.0})
  assert not writer.write(3, {'loss': 3.0})
  path = tmp_path / 'metrics.jsonl'
  assert path.read_text() == '{"step": 1, "loss": 1.0}\n'
  full[0] = False
  assert writer.write(4, {'loss': 4.0})
  writer.close()
  assert [line['step'] for line in metrics.read(path)] == [1, 2, 3, 4]


def test_the_log_of_rows_forgets_what_is_read_again(tmp_path):
  with metrics.RowLog(str(tmp_path), 0) as log:
    for step in (1, 2, 3):
      log.write(step, np.int64([step, 10 + step]))
  # Another process, which is gone by now.
  (tmp_path / 'rows/1.jsonl').write_text('{"step": 3, "row_id": [9]}\n')
  with metrics.RowLog(str(tmp_path), 2) as log:
    log.write(3, np.int64([7, 8]))
  rows = [line['row_id'] for line in metrics.read(tmp_path / 'rows/0.jsonl')]
  assert rows == [[1, 11], [2, 12], [7, 8]]
  assert metrics.read(tmp_path / 'rows/1.jsonl') == []
