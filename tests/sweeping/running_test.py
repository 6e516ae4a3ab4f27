"""What a sweep starts, and when, at a place that does as it is told."""

import json
import os
import signal

import pytest

from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import running


class _Place:
  """Runs end one look after another, in the order of their start."""

  pause = 0.0

  def __init__(self, folder, fails=(), already=(), stays=False):
    self.folder, self.fails, self.stays = folder, fails, stays
    self.working = list(already)
    self.started, self.most, self.stopped = [], 0, False

  def start(self, name, arguments):
    self.started.append((name, arguments))
    self.working.append(name)
    self.most = max(self.most, len(self.working))
    return f'job-{name}'

  def running(self):
    before = set(self.working)
    if self.started or self.working:
      self._end(self.working.pop(0))
    return before & set(self.working) if self.started else before

  def _end(self, name):
    if name not in self.fails:
      path = self.folder.path / name
      path.mkdir(parents=True, exist_ok=True)
      report = {'steps': 5, 'seconds': 1.0, 'bits_per_byte': {'en': 2.0}}
      (path / 'report.json').write_text(json.dumps(report))

  def reason(self, name):
    return f'{name} is unlucky'

  def stop(self):
    self.stopped = True


@pytest.fixture
def folder(tmp_path):
  folder = sweep_folder.Folder(str(tmp_path))
  folder.agree('a.py', [], [{'seed': seed} for seed in range(4)])
  return folder


def test_a_failure_does_not_stop_the_others(folder, capsys):
  place = _Place(folder, fails=('seed=1',))
  failed = running.run(folder, place, ['--config=a.py'], at_once=2)
  assert failed == {'seed=1': 'seed=1 is unlucky'}
  assert place.most == 2
  assert [name for name, _ in place.started] == [f'seed={i}' for i in range(4)]
  assert place.started[2][1] == [
    *('--config=a.py', '--config.seed=2'),
    f'--workdir={folder.path}/seed=2',
  ]
  said = capsys.readouterr().out
  assert '[2/4]  seed=1: did not finish: seed=1 is unlucky' in said
  assert '[4/4]  seed=3: 5 steps in 1 s, bits per byte en 2.000' in said


def test_only_the_points_that_are_meant_are_run(folder, capsys):
  place = _Place(folder)
  running.run(folder, place, [], at_once=1, names={'seed=2', 'seed=0'})
  assert [name for name, _ in place.started] == ['seed=0', 'seed=2']
  assert '[2/2]  seed=2: 5 steps' in capsys.readouterr().out


def test_all_at_once_on_a_cluster_whose_jobs_are_remembered(folder):
  place = _Place(folder, stays=True)
  assert running.run(folder, place, [], at_once=0) == {}
  assert place.most == 4
  assert folder.jobs('_Place') == {
    f'seed={i}': f'job-seed={i}' for i in range(4)
  }


def test_what_is_finished_or_at_work_is_not_started(folder, capsys):
  place = _Place(folder, already=['seed=2', 'seed=1'])
  place._end('seed=0')
  place.running = lambda: set(place.working)
  start = place.start

  def last(name, arguments):
    place.running = lambda: set()
    for name_ in (name, 'seed=1', 'seed=2'):
      place._end(name_)
    return start(name, arguments)

  place.start = last
  assert running.run(folder, place, [], at_once=0) == {}
  assert [name for name, _ in place.started] == ['seed=3']
  said = capsys.readouterr().out
  assert '1 of 4 are finished' in said
  assert '[3/4]  seed=2 is at work already' in said


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_place(folder, number, capsys):
  place = _Place(folder)
  place.running = lambda: (
    (os.kill(os.getpid(), number) if place.started else set())
    or set(place.working)
  )
  before = signal.getsignal(signal.SIGTERM)
  # What a shell starts in the background ignores Ctrl-C, tests included.
  interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      running.run(folder, place, [], at_once=1)
  finally:
    signal.signal(signal.SIGINT, interrupt)
  assert place.stopped
  assert '1 running save and leave' in capsys.readouterr().out
  assert signal.getsignal(signal.SIGTERM) is before
