"""prepare: from texts to rows, held-out apart, resumable, never half written."""

import errno
import fcntl
import gzip
import json
import lzma
import random
import signal
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from yi_jax import prepare
from yi_jax.data import assembly, atomic, mixtures, prepared, rows, vocabulary
from yi_jax.training import run_config

# Importing one of these in a process that only trains would cost seconds.
_LIGHT = """
import sys
import yi_jax.data.loader, yi_jax.data.rows, yi_jax.data.vocabulary
import yi_jax.data.mixtures, yi_jax.data.prepared, yi_jax.data.packing
import yi_jax.prepare
heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'apache_beam'}
print(sorted(heavy & set(sys.modules)))
"""

# Kills itself in the middle of the n-th folder of rows.
_KILLED = """
import os, signal, sys
import ml_collections, json
from yi_jax import prepare
from yi_jax.data import mixtures, rows
for name, path in json.loads(sys.argv[1]).items():
  mixtures.register_files(name, path)
config = ml_collections.ConfigDict(json.loads(sys.argv[2]))
close, left = rows.RowWriter.close, [int(sys.argv[3])]
def killing(self, **facts):
  close(self, **facts)
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), signal.SIGKILL)
rows.RowWriter.close = killing
prepare.prepare(config)
"""


_WORDS = (
  'the king said that his horse and crown were lost in a storm at sea while '
  'ships of the queen sailed home to her green fields with gold for all men'
)
_CHARACTERS = '国家保护公民的合法权益任何组织和个人不得侵犯本法自公布之日起施行'


@pytest.fixture
def texts(tmp_path, monkeypatch):
  """Registers two small tasks of JSON lines; returns their documents.

  One English document is repeated, one line of the Chinese file is no UTF-8.
  """
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  documents = {
    'en_books_tiny': [
      ' '.join(_draw(_WORDS.split(), seed, 20 + seed)) for seed in range(120)
    ],
    'zh_other_tiny': [
      ''.join(_draw(_CHARACTERS, seed, 30 + seed)) for seed in range(90)
    ],
  }
  documents['en_books_tiny'].append(documents['en_books_tiny'][7])
  for name, contents in documents.items():
    path = tmp_path / f'{name}.jsonl.gz'
    with gzip.open(path, 'wb') as file:
      for content in contents:
        row = json.dumps({'text': content}, ensure_ascii=False)
        file.write(row.encode() + b'\n')
      if name.startswith('zh'):
        file.write(b'{"text": "\xff\xfe"}\n')
    mixtures.register_files(name, str(path))
  return documents


@pytest.fixture
def config(tmp_path):
  """Returns a run's config over the `texts` tasks, with its own data root."""
  return ml_collections.ConfigDict(
    {
      'data': {
        'root': str(tmp_path / 'data'),
        'mixture': 'quickstart',
        'rates': {'en_books_tiny': 0.6, 'zh_other_tiny': 0.4},
        'samples': {},
        'stages': (),
        'lengths': (),
        'vocabulary': 'tiny',
        'vocabulary_size': 350,
        'length': 16,
        'batch_tokens': 64,
        'heldout_fraction': 0.01,
        'heldout_bytes': 900,
        'chat': run_config.defaults()['data']['chat'],
        'long': run_config.defaults()['data']['long'],
      }
    }
  )


def _draw(alphabet, seed, count):
  return random.Random(seed).choices(alphabet, k=count)


def _documents(data, split):
  """Returns what the rows of each task say, document by document."""
  words = vocabulary.load(prepared.vocabulary_folder(data))
  found = {}
  for task, reader in prepared.open_prepared(data, split).readers.items():
    tokens = []
    for index in range(len(reader)):
      row = reader[index]
      tokens += row['targets'][row['loss_weights'] > 0].tolist()
    text = words.decode(tokens)
    assert text.endswith('<|endoftext|>')
    found[task] = text.split('<|endoftext|>')[:-1]
  return found


def _files(root):
  """Returns path -> (content hash, time of change) of all that is there."""
  return {
    path: (path.stat().st_size, path.stat().st_mtime_ns)
    for path in root.rglob('*')
    if path.is_file() and not path.name.startswith('.lock')
  }


def test_rows_hold_every_document_once_and_the_splits_are_disjoint(
  texts, config
):
  prepare.prepare(config)
  train = _documents(config.data, 'train')
  held = _documents(config.data, 'heldout')
  for task, documents in texts.items():
    assert sorted(train[task] + held[task]) == sorted(documents)
    assert not set(train[task]) & set(held[task])  # a copy is on one side too
    assert train[task] == [d for d in documents if d not in set(held[task])]


def test_held_out_bytes_are_counted_and_enough(texts, config):
  prepare.prepare(config)
  opened = prepared.open_prepared(config.data, 'heldout')
  for task, documents in _documents(config.data, 'heldout').items():
    assert opened.bytes[task] == sum(len(d.encode()) for d in documents)
    assert 900 <= opened.bytes[task] < 1_400
  assert opened.languages == {'en_books_tiny': 'en', 'zh_other_tiny': 'zh'}
  assert opened.stages == [(0, {'en_books_tiny': 0.6, 'zh_other_tiny': 0.4})]


def test_the_held_out_text_is_there_for_xz_and_others(texts, config):
  prepare.prepare(config)
  opened = prepared.open_prepared(config.data, 'heldout')
  folder = prepared.heldout_folder(config.data, opened.keys)
  documents = _documents(config.data, 'heldout')
  for language, task in (('en', 'en_books_tiny'), ('zh', 'zh_other_tiny')):
    content = (folder / f'{language}.txt').read_bytes()
    assert content.decode() == ''.join(d + '\n' for d in documents[task])
    packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    expected = 8 * len(packed) / opened.bytes[task]
    assert opened.xz[language] == pytest.approx(expected)


def test_every_stage_is_told_and_skipped_the_second_time(texts, config, capsys):
  prepare.prepare(config)
  first = capsys.readouterr().out
  for part in (
    'survey  en_books_tiny: 121 documents',
    'vocabulary  tiny: 350 pieces',
    'rows  zh_other_tiny: 90 documents',
    'skipped 1 invalid UTF-8',
    'bits per byte',
  ):
    assert part in first
  before = _files(prepared.root(config.data))
  prepare.prepare(config)
  assert 'everything is in' in capsys.readouterr().out
  assert _files(prepared.root(config.data)) == before


def test_another_length_packs_again_and_keeps_the_rest(texts, config, capsys):
  prepare.prepare(config)
  before = _files(prepared.root(config.data))
  capsys.readouterr()
  config.data.length = 32
  prepare.prepare(config)
  shown = capsys.readouterr().out
  assert 'survey' not in shown
  assert 'vocabulary  tiny: there' in shown
  after = _files(prepared.root(config.data))
  changed = {path.name for path in before if before[path] != after[path]}
  assert changed <= {'en.txt', 'zh.txt'}
  row = prepared.open_prepared(config.data, 'train').readers['zh_other_tiny'][0]
  assert row['tokens'].shape == (32,)
  config.data.length = 16
  assert prepare.is_current(config.data)


def test_changed_texts_are_packed_again(texts, config):
  prepare.prepare(config)
  path = mixtures.get('en_books_tiny').pattern.replace('.gz', '')
  content = [*texts['en_books_tiny'], 'a new document about the sea']
  with open(path, 'w') as file:
    file.writelines(json.dumps({'text': text}) + '\n' for text in content)
  mixtures.TASKS['en_books_tiny'] = mixtures.Task('en_books_tiny', pattern=path)
  prepare.prepare(config)
  found = _documents(config.data, 'train')['en_books_tiny']
  found += _documents(config.data, 'heldout')['en_books_tiny']
  assert sorted(found) == sorted(content)


def test_shards_hold_together_what_one_process_packs(texts, config, capsys):
  prepare.prepare(config, (1, 3))
  prepare.prepare(config, (0, 3))
  assert 'waits for its other shards' in capsys.readouterr().out
  with pytest.raises(FileNotFoundError, match=r'yi_jax\.prepare'):
    prepared.open_prepared(config.data, 'train')
  prepare.prepare(config, (2, 3))
  found = [_documents(config.data, split) for split in prepared.SPLITS]
  ids = []
  for reader in prepared.open_prepared(config.data, 'train').readers.values():
    ids += [int(reader[i]['row_id']) for i in range(len(reader))]
  assert len(set(ids)) == len(ids)
  for task, documents in texts.items():
    assert sorted(found[0][task] + found[1][task]) == sorted(documents)


@pytest.mark.parametrize('closed', [1, 3])
def test_a_killed_run_leaves_nothing_half_and_goes_on(
  closed, texts, config, tmp_path
):
  patterns = {name: mixtures.get(name).pattern for name in texts}
  arguments = [json.dumps(patterns), config.to_json(), str(closed)]
  result = subprocess.run(
    [sys.executable, '-c', _KILLED, *arguments], capture_output=True, text=True
  )
  assert result.returncode == -signal.SIGKILL, result.stderr
  finished = [
    path.parent
    for path in (tmp_path / 'data' / 'rows').rglob('0*-of-*')
    if path.is_dir() and not path.name.startswith('.')
  ]
  # Two splits a task: the task in which it was killed is not there.
  assert len(finished) == closed // 2
  with pytest.raises(FileNotFoundError):
    prepared.open_prepared(config.data, 'train')
  prepare.prepare(config)
  found = [_documents(config.data, split) for split in prepared.SPLITS]
  for task, documents in texts.items():
    assert sorted(found[0][task] + found[1][task]) == sorted(documents)
  assert not list((tmp_path / 'data').rglob('*.part-*'))


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.ENOSPC, 'full'),
    ValueError('array_record: No space left on device'),
  ],
)
def test_a_full_disk_is_explained_and_what_is_finished_is_kept(
  error, texts, config, capsys
):
  real = rows.RowWriter.write
  with pytest.MonkeyPatch.context() as patch:

    def full(self, row):
      if self.rows == 50 and 'zh' in str(self._folder):
        raise error
      real(self, row)

    patch.setattr(rows.RowWriter, 'write', full)
    with pytest.raises(OSError, match='is full; what was finished is kept'):
      prepare.prepare(config)
  capsys.readouterr()
  prepare.prepare(config)
  assert 'rows  en_books_tiny: there' in capsys.readouterr().out


def test_a_second_prepare_waits_for_the_first(texts, config):
  script = (
    'import sys, pathlib, time; from yi_jax.data import atomic\n'
    'with atomic.locked(pathlib.Path(sys.argv[1])):\n'
    '  print("held", flush=True); sys.stdin.read()\n'
    '  pathlib.Path(sys.argv[2]).write_text("released")\n'
  )
  root = prepared.root(config.data)
  released = root / 'released'
  root.mkdir()
  with subprocess.Popen(
    [sys.executable, '-c', script, str(root / '.lock'), str(released)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    assert other.stdout.readline() == 'held\n'
    with pytest.raises(BlockingIOError):
      _try_lock(root / '.lock')
    other.stdin.close()  # it goes on now, while we wait
    with atomic.locked(root / '.lock'):
      assert released.read_text() == 'released'


def _try_lock(path):
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_vocabulary_of_that_name_is_kept_whatever_the_text(texts, config):
  prepare.prepare(config)
  before = prepared.open_prepared(config.data, 'train').vocabulary_hash
  config.data.rates = {'zh_other_tiny': 1.0}
  prepare.prepare(config)
  assert prepared.open_prepared(config.data, 'train').vocabulary_hash == before
  config.data.vocabulary_size = 360
  with pytest.raises(
    ValueError, match='has 350 pieces and the config asks for'
  ):
    prepare.prepare(config)


def test_the_vocabulary_is_trained_on_training_text_only(
  texts, config, monkeypatch
):
  real, seen = vocabulary.train, []

  def train(sample, *rest):
    seen.extend(sample)
    return real(seen, *rest)

  monkeypatch.setattr(vocabulary, 'train', train)
  prepare.prepare(config)
  found = _documents(config.data, 'train')
  assert sorted(seen) == sorted(sum(found.values(), []))  # it is small: all


def test_rows_of_another_vocabulary_are_refused(texts, config):
  prepare.prepare(config)
  folder = prepared.vocabulary_folder(config.data)
  for path in folder.iterdir():
    path.unlink()
  folder.rmdir()
  vocabulary.train(texts['en_books_tiny'], 340, folder)
  with pytest.raises(ValueError, match='changed since the rows were made'):
    prepared.open_prepared(config.data, 'train')


def test_what_was_not_prepared_names_the_command(config, texts):
  with pytest.raises(FileNotFoundError, match=r'python -m yi_jax\.prepare'):
    prepared.open_prepared(config.data, 'train')
  with pytest.raises(ValueError, match="no split 'valid'"):
    prepared.open_prepared(config.data, 'valid')


def test_a_task_without_documents_is_named(texts, config, tmp_path):
  (tmp_path / 'none.jsonl').write_text('{"text": ""}\n')
  mixtures.register_files('en_web_none', str(tmp_path / 'none.jsonl'))
  config.data.rates = {'en_books_tiny': 1.0, 'en_web_none': 1.0}
  with pytest.raises(ValueError, match='en_web_none has no documents'):
    prepare.prepare(config)


def test_too_little_text_for_the_split_is_refused(texts, config):
  config.data.heldout_bytes = 10**6
  with pytest.raises(ValueError, match=r'lower data\.heldout_bytes'):
    prepare.prepare(config)


def test_a_task_of_rate_0_is_evaluated_but_not_read(texts, config):
  config.data.rates = {'en_books_tiny': 1.0, 'zh_other_tiny': 0.0}
  prepare.prepare(config)
  assert (
    'zh_other_tiny' in prepared.open_prepared(config.data, 'heldout').readers
  )


def test_later_stages_read_tasks_of_their_own(texts, config):
  config.data.rates = {'en_books_tiny': 1.0}
  # 161 tokens: the first row after them, of 16 each.
  both = {'en_books_tiny': 0.5, 'zh_other_tiny': 0.5}
  config.data.stages = ((161, {'zh_other_tiny': 3}), (1600.0, both))
  prepare.prepare(config)
  opened = prepared.open_prepared(config.data, 'train')
  assert opened.stages == [
    (0, {'en_books_tiny': 1.0, 'zh_other_tiny': 0.0}),
    (11, {'en_books_tiny': 0.0, 'zh_other_tiny': 3}),
    (100, both),
  ]
  assert set(opened.readers) == {'en_books_tiny', 'zh_other_tiny'}


@pytest.mark.parametrize(
  ('stages', 'message'),
  [
    ((160, {'en_books_tiny': 1}), 'data.stages is .*160 cannot follow row 0'),
    (((160, 0.5),), r'\(160, 0.5\) cannot follow'),
    (((160, {}),), 'cannot follow'),
    (((0, {'en_books_tiny': 1}),), 'rise from above 0'),
    ((('x', {'en_books_tiny': 1}),), 'first token'),
    (
      ((161, {'en_books_tiny': 1}), (170, {'zh_other_tiny': 1})),
      'cannot follow row 11',
    ),
    (((160, {'en_books_tinny': 1}),), "did you mean 'en_books_tiny'"),
    (((160, {'en_books_tiny': -1}),), 'en_books_tiny is negative'),
    (((160, {'en_books_tiny': 'x'}),), 'en_books_tiny is no number'),
    (((160, {'en_books_tiny': 0}),), 'all rates are 0'),
  ],
)
def test_stages_that_make_no_sense_are_refused(texts, config, stages, message):
  config.data.stages = stages
  with pytest.raises(ValueError, match=message):
    prepare.prepare(config)


@pytest.mark.parametrize('shard', ['1/1', '-1/2', 'x', '2'])
def test_a_bad_shard_is_refused(shard, texts, config):
  prepare.FLAGS(['prepare', f'--shard={shard}'])
  with pytest.raises(ValueError, match='--shard is i/n'):
    prepare.main(config)
  prepare.FLAGS.unparse_flags()


def test_reading_rows_imports_no_tensorflow():
  result = subprocess.run(
    [sys.executable, '-c', _LIGHT], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


def test_rows_do_not_depend_on_how_documents_are_batched(
  texts, config, tmp_path, monkeypatch
):
  prepare.prepare(config)
  one = prepared.open_prepared(config.data, 'train')
  monkeypatch.setattr(assembly, '_BATCH_BYTES', 100)
  config.data.root = str(tmp_path / 'other')
  prepare.prepare(config)
  other = prepared.open_prepared(config.data, 'train')
  assert one.vocabulary_hash == other.vocabulary_hash
  for task, reader in one.readers.items():
    assert len(reader) == len(other.readers[task])
    for index in range(len(reader)):
      np.testing.assert_array_equal(
        reader[index]['tokens'], other.readers[task][index]['tokens']
      )


def test_rows_of_every_length_of_a_run_are_made(texts, config):
  config.data.lengths = ((1000, 32), (5000, 16))
  prepare.prepare(config)
  for length in (16, 32):
    data = prepared.at_length(config.data, length)
    assert prepare.is_current(data)
    row = prepared.open_prepared(data, 'train').readers['en_books_tiny'][0]
    assert row['tokens'].shape == (length,)
  # The same documents are held out: what is read later was never learned.
  held = [
    _documents(prepared.at_length(config.data, length), 'heldout')
    for length in (16, 32)
  ]
  assert held[0] == held[1]


def test_rows_of_two_lengths_from_different_text_are_refused(texts, config):
  config.data.lengths = ((1000, 32),)
  prepare.prepare(config)
  prepared.refuse_other_text(config.data)
  with gzip.open(mixtures.get('en_books_tiny').pattern, 'ab') as file:
    file.write(b'{"text": "a new document about the sea"}\n')
  longer = ml_collections.ConfigDict(
    {'data': prepared.at_length(config.data, 32)}
  )
  prepare.prepare(longer)
  with pytest.raises(ValueError, match='en_books_tiny has changed between'):
    prepared.refuse_other_text(config.data)
  prepare.prepare(config)
  prepared.refuse_other_text(config.data)
