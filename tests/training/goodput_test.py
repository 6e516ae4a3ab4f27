"""Where the time went, over crashes and rollbacks."""

import json
import os
import time

import pytest

from yi_jax.training import goodput


@pytest.fixture
def clock(monkeypatch):
  """Returns how time is made to pass: clock(seconds)."""
  moment = [1000.0]

  def wait(seconds):
    moment[0] += seconds

  monkeypatch.setattr(time, 'monotonic', lambda: moment[0])
  monkeypatch.setattr(time, 'time', lambda: moment[0])
  return wait


def test_time_goes_to_its_cause(clock):
  found = goodput.Goodput(None)
  clock(2)
  with found.on('restore'):
    clock(3)
  found.now('step')
  clock(10)
  with found.on('data'):
    clock(1)
    with found.on('save'):
      clock(4)
  clock(10)
  report = found.report()
  assert report['seconds'] == {
    'data': 1,
    'restore': 3,
    'save': 4,
    'start': 2,
    'step': 20,
  }
  assert report['share'] == pytest.approx(20 / 30)
  assert report['starts'] == 1


def test_steps_that_a_crash_has_lost_do_not_count(tmp_path, clock):
  first = goodput.Goodput(str(tmp_path))
  first.resumed(0)
  first.now('step')
  clock(10)
  first.saved(5)
  clock(7)
  assert first.keep(8) == 1.0
  clock(5)  # and then it was killed: nobody knows what these were

  second = goodput.Goodput(str(tmp_path))
  second.resumed(5)
  second.now('step')
  clock(10)
  report = second.report()
  assert report['seconds'] == {'down': 5, 'redone': 7, 'start': 0, 'step': 20}
  assert report['starts'] == 2
  assert report['share'] == pytest.approx(20 / 32)

  # From the very beginning, as when no checkpoint could be read.
  second.keep(10)
  third = goodput.Goodput(str(tmp_path))
  third.resumed(0)
  assert third.report()['seconds']['redone'] == 27
  assert third.report()['share'] == 0


def test_a_checkpoint_without_a_mark_counts_by_its_steps(tmp_path, clock):
  first = goodput.Goodput(str(tmp_path))
  first.now('step')
  clock(40)
  first.keep(20)
  second = goodput.Goodput(str(tmp_path))
  second.resumed(15)
  assert second.report()['seconds']['redone'] == 10


def test_sums_that_cannot_be_written_stay_as_they_were(tmp_path, clock):
  first = goodput.Goodput(str(tmp_path))
  first.now('step')
  clock(1)
  first.keep(1)
  os.mkdir(tmp_path / 'goodput.json.part')  # so that no file can be made
  clock(1)
  assert first.keep(2) == 1.0
  assert json.loads((tmp_path / 'goodput.json').read_text())['step'] == 1
