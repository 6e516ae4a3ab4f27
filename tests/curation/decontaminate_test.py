"""Decontamination: shared 13-grams are found in any dress, others stay."""

import pathlib

import numpy as np
import pytest

from yi_jax.curation import decontaminate, documents

_QUESTION = (
  'Janet has sixteen ducks; each lays two eggs a day. How many eggs does she '
  'sell at the market if she eats three for breakfast?'
)
_CHINESE = '小明有十六个苹果，他每天吃掉两个，又送给妹妹三个，请问几天以后苹果会全部吃完？'


def _prose(number, count=60):
  return ' '.join(f'prose{number}x{k}' for k in range(count))


@pytest.fixture
def made(tmp_path):
  """Makes the stage over a benchmark of two items."""
  own = tmp_path / 'own'
  own.mkdir()
  (own / 'one.txt').write_text(_QUESTION)
  (own / 'two.txt').write_text(_CHINESE)
  (own / 'three.txt').write_text(' '.join(str(k) for k in range(100)))

  def make(**config):
    return decontaminate.Decontaminate(
      {
        'packaged': False,
        'files': (str(own / '*.txt'),),
        'cache': str(tmp_path / 'cache'),
        **config,
      }
    )

  return make


def _batch(texts):
  return documents.Batch(ids=[f's/{i}' for i in range(len(texts))], texts=texts)


_SHOUTED = _QUESTION.upper().replace(' ', '\n').replace(';', ' --')
_TEXTS = [
  f'{_prose(0)} {_QUESTION} {_prose(1)}',
  _SHOUTED,
  # Twelve words of it, and thirteen.
  f'{_prose(2)} {" ".join(_QUESTION.split()[:12])} {_prose(3)}',
  f'{_prose(4)} {" ".join(_QUESTION.split()[:13])} {_prose(5)}',
  f'你好。{_CHINESE[2:26]}再见',
  f'你好。{_CHINESE[2:18]}再见',  # 15 characters
  ' '.join(str(k) for k in range(100)),  # numbers prove nothing
  '',
]


def test_thirteen_shared_words_or_twenty_characters_drop_a_document(made):
  batch = made().process(_batch(_TEXTS))
  hit = 'decontaminate.benchmark'
  assert batch.removed == [hit, hit, '', hit, hit, '', '', '']
  assert batch.trails[3] == [
    ('decontaminate', 'removed by benchmark: 1 n-grams of own')
  ]


def test_a_longer_ngram_finds_less(made):
  batch = made(ngram=20, ngram_chinese=30).process(_batch(_TEXTS))
  assert [bool(rule) for rule in batch.removed] == [
    *(True, True, False, False, False, False, False, False)
  ]


def test_ngrams_do_not_reach_from_one_text_into_the_next(made):
  words = _QUESTION.split()
  texts = [' '.join(words[:10]), ' '.join(words[10:20])]
  assert made().process(_batch(texts)).removed == ['', '']


def test_cutting_leaves_the_rest(made):
  stage = made(action='cut', margin=2, least_left=30)
  texts = [*_TEXTS[:2], f'{_QUESTION} {_prose(0)} {_QUESTION}']
  batch = stage.process(_batch(list(texts)))
  left = batch.texts[0].split()
  assert left == [*_prose(0).split()[:-2], *_prose(1).split()[2:]]
  assert batch.removed == ['', 'decontaminate.least_left', '']
  assert batch.texts[2].split() == _prose(0).split()[2:-2]
  assert batch.trails[0][0][1].startswith('cut 1 places of own: ')
  batch = made(action='cut', most_cuts=1).process(_batch(texts))
  assert batch.removed[2] == 'decontaminate.most_cuts'


def test_the_ngrams_are_made_once(made, monkeypatch):
  first = made().process(_batch(_TEXTS))
  monkeypatch.setattr(decontaminate, 'make_index', None)
  again = made().process(_batch(_TEXTS))
  assert again.removed == first.removed
  with pytest.raises(TypeError):
    made(ngram=12).process(_batch(_TEXTS))


def test_the_index_finds_what_is_in_it_and_nothing_else():
  rng = np.random.default_rng(0)
  first, second, absent = rng.integers(0, 1 << 63, (3, 5000)).astype(np.uint64)
  second[:10] = first[:10]
  index = decontaminate.make_index([('a', first), ('b', second)])
  assert (index.find(absent) == -1).all()
  owners = index.owners[index.find(np.concatenate([first, second]))]
  assert set(owners[:5000]) == {0}
  assert set(owners[5000:5010]) == {0}
  assert set(owners[5010:]) == {1}
  assert index.names == ('a', 'b')


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'ngrams': 3}, "no key 'ngrams'; did you mean 'ngram'"),
    ({'action': 'keep'}, "'keep': 'drop' or 'cut'"),
    (
      {'packaged': False},
      'nothing to compare with: set decontaminate.packaged',
    ),
    ({'ngram': 1}, 'decontaminate.ngram is a whole number of at least 2'),
  ],
)
def test_a_wrong_section_is_refused(config, message):
  with pytest.raises(ValueError, match=message):
    decontaminate.Decontaminate(config)


def test_benchmarks_that_were_not_fetched_are_named(tmp_path: pathlib.Path):
  config = {'raw': str(tmp_path), 'cache': str(tmp_path / 'cache')}
  with pytest.raises(FileNotFoundError, match='--group=benchmarks'):
    decontaminate.Decontaminate(config).identity()
