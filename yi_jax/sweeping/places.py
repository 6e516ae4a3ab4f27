"""Where the runs of a sweep take place: this machine, Slurm, SkyPilot.

Every place starts `python -m yi_jax.train` with the flags it is given, and
tells later which of those runs have ended. Whether a run came to its end is
not asked here: its report.json says so.
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from yi_jax import paths

_LAUNCH = paths.REPOSITORY / 'launch'
_STOPPED = 75  # exit code we ask for, EX_TEMPFAIL


class Place(Protocol):
  """What a sweep needs of a place to run.

  Attributes:
    stays: whether runs go on when the sweep ends.
    pause: seconds between two questions what is running.
  """

  stays: bool
  pause: float

  def start(self, name: str, arguments: Sequence[str]) -> str:
    """Starts or queues a run and returns what the place calls it."""

  def running(self) -> set[str]:
    """Returns the runs that are queued or at work."""

  def reason(self, name: str) -> str:
    """Returns why a run ended early, as far as it is known."""

  def stop(self) -> None:
    """Asks all runs to save and leave, and waits; unless they stay."""


class Local:
  """Runs on this machine, as processes of the sweep."""

  stays, pause = False, 0.5

  def __init__(
    self,
    logs: pathlib.Path,
    *,
    at_once: int = 1,
    gpus: int = 0,
    lock: int | None = None,
  ) -> None:
    """Starts nothing.

    Args:
      logs: folder for NAME.txt with what a run prints.
      at_once: the most runs at a time.
      gpus: GPUs a run; 0 lets every run see what the sweep sees.
      lock: file descriptor that runs keep open, see `Folder.locked`.

    Raises:
      ValueError: if CUDA_VISIBLE_DEVICES has too few GPUs.
    """
    self._logs, self._lock = logs, () if lock is None else (lock,)
    self._slots = _gpu_slots(at_once, gpus)
    self._runs: dict[str, subprocess.Popen] = {}
    self._slot_of: dict[str, int] = {}
    self._begins: dict[str, int] = {}

  def start(self, name: str, arguments: Sequence[str]) -> str:
    self._logs.mkdir(parents=True, exist_ok=True)
    used = {self._slot_of[other] for other in self.running()}
    slot = min(set(range(len(self._slots))) - used)
    self._slot_of[name] = slot
    with open(_log(self._logs, name), 'ab') as log:
      self._begins[name] = log.tell()
      self._runs[name] = subprocess.Popen(
        [sys.executable, '-m', 'yi_jax.train', *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={
          **os.environ,
          **self._slots[slot],
          'YI_STOPPED_EXIT': str(_STOPPED),
        },
        pass_fds=self._lock,
        start_new_session=True,  # Ctrl-C reaches a run through `stop`, once
      )
    return str(self._runs[name].pid)

  def running(self) -> set[str]:
    return {name for name, run in self._runs.items() if run.poll() is None}

  def reason(self, name: str) -> str:
    code = self._runs[name].wait()
    if code == _STOPPED:
      return 'stopped by a signal; it is saved'
    if code < 0:
      return f'killed by {signal.Signals(-code).name}'
    said = last_error(_log(self._logs, name), self._begins[name])
    return said or f'exit code {code}'

  def stop(self) -> None:
    for run in self._runs.values():
      if run.poll() is None:
        run.send_signal(signal.SIGTERM)
    for run in self._runs.values():
      run.wait()


def _gpu_slots(at_once: int, gpus: int) -> list[dict[str, str]]:
  """Returns for each run at a time the environment that names its GPUs."""
  if not gpus:
    return [{} for _ in range(at_once)]
  needed = at_once * gpus
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
  if visible == ['']:
    visible = [str(index) for index in range(needed)]
  if len(visible) < needed:
    raise ValueError(
      f'{at_once} runs of {gpus} GPUs need {needed}, but CUDA_VISIBLE_DEVICES '
      f'= {",".join(visible)}; lower --at_once or --gpus'
    )
  return [
    {'CUDA_VISIBLE_DEVICES': ','.join(visible[i * gpus : (i + 1) * gpus])}
    for i in range(at_once)
  ]


class Slurm:
  """Jobs of Slurm, each of launch/slurm.sbatch."""

  stays, pause = True, 5.0

  def __init__(
    self,
    logs: pathlib.Path,
    jobs: Mapping[str, str],
    options: Sequence[str] = (),
  ) -> None:
    """Submits nothing.

    Args:
      logs: folder, on a file system the nodes share.
      jobs: run -> number of the job that an earlier sweep has submitted.
      options: of sbatch, such as `--nodes=2`.
    """
    self._logs, self._jobs, self._options = logs, dict(jobs), tuple(options)
    self._begins: dict[str, int] = {}

  def start(self, name: str, arguments: Sequence[str]) -> str:
    self._logs.mkdir(parents=True, exist_ok=True)
    log = _log(self._logs, name)
    self._begins[name] = log.stat().st_size if log.exists() else 0
    printed = _call(
      'sbatch',
      '--parsable',
      f'--job-name={name}',
      f'--output={_slurm_path(log)}',
      f'--export=ALL,YI_REPOSITORY={paths.REPOSITORY}',
      *self._options,
      str(_LAUNCH / 'slurm.sbatch'),
      *arguments,
    )
    self._jobs[name] = printed.strip().split(';')[0]
    return self._jobs[name]

  def running(self) -> set[str]:
    if not self._jobs:
      return set()
    # All of this user's: squeue refuses a list with a job it has forgotten.
    queued = set(_call('squeue', '--me', '--noheader', '--format=%A').split())
    return {name for name, job in self._jobs.items() if job in queued}

  def reason(self, name: str) -> str:
    log = _log(self._logs, name)
    return last_error(log, self._begins.get(name, 0)) or f'see {log}'

  def stop(self) -> None:
    """Leaves the jobs to Slurm."""


class SkyPilot:
  """Managed jobs of SkyPilot, each of launch/skypilot.yaml."""

  stays, pause = True, 30.0

  def __init__(
    self, jobs: Mapping[str, str], options: Sequence[str] = ()
  ) -> None:
    """Submits nothing.

    Args:
      jobs: run -> name of the job that an earlier sweep has submitted.
      options: of `sky jobs launch`, such as `--gpus=H100:8`.
    """
    self._jobs, self._options = dict(jobs), tuple(options)

  def start(self, name: str, arguments: Sequence[str]) -> str:
    job = f'yi-{os.urandom(6).hex()}'  # they know few letters in a name
    values = dict(argument.split('=', 1) for argument in arguments)
    changes = [a for a in arguments if a.startswith('--config.')]
    _call(
      *('sky', 'jobs', 'launch', '--yes', '--detach-run', f'--name={job}'),
      *('--env', f'YI_CONFIG={values["--config"]}'),
      *('--env', f'YI_WORKDIR={values["--workdir"]}'),
      *('--env', f'YI_FLAGS={shlex.join(changes)}'),
      *self._options,
      str(_LAUNCH / 'skypilot.yaml'),
    )
    self._jobs[name] = job
    return job

  def running(self) -> set[str]:
    if not self._jobs:
      return set()
    printed = _call(
      *('sky', 'jobs', 'queue', '--skip-finished', '--output=json')
    )
    queued = {entry['job_name'] for entry in json.loads(printed)}
    return {name for name, job in self._jobs.items() if job in queued}

  def reason(self, name: str) -> str:
    return f'see sky jobs logs --name={self._jobs[name]}'

  def stop(self) -> None:
    """Leaves the jobs to SkyPilot."""


def last_error(log: pathlib.Path, begins: int = 0) -> str:
  """Returns the line of a log that says why a run ended, '' for none.

  That is the last one that begins with `error:`, as verbs write it, or else
  the last that is not blank, as Python ends a traceback with it.

  Args:
    log: what the run has printed, and perhaps earlier tries of it.
    begins: where the last try begins, in bytes.
  """
  if not log.exists():
    return ''
  lines = log.read_bytes()[begins:].decode(errors='replace').split('\n')
  lines = [line.strip() for line in lines if line.strip()]
  errors = [line for line in lines if line.startswith('error:')]
  return (errors or lines or [''])[-1]


def _slurm_path(path: pathlib.Path) -> str:
  """Returns a path for sbatch, to which %j in it would mean the job."""
  return str(path).replace('%', '%%')


def _log(logs: pathlib.Path, name: str) -> pathlib.Path:
  return logs / f'{name}.txt'


def _call(*command: str) -> str:
  """Returns what a command of a cluster prints.

  Raises:
    OSError: if it is not there or fails, with what it said.
  """
  try:
    # SkyPilot copies the folder it is called in.
    done = subprocess.run(
      command, capture_output=True, text=True, cwd=paths.REPOSITORY
    )
  except FileNotFoundError:
    raise OSError(
      f'no command {command[0]!r} here; is this a machine that can submit jobs?'
    ) from None
  if done.returncode:
    said = (done.stderr or done.stdout).strip()
    raise OSError(f'{" ".join(command[:3])}... failed: {said}')
  return done.stdout
