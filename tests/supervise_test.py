"""The supervisor: what it starts again, what it does not, and how often.

Its children are small scripts that say with YI_STATUS_FILE how far they came.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

_SUPERVISE = pathlib.Path(__file__).parents[1] / 'launch/supervise.py'

# A child that notes its start, then does what its turn of PLAN says.
_CHILD = """
import json, os, signal, sys, time
index = os.environ.get('JAX_PROCESS_ID', '0')
count = os.environ.get('JAX_NUM_PROCESSES', '1')

def tell(state, step):
  with open(os.environ['YI_STATUS_FILE'], 'w') as file:
    json.dump({'state': state, 'step': step}, file)

def note(text):
  with open('notes', 'a') as file:
    file.write(text + '\\n')

turn = open('notes').read().count(f'start {index}/') if os.path.exists('notes') else 0
note(f'start {index}/{count}')

def wait():
  def stop(*unused):
    tell('saved', 70)
    note('saved')
    sys.exit(0)
  signal.signal(signal.SIGTERM, stop)
  signal.signal(signal.SIGINT, stop)
  note('waits')
  time.sleep(600)

exec(json.load(open('plan.json'))[turn])
"""
_DONE = "tell('done', 100)"
_KILLED = "tell('running', {}); os.kill(os.getpid(), signal.SIGKILL)"


def _start(folder, plan, *options):
  (folder / 'child.py').write_text(_CHILD)
  (folder / 'plan.json').write_text(json.dumps(plan))
  # Alone in Python's isolated mode, to show that it needs nothing else.
  command = [sys.executable, '-I', _SUPERVISE, '--backoff=0.01', *options]
  return subprocess.Popen(
    [*command, '--', sys.executable, 'child.py'],
    cwd=folder,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(folder, plan, *options):
  """Returns exit code, what was said, and the children's notes."""
  process = _start(folder, plan, *options)
  try:
    error = process.communicate(timeout=120)[1]
  finally:
    process.kill()
  path = folder / 'notes'
  return process.returncode, error, path.read_text().split('\n')[:-1]


def _wait_for(folder, note, times=1):
  path = folder / 'notes'
  while not path.exists() or path.read_text().count(note) < times:
    time.sleep(0.01)


def test_a_run_that_is_killed_is_started_again_until_it_is_complete(tmp_path):
  plan = [_KILLED.format(20), _KILLED.format(40), _DONE]
  code, said, notes = _run(tmp_path, plan)
  assert code == 0, said
  assert notes == ['start 0/1'] * 3
  assert 'failed (signal SIGKILL) after step 20' in said


@pytest.mark.parametrize(
  ('plan', 'code', 'message'),
  [
    (['sys.exit(2)'], 2, 'bad input'),
    (["tell('running', 60); tell('diverged', 70); sys.exit(1)"], 1, 'diverged'),
  ],
)
def test_what_would_happen_again_is_not_started_again(
  tmp_path, plan, code, message
):
  got, said, notes = _run(tmp_path, plan)
  assert (got, len(notes)) == (code, 1)
  assert message in said


def test_an_error_in_the_middle_of_a_run_is_no_bad_input(tmp_path):
  code, said, _ = _run(tmp_path, ["tell('running', 5); sys.exit(2)", _DONE])
  assert code == 0, said


def test_it_gives_up_after_failures_without_progress(tmp_path):
  stuck = ["tell('running', 30); sys.exit(1)"]
  plan = [_KILLED.format(10), _KILLED.format(20), *stuck * 9]
  code, said, notes = _run(tmp_path, plan, '--failures=3')
  assert code == 5
  # Two that came further, one that still did, and three that did not.
  assert len(notes) == 6
  assert 'gives up: 3 failures in a row without a new checkpoint' in said


def test_the_pause_doubles_up_to_the_longest(tmp_path):
  options = ('--failures=5', '--backoff=0.1', '--longest=0.3')
  plan = ["tell('running', 0); sys.exit(1)"] * 9
  _, said, _ = _run(tmp_path, plan, *options)
  pauses = [
    float(line.split(' in ')[1].split(' s')[0])
    for line in said.split('\n')
    if 'starts again in' in line
  ]
  for pause, want in zip(pauses, [0.1, 0.1, 0.2, 0.3, 0.3], strict=False):
    assert want / 2 - 0.051 <= pause <= want + 0.051  # told to one digit


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_the_run_is_saved(tmp_path, number):
  process = _start(tmp_path, ['wait()'], '--processes=2')
  _wait_for(tmp_path, 'waits', 2)
  process.send_signal(number)
  said = process.communicate(timeout=120)[1]
  assert process.returncode == 128 + number, said
  assert 'step 70 is saved' in said
  assert (tmp_path / 'notes').read_text().count('saved') == 2


def test_one_that_does_not_stop_is_killed_after_the_grace(tmp_path):
  plan = [
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('deaf'); wait2()"
  ]
  plan = [plan[0].replace('wait2()', 'time.sleep(600)')]
  process = _start(tmp_path, plan, '--grace=0.2')
  _wait_for(tmp_path, 'deaf')
  process.terminate()
  said = process.communicate(timeout=120)[1]
  assert process.returncode == 143
  assert 'not stopped within 0.2 s' in said


def test_when_one_process_fails_the_others_are_ended_and_all_start_again(
  tmp_path,
):
  fails = """
if index == '1':
  time.sleep(600)
while open('notes').read().count('start') < 2:
  time.sleep(0.01)
tell('running', 5)
sys.exit(1)
"""
  code, said, notes = _run(tmp_path, [fails, _DONE], '--processes=2')
  assert code == 0, said
  assert sorted(notes) == ['start 0/2'] * 2 + ['start 1/2'] * 2
  assert 'failed (exit code 1) after step 5' in said


def test_a_run_that_was_stopped_by_somebody_else_goes_on(tmp_path):
  code, said, notes = _run(tmp_path, ["tell('saved', 30)", _DONE])
  assert (code, len(notes)) == (0, 2), said
  assert 'failed' not in said


def test_the_number_of_processes_follows_its_file(tmp_path):
  (tmp_path / 'count').write_text('2')
  again = f"wait() if count == '1' else {_DONE}"
  plan = ['wait()', again, again]
  process = _start(tmp_path, plan, '--processes=@count')
  _wait_for(tmp_path, 'waits', 2)
  (tmp_path / 'count').write_text('')  # being written
  (tmp_path / 'count').write_text('1')
  _wait_for(tmp_path, 'waits', 3)
  (tmp_path / 'count').write_text('2')
  said = process.communicate(timeout=120)[1]
  notes = (tmp_path / 'notes').read_text()
  assert 'start 0/1' in notes
  assert notes.count('start 0/2') == 2, said
  assert notes.count('start 1/2') == 2
  assert process.returncode == 0, said
  assert 'failed' not in said


@pytest.mark.parametrize('value', ['0', 'two', '@nowhere'])
def test_a_number_of_processes_that_is_none_is_refused(tmp_path, value):
  code, said, notes = _run_nothing(tmp_path, f'--processes={value}')
  assert code == 2
  assert '--processes' in said
  assert notes == []


def _run_nothing(folder, *options):
  process = _start(folder, [_DONE], *options)
  said = process.communicate(timeout=60)[1]
  return (
    process.returncode,
    said,
    [n for n in os.listdir(folder) if n == 'notes'],
  )
