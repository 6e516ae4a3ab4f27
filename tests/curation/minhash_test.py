"""MinHash: the right curve, the planted copies, and nothing else."""

import itertools

import numpy as np
import pytest

from yi_jax.curation import documents, minhash, tables

_LETTERS = list('abcdefghijklmnoprstuvw')


def _words(rng, count):
  lengths = rng.integers(2, 9, count)
  return [''.join(rng.choice(_LETTERS, n)) for n in lengths]


def _jaccard(first, second):
  """The similarity of two texts, by Python's own sets of 5-grams."""

  def grams(text):
    words = text.lower().split() if ' ' in text else list(text)
    return {tuple(words[k : k + 5]) for k in range(len(words) - 4)}

  a, b = grams(first), grams(second)
  return len(a & b) / len(a | b)


def _edited(rng, words, kind):
  """Returns a copy of a document's words, changed as web pages change."""
  words = list(words)
  if kind == 'exact':
    return words
  if kind == 'one word':
    words[rng.integers(len(words))] = 'changed'
  elif kind == 'moved':
    begin = rng.integers(0, len(words) - 40)
    piece = words[begin : begin + 40]
    del words[begin : begin + 40]
    at = rng.integers(len(words))
    words[at:at] = piece
  elif kind == 'header':
    words = ['home', 'about', 'us', 'contact', 'log', 'in', *words]
  else:  # a share of the words
    for at in rng.choice(len(words), int(len(words) * kind), replace=False):
      words[at] = 'edit' + words[at]
  return words


_KINDS = ('exact', 'one word', 'moved', 'header', 0.01, 0.02, 0.03, 0.05)


def _labelled(count, seed=0):
  """Returns texts and the similarity of every planted pair of them."""
  rng = np.random.default_rng(seed)
  vocabulary = _words(rng, 3000)
  texts, pairs = [], {}
  for number in range(count):
    size = int(rng.integers(80, 500))
    words = list(rng.choice(vocabulary, size))
    mark = ' '
    if number % 3 == 2:  # Chinese: a unit is a character
      words = [chr(0x4E00 + k) for k in rng.integers(0, 3000, size)]
      mark = ''
    kind = _KINDS[number % len(_KINDS)]
    other = _edited(rng, words, kind)
    if mark == '':
      other = [w if len(w) == 1 else '改' for w in other]
    pairs[len(texts), len(texts) + 1] = None
    texts += [mark.join(words), mark.join(other)]
  for pair in pairs:
    pairs[pair] = _jaccard(*[texts[i] for i in pair])
  return texts, pairs


def _batches(texts, cut):
  order = np.random.default_rng(5).permutation(len(texts))
  whole = documents.Batch(
    ids=[f's/{i}' for i in order], texts=[texts[i] for i in order]
  )
  made = []
  for number, begin in enumerate(range(0, len(texts), cut)):
    made.append(whole.select(range(begin, min(begin + cut, len(texts)))))
    made[-1].place = (0, number)
  return made


def _accepted(texts, config):
  """Returns the pairs that would be merged, as pairs of indices."""
  config = {**minhash.defaults(), **config}
  batch = documents.Batch(
    ids=[f's/{i}' for i in range(len(texts))], texts=texts
  )
  pairs = minhash.candidates(minhash.bands_of(batch, config))
  found = tables.concatenate(
    minhash.asked_sets(batch, minhash.wanted(pairs), config['ngram'])
  )
  accepted = minhash.verify(pairs, found, config['jaccard'])
  index = {int(n): i for i, n in enumerate(tables.numbers(batch.ids))}
  return {
    tuple(sorted((index[int(a)], index[int(b)])))
    for a, b in zip(accepted['node'], accepted['other'], strict=True)
  }


@pytest.mark.parametrize('size', [30, 400])
@pytest.mark.parametrize('similarity', [0.5, 0.8, 0.9])
def test_minima_agree_as_often_as_sets_do(size, similarity):
  rng = np.random.default_rng(0)
  shared = round(similarity * size)
  own = (size - shared) // 2
  sets, sizes = [], []
  for _ in range(40):
    union = rng.integers(0, 2**32, size, dtype=np.uint32)
    sets += [
      union[: shared + own],
      np.delete(union, slice(shared, shared + own)),
    ]
    sizes += [len(sets[-2]), len(sets[-1])]
  found = minhash.signatures(np.concatenate(sets), np.array(sizes), 2000)
  equal = found[::2] == found[1::2]
  truth = shared / (shared + own + (size - shared - own))
  spread = np.sqrt(truth * (1 - truth) / 2000)
  assert abs(equal.mean() - truth) < 4 * spread / np.sqrt(40)
  # As many independent throws would scatter, so rows are worth their number.
  assert 0.7 < equal.mean(1).std() / spread < 1.4
  bands = equal.reshape(40, 250, 8).all(2).mean()
  assert bands == pytest.approx(truth**8, abs=4 * np.sqrt(truth**8 / 10_000))


def test_minima_do_not_depend_on_what_stands_beside(monkeypatch):
  rng = np.random.default_rng(0)
  sizes = np.array([3, 900, 1, 40, 2000, 7])
  values = rng.integers(0, 2**32, sizes.sum(), dtype=np.uint32)
  together = minhash.signatures(values, sizes, 50)
  ends = np.cumsum(sizes)
  monkeypatch.setattr(minhash, '_BLOCK', 64)
  np.testing.assert_array_equal(minhash.signatures(values, sizes, 50), together)
  factors = minhash._factors(50)
  for row, (end, size) in enumerate(zip(ends, sizes, strict=True)):
    products = values[end - size : end, None] * factors
    np.testing.assert_array_equal(together[row], products.min(0))


def test_bands_are_equal_only_where_all_their_rows_are():
  signature = np.random.default_rng(0).integers(0, 9, (2, 60)).astype(np.uint32)
  signature[1, :20] = signature[0, :20]
  signature[1, 20:40] = signature[0, 20:40]
  signature[1, 30] += 1
  signature[:, 40:60] = signature[0, :20]  # the same minima in another band
  keys = minhash.band_hashes(signature, 3)
  assert list(keys[0] == keys[1]) == [True, False, True]
  assert keys[0, 0] != keys[0, 2]


def test_jaccard_is_that_of_python_sets(monkeypatch):
  monkeypatch.setattr(minhash, '_SORTED', 100)
  rng = np.random.default_rng(0)
  sets = [np.unique(rng.integers(0, 60, n)) for n in (1, 20, 50, 50, 5)]
  pairs = np.array(list(itertools.combinations(range(5), 2)))
  got = minhash.jaccards(
    np.concatenate(sets).astype(np.uint32),
    np.array([len(s) for s in sets]),
    pairs[:, 0],
    pairs[:, 1],
  )
  for (a, b), value in zip(pairs, got, strict=True):
    first, second = set(sets[a]), set(sets[b])
    assert value == len(first & second) / len(first | second)


@pytest.mark.parametrize('preset', ['cheap', 'refinedweb'])
def test_planted_copies_are_found_and_nothing_else(preset):
  count = 480 if preset == 'cheap' else 64
  texts, planted = _labelled(count)
  accepted = _accepted(texts, minhash.defaults(preset))
  for least, wanted in ((0.9, 0.99), (0.8, 0.9)):
    judged = [pair for pair, value in planted.items() if value >= least]
    assert len(judged) > count / 5
    recall = sum(pair in accepted for pair in judged) / len(judged)
    assert recall >= wanted, (least, recall)
  for pair in accepted:
    assert _jaccard(*[texts[i] for i in pair]) >= 0.69


def test_a_false_candidate_is_dropped_by_its_jaccard():
  # One row a band: whoever shares a single minimum is a candidate.
  texts, planted = _labelled(40)
  weak = {'bands': 30, 'rows': 1}
  rng = np.random.default_rng(9)
  half = ' '.join(rng.choice(texts[0].split(), 60))
  texts += [f'{half} {" ".join(_words(rng, 60))}' for _ in range(2)]
  loose = _accepted(texts, {**weak, 'jaccard': 0.0})
  strict = _accepted(texts, weak)
  assert (80, 81) in loose - strict
  assert strict == {p for p in loose if _jaccard(*[texts[i] for i in p]) >= 0.7}
  assert {pair for pair, value in planted.items() if value > 0.8} <= strict


def test_a_large_bucket_gives_few_pairs_that_hold_it_together():
  rows = {
    'band': np.full(1000, 5, np.uint64),
    'near': np.repeat(np.arange(10, dtype=np.uint32), 100),
    'number': np.random.default_rng(0).permutation(1000).astype(np.uint64),
    'place': np.arange(1000, dtype=np.uint64),
  }
  pairs = minhash.candidates(rows)
  assert len(pairs['node']) <= 3 * 1000
  assert (pairs['node'] < pairs['other']).all()
  led = set(pairs['other'][pairs['node'] == 0])
  assert led == set(range(1, 1000))


@pytest.mark.parametrize('cut', [70, 25])
def test_of_each_group_the_best_copy_stays(through_beam, cut):
  texts, _ = _labelled(30)
  texts += [texts[0] + ' more', 'two words', '', '...']
  batches = _batches(texts, cut)
  for batch in batches:
    batch.score('quality')[:] = [
      1 if i in ('s/1', 's/0') else 0.5 for i in batch.ids
    ]
  config = {'partitions': 2, 'rounds': 3}
  done = documents.concatenate(through_beam(minhash.MinHash(config), batches))
  removed = {
    int(i[2:]) for i, rule in zip(done.ids, done.removed, strict=True) if rule
  }
  # The same without Beam: what is connected is a group, its best one stays.
  groups = [{i} for i in range(len(texts))]
  for a, b in _accepted(texts, {}):
    groups[a] |= groups[b]
    for i in groups[a]:
      groups[i] = groups[a]
  by_hash = tables.numbers([f's/{i}' for i in range(len(texts))])

  def order(i):
    return (i not in (0, 1), -len(texts[i]), by_hash[i])

  wanted = set(range(len(texts))) - {min(g, key=order) for g in groups}
  assert removed == wanted
  assert len(removed) > 20
  assert 60 in removed  # longer, but of lower quality
  trail = done.trails[done.ids.index('s/60')]
  assert trail[0][1].startswith('removed by duplicate: one of 3 near copies, ')


def test_documents_of_no_words_are_left_alone():
  batch = documents.Batch(ids=['a', 'b'], texts=['', '!?'], place=(0, 0))
  assert minhash.bands_of(batch, minhash.defaults()) == {}


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'band': 3}, "no key 'band'; did you mean 'bands'"),
    ({'jaccard': 0.3}, 'minhash.jaccard is a number of at least 0.5'),
    ({'jaccard': 1.5}, 'minhash.jaccard is 0.5 to 1'),
    ({'rows': '8'}, "minhash.rows is a whole number of at least 1, not '8'"),
  ],
)
def test_a_wrong_section_is_refused(config, message):
  with pytest.raises(ValueError, match=message):
    minhash.MinHash(config)
