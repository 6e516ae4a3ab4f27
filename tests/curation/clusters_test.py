"""Clusters: planted topics come back, labels steer, chance is a hash."""

import json
import math

import ml_collections
import numpy as np
import pytest
from PIL import Image

from yi_jax.curation import (
  clusters,
  documents,
  engine,
  report,
  shards,
  tables,
)

_TOPICS = 6
_EACH = 50
_SMALL = {'count': 6, 'sample': 200, 'dimensions': 8, 'partitions': 3}


def _planted():
  """Returns ids and texts of six topics, two of them Chinese."""
  rng = np.random.default_rng(4)
  words = [
    [''.join(rng.choice(list('abcdefghij'), 5)) for _ in range(30)]
    for _ in range(_TOPICS)
  ]
  for k in (4, 5):
    words[k] = [chr(0x4E00 + 40 * k + j) for j in range(15)]
  shared = ['the', 'and', 'with', 'from']
  found = {}
  for n in range(_TOPICS * _EACH):
    own = rng.choice(words[n % _TOPICS], 25)
    text = ('' if n % _TOPICS > 3 else ' ').join(own)
    found[f's/{n}'] = f'{text} {" ".join(rng.choice(shared, 4))}'
  return found


_TEXTS = _planted()
_OWNER = {key: int(key[2:]) % _TOPICS for key in _TEXTS}
# Topic 2 is bad, topic 3 so so.
_LABEL = {2: 0.1, 3: 0.5}


def _batch(ids=tuple(_TEXTS)):
  batch = documents.Batch(ids=list(ids), texts=[_TEXTS[key] for key in ids])
  batch.score('quality')[:] = [_LABEL.get(_OWNER[key], 0.9) for key in ids]
  return batch


def _config(**given):
  return clusters.Clusters({**_SMALL, **given}).config


@pytest.fixture(scope='module')
def model():
  """What the sample teaches, without Beam; all stays."""
  config = _config(rates=())
  limit = clusters.smallest(clusters.draws(_batch(), 0), config['sample'])
  return clusters.fit(clusters.sampled(_batch(), [limit], None, config), config)


def _adjusted_rand(first, second):
  """Returns the adjusted Rand index (Hubert and Arabie 1985)."""
  pairs = np.zeros((max(first) + 1, max(second) + 1), int)
  np.add.at(pairs, (first, second), 1)
  both = sum(math.comb(int(n), 2) for n in pairs.ravel())
  rows, columns = (
    sum(math.comb(int(n), 2) for n in pairs.sum(axis)) for axis in (1, 0)
  )
  expected = rows * columns / math.comb(len(first), 2)
  return (both - expected) / ((rows + columns) / 2 - expected)


def test_planted_topics_come_back(model):
  batch = clusters.apply(_batch(), [model], _config())
  owners = [_OWNER[key] for key in batch.ids]
  members = [entry['clusters'] for entry in batch.metadata]
  assert _adjusted_rand(owners, members) > 0.97
  assert not any(batch.removed)
  shuffled = np.random.default_rng(0).permutation(members).tolist()
  assert abs(_adjusted_rand(owners, shuffled)) < 0.05
  own = [_TEXTS[key] for key in batch.ids if _OWNER[key] == 0]
  card = model.cards[members[batch.ids.index('s/0')]]
  assert len(card['terms']) == 10
  assert all(any(term in text for text in own) for term in card['terms'])
  assert card['quality'] == pytest.approx(0.9, abs=0.01)
  assert sum(card['sample'] for card in model.cards) == 200
  cards = [e['clusters.card'] for e in batch.metadata if 'clusters.card' in e]
  assert sorted(map(str, cards)) == sorted(map(str, model.cards))


def test_the_sample_is_chosen_by_hash_whatever_the_batches():
  config = _config(sample=70)
  whole = clusters.smallest(clusters.draws(_batch(), 0), 70)
  ids = list(_TEXTS)[::-1]
  parts = [_batch(ids[i : i + 41]) for i in range(0, len(ids), 41)]
  each = [clusters.smallest(clusters.draws(part, 0), 70) for part in parts]
  limit = clusters.smallest(tables.concatenate(each), 70)
  np.testing.assert_array_equal(limit['draw'], whole['draw'])
  rows = [clusters.sampled(part, [limit], None, config) for part in parts]
  rows = tables.concatenate(row for row in rows if row)
  assert tables.rows(rows) == 70
  first = clusters.fit(rows, config)
  second = clusters.fit(
    clusters.sampled(_batch(), [whole], None, config), config
  )
  np.testing.assert_array_equal(first.centres, second.centres)
  assert first.cards == second.cards


def test_a_document_gets_the_same_with_any_neighbours(model):
  config = _config()
  whole = clusters.apply(_batch(), [model], config)
  for key in ('s/3', 's/77', 's/299'):
    alone = clusters.apply(_batch([key]), [model], config)
    i = whole.ids.index(key)
    assert alone.metadata[0] == whole.metadata[i]
    assert alone.removed[0] == whole.removed[i]
    for name in ('clusters.distance', 'clusters.margin'):
      assert alone.scores[name][0] == whole.scores[name][i]


def test_rates_go_by_the_quality_of_clusters(model):
  config = _config(rates=((20, 0.3), (35, 0.7)))
  # Of six clusters of one size the lowest ends at 16.7 %, the second at 33.3.
  quality = np.array([card['quality'] for card in model.cards])
  sizes = np.array([card['sample'] for card in model.cards])
  rates = clusters.keep_rates(quality, sizes, config)
  assert rates[quality < 0.2] == [0.3]
  assert rates[(quality > 0.2) & (quality < 0.7)] == [0.7]
  assert (rates[quality > 0.7] == 1).all()
  absolute = _config(rates=((0.2, 0), (0.6, 0.5)), rates_by='quality')
  rates = clusters.keep_rates(
    np.array([0.1, 0.59, 0.6, np.nan]), None, absolute
  )
  assert rates.tolist() == [0, 0.5, 1, 1]
  # Equal ones share their percentile: here the first three end at 60 %.
  tied = clusters.keep_rates(
    np.array([0.2, 0.2, 0.2, 0.5, 0.6]),
    np.full(5, 20),
    _config(rates=((35, 0.5),)),
  )
  assert tied.tolist() == [0.5, 0.5, 0.5, 1, 1]
  by_hand = _config(rates=(), by_hand={'1': 0.25})
  rates = clusters.keep_rates(quality, sizes, by_hand)
  assert rates.tolist() == [1, 0.25, 1, 1, 1, 1]


def test_as_many_stay_as_the_rate_says(model):
  bad = min(range(6), key=lambda k: model.cards[k]['quality'])
  config = _config()
  rates = np.ones(6)
  rates[bad] = 0.3
  changed = clusters.dataclasses.replace(model, rates=rates)
  keys = [key for key in _TEXTS if _OWNER[key] == 2]
  ids = [f'{key}/{n}' for key in keys for n in range(20)]
  batch = documents.Batch(
    ids=ids, texts=[_TEXTS[key.rpartition('/')[0]] for key in ids]
  )
  batch = clusters.apply(batch, [changed], config)
  kept = batch.removed.count('')
  spread = math.sqrt(1000 * 0.3 * 0.7)
  assert abs(kept - 300) < 4 * spread
  assert set(batch.removed) == {'', 'clusters.rate'}
  told = batch.trails[batch.removed.index('clusters.rate')][-1]
  assert told[0] == 'clusters'
  assert f'of quality {model.cards[bad]["quality"]}: 0.' in told[1]
  # Another seed, another choice.
  other = clusters.apply(
    documents.Batch(ids=ids, texts=batch.texts), [changed], _config(seed=1)
  )
  assert other.removed != batch.removed


def test_texts_without_known_terms_stay(model):
  batch = documents.Batch(ids=['a', 'b'], texts=['12 34 !', _TEXTS['s/0']])
  batch = clusters.apply(batch, [model], _config())
  assert batch.metadata[0] == {'clusters': -1}
  assert not batch.removed[0]
  assert np.isnan(batch.scores['clusters.distance'][0])


def test_labels_of_a_file_count_wherever_they_are(tmp_path):
  path = tmp_path / 'labels.jsonl'
  labelled = [key for key in _TEXTS if _OWNER[key] == 4][:9]
  lines = [json.dumps({'id': key, 'label': False}) for key in labelled]
  path.write_text('\n'.join(lines))
  config = _config(labels=str(path), sample=80)
  limit = clusters.smallest(clusters.draws(_batch(), 0), 80)
  labels = clusters.read_labels(str(path))
  rows = clusters.sampled(_batch(), [limit], labels, config)
  assert tables.rows(rows) > 80
  assert rows['inside'].sum() == 80
  cards = clusters.fit(rows, config).cards
  assert sorted(str(card['quality']) for card in cards)[:2] == ['0.0', 'None']
  assert sum(card['labels'] for card in cards) == 9
  before = clusters.Clusters(config).identity()
  path.write_text('{"id": "s/1", "label": 1}')
  assert clusters.Clusters(config).identity() != before
  with pytest.raises(ValueError, match='names no document that got here'):
    clusters.fit({**rows, 'label': np.full(len(rows['label']), np.nan)}, config)


def first_letters(texts):
  found = np.zeros((len(texts), 3), np.float32)
  for row, text in zip(found, texts, strict=True):
    row[0 if text[0] < 'e' else 1 if text[0] < 'z' else 2] = 1
  return found


def test_an_encoder_of_ones_own():
  config = _config(encoder=f'{__name__}:first_letters', count=3)
  limit = clusters.smallest(clusters.draws(_batch(), 0), 200)
  model = clusters.fit(
    clusters.sampled(_batch(), [limit], None, config), config
  )
  assert model.lsa is None
  np.testing.assert_allclose(model.centres.max(1), 1, atol=1e-5)
  batch = clusters.apply(_batch(), [model], config)
  by_cluster = {}
  for entry, text in zip(batch.metadata, batch.texts, strict=True):
    vector = first_letters([text])[0].argmax()
    by_cluster.setdefault(entry['clusters'], set()).add(int(vector))
  assert sorted(by_cluster.values(), key=min) == [{0}, {1}, {2}]
  assert all(card['terms'] for card in model.cards)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'cuont': 3}, "no key 'cuont'"),
    ({'count': 0}, 'clusters.count is a whole number of at least 1'),
    ({'rates_by': 'share'}, "'share': one of"),
    ({'rates': (0.5,)}, 'has 0.5: it holds pairs'),
    ({'rates': ((10, 3),)}, r'rates\[0\] is 3: a share'),
    ({'by_hand': {'7': -1}}, r'by_hand\[7\] is -1: a share'),
    ({'by_hand': {'news': 0}}, "'news' is no number"),
    ({'labels': 'no/such.jsonl'}, 'labels: there is no .*such.jsonl'),
    ({'encoder': 'math:nothing'}, 'is no function: give'),
  ],
)
def test_a_wrong_section_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    clusters.Clusters(given)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"id": "a"}', 'line 2 of .* is no '),
    ('not json', 'line 2 of .* is no '),
    ('{"id": "a", "label": 7}', 'has the label 7: 0 is bad'),
  ],
)
def test_a_wrong_line_of_labels_is_named(tmp_path, line, message):
  path = tmp_path / 'labels.jsonl'
  path.write_text(f'{{"id": "a", "label": 1}}\n{line}\n')
  with pytest.raises(ValueError, match=message):
    clusters.read_labels(str(path))


def test_a_cluster_that_is_not_there_cannot_be_set_by_hand():
  config = _config(by_hand={'6': 0})
  with pytest.raises(ValueError, match='cluster 6: there are 6, from 0'):
    clusters.keep_rates(np.ones(6), np.ones(6), config)


def _run(folder, workers, shard):
  """Runs the cascade on two files; returns its passes and config."""
  for name, kinds in (('latin', (0, 1, 2, 3)), ('han', (4, 5))):
    lines = [
      json.dumps({'text': text})
      for key, text in _TEXTS.items()
      if _OWNER[key] in kinds
    ]
    (folder / f'{name}.jsonl').write_text('\n'.join(lines))
  config = ml_collections.ConfigDict(
    {
      'root': str(folder / 'data'),
      'inputs': {
        name: {'files': str(folder / f'{name}.jsonl'), 'language': language}
        for name, language in (('latin', 'en'), ('han', 'zh'))
      },
      'read': {'shard_documents': shard},
      'stages': ('clusters',),
      'fuse': True,
      'clusters': {**_SMALL, 'by_hand': {'0': 0.5}},
      'report': {'vocabulary': 'none'},
    }
  )
  machine = engine.Machine(workers=workers)
  return engine.run(config, str(folder / 'run'), machine), config


def _kept(found):
  """Returns what is kept, by id, and which are removed."""
  last, batches = found[-1], []
  for side in ('kept', 'removed'):
    for path in sorted((last.folder / side).glob('*.parquet')):
      batches += shards.read(path)
  whole = documents.concatenate(batches)
  order = np.argsort(whole.ids)
  return whole.select(order)


def test_neither_workers_nor_batches_decide_and_the_page_tells(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
  found, config = _run(tmp_path / 'one', 1, 1000)
  other, _ = _run(tmp_path / 'two', 2, 37)
  first, second = _kept(found), _kept(other)
  assert first.ids == second.ids
  assert first.removed == second.removed
  assert first.metadata == second.metadata
  assert 0 < len(first.alive()) < len(first)
  for name in ('clusters.distance', 'clusters.margin'):
    np.testing.assert_array_equal(first.scores[name], second.scores[name])
  facts = report.write(config, str(tmp_path), found, 1)
  rows = facts['groups']['clusters']
  assert sum(row['documents'] for row in rows) == len(_TEXTS)
  assert sum(row['kept'] for row in rows) == len(first.alive())
  assert {row['rate'] for row in rows} == {0.5, 1.0}
  page = (tmp_path / 'clusters.html').read_text()
  assert page.count('<details id=') == 6
  assert 'at the border' in page
  assert rows[0]['terms'][0] in page
  assert 'href="clusters.html"' in (tmp_path / 'report.html').read_text()
  with Image.open(tmp_path / 'clusters.png') as image:
    assert min(image.size) > 300
    assert len(image.convert('RGB').getcolors(1 << 20)) > 10
