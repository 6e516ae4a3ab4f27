"""Keeps benchmark sets out of training data.

A document that shares an n-gram of units (see `shingles`) with a benchmark is
dropped, or the place is cut out of it. 13 words as GPT-3 (Brown et al. 2020,
appendix C) and many since; a Chinese word has 1.5 characters on average, so 20
characters weigh the same there (ours). Yi-Lightning takes n-grams of 30
(arXiv:2412.01253). An n-gram counts as Chinese if half of it or more are single
characters. One that is mostly numbers proves nothing and never counts; and an
item shorter than an n-gram cannot be found.

The n-grams of the sets are made once and kept in `cache`.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from yi_jax import paths
from yi_jax.curation import (
  documents,
  exact,
  shingles,
  stage,
  substrings,
  tables,
)
from yi_jax.data import atomic, benchmarks, files, raw

_FORMAT = 1  # of the cache
_BITS = 27  # of the table that most n-grams are refused by: 2**27 bits, 16 MB
_OWN = 'own'  # the set of config.files


def defaults() -> dict[str, Any]:
  """Returns the section of a config with every key."""
  return {
    # Words an n-gram, and characters one in Chinese.
    'ngram': 13,
    'ngram_chinese': 20,
    # 'drop' the document, or 'cut' the place and `margin` units around it.
    'action': 'drop',
    'margin': 25,
    # What is cut in more places, or of which fewer units are left, is dropped
    # (GPT-3: more than 10 pieces).
    'most_cuts': 10,
    'least_left': 20,
    # Names of sets in the raw group `benchmarks`; () for all of them.
    'sets': (),
    # Whether those are read at all; without them name files of your own.
    'packaged': True,
    # Globs of benchmark texts of your own: JSON lines, Parquet or text.
    'files': (),
    'column': 'text',
    # Folders, from the repository: raw packages, and where n-grams are kept.
    'raw': 'data/raw',
    'cache': 'data/benchmarks',
  }


@dataclasses.dataclass(frozen=True)
class Index:
  """N-grams of benchmark sets.

  Attributes:
    hashes: uint64[n], sorted.
    owners: uint16[n], the first set that has it, as an index of names.
    names: of the sets.
    bits: uint8[2**24], which hashes may be among them.
  """

  hashes: np.ndarray
  owners: np.ndarray
  names: tuple[str, ...]
  bits: np.ndarray

  def find(self, hashes: np.ndarray) -> np.ndarray:
    """Returns the row of each hash, int64[n], -1 for those that are not there."""
    where, bit = _slot(hashes)
    maybe = np.flatnonzero(self.bits[where] & bit)
    found = np.full(len(hashes), -1, np.int64)
    if len(maybe):
      rows = np.searchsorted(self.hashes, hashes[maybe])
      rows = np.minimum(rows, len(self.hashes) - 1)
      hit = self.hashes[rows] == hashes[maybe]
      found[maybe[hit]] = rows[hit]
    return found


def _slot(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the byte of the table and the bit in it for each hash."""
  top = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
  return top >> 3, (1 << (top & 7)).astype(np.uint8)


def make_index(sets: Iterable[tuple[str, np.ndarray]]) -> Index:
  """Returns the index of some sets.

  Args:
    sets: name and uint64 hashes of n-grams of each.
  """
  names, hashes, owners = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)]
  for name, grams in sets:
    hashes.append(np.unique(grams))
    owners.append(np.full(len(hashes[-1]), len(names), np.uint16))
    names.append(name)
  hashes, owners = np.concatenate(hashes), np.concatenate(owners)
  order = np.argsort(hashes, kind='stable')
  hashes, owners = hashes[order], owners[order]
  first = tables.first_of_runs(hashes)
  return _indexed(hashes[first], owners[first], tuple(names))


def _indexed(
  hashes: np.ndarray, owners: np.ndarray, names: tuple[str, ...]
) -> Index:
  bits = np.zeros(1 << (_BITS - 3), np.uint8)
  where, bit = _slot(hashes)
  np.bitwise_or.at(bits, where, bit)
  return Index(hashes, owners, names, bits)


def ngrams(
  units: shingles.Units, words: int, characters: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Yields (first units, hashes, length) of the n-grams that count.

  Args:
    units: of some texts; no n-gram reaches over the end of one.
    words: units an n-gram.
    characters: units a Chinese one.
  """
  for chinese, n in ((False, words), (True, characters)):
    if len(units.hashes) < n:
      continue
    single = _counts(units.single, n) * 2 >= n
    number = _counts(units.number, n) * 2 > n
    right = (single == chinese) & ~number
    right &= substrings.inside(units.offsets, n)
    first = np.flatnonzero(right)
    yield first, shingles.windows(units.hashes, n)[first], n


def _counts(flags: np.ndarray, n: int) -> np.ndarray:
  """Returns how many of each run of n flags are set."""
  sums = np.concatenate([[0], np.cumsum(flags)])
  return sums[n:] - sums[:-n]


def hash_texts(texts: Iterable[str], words: int, characters: int) -> np.ndarray:
  """Returns the hashes of the n-grams of texts, uint64[n], sorted."""
  found, group, size = [np.zeros(0, np.uint64)], [], 0

  def flush() -> None:
    for _, units in shingles.blocks(group):
      for _, hashes, _ in ngrams(units, words, characters):
        found.append(np.unique(hashes))
    group.clear()

  seen = set()
  for text in texts:
    if len(text) < min(words, characters) or hash(text) in seen:
      continue
    seen.add(hash(text))
    group.append(text)
    size += len(text)
    if size > 1 << 22:
      flush()
      size = 0
  flush()
  return np.unique(np.concatenate(found))


class Decontaminate(stage.Stage):
  """Drops or cuts what stands in benchmark sets."""

  name = 'decontaminate'

  def __init__(self, config: Any) -> None:
    """Checks the section, see `defaults`."""
    least = {'ngram': 2, 'ngram_chinese': 2, 'margin': 0, 'most_cuts': 0}
    least['least_left'] = 0
    super().__init__(exact.checked(self.name, config, defaults(), least))
    if self.config['action'] not in ('drop', 'cut'):
      raise ValueError(
        f"decontaminate.action is {self.config['action']!r}: 'drop' or 'cut'"
      )
    if not self.config['packaged'] and not self.config['files']:
      raise ValueError(
        'decontaminate has nothing to compare with: set decontaminate.packaged '
        'or name decontaminate.files'
      )
    self._raw = pathlib.Path(paths.in_repository(self.config['raw']))
    self._index = None

  def identity(self) -> str:
    """Returns what the sets are made from.

    Raises:
      FileNotFoundError: if it was not fetched, naming the group.
    """
    found = []
    if self.config['packaged']:
      pinned = raw.packages()[benchmarks.PACKAGE]
      if raw.find(pinned, self._raw) is None:
        raw.locate(pinned.name, self._raw)  # says how to fetch it
      found.append(f'{pinned.sha256} {benchmarks.VERSION}')
    for pattern in self.config['files']:
      found.append(files.identity(pattern, self.config['column']))
    return ' '.join(found)

  def setup(self) -> None:
    """Loads the n-grams, or makes them: a minute or two, once."""
    names = ('ngram', 'ngram_chinese', 'sets', 'packaged', 'files', 'column')
    facts = [_FORMAT, self.identity()] + [
      _listed(self.config[n]) for n in names
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = pathlib.Path(paths.in_repository(self.config['cache']))
    path = folder / f'ngrams-{key}.npz'
    with atomic.locked(folder / '.lock'):
      if not path.exists():
        made = make_index(self._sets())
        with atomic.new_file(path) as file:
          np.savez(
            file,
            hashes=made.hashes,
            owners=made.owners,
            names=np.array(made.names, np.str_),
          )
      with np.load(path) as saved:
        names = tuple(map(str, saved['names']))
        self._index = _indexed(saved['hashes'], saved['owners'], names)

  def _sets(self) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the n-grams of each set."""
    sizes = self.config['ngram'], self.config['ngram_chinese']
    if self.config['files']:
      texts = (
        text
        for pattern in self.config['files']
        for text in files.read(pattern, self.config['column'])
      )
      yield _OWN, hash_texts(texts, *sizes)
    if self.config['packaged']:
      path = benchmarks.package(self._raw)
      chosen = benchmarks.choose(self.config['sets'], benchmarks.sets(path))
      for name, members in chosen.items():
        yield name, hash_texts(benchmarks.read(members, path), *sizes)

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Drops or cuts documents of the batch."""
    if self._index is None:
      self.setup()
    alive = batch.alive()
    texts = [batch.texts[i] for i in alive]
    for first, units in shingles.blocks(texts):
      for text, spans, names in self._hits(units):
        self._act(batch, alive[first + text], spans, names)
    return batch

  def _hits(
    self, units: shingles.Units
  ) -> Iterator[tuple[int, np.ndarray, list[str]]]:
    """Yields (text, spans of units, sets) for each text that shares n-grams."""
    begins, ends, owners = [], [], []
    sizes = self.config['ngram'], self.config['ngram_chinese']
    for first, hashes, n in ngrams(units, *sizes):
      rows = self._index.find(hashes)
      hit = rows >= 0
      begins.append(first[hit])
      ends.append(first[hit] + n)
      owners.append(self._index.owners[rows[hit]])
    if not begins:
      return
    begin, end = np.concatenate(begins), np.concatenate(ends)
    owner = np.concatenate(owners)
    text = np.searchsorted(units.offsets, begin, 'right') - 1
    for one in np.unique(text):
      mine = text == one
      offset = units.offsets[one]
      spans = np.stack([begin[mine], end[mine]], 1) - offset
      names = [self._index.names[k] for k in np.unique(owner[mine])]
      yield int(one), spans, names

  def _act(
    self,
    batch: documents.Batch,
    i: int,
    spans: np.ndarray,
    names: list[str],
  ) -> None:
    """Drops document i, or cuts the spans, with their margin, out of it."""
    config = self.config
    among = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    if config['action'] == 'drop':
      detail = f'{len(spans)} n-grams of {among}'
      batch.remove(i, self.name, 'benchmark', detail)
      return
    margin = np.array([-config['margin'], config['margin']])
    text, count = substrings.cut(batch.texts[i], spans + margin)
    if count > config['most_cuts']:
      detail = f'{count} > {config["most_cuts"]} places of {among}'
      batch.remove(i, self.name, 'most_cuts', detail)
      return
    what = f'{count} places of {among}'
    exact.shorten(batch, i, self.name, text, what, config['least_left'])


def _listed(value: Any) -> Any:
  """Returns a value as JSON has it: sequences become lists."""
  return value if isinstance(value, (str, int, float)) else list(value)
