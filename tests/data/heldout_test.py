"""The held-out split and the vocabulary's sample: by hash, enough, no more."""

import numpy as np
import pytest

from yi_jax.data import heldout


def _survey(seed, count, most=1000):
  draw = np.random.default_rng(seed)
  hashes = draw.integers(0, 2**64, count, dtype=np.uint64)
  return hashes, draw.integers(1, most, count).astype(np.int64)


def _held(survey, limit):
  return int(survey[1][survey[0] < np.uint64(limit)].sum())


def test_the_fraction_decides_where_it_holds_out_enough():
  survey = _survey(0, 20_000)
  limits = heldout.limits({'a': survey}, {'a': 'en'}, 0.02, 1000)
  assert limits == {'en': round(0.02 * 2**64)}
  share = (survey[0] < np.uint64(limits['en'])).mean()
  assert share == pytest.approx(0.02, rel=0.1)


def test_small_languages_hold_out_the_bytes_and_little_more():
  surveys = {'a': _survey(0, 300), 'b': _survey(1, 200), 'c': _survey(2, 5000)}
  languages = {'a': 'zh', 'b': 'zh', 'c': 'en'}
  limits = heldout.limits(surveys, languages, 0.01, 20_000)
  held = _held(surveys['a'], limits['zh']) + _held(surveys['b'], limits['zh'])
  assert 20_000 <= held < 21_000
  assert limits['zh'] > limits['en']


def test_one_byte_less_would_hold_out_one_document_less():
  survey = np.array([30, 10, 20], np.uint64), np.array([5, 5, 90], np.int64)
  limit = heldout.limits({'a': survey}, {'a': 'en'}, 0.0, 5)['en']
  assert limit == 11
  # 6 bytes would need the document of 90, more than half of all.
  with pytest.raises(ValueError, match='en has 100 bytes.*too little'):
    heldout.limits({'a': survey}, {'a': 'en'}, 0.0, 6)


def test_a_language_smaller_than_what_it_should_hold_out_is_refused():
  with pytest.raises(ValueError, match=r'lower data\.heldout_bytes'):
    heldout.limits({'a': _survey(0, 3)}, {'a': 'zh'}, 0.01, 10**6)


def test_a_fraction_of_everything_is_refused():
  with pytest.raises(ValueError, match='heldout_fraction is 0 to 1, not 1'):
    heldout.limits({'a': _survey(0, 3)}, {'a': 'zh'}, 1, 0)


def test_copies_have_one_hash_and_it_never_changes():
  assert heldout.document_hash('国 a') == heldout.document_hash('国 a')
  assert heldout.document_hash('abc') == 0xD8BB14D833D59559


def test_the_sample_is_as_much_of_each_language_and_not_held_out():
  surveys = {'a': _survey(0, 4000), 'b': _survey(1, 4000), 'c': _survey(2, 100)}
  languages = {'a': 'en', 'b': 'zh', 'c': 'code'}
  limits = heldout.limits(surveys, languages, 0.05, 0)
  ends = heldout.sample_limits(surveys, languages, limits, 900_000)
  sizes = {}
  for task, (hashes, lengths) in surveys.items():
    language = languages[task]
    chosen = (hashes >= np.uint64(limits[language])) & (
      hashes < np.uint64(ends[language])
    )
    sizes[language] = int(lengths[chosen].sum())
  # Code has 50 KB in all; the others share what it leaves.
  assert sizes['code'] == pytest.approx(surveys['c'][1].sum() * 0.95, rel=0.1)
  assert sizes['en'] == pytest.approx((900_000 - sizes['code']) / 2, abs=2000)
  assert sizes['zh'] == pytest.approx(sizes['en'], abs=2000)
