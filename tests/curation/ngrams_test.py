"""N-gram models: they are probabilities, and KenLM reads them alike."""

import numpy as np
import pytest

from yi_jax.curation import ngrams

_NAMES = [*ngrams.SPECIAL, *'abcdefg']


def _corpus(lines):
  ids = {name: number for number, name in enumerate(_NAMES)}
  return np.array(
    [i for line in lines for i in (1, *(ids.get(c, 0) for c in line), 2)],
    np.int32,
  )


def _lines(count, seed):
  """Lines of letters, each of which depends on the one before."""
  rng = np.random.default_rng(seed)
  table = rng.dirichlet(np.full(6, 0.4), 6)
  lines = []
  for _ in range(count):
    line = [rng.integers(6)]
    while len(line) < rng.integers(2, 12):
      line.append(rng.choice(6, p=table[line[-1]]))
    lines.append(''.join('abcdef'[i] for i in line))
  return lines


@pytest.fixture(scope='module')
def model():
  """Four letters at a time, rare n-grams left out."""
  orders = ngrams.train(_corpus(_lines(400, 0)), len(_NAMES), (0, 0, 1, 2))
  return ngrams.Model(_NAMES, orders)


def _next(model, context):
  """Returns the probability of every token but <s> after a context."""
  tokens = [0, *range(2, len(_NAMES))]
  start = [1, *(_NAMES.index(c) for c in context)]
  asked = np.array([[*start, token] for token in tokens])
  return 10 ** np.array([model.logs(row)[-1] for row in asked])


@pytest.mark.parametrize(
  'context', ['', 'a', 'ab', 'abc', 'fedcba', 'gg', 'ag']
)
def test_probabilities_sum_to_one_after_any_context(model, context):
  assert _next(model, context).sum() == pytest.approx(1, abs=1e-5)


def test_one_line_by_hand():
  # a b a: single tokens count the kinds of tokens before them, a 2 (<s>, b),
  # b 1, </s> 1; the discounts fall back, and share what is left among 9.
  orders = ngrams.train(_corpus(['aba']), len(_NAMES), (0, 0))
  single = 10 ** orders[0].logs.astype(float)
  left = (1 + 0.5 + 0.5) / 4
  assert single[3] == pytest.approx((2 - 1) / 4 + left / 9)
  assert single[4] == pytest.approx((1 - 0.5) / 4 + left / 9)
  assert single[0] == pytest.approx(left / 9)
  model = ngrams.Model(_NAMES, orders)
  # After a, b and </s> once each: half of each count goes to shorter ones.
  wanted = 0.5 / 2 + 0.5 * single[4]
  assert 10 ** model.logs(_corpus(['ab']))[2] == pytest.approx(wanted)
  # c was never seen after a.
  assert 10 ** model.logs(np.array([1, 3, 5]))[2] == pytest.approx(
    0.5 * single[5]
  )


def test_longer_contexts_help_on_lines_of_the_same_kind(model):
  heldout = _corpus(_lines(100, 0)[::-1] + _lines(5, 7))
  short = ngrams.Model(
    _NAMES, ngrams.train(_corpus(_lines(400, 0)), len(_NAMES), (0,))
  )
  real = heldout != 1
  assert model.logs(heldout)[real].mean() > short.logs(heldout)[real].mean()
  noise = np.random.default_rng(0).permutation(heldout[heldout > 2])
  noise = np.concatenate([[1], noise, [2]])
  assert model.logs(noise)[1:].mean() < model.logs(heldout)[real].mean() - 0.1


def test_lines_do_not_matter_to_each_other(model):
  one, two = _corpus(['abc']), _corpus(['fed'])
  both = model.logs(np.concatenate([one, two]))
  # What the first token of a corpus says means nothing.
  np.testing.assert_array_equal(both[1:5], model.logs(one)[1:])
  np.testing.assert_array_equal(both[6:], model.logs(two)[1:])


def test_arpa_files_and_arrays_hold_the_same_model(model, tmp_path):
  model.write_arpa(tmp_path / 'x.arpa')
  model.save(tmp_path / 'x.npz')
  asked = _corpus([*_lines(50, 3), 'gab', 'agag'])
  expected = model.logs(asked)[1:]
  again = ngrams.load(tmp_path / 'x.npz')
  np.testing.assert_array_equal(again.logs(asked)[1:], expected)
  read = ngrams.read_arpa(tmp_path / 'x.arpa')
  assert read.names == model.names
  real = asked[1:] != 1
  np.testing.assert_allclose(
    read.logs(asked)[1:][real], expected[real], atol=1e-5
  )
  lines = (tmp_path / 'x.arpa').read_text().split('\n')
  counts = [len(order.keys) for order in model.orders]
  assert lines[:5] == [
    '\\data\\',
    *(f'ngram {n + 1}={c}' for n, c in enumerate(counts)),
  ]


def test_kenlm_finds_the_same_probabilities(model, peer, tmp_path):
  model.write_arpa(tmp_path / 'x.arpa')
  lines = [*_lines(60, 5), 'g', 'gab', 'ag' * 20, 'xa']
  mine = []
  for line in lines:
    mine.append(model.logs(_corpus([line]))[1:].sum())
  theirs = peer(
    'kenlm.py',
    arpa=np.array(str(tmp_path / 'x.arpa')),
    lines=np.array([' '.join(line) for line in lines]),
  )
  np.testing.assert_allclose(mine, theirs['logs'], atol=1e-4)


def test_what_cannot_be_trained_or_read_is_told(tmp_path):
  corpus = _corpus(['ab'])
  for prune in ((), (1, 1), (0, 2, 1)):
    with pytest.raises(ValueError, match='it wants a count for each length'):
      ngrams.train(corpus, len(_NAMES), prune)
  with pytest.raises(ValueError, match='no text'):
    ngrams.train(corpus[:0], len(_NAMES), (0, 0))
  (tmp_path / 'x.arpa').write_text('hello\n')
  with pytest.raises(ValueError, match='no ARPA file'):
    ngrams.read_arpa(tmp_path / 'x.arpa')
