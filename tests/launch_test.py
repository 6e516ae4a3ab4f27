"""launch/local.sh: builds its environment once, and only runs what was asked.

A small shell script stands in for Python, so that no package is installed: it
notes what it was asked to do. What the launcher itself asks Python (its probe
and its lock) runs in the real one.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_FAKE_PYTHON = r"""#!/bin/bash
note() { printf '%s\n' "$1" >>"$FAKE_LOG"; }
case "$1 $2" in
  '-c '*) exec "$REAL_PYTHON" "$@" ;;
  '--version ') echo 'Python 3.11.0' ;;
  '-m venv')
    note "venv ${@: -1}"
    mkdir -p "${@: -1}/bin"
    touch "${@: -1}/pyvenv.cfg"
    cp "$0" "${@: -1}/bin/python"
    ;;
  '-m pip')
    [[ $3 != --version ]] || exit 0
    shift 2
    note "pip $*"
    case ${FAKE_PIP:-} in
      slow) until [[ -e $FAKE_LOG.go ]]; do sleep 0.05; done ;;
      hang) sleep 60 ;;
      offline)
        echo 'WARNING: Retrying (Retry(total=4, connect=None)) after'
        echo "connection broken by 'NewConnectionError(...)': /simple/jax/"
        echo 'ERROR: No matching distribution found for jax==0.10.2'
        exit 1
        ;;
      full) echo 'ERROR: [Errno 28] No space left on device' && exit 1 ;;
      broken) echo 'error: subprocess-exited-with-error' && exit 1 ;;
    esac
    ;;
  *)
    note "run $* | $PWD | ${MALLOC_MMAP_MAX_:-}"
    for flag; do
      [[ $flag != --workdir=* ]] || workdir=${flag#*=}
    done
    case "$2 ${FAKE_RUN:-}" in
      'yi_jax.prepare fail') exit 3 ;;
      'yi_jax.train wait')
        trap 'note "saved on SIGTERM"; exit 0' TERM
        note 'training'
        for _ in {1..100}; do sleep 0.1; done
        ;;
      yi_jax.train*)
        mkdir -p "$workdir" && echo '{}' >"$workdir/report.json"
        ;;
    esac
    ;;
esac
"""


class _Clone:
  """A copy of what the launcher needs, in a folder with a space in its name."""

  def __init__(self, folder: pathlib.Path):
    self.root = folder / 'a clone'
    self.caller = folder / 'elsewhere'
    self.tools = folder / 'tools'
    for path in (self.root / 'launch', self.caller, self.tools):
      path.mkdir(parents=True)
    shutil.copy(_ROOT / 'launch/local.sh', self.root / 'launch')
    for path in _ROOT.glob('requirements*.txt'):
      shutil.copy(path, self.root)
    self.python = self.tool('fake_python', _FAKE_PYTHON)
    self._log = folder / 'log'
    self.environment = {
      'PATH': '/usr/bin:/bin',
      'FAKE_LOG': str(self._log),
      'REAL_PYTHON': sys.executable,
      'YI_PYTHON': str(self.python),
      'YI_MALLOC': '0',
    }

  def tool(self, name, text):
    path = self.tools / name
    path.write_text(text)
    path.chmod(0o755)
    return path

  def start(self, *arguments, script=None, **environment):
    """Starts the launcher in the caller's folder, in a session of its own."""
    return subprocess.Popen(
      [script or self.root / 'launch/local.sh', *arguments],
      cwd=self.caller,
      env={**self.environment, **environment},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, *arguments, **options):
    process = self.start(*arguments, **options)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)

  def log(self, kind=''):
    lines = self._log.read_text().splitlines() if self._log.exists() else []
    return [line for line in lines if line.startswith(kind)]

  def go(self):
    """Ends a slow installation."""
    self._log.with_name(f'{self._log.name}.go').touch()

  def wait_for(self, kind):
    deadline = time.monotonic() + 30
    while not self.log(kind):
      assert time.monotonic() < deadline, f'no {kind} in {self.log()}'
      time.sleep(0.02)


@pytest.fixture
def clone(tmp_path):
  return _Clone(tmp_path)


def _kill(process):
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()


def test_the_environment_is_built_once(clone):
  for word in ('first', 'second'):
    assert clone.run('python', '-m', word).returncode == 0
  root = clone.root
  assert clone.log() == [
    f'venv {root}/.venv',
    'pip install --no-input --disable-pip-version-check --progress-bar=off '
    f'-r {root}/requirements.txt -e {root}',
    f'run -m first | {clone.caller} | ',
    f'run -m second | {clone.caller} | ',
  ]


def test_arguments_and_the_exit_status_pass_unchanged(clone):
  code = 'import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(7)'
  words = ['two words', '*', '', '--flag=$HOME']
  result = clone.run('python', '-c', code, *words)
  assert result.returncode == 7
  assert json.loads(result.stdout) == words


def test_a_symlink_leads_to_the_same_clone(clone):
  link = clone.caller / 'yi'
  link.symlink_to(clone.root / 'launch/local.sh')
  assert clone.run('python', '-m', 'x', script=link).returncode == 0
  assert clone.log('venv') == [f'venv {clone.root}/.venv']
  assert clone.log('run') == [f'run -m x | {clone.caller} | ']


def test_a_relative_place_for_the_environment_is_the_callers(clone):
  assert clone.run('python', '-m', 'x', YI_VENV='env').returncode == 0
  assert clone.log('venv') == [f'venv {clone.caller}/env']
  assert not (clone.root / '.venv').exists()


def test_changed_requirements_are_installed_anew(clone):
  clone.run('python', '-m', 'x')
  with open(clone.root / 'requirements.txt', 'a') as f:
    f.write('six==1.17.0\n')
  clone.run('python', '-m', 'x')
  clone.run('python', '-m', 'x')
  assert len(clone.log('pip')) == 2
  assert len(clone.log('venv')) == 1


def test_a_moved_clone_is_installed_anew(clone):
  clone.run('python', '-m', 'x')
  clone.root = clone.root.rename(clone.root.with_name('moved'))
  clone.run('python', '-m', 'x')
  assert clone.log('pip')[-1].endswith(f'-e {clone.root}')
  assert len(clone.log('pip')) == 2


def test_an_environment_made_by_hand_is_kept_and_completed(clone):
  place = clone.root / '.venv'
  (place / 'bin').mkdir(parents=True)
  (place / 'pyvenv.cfg').touch()
  (place / 'mine').touch()
  shutil.copy(clone.python, place / 'bin/python')
  assert clone.run('python', '-m', 'x').returncode == 0
  assert not clone.log('venv')
  assert len(clone.log('pip')) == 1
  assert (place / 'mine').exists()


def test_an_environment_whose_python_has_gone_is_made_again(clone):
  clone.run('python', '-m', 'x')
  python = clone.root / '.venv/bin/python'
  python.unlink()
  python.symlink_to('/nowhere/python3')
  assert clone.run('python', '-m', 'x').returncode == 0
  assert len(clone.log('venv')) == 2
  assert len(clone.log('run')) == 2


def test_an_interrupted_install_is_redone(clone):
  process = clone.start('python', '-m', 'x', FAKE_PIP='hang')
  clone.wait_for('pip')
  _kill(process)
  clone.run('python', '-m', 'x')
  clone.run('python', '-m', 'x')
  assert len(clone.log('pip')) == 2
  assert len(clone.log('run')) == 2


def test_an_interrupted_change_leaves_no_stamp_of_the_old_set(clone):
  clone.run('python', '-m', 'x')
  requirements = clone.root / 'requirements.txt'
  old = requirements.read_text()
  requirements.write_text(old + 'six==1.17.0\n')
  process = clone.start('python', '-m', 'x', FAKE_PIP='hang')
  while len(clone.log('pip')) < 2:
    time.sleep(0.02)
  _kill(process)
  requirements.write_text(old)
  clone.run('python', '-m', 'x')
  assert len(clone.log('pip')) == 3


def test_two_starts_at_once_install_once(clone):
  first = clone.start('python', '-m', 'first', FAKE_PIP='slow')
  clone.wait_for('pip')
  second = clone.start('python', '-m', 'second', FAKE_PIP='slow')
  try:
    assert 'another start is installing' in second.stderr.readline()
  finally:
    clone.go()
    for process in (first, second):
      process.communicate(timeout=60)
  assert (first.returncode, second.returncode) == (0, 0)
  assert len(clone.log('pip')) == 1
  assert len(clone.log('run')) == 2


@pytest.mark.parametrize(
  ('trouble', 'words'),
  [
    ('offline', 'failed at the network'),
    ('full', 'disk is full'),
    ('broken', 'subprocess-exited-with-error'),
  ],
)
def test_a_failed_install_says_why_and_goes_on_later(clone, trouble, words):
  failed = clone.run('python', '-m', 'x', FAKE_PIP=trouble)
  assert failed.returncode == 1
  assert words in failed.stderr
  assert 'Start again and it goes on' in failed.stderr
  assert not clone.log('run')
  assert clone.run('python', '-m', 'x').returncode == 0
  assert len(clone.log('run')) == 1


def test_no_suitable_python_is_said_with_a_cure(clone):
  old = clone.tool(
    'old_python',
    '#!/bin/bash\nexec "$REAL_PYTHON" -c "import sys\n'
    'sys.version_info = (3, 10, 1)\nexec(sys.argv[1])" "$2"\n',
  )
  result = clone.run('quickstart', YI_PYTHON=str(old))
  assert result.returncode == 1
  assert 'needs Python 3.11, 3.12 or 3.13' in result.stderr
  assert f'{old}: is Python 3.10' in result.stderr
  assert 'apt install' in result.stderr
  assert not (clone.root / '.venv').exists()


def test_the_newest_python_that_works_is_taken(clone):
  clone.tool(
    'python3.13', '#!/bin/bash\necho "shim: not found" >&2\nexit 127\n'
  )
  clone.tool('python3.12', _FAKE_PYTHON.replace('venv $', 'venv by 12 $'))
  clone.tool('python3.11', _FAKE_PYTHON.replace('venv $', 'venv by 11 $'))
  path = f'{clone.tools}:/usr/bin:/bin'
  assert clone.run('python', '-m', 'x', PATH=path, YI_PYTHON='').returncode == 0
  assert clone.log('venv') == [f'venv by 12 {clone.root}/.venv']


def test_quickstart_prepares_then_trains_then_says_what_next(clone):
  result = clone.run(
    'quickstart', '--workdir=out', '--config.data.length=64', '--profile=2-4'
  )
  assert result.returncode == 0, result.stderr
  config = '--config=experiments/quickstart.py --config.data.length=64'
  assert clone.log('run') == [
    f'run -m yi_jax.prepare {config} | {clone.caller} | ',
    f'run -m yi_jax.train {config} --workdir=out --profile=2-4'
    f' | {clone.caller} | ',
  ]
  for word in ('report.json', 'loss.png', 'yi_jax.generate --checkpoint=out'):
    assert word in result.stdout


def test_quickstart_writes_into_the_clone_unless_told_otherwise(clone):
  assert clone.run('quickstart').returncode == 0
  assert (clone.root / 'runs/quickstart/report.json').exists()


def test_quickstart_does_not_train_on_what_was_not_prepared(clone):
  result = clone.run('quickstart', FAKE_RUN='fail')
  assert result.returncode == 3
  assert len(clone.log('run')) == 1


def test_quickstart_refuses_a_flag_it_could_not_pass_to_both(clone):
  clone.run('python', '-m', 'x')
  result = clone.run('quickstart', '--config.data.length', '64')
  assert result.returncode == 1
  assert "--name=value, not '--config.data.length'" in result.stderr
  assert len(clone.log('run')) == 1


def test_a_signal_to_quickstart_lets_training_save(clone):
  process = clone.start('quickstart', FAKE_RUN='wait')
  clone.wait_for('training')
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=30)
  assert clone.log('saved') == ['saved on SIGTERM']
  assert process.returncode == 0
  assert 'Done' not in out
  assert 'the same command goes on' in err


def test_test_runs_all_tests_in_parallel_from_any_folder(clone):
  (clone.root / 'pyproject.toml').touch()
  assert clone.run('test', '-k', 'loader').returncode == 0
  (line,) = clone.log('run')
  assert line.startswith(f'run -m pytest -c {clone.root}/pyproject.toml')
  assert ' -n ' in line
  assert f'-k loader {clone.root}/tests |' in line
  assert f'-r {clone.root}/requirements-dev.txt' in clone.log('pip')[0]


def test_test_runs_only_the_files_that_are_named(clone):
  (clone.caller / 'some_test.py').touch()
  clone.run('test', 'some_test.py::test_one', '-n', '0')
  (line,) = clone.log('run')
  assert 'some_test.py::test_one -n 0 |' in line
  assert f'{clone.root}/tests' not in line


def test_tests_bring_what_the_verbs_need_too(clone):
  clone.run('test')
  clone.run('python', '-m', 'x')
  assert len(clone.log('pip')) == 1


def test_peers_live_apart_from_the_project(clone):
  result = clone.run('peer', 'python', '-m', 'x')
  assert result.returncode == 0, result.stderr
  (line,) = clone.log('pip')
  assert line.endswith(f'-r {clone.root}/requirements-peer.txt')
  assert (clone.root / '.venv-peer/bin/python').exists()
  assert not (clone.root / '.venv').exists()
  found = clone.run('peer', 'bash', '-c', 'command -v python').stdout.strip()
  assert found == f'{clone.root}/.venv-peer/bin/python'


@pytest.mark.parametrize(
  ('environment', 'maps'),
  [({}, '0'), ({'YI_MALLOC': '0'}, ''), ({'MALLOC_MMAP_MAX_': '7'}, '7')],
)
def test_freed_memory_is_kept_unless_switched_off(clone, environment, maps):
  clone.run('python', '-m', 'x', **{'YI_MALLOC': '', **environment})
  assert clone.log('run')[0].split(' | ')[-1] == maps


def test_an_unknown_verb_is_refused_with_the_known_ones(clone):
  result = clone.run('trian')
  assert result.returncode == 1
  assert 'quickstart, test, python and peer' in result.stderr
  assert 'launch/local.sh quickstart' in clone.run('--help').stdout
  assert not clone.log()
