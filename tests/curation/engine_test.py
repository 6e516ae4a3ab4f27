"""The engine: the same result whatever runs it, however often it is stopped."""

import errno
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import ml_collections
import pytest

from yi_jax.curation import (
  documents,
  engine,
  local_runner,
  passes,
  running,
  shards,
  spill,
)

# Files that tell of one run, not of its result.
_PERISHABLE = ('seconds.json', 'shuffled.json', 'workers.log')
_STAGES = """
import hashlib, os, time
import numpy as np
from yi_jax.curation import documents, stage


class Short(stage.Stage):
  name = 'short'

  def process(self, batch):
    if os.environ.get('SLOW'):
      time.sleep(0.5)
    for i in batch.alive():
      if 'POISON' in batch.texts[i]:
        raise ValueError('poisoned document ' + batch.ids[i])
      size = len(batch.texts[i])
      batch.score('characters')[i] = size
      if size < self.config['least']:
        batch.remove(i, 'short', 'characters', f'{size} < {self.config["least"]}')
    return batch


class Upper(stage.Stage):
  name = 'upper'

  def setup(self):
    self.ready = True

  def process(self, batch):
    assert self.ready
    assert batch.alive() == list(range(len(batch)))  # removed ones are gone
    for i, text in enumerate(batch.texts):
      if text != text.upper():
        batch.change(i, 'upper', text.upper(), 'raised')
    return batch


def _hash(text):
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def rows(batch):
  if os.environ.get('SLOW'):
    time.sleep(0.5)
  return [(_hash(t) % 4, [(_hash(t), i)]) for t, i in zip(batch.texts, batch.ids)]


def losers(group):
  best = {}
  for part in group[1]:
    for key, identifier in part:
      best.setdefault(key, []).append(identifier)
  return [i for ids in best.values() for i in sorted(ids)[1:]]


def drop(batch, gone):
  gone = set(gone)
  for i, identifier in enumerate(batch.ids):
    if identifier in gone:
      batch.remove(i, 'twins', 'same', 'has a twin')
  return batch


class Twins(stage.GlobalStage):
  name = 'twins'

  def expand(self, batches):
    import apache_beam as beam
    gone = (
      batches | beam.FlatMap(rows) | beam.GroupByKey() | beam.FlatMap(losers)
    )
    return batches | beam.Map(drop, beam.pvalue.AsList(gone))


class Forgetful(stage.GlobalStage):
  name = 'forgetful'

  def expand(self, batches):
    import apache_beam as beam
    return batches | beam.Filter(lambda batch: batch.place[1] == 0)
"""


@pytest.fixture(scope='module', autouse=True)
def _module(tmp_path_factory):
  """The stages in a module that worker processes can import."""
  folder = tmp_path_factory.mktemp('module')
  (folder / 'some_stages.py').write_text(_STAGES)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    patch.setenv('PYTHONPATH', str(folder))
    yield
    sys.modules.pop('some_stages', None)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder of input and the passes of its whole run, by one worker."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, _run(_config(folder), folder / 'run')


# Documents of each file: the first makes two batches.
_COUNTS = (1100, 300, 300)
_TOTAL = sum(_COUNTS)


def _lines(count=_TOTAL, first=0):
  return [
    json.dumps({'text': f'text {n % 280} {"x" * (n % 7)}', 'id': f'n{n}'})
    for n in range(first, first + count)
  ]


def _config(folder, files=3, names=('Short', 'Upper', 'Twins'), **changes):
  for number in range(files):
    path = folder / f'part-{number}.jsonl'
    if not path.exists():
      first = sum(_COUNTS[:number])
      path.write_text('\n'.join(_lines(_COUNTS[number], first)))
  titles = [f'some_stages:{name}' for name in names]
  config = ml_collections.ConfigDict(
    {
      'root': str(folder / 'data'),
      'inputs': {'web': {'files': str(folder / 'part-*.jsonl'), 'skip': ()}},
      'read': {'shard_documents': 1000},
      'stages': titles,
      'fuse': True,
      **{
        name.lower(): {'least': 9} if name == 'Short' else {} for name in names
      },
    }
  )
  config.update(changes)
  return config


def _run(config, workdir, **machine):
  return engine.run(config, str(workdir), engine.Machine(**machine))


def _content(found):
  """Returns the bytes of everything that has to be the same."""
  return {
    (number, path.parent.name, path.name): path.read_bytes()
    for number, one in enumerate(found)
    for folder in ('kept', 'removed', 'stats', 'quarantine', '.')
    for path in sorted(pathlib.Path(one.folder, folder).glob('*'))
    if path.is_file() and path.name not in _PERISHABLE
  }


def _documents(one, kind='kept'):
  return [
    batch
    for path in sorted(pathlib.Path(one.folder, kind).glob('*.parquet'))
    for batch in shards.read(path)
  ]


def _ids(one, kind='kept'):
  return [i for batch in _documents(one, kind) for i in batch.ids]


def test_stages_see_what_those_before_left_and_all_is_counted(whole):
  _, found = whole
  assert [one.names for one in found] == [
    ('read',),
    ('short', 'upper'),
    ('twins',),
  ]
  texts = [json.loads(line)['text'] for line in _lines()]
  long = [text for text in texts if len(text) >= 9]
  assert len(_ids(found[1])) == len(long)
  assert len(_ids(found[1], 'removed')) == _TOTAL - len(long)
  assert len(_ids(found[2])) == len(set(long))
  last = [text for batch in _documents(found[2]) for text in batch.texts]
  assert sorted(last) == sorted({text.upper() for text in long})
  short, upper = found[1].manifest()['counts']
  assert short['kept']['web|'] == [len(long), sum(map(len, long))]
  assert short['removed']['short.characters']['web|'][0] == _TOTAL - len(long)
  assert upper['changed'] == {'web': len(long)}
  (twins,) = found[2].manifest()['counts']
  assert twins['removed']['twins.same']['web|'][0] == len(long) - len(set(long))
  near = short['edges']['characters']
  assert {entry['score'] for entry in near['removed']} <= {6, 7, 8}
  assert max(entry['score'] for entry in near['removed']) == 8
  assert near['kept'][0]['score'] == 9


def test_workers_do_not_matter(whole, tmp_path):
  folder, one = whole
  two = _run(_config(folder), tmp_path / 'two', workers=2)
  content = _content(one)
  assert len(content) > 20
  assert _content(two) == content


@pytest.mark.parametrize('most', [1, 5])
def test_neither_does_how_a_shuffle_is_cut(whole, tmp_path, monkeypatch, most):
  monkeypatch.setattr(local_runner, '_MOST', most)
  monkeypatch.setattr(local_runner, '_GROUPED_BYTES', 1 << 10 * most)
  folder, found = whole
  assert _content(_run(_config(folder), tmp_path / 'run')) == _content(found)


def test_nor_how_documents_are_cut_into_batches(whole, tmp_path, monkeypatch):
  folder, found = whole
  monkeypatch.setattr(documents, 'SIZE', 170)
  other = _run(_config(folder), tmp_path / 'run')
  assert other[2].manifest()['shards'] != found[2].manifest()['shards']
  assert [_ids(one) for one in other] == [_ids(one) for one in found]


def test_a_pass_for_each_stage_gives_the_same_documents(whole, tmp_path):
  folder, fused = whole
  single = _run(_config(folder, fuse=False), tmp_path / 'single')
  assert len(single) == len(fused) + 1
  assert _ids(single[-1]) == _ids(fused[-1])


def test_what_has_not_changed_is_not_done_again(whole, monkeypatch):
  folder, first = whole
  before = _content(first)
  done = []
  with monkeypatch.context() as patch:
    patch.setattr(passes, 'run', lambda job: done.append(job.folder))
    patch.setattr(running, 'shuffle', lambda *a, **k: done.append('all'))
    again = _run(_config(folder), folder / 'run')
  assert done == []
  assert _content(again) == before
  other = _run(_config(folder, short={'least': 10}), folder / 'run')
  assert [a.folder != b.folder for a, b in zip(other, first, strict=True)] == [
    *(False, True, True)
  ]
  assert len(_ids(other[1])) < len(_ids(first[1]))
  assert _content(first) == before


def test_a_changed_input_is_read_again(tmp_path):
  config = _config(tmp_path, names=('Short',))
  first = _run(config, tmp_path / 'run')
  path = tmp_path / 'part-1.jsonl'
  path.write_text(path.read_text() + '\n{"text": "one more document"}')
  assert len(_ids(_run(config, tmp_path / 'run')[1])) == len(_ids(first[1])) + 1


@pytest.mark.parametrize(
  ('workers', 'seen', 'unfinished'),
  [
    (1, '01-short*/stats/*.json', '01-short*'),
    (2, '02-twins*/shuffle/*-*-0', '02-twins*'),
  ],
)
def test_a_killed_run_goes_on_to_the_same_result(
  whole, tmp_path, workers, seen, unfinished
):
  folder, found = whole
  config = _config(folder)
  script = tmp_path / 'script.py'
  script.write_text(
    'import sys, json, ml_collections\n'
    'from yi_jax.curation import engine\n'
    'if __name__ == "__main__":\n'
    '  config = ml_collections.ConfigDict(json.loads(sys.argv[1]))\n'
    f'  engine.run(config, sys.argv[2], engine.Machine(workers={workers}))\n'
  )
  killed = tmp_path / 'killed' / 'stages'
  run = subprocess.Popen(
    [sys.executable, script, config.to_json(), str(killed.parent)],
    env={**os.environ, 'SLOW': '1'},
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  )
  deadline = time.monotonic() + 120
  while len(list(killed.glob(seen))) < 2:
    assert run.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.killpg(run.pid, signal.SIGKILL)
  run.wait()
  assert not list(killed.glob(f'{unfinished}/manifest.json'))
  after = _run(config, killed.parent, workers=workers)
  assert _content(after) == _content(found)
  assert not list(killed.glob('*/shuffle'))


def test_an_error_of_a_stage_is_shown_as_it_is(tmp_path):
  path = tmp_path / 'part-1.jsonl'
  config = _config(tmp_path, names=('Short', 'Upper'))
  path.write_text(path.read_text() + '\n{"text": "a POISON document"}')
  for workers in (1, 2):
    with pytest.raises(ValueError, match=r'^poisoned document web/part-1'):
      _run(config, tmp_path / 'run', workers=workers)


@pytest.mark.parametrize(
  ('writer', 'before'), [(shards.Writer, 8), (spill.Writer, 6)]
)
def test_a_full_disk_leaves_no_half_and_the_rerun_goes_on(
  whole, tmp_path, monkeypatch, writer, before
):
  folder, found = whole
  written = []
  real = writer.write

  def write(self, *what):
    written.append(what)
    if len(written) > before:
      raise OSError(errno.ENOSPC, 'No space left on device')
    real(self, *what)

  monkeypatch.setattr(writer, 'write', write)
  with pytest.raises(OSError, match='No space left') as error:
    _run(_config(folder), tmp_path / 'full')
  assert error.value.errno == errno.ENOSPC
  assert not list((tmp_path / 'full').rglob('.*.part-*'))
  assert not list((tmp_path / 'full').rglob('shuffle'))
  monkeypatch.setattr(writer, 'write', real)
  assert _content(_run(_config(folder), tmp_path / 'full')) == _content(found)


def test_a_stage_that_loses_batches_is_found_out(tmp_path):
  config = _config(
    tmp_path, names=('Forgetful',), read={'shard_documents': 5000}
  )
  with pytest.raises(ValueError, match='Forgetful lost 1 of 4 batches'):
    _run(config, tmp_path / 'run')


def test_too_much_damage_ends_the_run_and_names_the_cure(tmp_path):
  with gzip.open(tmp_path / 'bad.jsonl.gz', 'wb') as file:
    file.write(b'{"text": "good"}\n' * 90 + b'{"text": \n' * 10)
  config = _config(tmp_path, names=('Upper',))
  config.inputs = {'bad': {'files': str(tmp_path / 'bad.jsonl.gz')}}
  with pytest.raises(ValueError, match=r'10 of 100 .* input bad .*max_damaged'):
    _run(config, tmp_path / 'run')
  config.read.max_damaged = 0.1
  found = _run(config, tmp_path / 'run')
  assert found[0].manifest()['quarantine'] == {'bad': {'broken JSON': 10}}
  (path,) = pathlib.Path(found[0].folder, 'quarantine').iterdir()
  entries = [json.loads(line) for line in path.read_text().splitlines()]
  assert [entry['position'] for entry in entries] == list(range(90, 100))


def test_a_dry_run_reads_some_of_each_file_and_keeps_to_itself(tmp_path):
  config = _config(tmp_path, names=('Upper',))
  found = engine.run(config, str(tmp_path / 'run'), engine.Machine(), 30)
  ids = _ids(found[0])
  assert len(ids) == 30
  assert sum(i.startswith('web/part-2.jsonl/') for i in ids) == 10
  assert _ids(_run(config, tmp_path / 'run')[0]) != ids


def test_an_input_may_pass_a_stage_by(tmp_path):
  config = _config(tmp_path, files=1, names=('Short', 'Upper'))
  with config.unlocked():
    config.inputs.other = {
      'files': str(tmp_path / 'part-0.jsonl'),
      'skip': ('short',),
    }
  found = _run(config, tmp_path / 'run')
  short, upper = found[1].manifest()['counts']
  assert short['kept']['other|'][0] == 1100
  assert short['kept']['web|'][0] < 1100
  assert short['removed']['short.characters'].keys() == {'web|'}
  assert upper['changed'] == {k[:-1]: n for k, (n, _) in short['kept'].items()}
  config.inputs.other.skip = ('shorts',)
  with pytest.raises(ValueError, match="no stage 'shorts'; did you mean"):
    _run(config, tmp_path / 'run')
  config = _config(tmp_path, names=('Twins',))
  config.inputs.web.skip = ('twins',)
  with pytest.raises(ValueError, match='all documents at once'):
    _run(config, tmp_path / 'run')


def test_nothing_left_is_an_error(tmp_path):
  config = _config(tmp_path, short={'least': 10_000})
  with pytest.raises(ValueError, match='1,700 by short.characters'):
    _run(config, tmp_path / 'run')


def test_stages_run_under_a_runner_of_beam(tmp_path):
  config = _config(tmp_path, files=1, names=('Twins',))
  local = _content(_run(config, tmp_path / 'local'))
  beam = _run(config, tmp_path / 'beam', runner='BundleBasedDirectRunner')
  assert _content(beam) == local


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'stages': ['rulez']}, "no stage 'rulez'"),
    ({'stages': ['some_stages:Short'] * 2}, "names 'short' twice"),
    ({'inputs': {}}, 'inputs is empty'),
    ({'read': {'max_byte': 1}}, "did you mean 'max_bytes'"),
  ],
)
def test_a_wrong_config_is_refused_before_anything_runs(
  tmp_path, changes, message
):
  config = _config(tmp_path)
  with config.unlocked():
    for key, value in changes.items():
      config[key] = value
  with pytest.raises(ValueError, match=message):
    _run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
