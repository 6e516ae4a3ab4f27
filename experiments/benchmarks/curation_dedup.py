"""Near copies: speed against datatrove, and cost as documents grow.

  launch/local.sh peer
  launch/local.sh python experiments/benchmarks/curation_dedup.py
  launch/local.sh python experiments/benchmarks/curation_dedup.py \\
      --scale=10000,100000,1000000 --workers=2
  launch/local.sh python experiments/benchmarks/curation_dedup.py \\
      --scale=100000 --workers=1,2

Without --scale: the same English documents, made of the lines of real sources
and planted copies, go through the stage `minhash` (reading, hashing, comparing
pairs, writing) and through datatrove's four steps (signatures, buckets,
clusters, filter), both with 14 bands of 8 rows over 5-grams of words, one
process each, in turns. The last line is JSON; `ratio` is our documents/s over
datatrove's (2 or more is wanted).

With --scale: seconds, seconds of the processor and peak memory (all processes
together, proportional set size) of reading and of the stages `exact` and
`minhash` for so many documents in English and Chinese. `ratio` is documents for a
second of the processor, of the largest number over the smallest; `speedup` is
seconds with the fewest workers over those with the most, for the largest.
"""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import pairs
import psutil
from absl import flags

from yi_jax import app, paths

FLAGS = flags.FlagValues()
_DOCUMENTS = flags.DEFINE_integer(
  'documents', 10_000, 'Documents of the comparison.', flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 2, 'Rounds of the comparison.', flag_values=FLAGS
)
_SCALE = flags.DEFINE_list(
  'scale', [], 'Numbers of documents, ascending.', flag_values=FLAGS
)
_WORKERS = flags.DEFINE_list(
  'workers', ['2'], 'Processes of --scale, ascending.', flag_values=FLAGS
)
_WORK = flags.DEFINE_string(
  'work', '', 'For the script itself: what a worker does.', flag_values=FLAGS
)
_FOLDER = flags.DEFINE_string(
  'folder', '', 'For the script itself: of the documents.', flag_values=FLAGS
)

_SHARD = 50_000  # documents a file
_COPIES = 0.2  # of the documents; an eighth of them exact
_ENGLISH = ('en_news', 'en_parliament', 'web_c4', 'web_wiki', 'en_plays')
_CHINESE = ('zh_news', 'zh_law', 'zh_reviews', 'zh_docs_paddlex')
_PEER = str(paths.REPOSITORY / '.venv-peer/bin/python')


def main() -> None:
  """Compares, or measures the growth."""
  if FLAGS.work:
    {'ours': _serve_ours, 'once': _once}[FLAGS.work](pathlib.Path(FLAGS.folder))
    return
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    figures = _growth(folder) if FLAGS.scale else _compare(folder)
  print(json.dumps(figures))


def _lines(names: Sequence[str]) -> list[str]:
  """Returns lines of real text of 40 to 400 characters."""
  from yi_jax.data import sources

  found = []
  for name in names:
    for document in sources.read(name, paths.REPOSITORY / 'data/raw'):
      lines = document['text'].splitlines()
      found += [line for line in lines if 40 <= len(line) <= 400]
  return sorted(set(found))


def _texts(lines: Sequence[str], count: int, seed: int) -> Iterator[str]:
  """Yields documents: real lines, made-up words, and copies with edits."""
  rng = random.Random(seed)
  made = []
  for _ in range(count):
    if made and rng.random() < _COPIES:
      words = rng.choice(made).split(' ')
      for _ in range(rng.randrange(8) * len(words) // 150):
        words[rng.randrange(len(words))] = f'edit{rng.randrange(10**6)}'
      yield ' '.join(words)
      continue
    pieces = rng.choices(lines, k=rng.randint(4, 16))
    pieces.insert(
      rng.randrange(len(pieces)),
      ' '.join(f'{rng.randrange(36**5):x}' for _ in range(12)),
    )
    text = '\n'.join(pieces)
    if len(made) < 5_000:
      made.append(text)
    yield text


def _write(folder: pathlib.Path, lines: Sequence[str], count: int) -> None:
  """Writes documents as Parquet, in files of the same size."""
  import pyarrow
  from pyarrow import parquet

  folder.mkdir(parents=True)
  for shard, begin in enumerate(range(0, count, _SHARD)):
    size = min(_SHARD, count - begin)
    table = pyarrow.table(
      {
        'id': [str(begin + i) for i in range(size)],
        'text': list(_texts(lines, size, shard)),
      }
    )
    path = folder / f'{shard:04}.parquet'
    parquet.write_table(table, path, row_group_size=1_000)


def _curate(
  folder: pathlib.Path, stages: Sequence[str], workers: int
) -> tuple[int, int]:
  """Runs stages over a folder of Parquet files; returns documents kept and read."""
  from yi_jax.curation import engine, run_config

  config = run_config.base(tuple(stages))
  config.inputs = {'bench': {'files': str(folder / '*.parquet')}}
  with tempfile.TemporaryDirectory() as workdir:
    found = engine.run(config, workdir, engine.Machine(workers=workers))
    shards = [one.manifest()['shards'] for one in (found[0], found[-1])]
  read, kept = (sum(e['documents'] for e in entries) for entries in shards)
  return kept, read


def _serve_ours(folder: pathlib.Path) -> None:
  """Works for `_compare`: the stage, once for every line of stdin."""
  pairs.serve(lambda: print(*_curate(folder, ['minhash'], 1), 'kept'), 1)


def _once(folder: pathlib.Path) -> None:
  """Works for `_growth`: both stages, once."""
  workers = int(FLAGS.workers[0])
  kept, read = _curate(folder, ['exact', 'minhash'], workers)
  print(json.dumps({'kept': kept, 'read': read}))


def _ours(work: str, folder: pathlib.Path, workers: str = '1') -> list[str]:
  command = [sys.executable, __file__, f'--work={work}', f'--folder={folder}']
  return [*command, f'--workers={workers}']


def _compare(folder: pathlib.Path) -> dict[str, object]:
  """Returns the figures of both sides, in turns."""
  _write(folder / 'in', _lines(_ENGLISH), FLAGS.documents)
  peer = pathlib.Path(__file__).with_name('curation_dedup_peer.py')
  seconds = pairs.measure(
    {
      'yi_jax': _ours('ours', folder / 'in'),
      'datatrove': [_PEER, str(peer), f'--folder={folder / "in"}'],
    },
    FLAGS.rounds,
  )
  medians = pairs.medians(seconds)
  speeds = {name: FLAGS.documents / s for name, s in medians.items()}
  for name, speed in speeds.items():
    print(f'{name}: {speed:,.0f} documents/s, one process')
  return {
    'benchmark': 'minhash',
    'documents': FLAGS.documents,
    'documents_per_second': round(speeds['yi_jax'], 1),
    'datatrove_documents_per_second': round(speeds['datatrove'], 1),
    'ratio': round(speeds['yi_jax'] / speeds['datatrove'], 2),
  }


def _growth(folder: pathlib.Path) -> dict[str, object]:
  """Returns seconds and memory for each number of documents and workers."""
  lines, runs = _lines([*_ENGLISH, *_CHINESE]), []
  for count in map(int, FLAGS.scale):
    _write(folder / 'in', lines, count)
    for workers in FLAGS.workers:
      runs.append({'documents': count, **_measured(folder, workers)})
      print(json.dumps(runs[-1]), flush=True)
    shutil.rmtree(folder / 'in')
  first, last = (
    run['documents'] / run['processor_seconds'] for run in (runs[0], runs[-1])
  )
  slow, fast = runs[-len(FLAGS.workers)], runs[-1]
  return {
    'benchmark': 'minhash growth',
    'runs': runs,
    'ratio': round(last / first, 2),
    'speedup': round(slow['seconds'] / fast['seconds'], 2),
  }


def _measured(folder: pathlib.Path, workers: str) -> dict[str, object]:
  """Runs both stages once over folder/in."""
  started, said = time.monotonic(), folder / 'said.txt'
  with open(said, 'w') as file:
    work = subprocess.Popen(_ours('once', folder / 'in', workers), stdout=file)
    peak, processor = _watched(work)
  if work.returncode:
    raise RuntimeError('the stages failed')
  return {
    'workers': int(workers),
    **json.loads(said.read_text().splitlines()[-1]),
    'seconds': round(time.monotonic() - started, 1),
    'processor_seconds': round(processor, 1),
    'peak_gigabytes': round(peak / 1e9, 2),
  }


def _watched(work: subprocess.Popen) -> tuple[int, float]:
  """Waits for a process; returns what it and its children took together.

  Returns:
    Peak memory in bytes, shared pages once (PSS), and seconds of the
    processor. Both are looked at every half second.
  """
  peak, over, processor = 0, threading.Event(), {}

  def look() -> None:
    nonlocal peak
    root = psutil.Process(work.pid)
    while not over.wait(0.5):
      total = 0
      for process in [root, *root.children(recursive=True)]:
        try:
          times = process.cpu_times()
          processor[process.pid] = times.user + times.system
          total += process.memory_full_info().pss
        except psutil.Error:
          continue  # it has just ended
      peak = max(peak, total)

  thread = threading.Thread(target=look)
  thread.start()
  work.wait()
  over.set()
  thread.join()
  return peak, sum(processor.values())


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--documents=5000', needs_config=False))
