"""Removes near copies of documents: MinHash, verified by the exact Jaccard.

1. Each document becomes the set of hashes of its 5-grams of units (words, or
   single Chinese characters; see `shingles`).
2. A signature of bands x rows minima (Broder 1997): a minimum is equal in two
   documents with the probability of their Jaccard similarity J, a band with
   J**rows, some band with 1 - (1 - J**rows)**bands.
3. Documents with an equal band are candidates. The sets of each candidate pair
   meet once more, and pairs below `jaccard` are dropped.
4. What remains connected is one group; its best copy stays.

RefinedWeb's budget (Penedo et al. 2023, appendix G.3.1) is 450 bands of 20;
the cheap preset, 14 bands of 8, is FineWeb's (Penedo et al. 2024).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from yi_jax.curation import (
  components,
  documents,
  exact,
  shingles,
  stage,
  tables,
)

# Name -> bands, rows.
PRESETS = {'cheap': (14, 8), 'refinedweb': (450, 20)}
_BLOCK = 1 << 14  # n-grams permuted at a time: 64 kB, they stay in cache
_ALL_PAIRS = 8  # documents of a bucket up to which each pair is a candidate
_NEIGHBOURS = 2  # beyond: each with its leader and with those next to it
_SORTED = 1 << 21  # n-grams of pairs compared at a time
_SEED = 0x59692D31  # of the permutations; another gives other signatures


def defaults(preset: str = 'cheap') -> dict[str, Any]:
  """Returns the section of a config with every key.

  Args:
    preset: of PRESETS: how many hashes.
  """
  bands, rows = PRESETS[preset]
  return {
    # Units an n-gram (RefinedWeb, FineWeb: 5 words).
    'ngram': 5,
    # Documents with one equal band are compared; a band is this many minima.
    'bands': bands,
    'rows': rows,
    # Smallest similarity of a pair of copies (ours; 14 x 8 find 56 % of pairs
    # at 0.7, 92 % at 0.8, 99.96 % at 0.9).
    'jaccard': 0.7,
    # Pieces that shuffles are cut into; the outcome is the same for any.
    'partitions': 64,
    # Of label propagation, see `components`.
    'rounds': components.ROUNDS,
  }


def sets(
  hashes: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the sorted sets of the n-grams of texts.

  Args:
    hashes: uint64[S] of `shingles.ngrams`.
    offsets: int64[texts + 1].

  Returns:
    uint32[S'] and sizes, int64[texts]. 32 bits: among the 1,000 n-grams of two
    documents two collide once in 10,000 pairs, and change J by 0.001 then.
  """
  owners = np.repeat(
    np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets)
  )
  keyed = np.sort(owners << np.uint64(32) | hashes >> np.uint64(32))
  keyed = keyed[tables.first_of_runs(keyed)]
  sizes = np.bincount(
    (keyed >> np.uint64(32)).astype(np.int64), minlength=len(offsets) - 1
  )
  return keyed.astype(np.uint32), sizes


def signatures(values: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
  """Returns the minima of sets under random permutations of 32-bit numbers.

  A permutation is a product with an odd number. The floor is one product and
  one comparison for each n-gram and permutation; blocks of n-grams stay in the
  first cache levels, so that both run at the speed of the vector unit.

  Args:
    values: uint32[S], hashes of the sets, one set after the other.
    sizes: int64[sets], none 0.
    count: of permutations.

  Returns:
    uint32[sets, count].
  """
  factors = _factors(count)
  result = np.empty((count, len(sizes)), np.uint32)
  begins = np.cumsum(sizes) - sizes
  first = 0
  while first < len(sizes):
    last = int(np.searchsorted(begins, begins[first] + _BLOCK, 'left'))
    last = max(last - 1, first + 1) if last < len(sizes) else len(sizes)
    end = begins[last] if last < len(sizes) else len(values)
    block = values[begins[first] : end]
    starts = begins[first:last] - begins[first]
    product = np.empty_like(block)
    for row, factor in enumerate(factors):
      np.multiply(block, factor, out=product)
      result[row, first:last] = np.minimum.reduceat(product, starts)
    first = last
  return result.T


def _factors(count: int) -> np.ndarray:
  """Returns the odd factors of the permutations, uint32[count]."""
  numbers = tables.mix(np.arange(1, count + 1, dtype=np.uint64) + _SEED)
  return (numbers >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def band_hashes(signature: np.ndarray, bands: int) -> np.ndarray:
  """Returns a hash of each band of signatures, uint64[sets, bands].

  Args:
    signature: uint32[sets, bands * rows].
    bands: how many.
  """
  minima = signature.reshape(len(signature), bands, -1)
  keys = np.arange(bands, dtype=np.uint64)[None].repeat(len(signature), 0)
  for row in range(minima.shape[2]):
    keys = tables.mix(keys ^ minima[:, :, row])
    keys += np.uint64(0x9E3779B97F4A7C15)
  return keys


def document_sets(
  batch: documents.Batch, chosen: list[int], ngram: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
  """Yields (indices, values, sizes) of some documents' sets, in blocks.

  Documents without any unit are left out.
  """
  for first, units in shingles.blocks([batch.texts[i] for i in chosen]):
    grams, offsets = shingles.ngrams(units.hashes, units.offsets, ngram)
    values, sizes = sets(grams, offsets)
    indices = [chosen[first + k] for k in np.flatnonzero(sizes)]
    if indices:
      yield indices, values, sizes[sizes > 0]


def bands_of(batch: documents.Batch, config: dict[str, Any]) -> tables.Table:
  """Returns a row for each band of each document that is kept so far.

  Columns: `band`, its hash; number and place; `near`, a minimum that similar
  documents share, by which large buckets are ordered.
  """
  found, bands = [], config['bands']
  for indices, values, sizes in document_sets(
    batch, batch.alive(), config['ngram']
  ):
    signature = signatures(values, sizes, bands * config['rows'])
    keys = band_hashes(signature, bands)
    numbers = tables.numbers([batch.ids[i] for i in indices])
    found.append(
      {
        'band': keys.ravel(),
        # Of the band after it, so that it says something new.
        'near': np.roll(signature[:, :: config['rows']], -1, 1).ravel(),
        'number': np.repeat(numbers, bands),
        'place': np.full(keys.size, tables.place(batch), np.uint64),
      }
    )
  return tables.concatenate(found)


def candidates(rows: tables.Table) -> tables.Table:
  """Returns the pairs of documents that are worth comparing.

  In a bucket of up to 8 all pairs; in a larger one each document with the one
  of the smallest number and with the next two in order of `near`, so that the
  pairs grow linearly with the documents.

  Args:
    rows: of `bands_of`: all rows with such a `band`.

  Returns:
    Columns `node` and `node_place` of the smaller number, `other` and
    `other_place` of the larger one; and `home`, the smallest number of the
    bucket: where the pair is compared. Documents that are alike share it, so
    each set travels to one or two homes and not to each of its pairs.
  """
  order = np.lexsort([rows['number'], rows['near'], rows['band']])
  rows = tables.take(rows, order)
  starts = tables.first_of_runs(rows['band'])
  sizes = np.diff(np.append(starts, len(order)))
  bucket = np.repeat(np.arange(len(starts)), sizes)
  small = (sizes <= _ALL_PAIRS)[bucket]
  firsts, seconds = [], []
  for distance in range(1, min(_ALL_PAIRS, len(order))):
    same = bucket[distance:] == bucket[:-distance]
    if distance > _NEIGHBOURS:
      same &= small[distance:]
    found = np.flatnonzero(same)
    firsts.append(found)
    seconds.append(found + distance)
  # The leader of a bucket is the row of the smallest number.
  by_number = np.lexsort([rows['number'], rows['band']])
  leaders = np.repeat(by_number[starts], sizes)
  firsts.append(leaders[~small])
  seconds.append(np.flatnonzero(~small))
  first, second = np.concatenate(firsts), np.concatenate(seconds)
  numbers, places = rows['number'], rows['place']
  swapped = numbers[first] > numbers[second]
  low = np.where(swapped, second, first)
  high = np.where(swapped, first, second)
  pairs = {
    'node': numbers[low],
    'node_place': places[low],
    'other': numbers[high],
    'other_place': places[high],
    'home': numbers[leaders[first]],
  }
  pairs = tables.take(pairs, pairs['node'] != pairs['other'])
  return each_once(pairs)


def each_once(pairs: tables.Table) -> tables.Table:
  """Returns each pair once, with the smallest of its homes."""
  pairs = tables.take(pairs, np.argsort(pairs['home'], kind='stable'))
  return tables.unique(pairs, 'node', 'other')


def wanted(pairs: tables.Table) -> tables.Table:
  """Returns which sets have to come to which homes: number, place and home."""
  asked = {
    'number': np.concatenate([pairs['node'], pairs['other']]),
    'place': np.concatenate([pairs['node_place'], pairs['other_place']]),
    'home': np.concatenate([pairs['home'], pairs['home']]),
  }
  return tables.unique(asked, 'number', 'home')


def asked_sets(
  batch: documents.Batch, asked: tables.Table, ngram: int
) -> Iterator[tables.Table]:
  """Yields the sets that homes ask for, with what is known about them.

  Args:
    batch: whose documents they are.
    asked: number and home, see `wanted`; perhaps others too.
    ngram: units an n-gram.
  """
  if not asked:
    return
  asked = tables.unique(asked, 'number', 'home')
  alive = batch.alive()
  about = tables.about(batch, alive)
  chosen = np.flatnonzero(np.isin(about['number'], asked['number']))
  row_of = dict(zip(alive, range(len(alive)), strict=True))
  for indices, values, sizes in document_sets(
    batch, [alive[k] for k in chosen], ngram
  ):
    table = tables.take(about, np.array([row_of[i] for i in indices], np.int64))
    table |= {'sizes': sizes, 'values': values}
    order = np.argsort(table['number'])
    at = np.searchsorted(table['number'], asked['number'], sorter=order)
    at = order[np.minimum(at, len(order) - 1)]
    hit = table['number'][at] == asked['number']
    yield {**tables.take(table, at[hit]), 'home': asked['home'][hit]}


def jaccards(
  values: np.ndarray,
  sizes: np.ndarray,
  first: np.ndarray,
  second: np.ndarray,
) -> np.ndarray:
  """Returns the exact Jaccard similarity of pairs of sets, float64[pairs].

  Args:
    values: uint32, sets without repetition, one after the other.
    sizes: int64[sets].
    first: int64[pairs], index of one set of each pair.
    second: int64[pairs], of the other.
  """
  begins = np.cumsum(sizes) - sizes
  total = sizes[first] + sizes[second]
  shared = np.zeros(len(first), np.int64)
  done = np.cumsum(total)
  begin = 0
  while begin < len(first):
    limit = done[begin] - total[begin] + _SORTED
    end = max(int(np.searchsorted(done, limit, 'right')), begin + 1)
    pair = np.arange(end - begin, dtype=np.uint64) << np.uint64(32)
    keyed = [
      np.repeat(pair, sizes[side])
      | values[tables.ranges(begins[side], sizes[side])]
      for side in (first[begin:end], second[begin:end])
    ]
    keyed = np.sort(np.concatenate(keyed))
    twice = keyed[1:][keyed[1:] == keyed[:-1]] >> np.uint64(32)
    shared[begin:end] = np.bincount(
      twice.astype(np.int64), minlength=end - begin
    )
    begin = end
  return shared / (total - shared)


def verify(
  pairs: tables.Table, found: tables.Table, jaccard: float
) -> tables.Table:
  """Returns the pairs that are copies of each other.

  Args:
    pairs: see `candidates`.
    found: sets of their documents, see `asked_sets`.
    jaccard: smallest similarity.

  Returns:
    `node` and `other`; and, for the two alike, rank and place.
  """
  found = tables.unique(found, 'number')
  first = np.searchsorted(found['number'], pairs['node'])
  second = np.searchsorted(found['number'], pairs['other'])
  similarity = jaccards(
    found['values'], found['sizes'].astype(np.int64), first, second
  )
  kept = similarity >= jaccard
  ends = {'node': first[kept], 'other': second[kept]}
  accepted = {end: found['number'][rows] for end, rows in ends.items()}
  for end, rows in ends.items():
    for column in ('rank', 'place'):
      accepted[f'{end}_{column}'] = found[column][rows]
  return accepted


def members(accepted: tables.Table) -> tables.Table:
  """Returns the documents of accepted pairs, their label still 0."""
  both = {
    column: np.concatenate([accepted[name] for name in names])
    for column, names in {
      'number': ('node', 'other'),
      'rank': ('node_rank', 'other_rank'),
      'place': ('node_place', 'other_place'),
    }.items()
  }
  both['label'] = np.zeros_like(both['number'])
  return tables.unique(both, 'number')


def join(rows: tables.Table) -> tables.Table:
  """Gives the documents of a partition their labels, and chooses the place.

  Args:
    rows: number, rank, place and label; a row with place and rank 0 where only
      the label is known, one with label 0 where only those two are.

  Returns:
    One row for each document, whole.
  """
  order = np.argsort(rows['number'], kind='stable')
  rows = tables.take(rows, order)
  starts = tables.first_of_runs(rows['number'])
  return {
    'number': rows['number'][starts],
    **{
      column: np.maximum.reduceat(rows[column], starts)
      for column in ('rank', 'place', 'label')
    },
  }


def decide(rows: tables.Table) -> tables.Table:
  """Returns the rows of groups with their best copies, see `tables.choose`."""
  if not rows:
    return rows
  return tables.choose(rows, ('label',))


class MinHash(stage.GlobalStage):
  """Removes near copies."""

  name = 'minhash'

  def __init__(self, config: Any) -> None:
    """Checks the section, see `defaults`."""
    least = dict(ngram=1, bands=1, rows=1, jaccard=0.5, partitions=1, rounds=1)
    super().__init__(exact.checked(self.name, config, defaults(), least))
    if self.config['jaccard'] > 1:
      raise ValueError('minhash.jaccard is 0.5 to 1: a share of n-grams')

  def expand(self, batches: Any) -> Any:
    """Returns the batches without near copies."""
    import apache_beam as beam

    from yi_jax.curation import shuffle

    config, name = self.config, self.name
    partitions, ngram = config['partitions'], config['ngram']

    def once(function: Any) -> Any:
      return lambda table: [function(table)] if table else []

    def finish(
      batch: documents.Batch, decisions: tables.Table
    ) -> Iterator[documents.Batch]:
      yield exact.apply(batch, decisions, name, 'near copies')

    rows = batches | f'{name}: bands' >> beam.Map(bands_of, config)
    pairs = shuffle.reduce(
      rows, f'{name}: buckets', 'band', partitions, once(candidates)
    )
    pairs = shuffle.reduce(
      pairs,
      f'{name}: pairs',
      'node',
      partitions,
      once(each_once),
    )
    asked = shuffle.to_batches(
      pairs | f'{name}: wanted' >> beam.Map(wanted),
      f'{name}: asked',
      partitions,
    )
    found = shuffle.visit(
      batches,
      f'{name}: sets',
      asked,
      lambda batch, rows: asked_sets(batch, rows, ngram),
    )
    accepted = self._verified(pairs, found)
    labels = components.propagate(
      accepted | f'{name}: edges' >> beam.Map(_edges),
      partitions,
      config['rounds'],
    )
    both = (
      accepted | f'{name}: members' >> beam.Map(members),
      labels | f'{name}: labels' >> beam.Map(_labels),
    ) | f'{name}: both' >> beam.Flatten()
    joined = shuffle.reduce(
      both, f'{name}: join', 'number', partitions, once(join)
    )
    decisions = shuffle.reduce(
      joined, f'{name}: groups', 'label', partitions, once(decide)
    )
    side = shuffle.to_batches(decisions, f'{name}: decisions', partitions)
    return shuffle.visit(batches, f'{name}: apply', side, finish)

  def _verified(self, pairs: Any, found: Any) -> Any:
    """Returns the pairs whose sets are similar enough, a table a partition."""
    import apache_beam as beam

    from yi_jax.curation import shuffle

    jaccard, partitions = self.config['jaccard'], self.config['partitions']

    def work(element: Any) -> Iterator[tables.Table]:
      both = {
        side: shuffle.gather(rows, names[side])
        for side, rows in element[1].items()
      }
      if both['pairs']:
        yield verify(both['pairs'], both['sets'], jaccard)

    names = {'pairs': 'minhash: pairs again', 'sets': 'minhash: send sets'}
    sides = {
      side: shuffle.send(rows, names[side], 'home', partitions)
      for side, rows in (('pairs', pairs), ('sets', found))
    }
    grouped = sides | 'minhash: meet' >> beam.CoGroupByKey()
    return grouped | 'minhash: verify' >> beam.FlatMap(work)


def _edges(accepted: tables.Table) -> tables.Table:
  return {'node': accepted['node'], 'other': accepted['other']}


def _labels(labels: tables.Table) -> tables.Table:
  nothing = np.zeros_like(labels['label'])
  return {**labels, 'rank': nothing, 'place': nothing}
