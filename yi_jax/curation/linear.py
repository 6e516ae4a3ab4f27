"""Linear scorers on hashed n-grams: what quality and safety are judged with.

A text becomes a sparse row: its words and pairs of words (Chinese: characters),
and its runs of characters with case and punctuation, each hashed into one of
2**bits columns (Weinberger et al. 2009), as 1 + log(count), scaled to length 1.
Logistic regressions on such rows are trained by L-BFGS.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import optimize, sparse

from yi_jax.curation import characters, language, shingles, tables

_BATCH = 1 << 19  # characters made into rows at a time
_SALT = 0x9E3779B97F4A7C15
_DIGITS = np.arange(ord('0'), ord('9') + 1)


@dataclasses.dataclass(frozen=True)
class Features:
  """How a text becomes a row.

  Attributes:
    bits: the row has 2**bits columns.
    words: longest run of words.
    characters: longest run of characters.
    read: characters that are read of a text, in windows over it.
  """

  bits: int = 18
  words: int = 2
  characters: int = 4
  read: int = 3_000

  def rows(self, texts: Sequence[str]) -> sparse.csr_matrix:
    """Returns the rows of texts, float32[texts, 2**bits]."""
    parts = [self._rows(part) for part in _batches(texts, self.read)]
    if not parts:
      return sparse.csr_matrix((0, 1 << self.bits), dtype=np.float32)
    return sparse.vstack(parts, format='csr') if len(parts) > 1 else parts[0]

  def _rows(self, texts: Sequence[str]) -> sparse.csr_matrix:
    units = shingles.units(texts)
    points, offsets = _points(texts)
    kinds = [(units.hashes, units.offsets, n) for n in range(1, self.words + 1)]
    kinds += [(points, offsets, n) for n in range(1, self.characters + 1)]
    keys = []
    for salt, (hashes, ends, n) in enumerate(kinds):
      found, cuts = shingles.ngrams(hashes, ends, n)
      column = tables.mix(found + np.uint64(_SALT * (salt + 1) & (2**64 - 1)))
      row = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(cuts))
      keys.append(
        row << np.uint64(self.bits) | column >> np.uint64(64 - self.bits)
      )
    keys, counts = np.unique(np.concatenate(keys), return_counts=True)
    rows = (keys >> np.uint64(self.bits)).astype(np.int64)
    columns = (keys & np.uint64((1 << self.bits) - 1)).astype(np.int32)
    values = 1 + np.log(counts)
    squares = np.bincount(rows, values**2, minlength=len(texts))
    values /= np.sqrt(squares)[rows]
    starts = np.concatenate([[0], np.bincount(rows, minlength=len(texts))])
    return sparse.csr_matrix(
      (values.astype(np.float32), columns, np.cumsum(starts)),
      shape=(len(texts), 1 << self.bits),
    )


def _batches(texts: Sequence[str], read: int) -> Iterator[list[str]]:
  """Yields texts, shortened and with single spaces, a few at a time."""
  batch, size = [], 0
  for text in texts:
    batch.append(' '.join(language.windows(text, read).split()))
    size += len(batch[-1])
    if size >= _BATCH:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns hashes of the characters of texts, digits alike, and offsets."""
  points = characters.codes(''.join(texts)).astype(np.uint64)
  points[np.isin(points, _DIGITS)] = ord('0')
  offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
  return tables.mix(points + np.uint64(_SALT)), offsets.astype(np.int64)


def fit(
  rows: sparse.csr_matrix,
  labels: np.ndarray,
  weights: np.ndarray,
  *,
  penalty: float,
  steps: int,
) -> np.ndarray:
  """Returns the weights of a logistic regression, float32[columns + 1].

  Args:
    rows: float32[texts, columns].
    labels: bool[texts].
    weights: float[texts], how much each counts; their sum does not matter.
    penalty: of the squared weights, the bias aside.
    steps: of L-BFGS, at most.
  """
  share = weights / weights.sum()
  across = rows.T.tocsr()
  signs = np.where(labels, 1.0, -1.0)

  def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
    margins = signs * (rows @ theta[:-1].astype(np.float32) + theta[-1])
    value = share @ np.logaddexp(0, -margins)
    slope = -share * signs / (1 + np.exp(np.clip(margins, -50, 50)))
    gradient = across @ slope.astype(np.float32) + 2 * penalty * theta[:-1]
    gradient = np.append(gradient, slope.sum())
    return value + penalty * theta[:-1] @ theta[:-1], gradient

  start = np.zeros(rows.shape[1] + 1)
  found = optimize.minimize(
    loss,
    start,
    method='L-BFGS-B',
    jac=True,
    options={'maxiter': steps, 'ftol': 1e-6},
  )
  return found.x.astype(np.float32)


def scores(rows: sparse.csr_matrix, theta: np.ndarray) -> np.ndarray:
  """Returns probabilities, float32[texts].

  Args:
    rows: float32[texts, columns].
    theta: float32[columns + 1] of `fit`.
  """
  margins = rows @ theta[:-1] + theta[-1]
  return (1 / (1 + np.exp(-np.clip(margins, -50, 50)))).astype(np.float32)


def area(values: np.ndarray, labels: np.ndarray) -> float:
  """Returns the area under the ROC curve; ties count half, nan if one class.

  Args:
    values: float[n].
    labels: bool[n].
  """
  good, bad = np.count_nonzero(labels), np.count_nonzero(~labels)
  if not good or not bad:
    return float('nan')
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
  return float((ranks[labels].sum() - good * (good + 1) / 2) / (good * bad))


def balanced(groups: Iterable[str], labels: np.ndarray) -> np.ndarray:
  """Returns weights that give classes, and groups in a class, equal sums.

  Args:
    groups: of each text, its source say.
    labels: bool[n].
  """
  _, group = np.unique(list(groups), return_inverse=True)
  weights = np.zeros(len(labels))
  for side in (True, False):
    inside = labels == side
    present = np.unique(group[inside])
    for number in present:
      mine = inside & (group == number)
      weights[mine] = 1 / len(present) / mine.sum()
  return weights
