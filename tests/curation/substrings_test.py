"""Spans: each planted one is found, nothing else is, and one copy stays."""

import collections

import numpy as np
import pytest

from yi_jax.curation import documents, shingles, substrings, tables

_LENGTH = 50


def _words(rng, count):
  return [f'w{k}' for k in rng.integers(0, 10**9, count)]


def _reduce(batches, config):
  """What the pipeline does, without Beam."""
  rows = tables.concatenate(
    filter(None, (substrings.anchor_rows(b, config['length']) for b in batches))
  )
  marked = substrings.repeated(rows)
  rows = []
  for batch in batches:
    mine = marked['place'] == tables.place(batch)
    if mine.any():
      rows.append(
        substrings.window_rows(
          batch, tables.take(marked, mine), config['length']
        )
      )
  return substrings.decide(
    tables.concatenate(filter(None, rows)), config['length']
  )


def _done(texts, cut=100, quality=None, **changes):
  config = {**substrings.defaults(), **changes}
  whole = documents.Batch(
    ids=[f's/{i}' for i in range(len(texts))], texts=texts
  )
  if quality is not None:
    whole.score('quality')[:] = quality
  batches = []
  for number, begin in enumerate(range(0, len(texts), cut)):
    batches.append(whole.select(range(begin, min(begin + cut, len(texts)))))
    batches[-1].place = (0, number)
  spans = _reduce(batches, config)
  for batch in batches:
    substrings.apply(batch, spans, config)
  return documents.concatenate(batches)


def _copies(texts, length=_LENGTH):
  """Returns how many windows of units stand more than once, by a dict."""
  seen = collections.Counter()
  for text in texts:
    units = [int(h) for h in shingles.units([text]).hashes]
    for k in range(len(units) - length + 1):
      seen[tuple(units[k : k + length])] += 1
  return sum(count - 1 for count in seen.values())


@pytest.mark.parametrize('length', [50, 51, 8])
def test_every_planted_span_goes_and_its_first_copy_stays(length):
  rng = np.random.default_rng(length)
  texts, spans = [], []
  for number in range(60):
    size = length + int(rng.integers(0, 2)) * int(rng.integers(0, 90))
    span = _words(rng, size)
    if number % 3 == 0:
      span = [chr(0x4E00 + k) for k in rng.integers(0, 20000, size)]
    spans.append(span)
    for _ in range(2):
      head, tail = _words(rng, rng.integers(0, 70)), _words(rng, 60)
      texts.append(' '.join(head + span + tail))
  done = _done(texts, length=length)
  assert done.removed == [''] * len(texts)
  assert _copies(done.texts, length) == 0
  for number, span in enumerate(spans):
    pair = done.texts[2 * number : 2 * number + 2]
    joined = ' '.join(span)
    assert sum(joined in text for text in pair) == 1
    # The text before and after it is all there, and nothing more went.
    gone = sum(map(len, texts[2 * number :][:2])) - sum(map(len, pair))
    assert abs(gone - len(joined)) <= 2


def test_a_span_one_token_shorter_stays():
  rng = np.random.default_rng(1)
  span = ' '.join(_words(rng, _LENGTH - 1))
  texts = [f'{" ".join(_words(rng, 60))} {span} {k} tail' for k in range(2)]
  assert _done(texts).texts == texts


def test_the_best_document_keeps_the_span_whatever_the_batches():
  rng = np.random.default_rng(2)
  span = ' '.join(_words(rng, 80))
  texts = [f'{" ".join(_words(rng, 40))} {span}' for _ in range(6)]
  quality = [0.1, 0.2, 0.3, 0.9, 0.3, 0.2]
  for cut in (1, 4, 6):
    done = _done(texts, cut=cut, quality=quality)
    assert [span in text for text in done.texts] == [k == 3 for k in range(6)]
    assert done.trails[3] == []
    assert done.trails[0][0][1].startswith('cut 1 spans of 50 tokens or more: ')


def test_a_text_that_repeats_itself_keeps_its_first_round():
  round_ = ' '.join(f'verse{k}' for k in range(70))
  assert _done([f'{round_} {round_} {round_} end']).texts == [f'{round_}\nend']
  done = _done(['la ' * 400], least_left=0)
  assert done.texts == [('la ' * 50).strip()]


def test_a_document_of_copies_only_is_removed():
  rng = np.random.default_rng(3)
  span = ' '.join(_words(rng, 90))
  done = _done([f'{span} and much more of {" ".join(_words(rng, 30))}', span])
  assert done.removed == ['', 'substrings.least_left']
  assert '0 units < 20 are left' in done.trails[1][0][1]


def test_anchors_are_few_and_those_of_the_text_alone():
  rng = np.random.default_rng(4)
  hashes = rng.integers(0, 1 << 63, 5000).astype(np.uint64)
  where, values = substrings.anchors(hashes, np.array([0, 5000]), _LENGTH)
  assert len(where) < 5000 / 10
  assert np.diff(where).max() <= _LENGTH - _LENGTH // 2 + 1
  # The same texts in one block, each alone: the same anchors.
  cuts = np.array([0, 30, 1000, 1049, 1100, 5000])
  together, _ = substrings.anchors(hashes, cuts, _LENGTH)
  alone = [
    begin
    + substrings.anchors(hashes[begin:end], np.array([0, end - begin]), 50)[0]
    for begin, end in zip(cuts, cuts[1:], strict=False)
  ]
  np.testing.assert_array_equal(together, np.concatenate(alone))


def test_through_beam_it_is_the_same(through_beam):
  rng = np.random.default_rng(5)
  span = ' '.join(_words(rng, 60))
  texts = [f'{" ".join(_words(rng, 40))} {span}' for _ in range(4)]
  texts += ['', 'short']
  whole = documents.Batch(ids=[f's/{i}' for i in range(6)], texts=texts)
  batches = [whole.select(range(k, k + 2)) for k in (0, 2, 4)]
  for number, batch in enumerate(batches):
    batch.place = (3, number)
  stage = substrings.Substrings({'partitions': 2})
  got = documents.concatenate(through_beam(stage, batches))
  want = _done(texts)
  assert got.texts == want.texts
  assert got.trails == want.trails
  assert sum(span in text for text in got.texts) == 1


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'lenght': 3}, "no key 'lenght'; did you mean 'length'"),
    ({'length': 1}, 'substrings.length is a whole number of at least 2'),
  ],
)
def test_a_wrong_section_is_refused(config, message):
  with pytest.raises(ValueError, match=message):
    substrings.Substrings(config)
