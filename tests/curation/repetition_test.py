"""Repetition: against the definitions of the paper, written out plainly."""

import collections
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yi_jax.curation import repetition


def _repeats(words):
  numbers = {word: n for n, word in enumerate(dict.fromkeys(words))}
  items = np.array([numbers[word] for word in words], np.uint64)
  return repetition.Repeats(items, np.array([len(word) for word in words]))


def _top(words, n):
  grams = [' '.join(words[i : i + n]) for i in range(len(words) - n + 1)]
  if not grams:
    return 0
  gram, count = collections.Counter(grams).most_common(1)[0]
  return len(gram) * count


def _duplicated(words, n):
  seen, total, i = set(), 0, 0
  while i <= len(words) - n:
    gram = tuple(words[i : i + n])
    if gram in seen:
      total += sum(map(len, gram))
      i += n
    else:
      seen.add(gram)
      i += 1
  return total


@settings(max_examples=150)
@given(st.lists(st.sampled_from(['a', 'bb', 'ccc', 'dddd']), max_size=60))
def test_every_n_gram_counts_as_the_definition_says(words):
  repeats = _repeats(words)
  for n in range(2, 11):
    assert repeats.top(n) == _top(words, n)
    assert repeats.duplicated(n) == _duplicated(words, n)


@pytest.mark.parametrize('n', [2, 5, 10])
def test_long_texts_with_few_repeats(n):
  draw = random.Random(n)
  words = [f'w{draw.randrange(500)}' for _ in range(4_000)]
  words[3_000:3_200] = words[100:300]
  repeats = _repeats(words)
  assert repeats.duplicated(n) == _duplicated(words, n) > 0
  assert repeats.top(n) == _top(words, n)


def test_levels_may_be_asked_in_any_order():
  words = ['x', 'y', 'z'] * 20
  backwards = _repeats(words)
  assert [backwards.duplicated(n) for n in (9, 5, 2)] == [
    _duplicated(words, n) for n in (9, 5, 2)
  ]


def test_duplicate_parts_count_without_the_first():
  assert repetition.duplicates(['a', 'bc', 'bc', 'bc']) == (2, 4)
  assert repetition.duplicates(['a', 'b']) == (0, 0)
  assert repetition.duplicates([]) == (0, 0)
