"""Runs launch/slurm.sbatch on a real Slurm, kills a task, preempts the job.

Two node daemons on this machine make a cluster of two nodes; nothing outside
a temporary folder is changed but /etc/hosts, which gets their names and loses
them again. By hand, as root, in a container that may be thrown away:

  apt-get install slurm-wlm munge
  launch/local.sh python tests/launch/slurm_check.py

One job trains undisturbed. Another loses a task to kill -9, is preempted by a
job of higher priority, and is put back by `scontrol requeue`; it must come to
its end with the same losses. Takes some minutes; the last line is JSON.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_STEPS = 240
_SLURM_CONF = """
ClusterName=yi
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=27817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldLogFile={folder}/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
ReturnToService=2
NodeName=yi[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[27818-27819] CPUs=1 State=UNKNOWN
PartitionName=low Nodes=yi[1-2] Default=YES PriorityTier=1 GraceTime=120 MaxTime=30 State=UP
PartitionName=high Nodes=yi[1-2] PriorityTier=2 PreemptMode=OFF MaxTime=30 State=UP
"""
_CONFIG = """
import ml_collections
from yi_jax.data import mixtures
from yi_jax.training import run_config

def get_config():
  c = run_config.base()
  mixtures.register_files('en_other_slurm', '{folder}/text/*.txt')
  c.data.rates = ml_collections.ConfigDict({{'en_other_slurm': 1.0}})
  c.data.root = '{folder}/data'
  c.data.vocabulary_size = 300
  c.data.length = 32
  c.data.batch_tokens = 8 * 32
  c.data.heldout_bytes = 500
  c.model.overrides.update(dict(
      vocab_size=300, hidden_size=32, intermediate_size=64,
      num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
      head_dim=16, max_position_embeddings=32))
  c.optimizer.learning_rate = 1e-2
  c.optimizer.warmup_steps = 5
  c.train.steps = {steps}
  c.train.log_every = 1
  c.checkpoint.every = 20
  return c
"""
_WORDS = ('the', 'cat', 'sees', 'a', 'bird', 'under', 'an', 'old', 'tree')


def _wait(what: str, check: Callable[[], Any], seconds: float = 600) -> Any:
  """Returns the first truth of `check`, or ends the program after so long."""
  deadline = time.monotonic() + seconds
  while True:
    found = check()
    if found:
      return found
    if time.monotonic() > deadline:
      raise TimeoutError(f'no {what} within {seconds:.0f} s')
    time.sleep(0.05)


def _call(*command: str) -> str:
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{command}: {done.stderr or done.stdout}')
  return done.stdout.strip()


@contextlib.contextmanager
def _names() -> Iterator[None]:
  """Makes the nodes' names known to this machine."""
  hosts = pathlib.Path('/etc/hosts')
  before = hosts.read_text()
  hosts.write_text(f'{before.rstrip()}\n127.0.0.1 yi1 yi2\n')
  try:
    yield
  finally:
    hosts.write_text(before)


@contextlib.contextmanager
def _cluster(folder: pathlib.Path) -> Iterator[None]:
  """Runs munge, the controller and two node daemons in the block."""
  (folder / 'state').mkdir()
  conf = folder / 'slurm.conf'
  conf.write_text(_SLURM_CONF.format(folder=folder))
  key = folder / 'munge.key'
  key.write_bytes(os.urandom(128))
  key.chmod(0o600)
  os.environ['SLURM_CONF'] = str(conf)
  daemons = [
    [
      *('munged', '--foreground', '--force', f'--key-file={key}'),
      *(f'--socket={folder}/munge.socket', f'--log-file={folder}/munge.log'),
      *(f'--pid-file={folder}/munge.pid', f'--seed-file={folder}/munge.seed'),
    ],
    ['slurmctld', '-D', '-f', str(conf), '-c'],
    ['slurmd', '-D', '-f', str(conf), '-N', 'yi1'],
    ['slurmd', '-D', '-f', str(conf), '-N', 'yi2'],
  ]
  running = []
  with open(folder / 'daemons.log', 'wb') as log:
    try:
      for command in daemons:
        running.append(
          subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        )
        time.sleep(1)

      def idle() -> bool:
        for process in running:
          if process.poll() is not None:
            text = (folder / 'daemons.log').read_text()
            raise RuntimeError(f'{process.args} ended: {text[-2000:]}')
        shown = subprocess.run(
          ['sinfo', '-h', '-N', '-p', 'low', '-o', '%T'],
          capture_output=True,
          text=True,
        )
        return shown.stdout.split() == ['idle', 'idle']

      _wait('idle nodes', idle, 60)
      yield
    finally:
      for process in reversed(running):
        process.terminate()
        process.wait()


def _prepare(folder: pathlib.Path) -> pathlib.Path:
  """Makes text and its packed rows; returns the config of a run on them."""
  (folder / 'text').mkdir()
  draw = random.Random(0)
  for number in range(30):
    text = ' '.join(draw.choices(_WORDS, k=99))
    (folder / 'text' / f'{number}.txt').write_text(text)
  config = folder / 'run.py'
  config.write_text(_CONFIG.format(folder=folder, steps=_STEPS))
  _call(sys.executable, '-m', 'yi_jax.prepare', f'--config={config}')
  return config


def _submit(config: pathlib.Path, workdir: pathlib.Path) -> str:
  """Queues the job as a user does, and returns its number."""
  return _call(
    *('sbatch', '--parsable', '--nodes=2', f'--chdir={_REPOSITORY}'),
    *(f'--output={workdir}.log', f'{_REPOSITORY}/launch/slurm.sbatch'),
    *(f'--config={config}', f'--workdir={workdir}'),
  )


def _state(job: str) -> dict[str, str]:
  shown = _call('scontrol', '--oneliner', 'show', 'job', job)
  return dict(part.split('=', 1) for part in shown.split() if '=' in part)


def _losses(workdir: pathlib.Path) -> dict[int, float]:
  """Returns step -> loss, as far as the run has got."""
  path, found = workdir / 'metrics.jsonl', {}
  for line in path.read_text().split('\n') if path.exists() else ():
    with contextlib.suppress(ValueError):
      entry = json.loads(line)
      if 'loss' in entry:
        found[entry['step']] = entry['loss']
  return found


def _step(workdir: pathlib.Path) -> int:
  return max(_losses(workdir), default=0)


def _task(workdir: pathlib.Path, index: int) -> int:
  """Returns the process of one task of the job."""
  for process in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      command = (process / 'cmdline').read_bytes().split(b'\0')
      environment = (process / 'environ').read_bytes().split(b'\0')
      if (
        f'--workdir={workdir}'.encode() in command
        and b'yi_jax.train' in command
        and f'SLURM_PROCID={index}'.encode() in environment
      ):
        return int(process.name)
  raise RuntimeError(f'no task {index} of {workdir}')


def _end(job: str, workdir: pathlib.Path) -> None:
  """Waits until a job has completed."""

  def over() -> bool:
    state = _state(job)
    if state['JobState'] in ('FAILED', 'CANCELLED', 'TIMEOUT'):
      log = pathlib.Path(f'{workdir}.log').read_text()
      raise RuntimeError(f'{state["JobState"]}:\n{log[-3000:]}')
    return state['JobState'] == 'COMPLETED'

  _wait('end of the job', over)


def _restarted(job: str, count: int) -> None:
  """Waits until Slurm has started a job again so many times."""

  def again() -> bool:
    state = _state(job)
    return state['JobState'] == 'RUNNING' and state['Restarts'] == str(count)

  _wait(f'restart {count}', again)


def _disturb(job: str, workdir: pathlib.Path) -> dict[str, int]:
  """Disturbs a job in three ways; returns after which step each came."""
  seen = {}
  _wait('step 30', lambda: _step(workdir) >= 30)
  seen['killed'] = _step(workdir)
  os.kill(_task(workdir, 1), signal.SIGKILL)
  _restarted(job, 1)
  print(f'restarted after kill -9 of a task at step {seen["killed"]}')

  mark = _step(workdir) + 30
  _wait(f'step {mark}', lambda: _step(workdir) >= mark)
  seen['preempted'] = _step(workdir)
  _call(
    *('sbatch', '--partition=high', '--nodes=2', f'--output={workdir}.high'),
    *('--wrap', 'sleep 3'),
  )
  _restarted(job, 2)
  print(f'restarted after a preemption at step {seen["preempted"]}')

  mark = _step(workdir) + 30
  _wait(f'step {mark}', lambda: _step(workdir) >= mark)
  seen['requeued'] = _step(workdir)
  _call('scontrol', 'requeue', job)
  _restarted(job, 3)
  print(f'restarted after scontrol requeue at step {seen["requeued"]}')
  return seen


def main() -> None:
  """Runs the check; raises if the job does not behave."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--keep', action='store_true', help='keep the folder')
  keep = parser.parse_args().keep
  if os.geteuid():
    sys.exit('error: needs root, and a container that may be thrown away')
  for command in ('munged', 'slurmctld', 'slurmd', 'sbatch'):
    if not shutil.which(command):
      sys.exit(f'error: no {command}; apt-get install slurm-wlm munge')
  os.environ['JAX_PLATFORMS'] = 'cpu'
  folder = pathlib.Path(tempfile.mkdtemp(prefix='yi_slurm_'))
  folder.chmod(0o755)  # munge refuses a socket others cannot reach
  print(f'in {folder}', flush=True)
  try:
    config = _prepare(folder)
    with _names(), _cluster(folder):
      calm, rough = folder / 'calm', folder / 'rough'
      _end(_submit(config, calm), calm)
      job = _submit(config, rough)
      seen = _disturb(job, rough)
      _end(job, rough)
      restarts = int(_state(job)['Restarts'])
    want, got = _losses(calm), _losses(rough)
    difference = max(abs(want[step] - got[step]) for step in want)
    saved = 'stopped by a signal' in pathlib.Path(f'{rough}.log').read_text()
  finally:
    if not keep:
      shutil.rmtree(folder)
  result = {
    'restarts': restarts,
    'after_step': seen,
    'steps': len(got),
    'preemption_saved': saved,
    'final_loss': got[_STEPS],
    'undisturbed': want[_STEPS],
    'largest_difference': difference,
  }
  print(json.dumps(result))
  if not (len(got) == _STEPS and restarts == 3 and saved and difference < 1e-5):
    sys.exit('error: the disturbed job did not do what the calm one did')


if __name__ == '__main__':
  main()
