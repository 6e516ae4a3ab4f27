"""Linear classifiers over hashed n-grams, for stages that score documents.

A text becomes the units of `shingles` (words, and single Chinese characters);
runs of one to `longest` of them are hashed into 2**bits columns. A row holds
1 + log(count), scaled to length one, so neither the length of a text nor the
language decides anything by itself. On top is multinomial logistic regression,
trained to its optimum by L-BFGS: the same rows give the same weights.

What a text scores does not depend on its neighbours in a batch.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from yi_jax.curation import shingles, tables

_DIGITS = 5  # of probabilities: below them sums may differ by their order


def ngram_counts(
  texts: Sequence[str], bits: int, longest: int, characters: int
) -> Any:
  """Returns how often each n-gram stands in each text.

  Args:
    texts: any.
    bits: hashes are cut to so many; 2**bits columns.
    longest: units of the longest n-gram; all shorter ones count too.
    characters: of each text that are read; 0 reads it all.

  Returns:
    scipy.sparse.csr_matrix, float32[texts, 2**bits], columns in order.
  """
  if characters:
    texts = [text[:characters] for text in texts]
  rows, keys = [], []
  for first, units in shingles.blocks(texts):
    owners = np.repeat(
      np.arange(len(units.offsets) - 1), np.diff(units.offsets)
    )
    for length in range(1, longest + 1):
      grams = shingles.windows(units.hashes, length)
      if not len(grams):
        continue
      # A run that leaves its text is none.
      inside = owners[: len(grams)] == owners[length - 1 :]
      rows.append(owners[: len(grams)][inside] + first)
      keys.append(grams[inside])
  return count_matrix(rows, keys, len(texts), bits)


def count_matrix(
  rows: Sequence[np.ndarray],
  keys: Sequence[np.ndarray],
  count: int,
  bits: int,
) -> Any:
  """Returns the counts of hashed terms.

  Args:
    rows: int64[S] each, the text that a term stands in.
    keys: uint64[S] each, its hash.
    count: of texts.
    bits: the highest of the hashes that name the column.

  Returns:
    scipy.sparse.csr_matrix, float32[count, 2**bits], columns in order.
  """
  import scipy.sparse

  shape = (count, 1 << bits)
  if not rows:
    return scipy.sparse.csr_matrix(shape, dtype=np.float32)
  columns = np.concatenate(keys) >> np.uint64(64 - bits)
  owners = np.concatenate(rows).astype(np.uint64)
  keyed = np.sort(owners << np.uint64(bits) | columns)
  starts = tables.first_of_runs(keyed)
  counts = np.diff(np.append(starts, len(keyed))).astype(np.float32)
  keyed = keyed[starts]
  owners = (keyed >> np.uint64(bits)).astype(np.int64)
  indices = (keyed & np.uint64(shape[1] - 1)).astype(np.int32)
  offsets = np.zeros(count + 1, np.int32)
  np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
  return scipy.sparse.csr_matrix((counts, indices, offsets), shape)


def scaled(matrix: Any) -> Any:
  """Returns rows of length one; those without an entry stay as they are."""
  import scipy.sparse

  sizes = np.diff(matrix.indptr)
  filled = np.flatnonzero(sizes)
  norms = np.ones(matrix.shape[0])
  if len(filled):
    squares = matrix.data.astype(np.float64) ** 2
    norms[filled] = np.sqrt(np.add.reduceat(squares, matrix.indptr[filled]))
  norms[norms == 0] = 1
  data = (matrix.data / np.repeat(norms, sizes)).astype(np.float32)
  return scipy.sparse.csr_matrix(
    (data, matrix.indices, matrix.indptr), matrix.shape
  )


@dataclasses.dataclass(frozen=True)
class Linear:
  """A classifier.

  Attributes:
    labels: names of the classes.
    weights: float32[2**bits, classes].
    bias: float32[classes].
    bits: of the hashes.
    longest: units of the longest n-gram.
    characters: of each text that are read; 0 reads it all.
  """

  labels: tuple[str, ...]
  weights: np.ndarray
  bias: np.ndarray
  bits: int
  longest: int
  characters: int

  def features(self, texts: Sequence[str]) -> Any:
    """Returns the rows of texts, scipy.sparse.csr_matrix."""
    return features(texts, self.bits, self.longest, self.characters)

  def probabilities(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the probability of each class, float32[texts, classes]."""
    return self.of_features(self.features(texts))

  def of_features(self, rows: Any) -> np.ndarray:
    """Returns the probability of each class, float32[rows, classes]."""
    if not rows.shape[0]:
      return np.zeros((0, len(self.labels)), np.float32)
    logits = (rows @ self.weights).astype(np.float64) + self.bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return np.round(shares, _DIGITS).astype(np.float32)

  def save(self, path: pathlib.Path) -> None:
    """Writes the classifier; only columns with a weight take room."""
    used = np.flatnonzero(self.weights.any(1))
    np.savez_compressed(
      path,
      labels=np.array(self.labels),
      columns=used.astype(np.int32),
      weights=self.weights[used],
      bias=self.bias,
      shape=np.array([self.bits, self.longest, self.characters]),
    )


def load(path: pathlib.Path) -> Linear:
  """Returns what `Linear.save` wrote."""
  with np.load(path) as file:
    bits, longest, characters = file['shape'].tolist()
    weights = np.zeros((1 << bits, len(file['bias'])), np.float32)
    weights[file['columns']] = file['weights']
    return Linear(
      labels=tuple(file['labels'].tolist()),
      weights=weights,
      bias=file['bias'],
      bits=bits,
      longest=longest,
      characters=characters,
    )


def features(
  texts: Sequence[str], bits: int, longest: int, characters: int
) -> Any:
  """Returns the rows of texts, see the top and `ngram_counts`."""
  counts = ngram_counts(texts, bits, longest, characters)
  counts.data = 1 + np.log(counts.data)
  return scaled(counts)


def train(
  rows: Any,
  targets: np.ndarray,
  labels: Sequence[str],
  *,
  bits: int,
  longest: int,
  characters: int,
  penalty: float,
  iterations: int = 200,
) -> Linear:
  """Returns the classifier of least loss.

  The loss is the mean over the classes of their mean cross-entropy, so that a
  class with a thousand texts counts as much as one with a hundred.

  Args:
    rows: of `features`, with the three settings below.
    targets: int[rows], index into labels; each occurs.
    labels: names of the classes.
    bits: see `ngram_counts`.
    longest: see there.
    characters: see there.
    penalty: times half the square of the weights, added to the loss.
    iterations: of L-BFGS at most.

  Raises:
    ValueError: for a class without a text.
  """
  import scipy.optimize

  counts = np.bincount(targets, minlength=len(labels))
  for label, count in zip(labels, counts, strict=True):
    if not count:
      raise ValueError(f'no text to train the class {label!r} on')
  # What stands in one text alone says nothing of others.
  used = np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]) > 1)
  dense = rows[:, used].astype(np.float64)
  shares = 1 / (counts[targets] * len(labels))
  wanted = np.zeros((len(targets), len(labels)))
  wanted[np.arange(len(targets)), targets] = 1
  shape = (len(used) + 1, len(labels))

  def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
    weights = flat.reshape(shape)
    logits = dense @ weights[:-1] + weights[-1]
    logits -= logits.max(1, keepdims=True)
    sums = np.log(np.exp(logits).sum(1, keepdims=True))
    value = shares @ (sums[:, 0] - logits[wanted > 0])
    errors = (np.exp(logits - sums) - wanted) * shares[:, None]
    gradient = np.concatenate([dense.T @ errors, errors.sum(0)[None]])
    gradient[:-1] += penalty * weights[:-1]
    value += penalty / 2 * np.sum(weights[:-1] ** 2)
    return value, gradient.ravel()

  found = scipy.optimize.minimize(
    loss,
    np.zeros(shape).ravel(),
    jac=True,
    method='L-BFGS-B',
    options={'maxiter': iterations, 'maxcor': 5},
  )
  best = found.x.reshape(shape)
  weights = np.zeros((rows.shape[1], len(labels)), np.float32)
  weights[used] = best[:-1]
  return Linear(
    labels=tuple(labels),
    weights=weights,
    bias=best[-1].astype(np.float32),
    bits=bits,
    longest=longest,
    characters=characters,
  )


def area(scores: np.ndarray, positive: np.ndarray) -> float:
  """Returns the area under the ROC curve; ties count one half.

  Args:
    scores: float[n]; higher means more likely positive.
    positive: bool[n], with both values.
  """
  ordered, place = np.unique(scores, return_inverse=True)
  counts = np.bincount(place, minlength=len(ordered))
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
  wins = ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
  return float(wins / (positive.sum() * (~positive).sum()))


def confusion(
  targets: np.ndarray, guesses: np.ndarray, count: int
) -> np.ndarray:
  """Returns int64[count, count]: rows are what is, columns what was said."""
  pairs = np.bincount(targets * count + guesses, minlength=count**2)
  return pairs.reshape(count, count)


def by_class(
  found: np.ndarray, labels: Sequence[str]
) -> list[dict[str, str | float | int]]:
  """Returns precision, recall and F1 of each class from their confusion."""
  table = []
  for k, label in enumerate(labels):
    hits = found[k, k]
    precision = float(hits / max(found[:, k].sum(), 1))
    recall = float(hits / max(found[k].sum(), 1))
    table.append(
      {
        'class': label,
        'texts': int(found[k].sum()),
        'precision': round(precision, 4),
        'recall': round(recall, 4),
        'f1': round(2 * precision * recall / max(precision + recall, 1e-9), 4),
      }
    )
  return table
