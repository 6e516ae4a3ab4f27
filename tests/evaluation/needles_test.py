"""What is hidden: facts, keys, and needles of a file."""

import json

import pytest

from yi_jax.evaluation import needles

_LINE = {
  'language': 'en',
  'sentence': 'The bell of Dunmoor weighs {value} tons.',
  'question': 'How much does the bell of Dunmoor weigh?',
  'opening': 'The bell of Dunmoor weighs',
  'values': ['seven', 'nine'],
}


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_every_fact_is_whole(language):
  for seed in range(5):
    for needle in needles.facts(language, needles.MOST_FACTS, seed):
      values = (*needle.right, *needle.wrong)
      assert len(set(values)) == 5
      assert needle.sentence.count(needle.right[0]) == 1
      assert not any(value in needle.sentence for value in needle.wrong)
      # Nothing but the document tells the answer.
      asked = needle.question + needle.opening
      assert not any(value in asked for value in values)


def test_the_seed_decides_which_value_is_right():
  found = {needles.facts('zh', 1, seed)[0].right for seed in range(5)}
  assert len(found) == 5
  assert needles.facts('zh', 1, 0) == needles.facts('zh', 1, 5)


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_keys_have_numbers_of_their_own(language):
  for number, needle in enumerate(needles.keys(language, 3, 6, 2, seed=1)):
    assert needle.name == f'{language}-keys-{number + 1}'
    assert (len(needle.right), len(needle.wrong)) == (2, 7)
    assert len(needle.others) == 1 + 5
    texts = [needle.sentence, *(text for _, text in needle.others)]
    assert len(set(texts)) == 7
    # The other keys' numbers are what the answer is compared with.
    hidden = [text for text in texts if any(w in text for w in needle.wrong)]
    assert len(hidden) == 5
    assert needle.right[1] in needle.others[0][1]
  again = needles.keys(language, 3, 6, 2, seed=1)
  assert again[2] == needle
  assert needles.keys(language, 3, 6, 2, seed=2)[2] != needle


def test_needles_of_a_file(tmp_path):
  path = tmp_path / 'needles.jsonl'
  path.write_text(f'{json.dumps(_LINE)}\n\n')
  [needle] = needles.read(str(path))
  assert needle.sentence == 'The bell of Dunmoor weighs seven tons.'
  assert (needle.right, needle.wrong) == (('seven',), ('nine',))
  assert needle.traces() == ['The bell of Dunmoor weighs']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(question=''), 'line 1: question is missing'),
    (dict(sentence='The bell.'), 'line 1: the sentence has no {value}'),
    (dict(language='fr'), "line 1: language is 'fr'; there are: en, zh"),
    (dict(values=['one']), 'line 1: values are the right one and others'),
    (dict(values=['one', 'one']), 'line 1: values are the right one'),
    (dict(values=[7, 9]), r'line 1: values are a list .* not \[7, 9\]'),
    (dict(values='seven, nine'), 'line 1: values are a list of texts'),
    (dict(values=['one', '"']), 'line 1: values are a list of texts'),
    (dict(sentence=5), 'line 1: sentence is no text: 5'),
    (dict(language=['en']), 'line 1: language is no text'),
  ],
)
def test_a_bad_needle_is_refused(tmp_path, changes, message):
  path = tmp_path / 'needles.jsonl'
  path.write_text(json.dumps({**_LINE, **changes}))
  with pytest.raises(ValueError, match=message):
    needles.read(str(path))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'has no needles'),
    (b'{"a"', 'line 1: no JSON'),
    (b'["a"]', 'line 1: no JSON object with language, sentence'),
    (b'\xff', 'needles.jsonl: no valid UTF-8'),
  ],
)
def test_a_file_without_needles_is_refused(tmp_path, content, message):
  path = tmp_path / 'needles.jsonl'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    needles.read(str(path))


@pytest.mark.parametrize(
  ('numbers', 'message'),
  [
    ((1, 0, 1), '--keys takes 1 to 576, not 0'),
    ((1, 577, 1), '--keys takes 1 to 576, not 577'),
    ((1, 4, 0), '--values must be at least 1'),
    ((0, 4, 1), '--needles must be at least 1'),
  ],
)
def test_numbers_of_keys_that_make_no_sense(numbers, message):
  with pytest.raises(ValueError, match=message):
    needles.keys('en', *numbers, seed=0)
