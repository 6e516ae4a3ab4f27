"""The smallest real search for a mixture, killed with -9 and started again.

  launch/local.sh python tests/launch/mixture_search_check.py [--workdir=...]

Two abilities of real conversations, two shares, one hyperparameter, from the
weights of runs/quickstart (`launch/local.sh quickstart` makes them). The search
and its run are killed in the middle of the fused phase; the same command goes
on. Then it is run a third time, and starts nothing. Figures: see
docs/mixture_search.md.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FLAGS = (
  '--config=experiments/sft.py:tiny',
  '--config.data.rates.zh_math_chalkbase=0.5',
  '--config.data.rates.en_knowledge_chatterbot=0.5',
  '--config.data.batch_tokens=1024',
  '--config.train.steps=30',
  '--config.train.eval_rows=16',
  '--config.checkpoint.every=10',
)
_SEARCH = (
  '--samples=8,128',
  '--share=1,1/4',
  '--grid=optimizer.learning_rate=1e-3,3e-3',
)


def _start(workdir: pathlib.Path) -> subprocess.Popen:
  command = [sys.executable, 'launch/mixture_search.py', *_FLAGS, *_SEARCH]
  return subprocess.Popen([*command, f'--workdir={workdir}'], cwd=_ROOT)


def _finish(workdir: pathlib.Path) -> float:
  """Runs the search to its end and returns the seconds it took."""
  started = time.monotonic()
  code = _start(workdir).wait()
  assert code == 0, f'the search ended with exit code {code}'
  return time.monotonic() - started


def _reports(workdir: pathlib.Path) -> dict[str, int]:
  """Returns run -> time of its report."""
  return {
    str(path.parent.relative_to(workdir)): path.stat().st_mtime_ns
    for path in workdir.glob('*/*/report.json')
  }


def _kill_when_at_work(search: subprocess.Popen, run: pathlib.Path) -> None:
  """Kills the search and its run once the run has saved its first steps."""
  saved = run / 'checkpoints'
  while not any(path.name.isdigit() for path in saved.glob('*')):
    assert search.poll() is None, 'the search ended before it could be killed'
    time.sleep(0.1)
  children = f'/proc/{search.pid}/task/{search.pid}/children'
  pids = [int(pid) for pid in pathlib.Path(children).read_text().split()]
  for pid in (search.pid, *pids):
    os.kill(pid, signal.SIGKILL)
  search.wait()


def main() -> None:
  """Searches, kills, searches on, and compares."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', default=str(_ROOT / 'runs/mixture_check'))
  workdir = pathlib.Path(parser.parse_args().workdir).absolute()
  shutil.rmtree(workdir, ignore_errors=True)
  prepare = [sys.executable, '-m', 'yi_jax.prepare', *_FLAGS]
  subprocess.run(prepare, cwd=_ROOT, check=True)
  started = time.monotonic()
  killed = 'learning_rate=3e-3,en_knowledge=1.0,zh_math=1.0'
  _kill_when_at_work(_start(workdir), workdir / 'fused' / killed)
  first, before = time.monotonic() - started, _reports(workdir)
  print(f'killed after {first:.0f} s with {len(before)} runs finished')
  assert f'fused/{killed}' not in before
  second = _finish(workdir)
  after = _reports(workdir)
  assert before.items() <= after.items(), 'a finished run was run again'
  log = (workdir / 'fused/logs' / f'{killed}.txt').read_text()
  [line] = [x for x in log.split('\n') if x.startswith('continues after step')]
  print(f'went on for {second:.0f} s; the killed run {line}')
  third = _finish(workdir)
  assert _reports(workdir) == after, 'a finished search has run something'
  print(f'a third start took {third:.0f} s; {len(after)} runs in all')
  for path in sorted(workdir.glob('*.*')):
    print(f'{path.stat().st_size:>9,} bytes  {path}')


if __name__ == '__main__':
  main()
