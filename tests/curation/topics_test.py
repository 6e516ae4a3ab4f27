"""Topics: learnt from small sources, told of new texts, kept by their rates."""

import json
import math

import numpy as np
import pytest

from yi_jax.curation import documents, topics
from yi_jax.data import sources

_PHRASES = ('buy now', 'cheap')


def _texts(words, count, mark=' ', more=()):
  """Returns a reader of texts made of some words."""

  def read(archives):
    del archives
    rng = np.random.default_rng(len(words[0]) + count)
    for number in range(count):
      chosen = [*rng.choice(words, 60), *rng.choice(_SHARED, 20)]
      # Every third text has something more in it.
      if number % 3 == 0 and more:
        chosen += [*more] * 3
      rng.shuffle(chosen)
      yield str(number), mark.join(chosen)

  return read


_SHARED = ['the', 'and', 'of', 'to']
_WORDS = {
  'sport': ['goal', 'match', 'team', 'league', 'striker', 'keeper'],
  'tennis': ['serve', 'court', 'match', 'racket', 'team'],
  'law': ['statute', 'clause', 'court', 'article', 'shall', 'penalty'],
  'shop': ['sofa', 'lamp', 'table', 'shelf', 'chair', 'colour'],
  'zh_law': ['法律', '条款', '规定', '处罚', '机关'],
  'zh_food': ['米饭', '好吃', '饺子', '餐厅', '味道'],
}


def _section(folder, **given):
  training = {
    'topics': {
      'en': {
        'sport': ('sport', 'tennis'),
        'law': ('law',),
        'home': ('shop',),
      },
      'zh': {'law': ('zh_law',), 'food': ('zh_food',)},
    },
    'phrases': _PHRASES,
    'characters': 60_000,
    'bits': 13,
    'steps': 15,
  }
  section = {'model': str(folder / 'topics'), 'rates': {'ads': 0.2}}
  return {**section, 'training': training, **given}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a model, and its card."""
  found = tmp_path_factory.mktemp('filters')
  with pytest.MonkeyPatch.context() as patch:
    for name, words in _WORDS.items():
      chinese = name.startswith('zh')
      source = sources.Source(
        *('', 'zh' if chinese else 'en', 'web', 0.1),
        _texts(
          words,
          90,
          '' if chinese else ' ',
          _PHRASES if name == 'shop' else (),
        ),
      )
      patch.setitem(sources.SOURCES, name, source)
    topics.Topics(_section(found)).train(found)
  return found


def _batch(texts, language='en'):
  return documents.Batch(
    ids=[f's/{i}' for i in range(len(texts))],
    texts=list(texts),
    languages=[language] * len(texts),
  )


def _new(words, count, seed=9):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(words, 40)) for _ in range(count)]


def test_held_out_documents_are_told_apart(folder):
  card = topics.Topics(_section(folder)).card()
  table = card['metrics']['Held-out documents by topic']
  assert [(row['language'], row['topic']) for row in table] == [
    *(('en', 'home'), ('en', 'law'), ('en', 'sport')),
    *(('zh', 'food'), ('zh', 'law')),
  ]
  for row in table:
    assert row['documents'] >= 3
    assert row['precision'] > 0.9
    assert row['recall'] > 0.9
  assert card['metrics']['accuracy, en'] > 0.95
  assert {
    row['source']: row['ads']
    for row in card['metrics']['Documents that are ads by the list']
  } == {**dict.fromkeys(_WORDS, 0), 'shop': 30}
  apart = card['metrics']['Recall of a source that training has not seen']
  assert [row['without'] for row in apart] == ['sport', 'tennis']
  assert all(0 <= row['recall'] <= 1 for row in apart)
  assert {row['topic'] for row in card['data']} == {
    *('sport', 'law', 'home', 'food'),
  }


def test_topics_of_new_texts(folder):
  # As a worker gets it: keys in another order.
  section = json.loads(json.dumps(_section(folder, rates={}), sort_keys=True))
  one = topics.Topics(section)
  told = []
  for name in ('sport', 'law', 'shop'):
    batch = one.process(_batch(_new(_WORDS[name], 20)))
    told.append({entry['topics'] for entry in batch.metadata})
    assert batch.scores['topics.probability'].min() > 0.5
    assert batch.scores['topics.margin'].min() > 0
    assert not any(batch.removed)
  assert told == [{'sport'}, {'law'}, {'home'}]
  ads = one.process(_batch(_new([*_WORDS['shop'], *_PHRASES * 2], 20)))
  assert {entry['topics'] for entry in ads.metadata} == {'ads'}
  chinese = one.process(_batch(['饺子好吃，味道米饭餐厅' * 5], 'zh'))
  assert chinese.metadata == [{'topics': 'food'}]
  # A language without a model has no topic, but ads.
  other = one.process(_batch(['ein Satz', 'buy now'], 'de'))
  assert other.metadata == [{'topics': 'unknown'}, {'topics': 'ads'}]
  assert np.isnan(other.scores['topics.probability'][0])


def test_what_no_topic_is_sure_of_is_unknown(folder):
  one = topics.Topics(_section(folder, least=0.97, rates={'unknown': 0}))
  texts = [' '.join(['court'] * 6 + ['lamp'] * 6 + ['goal'] * 6)]
  batch = one.process(_batch(texts))
  assert batch.metadata == [{'topics': 'unknown'}]
  assert batch.removed == ['topics.unknown']


def test_as_many_stay_as_the_rate_says(folder):
  one = topics.Topics(_section(folder, rates={'sport': 0.4, 'law': 1}))
  texts = [*_new(_WORDS['sport'], 20) * 40, *_new(_WORDS['law'], 20) * 5]
  batch = one.process(_batch(texts))
  kept = batch.removed[:800].count('')
  assert abs(kept - 320) < 4 * math.sqrt(800 * 0.4 * 0.6)
  assert set(batch.removed[:800]) == {'', 'topics.sport'}
  assert set(batch.removed[800:]) == {''}
  told = batch.trails[batch.removed.index('topics.sport')][-1][1]
  assert told.startswith('removed by sport: sport ')
  assert told.endswith(' >= 0.4')
  # The same choice whatever stands beside a document.
  for i in (3, 500, 899):
    alone = one.process(_batch(texts).select([i]))
    assert alone.removed[0] == batch.removed[i]
    assert alone.scores['topics.margin'][0] == batch.scores['topics.margin'][i]
  other = topics.Topics(_section(folder, rates={'sport': 0.4}, seed=1))
  assert other.process(_batch(texts)).removed != batch.removed


def test_words_that_sell_count_by_the_hundred():
  phrases = ['buy now', 'price', 'prices']
  assert topics.sells('Buy now! Prices fell.', phrases) == 5
  words = ' '.join(['word'] * 96)
  assert topics.sells(f'{words} price and the price', phrases) == 2
  assert topics.sells('priceless', phrases) == 0
  # 60 characters are 40 words.
  assert topics.sells('全场特价' * 15, ['特价']) == pytest.approx(37.5)


def _changed(**given):
  return {'training': {**topics.defaults()['training'], **given}}


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'rates': {'adds': 0}}, "topics.rates: a topic is 'adds': one of 'ads'"),
    ({'rates': {'news': 2}}, 'topics.rates.news is 2: a share'),
    ({'least': 7}, 'topics.least is 7: a probability'),
    (_changed(topics={'en': {'news': ('en_news',)}}), 'at least two topics'),
    (
      _changed(topics={'en': {'ads': ('a',), 'other': ('b',)}}),
      "'ads' is taken",
    ),
  ],
)
def test_a_wrong_section_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    topics.Topics(given)


def test_a_topic_without_texts_is_refused(tmp_path, monkeypatch):
  for name, count in (('sport', 20), ('shop', 0)):
    source = sources.Source('', 'en', 'web', 0.1, _texts(_WORDS[name], count))
    monkeypatch.setitem(sources.SOURCES, name, source)
  training = {
    'topics': {'en': {'sport': ('sport',), 'home': ('shop',)}},
    'bits': 10,
    'steps': 2,
  }
  section = _section(tmp_path, training=training, rates={})
  with pytest.raises(ValueError, match="no text of 'home' in 'en'"):
    topics.Topics(section).train(tmp_path)
