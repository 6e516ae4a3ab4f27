"""Judging answers: by their text, and by what is likelier."""

import math
import re

import numpy as np
import pytest

from yi_jax.evaluation import scoring
from yi_jax.serving import reading


@pytest.mark.parametrize(
  ('text', 'values', 'score'),
  [
    (' copper kettle.', ['copper kettle'], 1),
    (' "Copper  Kettle" in the hall', ['copper kettle'], 1),
    (' rusty copper kettle.', ['copper kettle'], 0),
    (' copper kettles', ['copper kettle'], 0),
    (' 482137.', ['48213'], 0),
    (' 48213.', ['48213'], 1),
    ('４８２１３。', ['48213'], 1),
    ('铜壶里。', ['铜壶'], 1),
    ('“铜壶”里', ['铜壶'], 1),
    ('木钟里，不是铜壶', ['铜壶'], 0),
    ('', ['铜壶'], 0),
    (' 111, 222 and 444', ['222', '333', '111'], 2 / 3),
  ],
)
def test_what_is_written_must_be_the_value(text, values, score):
  assert scoring.exact(text, values) == pytest.approx(score)


def test_the_likeliest_value_is_the_one_preferred():
  above, probability = scoring.judged([-2.0], [-3.0, -4.0])
  assert above == 1
  total = math.exp(-2) + math.exp(-3) + math.exp(-4)
  assert probability == pytest.approx(math.exp(-2) / total)
  assert scoring.judged([-3.5], [-3.0, -4.0])[0] == 0
  assert scoring.judged([-1.0, -9.0], [-5.0])[0] == 0.5
  assert scoring.judged([-5000.0], [-1.0])[1] < 1e-99


def test_an_answer_is_what_the_likeliest_tokens_say(reader, words, monkeypatch):
  row = words.encode('The king horse crown storm.')
  *held, last = row
  monkeypatch.setattr(scoring, '_END', re.compile('(?!)'))  # never
  # Token by token, without any draft.
  reader.read(held)
  plain, pending = [], last
  for _ in range(6):
    pending = int(reader.score([pending], keep=True).best[-1])
    plain.append(pending)
  assert not set(plain) & set(words.stop_ids)
  wanted = words.decode(plain)
  for draft in (plain[:4], [*plain[:2], 9, 9], [9], plain):
    reader.read(held)
    best = reader.score([last, *draft]).best
    found = scoring.write(reader, last, draft, best, 6, words)
    assert found == wanted


def test_an_answer_ends_with_its_sentence_or_a_stop(words):
  class Fixed:
    """Always likes the same tokens, and counts what it is asked."""

    def __init__(self, ids):
      self.ids, self.calls = ids, 0

    def score(self, text, keep=False):
      assert keep
      self.calls += 1
      best = np.array([self.ids.pop(0)])
      return reading.Scores(np.zeros(0), best)

  def write(text, more, room=20):
    draft = words.encode(text)
    fixed = Fixed(list(more))
    found = scoring.write(fixed, 1, draft, [*draft, more[0]], room, words)
    return found, fixed.calls

  [point] = words.encode('.')
  king = words.encode(' king')
  assert write(' storm', [point, 5, 5]) == (' storm.', 0)
  assert write(' storm', [words.stop_ids[0], 5]) == (' storm', 0)
  fixed = write(' storm', [king[0], king[0], point, 5])
  assert fixed[0].endswith('.')
