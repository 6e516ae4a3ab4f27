"""Units and n-grams: against plain Python, and what does not count."""

import re

import numpy as np
import pytest

from yi_jax.curation import shingles


def _texts(units, text):
  return [
    text[begin:end] for begin, end in zip(units.starts, units.ends, strict=True)
  ]


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    ('Don’t panic -- 42!', ['Don', 't', 'panic', '42']),
    ('我爱Python3，真的。', ['我', '爱', 'Python3', '真', '的']),
    ('カタカナ々〇', list('カタカナ々〇')),
    ('naïve cafe\u0301 हिन्दी', ['naïve', 'cafe\u0301', 'हिन्दी']),
    ('𠀀a\ud800b😀', ['𠀀', 'a', 'b']),
    ('', []),
    (' \n.,;\0', []),
  ],
)
def test_units_are_words_and_single_han_characters(text, wanted):
  assert _texts(shingles.units([text]), text) == wanted


def test_case_width_and_punctuation_do_not_count():
  plain, other = 'don t stop 看书 abc', '“Don’t—STOP”, 看、书！ＡＢＣ'
  a, b = shingles.units([plain]), shingles.units([other])
  np.testing.assert_array_equal(a.hashes, b.hashes)
  assert len(set(a.hashes)) == 6


def test_a_unit_has_one_hash_wherever_it_stands():
  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('abc'), 4)) for _ in range(3000)]
  texts = [' '.join(words[:5]), '', '看' + ' '.join(words), words[7]]
  found = shingles.units(texts)
  assert list(np.diff(found.offsets)) == [5, 0, 3001, 1]
  by_word = {}
  spelt = [*words[:5], '看', *words, words[7]]
  for word, unit in zip(spelt, found.hashes, strict=True):
    assert by_word.setdefault(word, unit) == unit
  assert len(set(by_word.values())) == len(by_word)


def test_long_texts_and_many_texts_are_cut_without_a_trace(monkeypatch):
  texts = ['one two three ' * 40, '看书' * 300, 'x' * 900, '', 'four five']
  wanted = shingles.units(texts)
  monkeypatch.setattr(shingles, '_PIECE', 64)
  monkeypatch.setattr(shingles, '_BLOCK', 100)
  got = shingles.units([texts[0], texts[1], '', texts[4]])
  np.testing.assert_array_equal(got.starts[:720], wanted.starts[:720])
  np.testing.assert_array_equal(got.hashes[:720], wanted.hashes[:720])
  np.testing.assert_array_equal(got.hashes[-2:], wanted.hashes[-2:])
  firsts, sizes = zip(
    *[(first, len(u.hashes)) for first, u in shingles.blocks(texts[:2])],
    strict=True,
  )
  assert firsts == (0, 1)
  assert sizes == (120, 600)


@pytest.mark.parametrize('n', [1, 2, 5, 13, 50])
def test_ngrams_are_equal_where_the_units_are(n):
  rng = np.random.default_rng(n)
  counts = [0, 3, 60, 1, 0, 120]
  words = rng.integers(0, 2, sum(counts))
  text_words, offsets = [], np.concatenate([[0], np.cumsum(counts)])
  for begin, end in zip(offsets, offsets[1:], strict=False):
    text_words.append(tuple(words[begin:end]))
  hashes = np.array([11, 17], np.uint64)[words]
  got, bounds = shingles.ngrams(hashes, offsets, n)
  spelt = []
  for i, units in enumerate(text_words):
    own = [units[k : k + n] for k in range(max(len(units) - n + 1, 1))]
    own = own if units else []
    assert bounds[i + 1] - bounds[i] == len(own)
    spelt += own
  of = {}
  for gram, value in zip(spelt, got, strict=True):
    assert of.setdefault(gram, value) == value
  assert len(set(of.values())) == len(of)


def test_windows_match_a_polynomial_of_python_integers():
  hashes = np.random.default_rng(0).integers(0, 1 << 63, 30).astype(np.uint64)
  base = shingles._UNIT_BASE
  by_hand = []
  for k in range(30 - 13 + 1):
    value = 0
    for unit in hashes[k : k + 13]:
      value = (value * base + int(unit)) % (1 << 64)
    by_hand.append(value)
  got = shingles.windows(hashes, 13)
  want = shingles.tables.mix(np.array(by_hand, np.uint64))
  np.testing.assert_array_equal(got, want)


def test_real_words_do_not_collide():
  text = ' '.join(
    f'{a}{b}{c}' for a in 'abcdef' for b in 'xyz' for c in range(900)
  )
  found = shingles.units([text])
  assert len(set(found.hashes)) == len(re.findall(r'\w+', text))
