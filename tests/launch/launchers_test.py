"""The launchers of clusters: their commands, on stand-ins of gcloud and Slurm.

tests/launch/slurm_check.py runs launch/slurm.sbatch on a real Slurm.
"""

import os
import pathlib
import re
import shlex
import shutil
import string
import subprocess
import sys
import time

import pytest
import yaml

from yi_jax import app, train
from yi_jax.sharding import start

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LAUNCH = _ROOT / 'launch'
_SCRIPTS = sorted([*_LAUNCH.glob('*.sh'), *_LAUNCH.glob('*.sbatch')])


def _run(*command, cwd=_ROOT, text=None, **environment):
  return subprocess.run(
    [str(word) for word in command],
    capture_output=True,
    text=True,
    cwd=cwd,
    input=text,
    env={'PATH': '/usr/bin:/bin', **environment},
    timeout=60,
  )


def _takes(words):
  """Asserts that a command is `launch/local.sh python -m yi_jax.train ...`.

  Returns its config and workdir.
  """
  assert words[0].endswith('launch/local.sh')
  assert words[1:4] == ['python', '-m', 'yi_jax.train']
  spec, changes, rest = app.split(words[4:])
  config = app.override(app.load_config(spec), changes)
  train.FLAGS.unparse_flags()
  assert train.FLAGS(['train', *rest]) == ['train']
  return config, train.FLAGS['workdir'].value


def test_shellcheck_finds_nothing():
  program = pathlib.Path(sys.executable).parent / 'shellcheck'
  scripts = [*_SCRIPTS, *(_ROOT / '.ci').glob('*')]
  assert len(scripts) >= 4
  done = _run(program, *scripts)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  'path',
  [*_SCRIPTS, *_LAUNCH.glob('*.yaml'), _LAUNCH / 'Dockerfile'],
  ids=lambda path: path.name,
)
def test_each_launcher_says_how_to_use_it(path):
  head = path.read_text().split('\n\n')[0].replace('#!/usr/bin/env bash\n', '')
  assert all(line.startswith('#') for line in head.split('\n'))
  assert f'launch/{path.name}' in head


# --- Cloud TPU VMs -----------------------------------------------------------

_TPU = {
  'YI_TPU_NAME': 'yi',
  'YI_TPU_PROJECT': 'mine',
  'YI_TPU_ZONE': 'us-east5-a',
  'YI_TPU_TYPE': 'v5p-16',
  'YI_TPU_POLL': '0.05',
}
# Its slice has two workers, folders of this machine. What it is asked is in
# `log`. A state that is due is the next line of `states`.
_GCLOUD = r"""#!/bin/bash
shift 2  # compute tpus
printf '%s\037' "$@" >>"$FAKE/log"; printf '\036' >>"$FAKE/log"
case "$1 $2" in
  'queued-resources create') echo ACTIVE >"$FAKE/state" ;;
  'queued-resources delete') rm -rf "$FAKE"/{state,worker}* ;;
  'queued-resources describe')
    [[ ! -s $FAKE/states ]] || {
      head -1 "$FAKE/states" >"$FAKE/state"; sed -i 1d "$FAKE/states"; }
    [[ -e $FAKE/state ]] || { echo 'NOT_FOUND: no yi' >&2; exit 1; }
    cat "$FAKE/state" ;;
  'tpu-vm scp')
    for n in 0 1; do mkdir -p "$FAKE/worker$n" && cp "$3" "$FAKE/worker$n"; done ;;
  'tpu-vm ssh')
    for word; do case $word in
      --worker=all) workers='0 1' ;;
      --worker=*) workers=${word#*=} ;;
      --command=*) command=${word#*=} ;;
    esac; done
    for n in $workers; do
      [[ -d $FAKE/worker$n ]] || exit 255
      (cd "$FAKE/worker$n" && HOME=$PWD WORKER=$n bash -c "$command") || exit
    done ;;
esac
"""
# Stands in for launch/local.sh on a worker: the run ends as `ends` says.
_WORKER = r"""#!/bin/bash
[[ $3 == yi_jax.train ]] || { echo "$*" >>"$HOME/installed"; exit; }
echo "$YI_DISTRIBUTED $YI_STOPPED_EXIT $(printf '%q ' "$@")" >>"$FAKE/runs$WORKER"
[[ $WORKER == 0 ]] || exit 0
# The slice goes when this one ends: not before the other one has begun.
until (($(wc -l <"$FAKE/runs1" || echo 0) >= $(wc -l <"$FAKE/runs0"))); do
  sleep 0.01
done
code=$(head -1 "$FAKE/ends"); sed -i 1d "$FAKE/ends"
[[ $code != 75 ]] || echo SUSPENDED >"$FAKE/states"  # preempted
exit "$code"
"""


@pytest.fixture
def slice_(tmp_path):
  """Returns tpu_vm.sh in a repository of its own, and what it is run with."""
  clone, tools, fake = (tmp_path / name for name in ('clone', 'bin', 'fake'))
  for folder in (clone / 'launch', tools, fake):
    folder.mkdir(parents=True)
  shutil.copy(_LAUNCH / 'tpu_vm.sh', clone / 'launch')
  for path, text in {
    clone / 'launch/local.sh': _WORKER,
    clone / 'requirements-tpu.txt': '',
    clone / '.gitignore': '/data/\n',
    tools / 'gcloud': _GCLOUD,
    # Never the machine's own: it would find other people's runs.
    tools / 'pkill': '#!/bin/bash\necho "$@" >>"$FAKE/pkill"\n',
    tools / 'python3.11': '#!/bin/bash\n',
  }.items():
    path.write_text(text)
    path.chmod(0o755)
  (clone / 'data').mkdir()
  (clone / 'data/large').touch()
  subprocess.run(['git', 'init', '-q', clone], check=True)
  variables = {**_TPU, 'FAKE': str(fake), 'PATH': f'{tools}:/usr/bin:/bin'}

  def run(*arguments, **more):
    script = clone / 'launch/tpu_vm.sh'
    return _run(script, *arguments, cwd=tmp_path, **{**variables, **more})

  run.fake = fake
  return run


def _asked(fake):
  """Returns the words of each call of gcloud, from after `compute tpus`."""
  calls = (fake / 'log').read_text().split('\x1e')
  return [call.split('\x1f')[:-1] for call in calls if call]


def _verbs(fake):
  return [' '.join(words[:2]) for words in _asked(fake)]


_RUN = (
  '--config=experiments/pretrain.py:yi_34b',
  '--config.data.rates.en_books_plays=2',
  "--config.sample.prompts=('a b', \"it's\")",
  '--workdir=gs://bucket/run',
)


def test_keep_begins_again_until_the_run_is_complete(slice_):
  # Preempted once while it trains; then a failure; then complete.
  (slice_.fake / 'ends').write_text('75\n134\n0\n')
  done = slice_('keep', *_RUN)
  assert done.returncode == 0, done.stderr
  assert 'SUSPENDED; asking for another' in done.stderr
  assert 'exit code 134 (1 times)' in done.stderr
  verbs = _verbs(slice_.fake)
  assert verbs[-1] == 'queued-resources delete'
  assert verbs.count('queued-resources delete') == 2
  assert verbs.count('queued-resources create') == 2
  assert (slice_.fake / 'pkill').read_text().startswith('-KILL -f ^python -m')
  for worker in '01':
    runs = (slice_.fake / f'runs{worker}').read_text().strip().split('\n')
    assert len(runs) == 3
    for line in runs:
      distributed, stopped, *words = shlex.split(line)
      assert (distributed, stopped) == ('1', '75')
      config, workdir = _takes(['yi_jax/launch/local.sh', *words])
      assert config.model.preset == 'yi_34b'
      assert config.sample.prompts == ('a b', "it's")
      assert workdir == 'gs://bucket/run'


def test_keep_gives_up_on_what_is_refused_and_says_that_it_costs(slice_):
  (slice_.fake / 'ends').write_text('2\n')
  done = slice_('keep', *_RUN)
  assert done.returncode == 2
  assert 'refused' in done.stderr
  assert 'costs: launch/tpu_vm.sh delete' in done.stderr
  assert _verbs(slice_.fake)[:2] == [
    'queued-resources describe',
    'queued-resources create',
  ]


def test_keep_gives_up_after_so_many_failures(slice_):
  (slice_.fake / 'ends').write_text('1\n1\n1\n')
  done = slice_('keep', *_RUN, YI_RESTARTS='2')
  assert done.returncode == 2
  assert 'fails too often' in done.stderr
  assert len((slice_.fake / 'ends').read_text().split()) == 1


def test_install_copies_what_git_would_and_the_extra_packages(slice_):
  for verb in ('create', 'wait', 'install'):
    done = slice_(verb)
    assert done.returncode == 0, done.stderr
  for worker in (slice_.fake / 'worker0', slice_.fake / 'worker1'):
    assert (worker / 'yi_jax/launch/tpu_vm.sh').exists()
    assert not (worker / 'yi_jax/data').exists()
    assert (
      '-r yi_jax/requirements-tpu.txt' in (worker / 'installed').read_text()
    )


def test_by_hand_a_run_is_started_looked_at_and_stopped(slice_):
  (slice_.fake / 'ends').write_text('7\n')
  slice_('create')
  assert slice_('status').stdout.split() == ['ACTIVE']  # not installed
  slice_('install')
  assert slice_('status').stdout.split() == ['ACTIVE', 'none']
  assert slice_('run', *_RUN).returncode == 0
  deadline = time.monotonic() + 30
  while slice_('status').stdout.split() != ['ACTIVE', '7']:
    assert time.monotonic() < deadline
  assert slice_('stop').returncode == 0
  assert (slice_.fake / 'pkill').read_text().startswith('-TERM -f ^python -m')


def test_create_asks_for_a_spot_slice_of_the_type(slice_):
  slice_('create')
  slice_('create', YI_TPU_SPOT='0', YI_TPU_TYPE='v6e-8')
  first, second = _asked(slice_.fake)
  assert first[2:] == [
    *('yi', '--node-id=yi', '--accelerator-type=v5p-16'),
    *('--runtime-version=v2-alpha-tpuv5', '--spot', '--project=mine'),
    '--zone=us-east5-a',
  ]
  assert '--spot' not in second
  assert '--runtime-version=v2-alpha-tpuv6e' in second


@pytest.mark.parametrize(
  ('arguments', 'variables', 'message'),
  [
    (['create'], {'YI_TPU_ZONE': ''}, 'set YI_TPU_ZONE, a zone'),
    (['log'], {'YI_TPU_NAME': ''}, 'set YI_TPU_NAME'),
    (['create'], {'YI_TPU_TYPE': ''}, 'set YI_TPU_TYPE'),
    (['create'], {'YI_TPU_TYPE': 'v9-8'}, 'set YI_TPU_RUNTIME'),
    (['wait'], {}, 'there is no yi'),
    (['crate'], {}, "keep, not 'crate'"),
    (['run'], {}, 'run needs the arguments'),
    (['keep', '--workdir=/tmp/x'], {}, 'needs --workdir=gs://'),
  ],
)
def test_tpu_vm_refuses_by_name(slice_, arguments, variables, message):
  done = slice_(*arguments, **variables)
  assert done.returncode == 2
  assert f'error: {message}' in done.stderr or message in done.stderr


def test_a_slice_that_is_lost_in_the_queue_ends_the_wait(slice_):
  (slice_.fake / 'states').write_text('WAITING_FOR_RESOURCES\nFAILED\n')
  done = slice_('wait')
  assert done.returncode == 2
  assert 'WAITING_FOR_RESOURCES' in done.stderr
  assert 'is lost' in done.stderr


def test_a_dry_run_of_keep_touches_nothing(slice_):
  done = slice_('keep', *_RUN, YI_DRY_RUN='1')
  assert done.returncode == 0, done.stderr
  verbs = re.findall(r'^gcloud compute tpus (\S+ \S+)', done.stdout, re.M)
  assert verbs == [
    *('queued-resources create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh'),
    'queued-resources delete',
  ]
  assert not (slice_.fake / 'log').exists()


# --- Slurm -------------------------------------------------------------------

_SRUN = (
  '#!/bin/bash\nprintf "%q " "$YI_STOPPED_EXIT" "$@" >srun.log\nexit $FAKE\n'
)


@pytest.fixture
def job(tmp_path):
  """Runs slurm.sbatch as Slurm does: a copy of it, in the submit folder."""
  tools, repository = tmp_path / 'bin', tmp_path / 'a repository'
  (repository / 'launch').mkdir(parents=True)
  tools.mkdir()
  shutil.copy(_LAUNCH / 'slurm.sbatch', tmp_path / 'slurm_script')
  for path, text in {
    tools / 'srun': _SRUN,
    tools / 'scontrol': '#!/bin/bash\necho "$@" >scontrol.log\n',
    tools / 'sleep': '#!/bin/bash\n',
    repository / 'launch/local.sh': '#!/bin/bash\n',
  }.items():
    path.write_text(text)
    path.chmod(0o755)

  def run(*arguments, code=0, **more):
    for path in tmp_path.glob('*.log'):
      path.unlink()
    variables = {
      'PATH': f'{tools}:/usr/bin:/bin',
      'SLURM_JOB_ID': '42',
      'SLURM_SUBMIT_DIR': str(repository),
      'FAKE': str(code),
    }
    script = tmp_path / 'slurm_script'
    return _run(
      'bash', script, *arguments, cwd=tmp_path, **{**variables, **more}
    )

  run.folder = tmp_path
  return run


def test_slurm_starts_train_once_a_node(job):
  done = job(*_RUN)
  assert done.returncode == 0, done.stderr
  stopped, *words = shlex.split((job.folder / 'srun.log').read_text())
  options = [word for word in words[:5] if word.startswith('--')]
  assert stopped == '75'
  assert '--kill-on-bad-exit=1' in options
  config, workdir = _takes(words[len(options) :])
  assert (config.model.preset, workdir) == ('yi_34b', 'gs://bucket/run')
  text = (_LAUNCH / 'slurm.sbatch').read_text()
  for line in ('--requeue', '--ntasks-per-node=1', '--signal=TERM@120'):
    assert f'#SBATCH {line}\n' in text


@pytest.mark.parametrize(
  ('code', 'variables', 'requeued', 'result'),
  [
    (0, {}, False, 0),
    (75, {'SLURM_RESTART_COUNT': '500'}, True, 0),
    (137, {}, True, 0),
    (1, {'SLURM_RESTART_COUNT': '19'}, True, 0),
    (1, {'SLURM_RESTART_COUNT': '20'}, False, 1),
    (1, {'SLURM_RESTART_COUNT': '2', 'YI_RESTARTS': '2'}, False, 1),
    (2, {}, False, 2),
  ],
)
def test_slurm_requeues_what_was_stopped_or_lost(
  job, code, variables, requeued, result
):
  done = job(*_RUN, code=code, **variables)
  assert done.returncode == result, done.stderr
  log = job.folder / 'scontrol.log'
  assert log.exists() == requeued
  if requeued:
    assert log.read_text() == 'requeue 42\n'


@pytest.mark.parametrize(
  ('arguments', 'variables', 'message'),
  [
    (_RUN, {'SLURM_JOB_ID': ''}, 'start it with sbatch'),
    (_RUN, {'SLURM_SUBMIT_DIR': '/'}, 'set YI_REPOSITORY'),
    ((), {}, 'no arguments'),
  ],
)
def test_slurm_refuses_by_name(job, arguments, variables, message):
  done = job(*arguments, **variables)
  assert done.returncode == 2
  assert message in done.stderr
  assert not (job.folder / 'srun.log').exists()


# --- GKE ---------------------------------------------------------------------

_GKE = {
  'YI_NAME': 'yi-34b',
  'YI_IMAGE': 'registry/yi_jax:1',
  'YI_QUEUE': 'tpus',
  'YI_HOSTS': '32',
  'YI_SLICES': '1',
  'YI_TPU': 'tpu-v5p-slice',
  'YI_TOPOLOGY': '4x4x8',
  'YI_CONFIG': 'experiments/pretrain.py:yi_34b',
  'YI_WORKDIR': 'gs://bucket/run',
}


def _render(**variables):
  """Runs the command of the header up to its `&&`."""
  text = (_LAUNCH / 'gke_jobset.yaml').read_text()
  command = re.search(r'#   (python3 -c.*?) >job.yaml && kubectl', text, re.S)[
    1
  ]
  command = re.sub(r'\n#( {3})?', '\n', command)
  return _run('bash', '-c', command, **variables)


def test_the_jobset_runs_train_on_every_host_and_finds_itself():
  done = _render(**_GKE)
  assert done.returncode == 0, done.stderr
  jobset = yaml.safe_load(done.stdout)
  assert (jobset['apiVersion'], jobset['kind']) == (
    'jobset.x-k8s.io/v1alpha2',
    'JobSet',
  )
  labels = jobset['metadata']['labels']
  assert labels == {'kueue.x-k8s.io/queue-name': 'tpus'}
  [job] = jobset['spec']['replicatedJobs']
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 32
  assert (spec['completionMode'], spec['backoffLimit']) == ('Indexed', 0)
  pod = spec['template']['spec']
  assert pod['restartPolicy'] == 'Never'  # a podFailurePolicy asks for it
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '4x4x8',
  }
  [container] = pod['containers']
  config, workdir = _takes([*container['command'], *container['args']])
  assert (config.model.preset, workdir) == ('yi_34b', 'gs://bucket/run')
  # Only exit code 2 ends the set, all else restarts it.
  [rule] = spec['podFailurePolicy']['rules']
  assert rule['onExitCodes']['values'] == [app.BAD_INPUT]
  assert rule['onExitCodes']['containerName'] == container['name']
  [rule] = jobset['spec']['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  # Each pod knows its place; Kubernetes adds the index.
  environment = {entry['name']: entry['value'] for entry in container['env']}
  assert environment['YI_STOPPED_EXIT'] == '75'
  place = start.detect({**environment, 'JOB_COMPLETION_INDEX': '5'})
  assert (place.kind, place.count, place.index) == ('JobSet', 32, 5)
  assert place.coordinator.startswith(f'yi-34b-{job["name"]}-0-0.yi-34b:')


@pytest.mark.parametrize('name', _GKE)
def test_a_variable_of_the_jobset_that_is_not_set_is_named(name):
  text = (_LAUNCH / 'gke_jobset.yaml').read_text()
  used = string.Template(text).get_identifiers()
  assert set(used) == set(_GKE)
  assert f'#   {name} ' in text
  done = _render(**{k: v for k, v in _GKE.items() if k != name})
  assert done.returncode != 0
  assert f"KeyError: '{name}'" in done.stderr
  assert done.stdout == ''


def test_the_image_copies_what_is_there():
  text = (_LAUNCH / 'Dockerfile').read_text()
  copied = re.findall(r'^COPY (.*) \S+$', text, re.M)
  assert copied
  for names in copied:
    for name in names.replace('${EXTRA}', 'tpu').split():
      assert (_ROOT / name).exists(), name
  for extra in re.findall(r'EXTRA=(\w+)', text):
    assert (_ROOT / f'requirements-{extra}.txt').exists()


# --- SkyPilot ----------------------------------------------------------------

# Its own parser takes the file too (docs/launch.md); these are the keys of it
# that are used, so that a slip is found without 219 MB of packages.
_TASK = {'name', 'workdir', 'num_nodes', 'resources', 'envs', 'setup', 'run'}
_RESOURCES = {'use_spot', 'disk_size', 'job_recovery', 'any_of'}


def test_skypilot_runs_train_and_recovers(tmp_path):
  task = yaml.safe_load((_LAUNCH / 'skypilot.yaml').read_text())
  assert set(task) == _TASK
  assert set(task['resources']) == _RESOURCES
  kinds = [choice['accelerators'] for choice in task['resources']['any_of']]
  assert any(kind.startswith('tpu-') for kind in kinds)
  assert any(kind.startswith('H100') for kind in kinds)
  recovery = task['resources']['job_recovery']
  assert recovery['recover_on_exit_codes'] == [75]
  assert task['envs']['YI_WORKDIR'] is None  # SkyPilot asks for a value
  (tmp_path / 'launch').mkdir()
  local = tmp_path / 'launch/local.sh'
  local.write_text('#!/bin/bash\nprintf "%q " $YI_STOPPED_EXIT "$0" "$@"\n')
  local.chmod(0o755)
  flags = ["--config.sample.prompts=('a b',)", '--config.train.steps=3']
  done = _run(
    *('bash', '-c', task['run']),
    cwd=tmp_path,
    YI_CONFIG=task['envs']['YI_CONFIG'],
    YI_WORKDIR='gs://bucket/run',
    YI_FLAGS=shlex.join(flags),
  )
  stopped, *words = shlex.split(done.stdout)
  config, workdir = _takes(words)
  assert stopped == '75'
  assert workdir == 'gs://bucket/run'
  assert (config.model.preset, config.train.steps) == ('yi_6b', 3)
  assert config.sample.prompts == ('a b',)


@pytest.mark.parametrize('key', ['setup', 'run'])
def test_the_shell_of_skypilot_is_sound(key, tmp_path):
  task = yaml.safe_load((_LAUNCH / 'skypilot.yaml').read_text())
  script = tmp_path / 'script.sh'
  script.write_text(f'#!/usr/bin/env bash\n{task[key]}')
  program = pathlib.Path(sys.executable).parent / 'shellcheck'
  # 2154: SkyPilot sets the variables, and `eval` the flags.
  done = _run(program, '--exclude=SC2154', script)
  assert done.returncode == 0, done.stdout
  names = re.findall(r'requirements-(\w+)\.txt', task[key])
  for name in names:
    assert os.path.exists(_ROOT / f'requirements-{name}.txt')
