"""Documents as points: hashed TF-IDF, brought to few dimensions.

Terms are English words (and those of any script with letters) and pairs of
neighbouring Chinese characters, so Chinese needs no segmenter. A document's
weight of a term is (1 + log count) * log(documents / documents with it), in
rows of length one; the first singular vectors of a sample of such rows, found
by a randomised decomposition (Halko, Martinsson and Tropp 2011), are the axes
that all documents are projected on (latent semantic analysis). Points have
length one again: distances are those of angles.

Any other encoder takes the place of it by its name, see `load_encoder`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from yi_jax.curation import shingles, tables

Encoder = Callable[[list[str]], np.ndarray]

_BITS = 17  # 131,072 columns; those rare in the sample carry no weight
_LEAST = 3  # texts of the sample that a term has to stand in
_OVERSAMPLING = 10  # further directions, dropped at the end
_POWERS = 3  # rounds of the power iteration


def terms(texts: Sequence[str], bits: int = _BITS) -> sparse.csr_matrix:
  """Returns how often each term stands in each text.

  Example: 'He reads 看书报' has he, reads, 看书, 书报.

  Args:
    texts: any.
    bits: hashes are cut to so many; 2**bits columns.

  Returns:
    float32[texts, 2**bits].
  """
  rows, keys = [], []
  for first, units in shingles.blocks(texts):
    owner, hashes, _, _ = _terms(units)
    rows.append(owner + first)
    keys.append(hashes)
  return _count_matrix(rows, keys, len(texts), bits)


def _count_matrix(
  rows: Sequence[np.ndarray],
  keys: Sequence[np.ndarray],
  count: int,
  bits: int,
) -> sparse.csr_matrix:
  """Returns how often each hash stands in each of `count` texts.

  Args:
    rows: int64[S] each, the text that a term stands in.
    keys: uint64[S] each, its hash.
    count: of texts.
    bits: the highest of the hashes name the column.
  """
  columns = np.concatenate([np.zeros(0, np.uint64), *keys])
  owners = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.uint64)
  low = np.uint64((1 << bits) - 1)
  keyed = np.sort(owners << np.uint64(bits) | columns >> np.uint64(64 - bits))
  starts = tables.first_of_runs(keyed)
  counts = np.diff(np.append(starts, len(keyed))).astype(np.float32)
  owners = (keyed[starts] >> np.uint64(bits)).astype(np.int64)
  offsets = np.zeros(count + 1, np.int32)
  np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
  indices = (keyed[starts] & low).astype(np.int32)
  return sparse.csr_matrix((counts, indices, offsets), (count, 1 << bits))


def _scaled(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
  """Returns rows of length one; rows of zeros stay."""
  sizes = np.diff(matrix.indptr)
  filled = np.flatnonzero(sizes)
  squares = np.zeros(len(sizes))
  if len(filled):
    squares[filled] = np.add.reduceat(
      matrix.data.astype(np.float64) ** 2, matrix.indptr[filled]
    )
  norms = np.sqrt(np.where(squares > 0, squares, 1))
  data = (matrix.data / np.repeat(norms, sizes)).astype(np.float32)
  return sparse.csr_matrix((data, matrix.indices, matrix.indptr), matrix.shape)


def _terms(units: shingles.Units) -> tuple[np.ndarray, ...]:
  """Returns owner, hash, start and end of the terms of texts."""
  owners = np.repeat(np.arange(len(units.offsets) - 1), np.diff(units.offsets))
  long = units.ends - units.starts > 1
  words = np.flatnonzero(~units.single & ~units.number & long)
  pairs = units.single[:-1] & units.single[1:]
  pairs &= owners[:-1] == owners[1:]
  pairs &= units.starts[1:] == units.ends[:-1]  # nothing stands between
  pairs = np.flatnonzero(pairs)
  grams = shingles.windows(units.hashes, 2)
  return (
    np.concatenate([owners[words], owners[pairs]]),
    np.concatenate([units.hashes[words], grams[pairs]]),
    np.concatenate([units.starts[words], units.starts[pairs]]),
    np.concatenate([units.ends[words], units.ends[pairs + 1]]),
  )


def spellings(
  texts: Sequence[str], wanted: np.ndarray, bits: int = _BITS
) -> dict[int, str]:
  """Returns column -> the term as texts spell it, the most frequent one.

  Args:
    texts: to look in.
    wanted: int[W], columns of `terms`.
    bits: of them.
  """
  found: dict[int, dict[str, int]] = {}
  for first, units in shingles.blocks(texts):
    owner, hashes, starts, ends = _terms(units)
    columns = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    for k in np.flatnonzero(np.isin(columns, wanted)):
      text = texts[first + int(owner[k])]
      term = text[starts[k] : ends[k]].lower()
      counts = found.setdefault(int(columns[k]), {})
      counts[term] = counts.get(term, 0) + 1
  return {
    column: min(counts, key=lambda term: (-counts[term], term))
    for column, counts in found.items()
  }


@dataclasses.dataclass(frozen=True)
class Lsa:
  """What a sample has taught.

  Attributes:
    columns: int32[F], columns of `terms` that carry a weight, in order.
    idf: float32[F], of each.
    axes: float32[F, D], onto which rows of weights are projected.
  """

  columns: np.ndarray
  idf: np.ndarray
  axes: np.ndarray

  def weights(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Returns TF-IDF of counts of terms, float32[n, F]."""
    found = counts[:, self.columns]
    found.sort_indices()
    found.data = (1 + np.log(found.data)) * self.idf[found.indices]
    return _scaled(found)

  def points(self, texts: Sequence[str]) -> np.ndarray:
    """Returns texts as points, float32[n, D] of length one; or 0, if unknown.

    What a text becomes does not depend on its neighbours.
    """
    return self.points_of(terms(texts))

  def points_of(self, counts: sparse.csr_matrix) -> np.ndarray:
    """Returns texts as points, given the counts of their terms."""
    return normalised(self.weights(counts) @ self.axes)


def weighing(counts: sparse.csr_matrix) -> Lsa:
  """Returns the idf of a sample, with no axes.

  Args:
    counts: of `terms`, float32[n, 2**bits].
  """
  frequency = np.bincount(counts.indices, minlength=counts.shape[1])
  columns = np.flatnonzero(frequency >= _LEAST).astype(np.int32)
  idf = np.log(counts.shape[0] / frequency[columns]).astype(np.float32)
  return Lsa(columns, idf, np.zeros((len(columns), 0), np.float32))


def fit(counts: sparse.csr_matrix, dimensions: int, seed: int) -> Lsa:
  """Returns idf and axes of a sample.

  Args:
    counts: of `terms`, float32[n, 2**bits].
    dimensions: D; fewer if the sample has no more.
    seed: of the random directions.

  Raises:
    ValueError: if no term stands in three texts.
  """
  model = weighing(counts)
  if not len(model.columns):
    raise ValueError(
      f'no word or pair of characters stands in {_LEAST} of the '
      f'{counts.shape[0]:,} sampled documents'
    )
  weights = model.weights(counts).astype(np.float64)
  axes = _right_vectors(weights, dimensions, seed).astype(np.float32)
  return dataclasses.replace(model, axes=axes)


def _right_vectors(
  matrix: sparse.csr_matrix, dimensions: int, seed: int
) -> np.ndarray:
  """Returns the first right singular vectors, float64[F, D].

  The largest entry of each is positive: else its sign would be a matter of
  chance.
  """
  size = min(dimensions + _OVERSAMPLING, *matrix.shape)
  rng = np.random.default_rng(seed)
  base = matrix @ rng.standard_normal((matrix.shape[1], size))
  for _ in range(_POWERS):
    base, _ = np.linalg.qr(base)
    other, _ = np.linalg.qr(matrix.T @ base)
    base = matrix @ other
  base, _ = np.linalg.qr(base)
  _, _, rows = np.linalg.svd((matrix.T @ base).T, full_matrices=False)
  axes = rows[:dimensions].T
  largest = np.abs(axes).argmax(0)
  signs = np.sign(axes[largest, np.arange(axes.shape[1])])
  return axes * np.where(signs == 0, 1, signs)


def normalised(points: np.ndarray) -> np.ndarray:
  """Returns rows of length one, float32; rows of zeros stay."""
  points = np.ascontiguousarray(points, np.float32)
  lengths = np.sqrt((points.astype(np.float64) ** 2).sum(1, keepdims=True))
  return (points / np.where(lengths > 1e-6, lengths, 1)).astype(np.float32) * (
    lengths > 1e-6
  )


def load_encoder(name: str, key: str) -> Encoder:
  """Returns an encoder: list of n texts -> float32[n, D].

  Args:
    name: 'package.module:function'.
    key: of the config, for errors.

  Raises:
    ValueError: if there is none of that name.
  """
  module, _, function = name.partition(':')
  try:
    found = getattr(importlib.import_module(module), function, None)
  except (ImportError, ValueError) as error:
    raise ValueError(f'{key} {name!r}: {error}') from error
  if not callable(found):
    raise ValueError(
      f"{key} {name!r} is no function: give 'package.module:function', which "
      'turns a list of n texts into a float32 array [n, dimensions]'
    )
  return found


def encode(encoder: Encoder, texts: list[str], key: str) -> np.ndarray:
  """Returns texts as points of length one, float32[n, D].

  Raises:
    ValueError: if the encoder gives something else than n rows of numbers.
  """
  points = np.asarray(encoder(texts))
  right = points.ndim == 2 and len(points) == len(texts)
  if not right or not np.issubdtype(points.dtype, np.floating):
    raise ValueError(
      f'{key} gave {points.dtype}{list(points.shape)} for {len(texts)} texts: '
      f'it has to be float32[{len(texts)}, dimensions]'
    )
  if not np.isfinite(points).all():
    raise ValueError(f'{key} gave numbers that are not finite')
  return normalised(points)
