"""What two prompts have in common, and how two answers differ."""

import random

import numpy as np
import pytest

from yi_jax.alignment.checks import pairs, texts

_SETTINGS = pairs.defaults()['duplicates']


@pytest.mark.parametrize(
  ('one', 'other', 'says'),
  [
    ('Yes, it is.', 'No.', 'yes against no'),
    ('是的，可以。', '不可以。', 'yes against no'),
    ('Yes, 12 of them.', 'Yeah, there are 13.', ''),  # both say yes
    ('5+7=12\n答案：12', '先加5\n答案：12', ''),
    ('5+7=12\n答案：12', '5+7=12\n答案：13', '12 against 13'),
    ('The answer is 0.5', 'Answer: 1/2', ''),
    ('It is 8,848 m.', 'About 8848 metres.', ''),
    ('It is 8,848 m.', 'About 9200 metres.', '8848 against 9200'),
    ('Nobody knows.', 'It is 3.', ''),
    # More digits than Python makes a number of.
    (f'答案：{"1" * 5_000}', f'答案：{"1" * 5_000}。', ''),
  ],
)
def test_answers_differ_in_substance(one, other, says):
  assert pairs.differ(one, other, None, 0.02) == says
  assert bool(pairs.differ(other, one, None, 0.02)) == bool(says)


def test_words_are_asked_last():
  assert 'in common' in pairs.differ('a sea', 'a hill', 0.0, 0.02)
  assert pairs.differ('a sea', 'a hill', 0.5, 0.02) == ''
  assert pairs.differ('Yes, a sea', 'yes: a hill', 0.0, 0.02) == ''


def test_every_pair_above_the_similarity_is_found():
  # Against all pairs by brute force.
  draw = random.Random(0)
  words = [f'w{k}' for k in range(300)]
  prompts = []
  for _ in range(60):
    base = draw.choices(words, k=30)
    prompts.append(' '.join(base))
    for _ in range(draw.randrange(3)):
      again = list(base)
      for _ in range(draw.randrange(4)):
        again[draw.randrange(30)] = draw.choice(words)
      prompts.append(' '.join(again))
  grams = []
  for prompt in prompts:
    parts = prompt.split()
    grams.append({tuple(parts[k : k + 3]) for k in range(len(parts) - 2)})
  wanted = {
    (a, b): len(grams[a] & grams[b]) / len(grams[a] | grams[b])
    for b in range(len(prompts))
    for a in range(b)
    if len(grams[a] & grams[b]) >= 0.8 * len(grams[a] | grams[b])
  }
  assert len(wanted) > 20
  found, similarity = pairs.similar(prompts, _SETTINGS)
  got = {
    tuple(sorted(pair)): value
    for pair, value in zip(found.tolist(), similarity, strict=True)
  }
  assert set(got) == set(wanted)
  for pair, value in wanted.items():
    assert got[pair] == pytest.approx(value)


def test_texts_without_words_are_like_nothing():
  found, similarity = pairs.similar(['', '!!', '?'], _SETTINGS)
  assert found.shape == (0, 2)
  assert not np.size(similarity)


@pytest.mark.parametrize(
  ('text', 'numbers'),
  [
    ('共1,000元，3.50元，1/2', ('1000', '3.5', '1/2')),
    ('-3 and x-3', ('-3', '3')),
    ('１２个', ('12',)),
    ('v2.1 and GPT4', ()),
    ('第30格', ('30',)),
  ],
)
def test_numbers_have_one_form(text, numbers):
  assert texts.numbers(text) == numbers


def test_slots_are_what_a_template_is_filled_with():
  one = texts.slots('How do you say “tree” 3 + 4 times?')
  assert one == (('3', '4'), ('+',), ('tree',))
  assert texts.slots('How do you say “TREE” 3 + 4 times?') == one
  assert texts.template('say “tree” 3 times') == 'say “” 0 times'
  assert texts.slots('画 □ 和 ○') != texts.slots('画 ○ 和 □')


@pytest.mark.parametrize(
  ('text', 'code'),
  [
    ('def f(x):\n  return x', True),
    ('SELECT a\nFROM b\nWHERE c', True),
    ('First, take the dough.\nThen wait.', False),
    ('x = 5', False),  # one line may be a formula
    ('12 × 3 = 36\n36 ÷ 4 = 9', False),
  ],
)
def test_code_is_told_from_prose(text, code):
  assert texts.is_code(text) == code


def test_written_leaves_code_and_tables_out():
  text = 'Look:\n```\nx x x\n```\n| a | b |\nx = 3;\nDone with `y`.'
  assert texts.written(text).split() == ['Look:', 'Done', 'with', '.']
