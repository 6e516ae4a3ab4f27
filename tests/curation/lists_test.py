"""Block lists: what they match, and that a long list costs no more."""

import re

import pytest

from yi_jax.curation import documents, lists


def _batch(texts, urls=None, language='en'):
  ids = [str(n) for n in range(len(texts))]
  return documents.Batch(
    ids=ids,
    texts=texts,
    urls=urls or [''] * len(texts),
    languages=[language] * len(texts),
  )


def _file(tmp_path, name, *rows):
  path = tmp_path / name
  path.write_text('\n'.join(rows), encoding='utf-8')
  return str(path)


def test_addresses_are_blocked_by_domain_and_by_part(tmp_path):
  config = {
    'domains': (_file(tmp_path, 'd', '# mine', 'bad.com  # why', ''),),
    'addresses': (_file(tmp_path, 'a', 'bet'),),
    'words': {},
  }
  urls = {
    'http://bad.com/x': 'lists.domain',
    'https://A.B.BAD.com:80/': 'lists.domain',
    'bad.com/page': 'lists.domain',
    'http://notbad.com/': '',
    'http://bad.com.org/': '',
    'http://good.com/bet/1': 'lists.address',
    'http://good.com/alphabet': '',
    'http://[broken/': '',
    '': '',
  }
  batch = _batch(['text'] * len(urls), list(urls))
  lists.Lists(config).process(batch)
  assert batch.removed == list(urls.values())
  assert batch.trails[1] == [('lists', 'removed by domain: bad.com')]


def test_one_mention_is_no_reason_and_many_are():
  page = 'Online casino! Best online casino with free spins and casino bonus.'
  article = 'The online casino was closed. ' + 'It had been open. ' * 100
  batch = _batch([page, article, 'nothing'])
  lists.Lists({}).process(batch)
  assert batch.removed == ['lists.words', '', '']
  assert batch.trails[0][0][1] == (
    'removed by words: 5 > 2 in 1,000: online casino 2, best online casino 1, '
    'free spins 1'
  )
  spam = _batch(
    ['澳门赌场，百家乐，六合彩，时时彩', '六合彩是什么'], language='zh'
  )
  lists.Lists({}).process(spam)
  assert spam.removed == ['lists.words', '']


def test_words_count_as_a_search_finds_them():
  words = ['ab', 'abc', 'b c', 'ö', '中文', 'online casino', 'online']
  text = 'ab abc, ab-abcd b c 中文中文 ö aB 5ab Online casino, online casinos'
  whole = lists.Words(words, whole=True).count(text)
  inside = lists.Words(words, whole=False).count(text)
  for word in words:
    assert inside[word] == len(re.findall(word, text.lower()))
    between = rf'(?<![^\W_]){word}(?![^\W_])'
    assert whole[word] == len(re.findall(between, text.lower()))
  assert lists.Words([], True).count(text).total() == 0
  assert lists.Words(words, True).count('').total() == 0


def test_long_lists_find_every_planted_word():
  words = [f'word{number}' for number in range(20_000)]
  text = ' '.join(words[::100])
  assert lists.Words(words, True).count(text).total() == 200


def test_another_list_is_another_identity(tmp_path):
  path = _file(tmp_path, 'd', 'a.com')
  stage = lists.Lists({'domains': (path,)})
  before = stage.identity()
  _file(tmp_path, 'd', 'b.com')
  assert stage.identity() != before


@pytest.mark.parametrize('text', ['\x00', '\ud800', 'İ' * 50])
def test_odd_texts_pass(text):
  batch = _batch([text])
  lists.Lists({}).process(batch)
  assert batch.removed == ['']


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'domain': ()}, "lists has no key 'domain'; did you mean 'domains'"),
    ({'words_per_thousand': 0}, 'lists.words_per_thousand is 0: above 0'),
  ],
)
def test_a_wrong_config_names_the_key(config, message):
  with pytest.raises(ValueError, match='lists') as error:
    lists.Lists(config)
  assert message in str(error.value)


def test_a_list_that_is_missing_or_no_text_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='gone.txt is not there'):
    lists.Lists({'domains': (str(tmp_path / 'gone.txt'),)}).setup()
  bad = tmp_path / 'bad.txt'
  bad.write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='bad.txt is not UTF-8'):
    lists.Lists({'domains': (str(bad),)}).setup()
