"""Bits by position: sums that add up, scores of one forward, bad input."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from yi_jax.evaluation import documents, perplexity
from yi_jax.models import transformer


def test_buckets_double_or_are_equal():
  assert perplexity.edges(300, 0) == [0, 64, 128, 256, 300]
  assert perplexity.edges(64, 0) == [0, 64]
  assert perplexity.edges(300, 4) == [0, 75, 150, 225, 300]
  with pytest.raises(ValueError, match='--buckets takes 0 to the length of 30'):
    perplexity.edges(30, 31)


def test_sums_go_to_their_buckets():
  bits, positions = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1, 63, 64, 299])
  sums, counts = perplexity.by_bucket(bits, positions, [0, 64, 128, 300])
  assert (sums, counts) == ([3.0, 4.0, 8.0], [2, 1, 1])


def test_bits_are_those_of_one_forward(
  base, model, files, one_reader, tmp_path
):
  options = perplexity.Options(
    languages=('en',),
    length=200,
    samples=2,
    buckets=2,
    documents=(files['en'], files['zh']),
  )
  facts = perplexity.run(base, options, tmp_path)
  found = facts['languages']['en']
  texts = documents.texts('en', options.documents, tmp_path)
  rows = documents.rows(texts, base.words, 199, 2)
  config, params = model
  ids = np.stack([np.append(2, row) for row in rows])  # after <|endoftext|>
  run = jax.jit(transformer.Transformer(config).apply)
  logprobs = jax.jit(jax.nn.log_softmax)(run({'params': params}, ids).logits)
  logprobs = logprobs[:, :-1]
  bits = -np.take_along_axis(np.asarray(logprobs), ids[:, 1:, None], 2)[..., 0]
  bits /= math.log(2)
  assert found['bits_per_token'] == pytest.approx(np.mean(bits), rel=1e-4)
  for bucket, part in zip(
    found['buckets'], (bits[:, :99], bits[:, 99:]), strict=True
  ):
    assert bucket['tokens'] == part.size
    assert bucket['bits_per_token'] == pytest.approx(np.mean(part), rel=1e-4)
  size = sum(len(base.words.decode(row.tolist()).encode()) for row in rows)
  assert found['bits_per_byte'] == pytest.approx(np.sum(bits) / size, rel=1e-4)
  assert json.loads((tmp_path / 'report.json').read_text()) == facts
  assert (tmp_path / 'bits.png').read_bytes().startswith(b'\x89PNG')
  # Again: nothing is left to do, and the report is the same.
  nothing = dataclasses.replace(base, params=None)
  assert perplexity.run(nothing, options, tmp_path) == facts


def test_a_first_token_that_is_given_has_no_bytes(
  base, files, one_reader, tmp_path
):
  options = perplexity.Options(
    languages=('en',), length=100, samples=1, documents=(files['en'],)
  )
  bare = dataclasses.replace(base, start=())
  found = perplexity.run(bare, options, tmp_path)['languages']['en']
  texts = documents.texts('en', options.documents, tmp_path)
  [row] = documents.rows(texts, base.words, 100, 1)
  size = len(base.words.decode(row[1:].tolist()).encode())
  assert found['bits_per_byte'] == pytest.approx(
    99 * found['bits_per_token'] / size
  )


@pytest.mark.parametrize(('buckets', 'logarithmic'), [(0, True), (4, False)])
def test_only_buckets_that_double_are_drawn_by_logarithm(
  base, files, one_reader, tmp_path, monkeypatch, buckets, logarithmic
):
  drawn = []

  def draw(*given):
    drawn.append(given)
    return b''

  monkeypatch.setattr(perplexity.pictures, 'lines', draw)
  options = perplexity.Options(
    languages=('en',),
    length=256,  # equal buckets begin with 64 tokens too
    samples=1,
    buckets=buckets,
    documents=(files['en'],),
  )
  perplexity.run(base, options, tmp_path)
  assert drawn[0][-1] is logarithmic


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(length=1), '--length must be at least 2, not 1'),
    (dict(samples=0), '--samples must be at least 1, not 0'),
    (dict(length=2000), '2,000 is beyond the 1,024 positions'),
    (dict(samples=400), r'which make \d rows of 999, and 400 are needed'),
    (dict(languages=()), '--languages names no language'),
  ],
)
def test_bad_options_are_refused(base, files, tmp_path, changes, message):
  options = perplexity.Options(('en',), (files['en'],), length=1000)
  with pytest.raises(ValueError, match=message):
    perplexity.run(base, dataclasses.replace(options, **changes), tmp_path)


def test_books_are_whole(monkeypatch, tmp_path):
  parts = {
    'en_plays': [('hamlet#0000', 'To be'), ('hamlet#0001', ' or not.')],
    'en_bible': [('1:1', 'In'), ('1:2', 'the'), ('2:1', 'beginning')],
  }

  def read(name, raw):
    return ({'id': key, 'text': text} for key, text in parts[name])

  monkeypatch.setattr(documents.sources, 'read', read)
  found = list(documents.texts('en', (), tmp_path))
  assert found == ['To be or not.', 'In\n\nthe', 'beginning']


def test_long_documents_make_rows_and_short_ones_are_joined(words, texts):
  long, short = texts['en'], texts['en'][:150].strip()
  found = documents.rows([short, long, short, short, short], words, 100, 2)
  assert [len(row) for row in found] == [100, 100]
  assert long.startswith(words.decode(found[0].tolist()))
  assert words.decode(found[1].tolist()).startswith(f'{short}\n\n{short[:20]}')
