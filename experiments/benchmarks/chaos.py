"""A run of 200 steps that everything happens to, beside one that nothing does.

  launch/local.sh python experiments/benchmarks/chaos.py [--seed=1]

Both train the same small model on text made up here. The second one runs under
launch/supervise.py, on a small disk of its own where this may mount one (root),
and at random steps: kill -9 (3 times), SIGTERM as before a preemption (2), its
newest checkpoints cut off and kill -9 (2), a full disk until a save has failed
(2). It checks that every step has the same loss in both, and prints where the
time went. The last line is JSON: `largest_difference` of the losses (0 is
wanted), `goodput` of both, `ratio` of the seconds, disturbed over undisturbed.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from absl import app, flags

from yi_jax.training import metrics

_SEED = flags.DEFINE_integer('seed', 1, 'Decides what happens when.')
_STEPS = flags.DEFINE_integer('steps', 200, 'Steps of both runs.')

_REPOSITORY = pathlib.Path(__file__).parents[2]
_EVENTS = ('kill', 'kill', 'kill', 'term', 'term', 'cut', 'cut', 'full', 'full')
_DISK = '24m'  # some checkpoints of this model, of 1 MB each
_CONFIG = """
import ml_collections
from yi_jax.data import mixtures
from yi_jax.training import run_config

def get_config():
  c = run_config.base()
  mixtures.register_files('en_other_chaos', '{folder}/*.txt')
  c.data.rates = ml_collections.ConfigDict({{'en_other_chaos': 1.0}})
  c.data.root = '{folder}/data'
  c.data.vocabulary_size = 300
  c.data.length = 64
  c.data.batch_tokens = 16 * 64
  c.data.heldout_bytes = 2000
  c.model.overrides.update(dict(
      vocab_size=300, hidden_size=64, intermediate_size=128,
      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
      head_dim=16, max_position_embeddings=64))
  c.optimizer.warmup_steps = 20
  c.train.steps = {steps}
  c.train.log_every = 1
  c.train.log_rows = True
  c.checkpoint.every = 20
  c.checkpoint.local_every = 5
  c.checkpoint.local_folder = '{folder}/local'
  return c
"""
_WORDS = (
  'the',
  'cat',
  'dog',
  'sees',
  'a',
  'bird',
  'under',
  'an',
  'old',
  'tree',
)


def main(unused_argv: list[str]) -> None:
  """Runs both and compares."""
  with tempfile.TemporaryDirectory(prefix='chaos_') as name:
    folder = pathlib.Path(name)
    config = _prepare(folder)
    started = time.monotonic()
    quiet = folder / 'undisturbed'
    _run([*_train(config, quiet)], folder / 'undisturbed.log')
    undisturbed = time.monotonic() - started
    with _disk(folder / 'disk') as (disk, may_fill):
      started = time.monotonic()
      happened = _disturb(config, folder, disk, may_fill)
      disturbed = time.monotonic() - started
      failed = _compare(quiet, disk / 'run', happened, disturbed / undisturbed)
  sys.exit(failed)


def _prepare(folder: pathlib.Path) -> pathlib.Path:
  """Writes text and config, and packs the rows; returns the config."""
  draw = random.Random(0)
  for number in range(100):
    words = draw.choices(_WORDS, k=300)
    (folder / f'{number}.txt').write_text(' '.join(words))
  config = folder / 'run.py'
  config.write_text(_CONFIG.format(folder=folder, steps=_STEPS.value))
  verb = [sys.executable, '-m', 'yi_jax.prepare', f'--config={config}']
  _run(verb, folder / 'prepare.log')
  return config


def _train(config: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  verb = [sys.executable, '-m', 'yi_jax.train']
  return [*verb, f'--config={config}', f'--workdir={workdir}']


def _run(command: list[str], log: pathlib.Path) -> None:
  with open(log, 'wb') as file:
    done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
  if done.returncode:
    raise RuntimeError(f'{command}\n{log.read_text()[-3000:]}')


@contextlib.contextmanager
def _disk(place: pathlib.Path) -> Iterator[tuple[pathlib.Path, bool]]:
  """Yields a folder, and whether it is a disk small enough to be filled."""
  place.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={_DISK}', 'tmpfs', place]
  mounted = subprocess.run(mount, capture_output=True).returncode == 0
  if not mounted:
    print('may not mount a small disk: it will not be full')
  try:
    yield place, mounted
  finally:
    if mounted:
      subprocess.run(['umount', place], check=True)


def _disturb(
  config: pathlib.Path, folder: pathlib.Path, disk: pathlib.Path, may_fill: bool
) -> collections.Counter[str]:
  """Runs under the supervisor with all that happens; returns what did."""
  draw, log = random.Random(_SEED.value), folder / 'disturbed.log'
  events = [event for event in _EVENTS if may_fill or event != 'full']
  draw.shuffle(events)
  steps = sorted(draw.sample(range(5, _STEPS.value - 10), len(events)))
  happened, workdir = collections.Counter(), disk / 'run'
  supervise = [sys.executable, _REPOSITORY / 'launch/supervise.py']
  with open(log, 'wb') as file:
    process = subprocess.Popen(
      [*supervise, '--backoff=0.5', '--', *_train(config, workdir)],
      stdout=file,
      stderr=subprocess.STDOUT,
    )
  for step, event in zip(steps, events, strict=True):
    while _step(workdir) < step and process.poll() is None:
      time.sleep(0.005)
    child = _child(process)
    if child is None:
      break  # complete
    print(f'step {_step(workdir)}: {event}', flush=True)
    happened[event] += 1
    if event == 'full':
      _fill(disk, log)
      continue
    if event == 'cut':
      _cut(workdir, folder / 'local')
    subprocess.run(['kill', '-TERM' if event == 'term' else '-KILL', child])
    while _child(process) == child:
      time.sleep(0.01)
  if process.wait():
    raise RuntimeError(log.read_text()[-5000:])
  for line in log.read_text().split('\n'):
    if line.startswith(('supervise:', 'checkpoint', 'warning:', 'continues')):
      print(f'  {line[:150]}')
  return happened


def _step(workdir: pathlib.Path) -> int:
  """Returns the newest step in the metrics, 0 for none."""
  path = workdir / 'metrics.jsonl'
  with contextlib.suppress(FileNotFoundError):
    lines = metrics.read(str(path))
    return lines[-1]['step'] if lines else 0
  return 0


def _child(process: subprocess.Popen) -> str | None:
  """Returns the id of the supervisor's child; None once it has ended."""
  path = f'/proc/{process.pid}/task/{process.pid}/children'
  while process.poll() is None:
    children = pathlib.Path(path).read_text().split()
    if children:
      return children[0]
    time.sleep(0.01)
  return None


def _cut(workdir: pathlib.Path, local: pathlib.Path) -> None:
  """Cuts off the numbers of the newest checkpoint of each kind."""
  steps = [p for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()]
  if steps:
    newest = max(steps, key=lambda path: int(path.name))
    for path in newest.rglob('d/*'):
      os.truncate(path, path.stat().st_size // 2)
  states = sorted(local.rglob('*.state'), key=lambda path: int(path.stem))
  if states:
    os.truncate(states[-1], states[-1].stat().st_size // 2)


def _fill(disk: pathlib.Path, log: pathlib.Path) -> None:
  """Leaves no room until a save has failed."""
  before = log.read_text().count('could not be written')
  filler = disk / 'filler'
  with (
    open(filler, 'wb', buffering=0) as file,
    contextlib.suppress(OSError),
  ):
    while file.write(bytes(1 << 16)):
      pass
  deadline = time.monotonic() + 120
  while log.read_text().count('could not be written') == before:
    if time.monotonic() > deadline:
      break
    time.sleep(0.02)
  filler.unlink()


def _compare(
  quiet: pathlib.Path,
  chaos: pathlib.Path,
  happened: collections.Counter[str],
  ratio: float,
) -> int:
  """Prints both reports and the JSON line; returns the exit code."""
  lines = [metrics.read(str(path / 'metrics.jsonl')) for path in (quiet, chaos)]
  rows = [(path / 'rows/0.jsonl').read_text() for path in (quiet, chaos)]
  reports = [
    json.loads((path / 'report.json').read_text()) for path in (quiet, chaos)
  ]
  whole = [line['step'] for line in lines[1]] == [
    line['step'] for line in lines[0]
  ]
  largest = max(
    abs(one['loss'] - other['loss']) for one, other in zip(*lines, strict=False)
  )
  for name, report in zip(('undisturbed', 'disturbed'), reports, strict=True):
    goodput = report['goodput']
    causes = ', '.join(f'{k} {v:.1f}' for k, v in goodput['seconds'].items())
    print(
      f'{name}: goodput {goodput["share"]:.2f} over {goodput["starts"]} '
      f'starts; seconds: {causes}'
    )
  same_rows = rows[0] == rows[1]
  figures = {
    'benchmark': 'chaos',
    'steps': len(lines[1]),
    'happened': dict(happened),
    'starts': reports[1]['goodput']['starts'],
    'loss': lines[1][-1]['loss'],
    'loss_undisturbed': lines[0][-1]['loss'],
    'largest_difference': largest,
    'same_rows': same_rows,
    'goodput': round(reports[1]['goodput']['share'], 4),
    'goodput_undisturbed': round(reports[0]['goodput']['share'], 4),
    'ratio': round(ratio, 2),
  }
  print(json.dumps(figures))
  return int(not (whole and same_rows and largest <= 1e-5))


if __name__ == '__main__':
  app.run(main)
