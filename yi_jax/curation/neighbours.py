"""An order of documents in which neighbours are alike.

A long row that holds several documents teaches more when they have something to
do with each other: what came before helps with what follows (in-context
pretraining, Shi et al. 2024). Documents are points of `embedding`; a walk goes
from each to the nearest that was not visited yet, and so passes every document
once. It begins far from the middle, as a walk that begins in the crowd leaves
the loners for its end.

The work of a walk grows with the square of the documents. Where there are many,
k-means sorts them into clusters first, a walk over the centres orders those,
and each is walked through by itself, entered where it is nearest to the one
before.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from yi_jax.curation import embedding
from yi_jax.data import long_documents

_DIMENSIONS = 64
_SAMPLE = 64_000_000  # characters that the axes are found with
_CLIP = 50_000  # characters, after which a document's subject is known
_BATCH = 4_000_000  # characters turned into points together
_WALK = 4_096  # documents of one walk
_SEED = 0


def order(
  texts: Callable[[], Iterable[str]], walk: int = _WALK
) -> long_documents.Order:
  """Returns an order in which documents that follow each other are alike.

  The same texts have the same order. Memory: 256 bytes a document, about four
  times at once, and the sample.

  Args:
    texts: gives the texts, from the beginning each time it is called.
    walk: documents, above which they are clustered first.
  """
  points = _points(texts)
  numbers = np.concatenate(
    [np.zeros(0, np.int64), *_through(points, np.arange(len(points)), walk)]
  )
  given = np.arange(len(points))
  random = np.random.default_rng(_SEED).permutation(len(points))
  likeness = {'similar': numbers, 'given': given, 'random': random}
  return long_documents.Order(
    numbers,
    {name: mean_likeness(points[one]) for name, one in likeness.items()},
  )


def mean_likeness(points: np.ndarray) -> float:
  """Returns the mean cosine of points that follow each other, or 0."""
  if len(points) < 2:
    return 0.0
  return float((points[1:] * points[:-1]).sum(1).mean())


def _points(texts: Callable[[], Iterable[str]]) -> np.ndarray:
  """Returns a point of length one for each text, or 0, float32[N, D]."""
  sample, size = [], 0
  for text in texts():
    sample.append(text[:_CLIP])
    size += len(sample[-1])
    if size >= _SAMPLE:
      break
  try:
    model = embedding.fit(embedding.terms(sample), _DIMENSIONS, _SEED)
  except ValueError:  # three documents at least have to share a term
    return np.zeros((sum(1 for _ in texts()), 1), np.float32)
  del sample
  found = [np.zeros((0, model.axes.shape[1]), np.float32)]
  for batch in _batches(texts()):
    found.append(model.points(batch))
  return np.concatenate(found)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
  batch, size = [], 0
  for text in texts:
    batch.append(text[:_CLIP])
    size += len(batch[-1])
    if size >= _BATCH:
      yield batch
      batch, size = [], 0
  yield batch


def _through(
  points: np.ndarray,
  numbers: np.ndarray,
  walk: int,
  start: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
  """Yields the places of some points, in order.

  Args:
    points: float32[N, D].
    numbers: int64[n], the places of those meant.
    walk: see `order`.
    start: float32[D], what the first shall be near to.
  """
  if len(numbers) <= walk:
    yield numbers[nearest_next(points[numbers], start)]
    return
  from yi_jax.curation import kmeans  # JAX

  count = 2 * math.ceil(len(numbers) / walk)
  fitted = kmeans.fit(points[numbers], count, seed=_SEED, restarts=1)
  if len(fitted.centres) == 1:  # all the same
    yield numbers
    return
  centres = embedding.normalised(fitted.centres)
  for cluster in nearest_next(centres, start):
    inside = numbers[fitted.members == cluster]
    for part in _through(points, inside, walk, start):
      yield part
      start = points[part[-1]]


def nearest_next(
  points: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
  """Returns a walk over points: each is the nearest that is still unvisited.

  Args:
    points: float32[n, D], of length one or 0.
    start: float32[D], what the first shall be near to; None takes the point
      that is least like the others.

  Returns:
    int64[n]; of two that are as near, the one that comes first.
  """
  walk = np.zeros(len(points), np.int64)
  if not len(points):
    return walk
  if start is None:
    current = int((points @ points.sum(0)).argmin())
  else:
    current = int((points @ start).argmax())
  visited = np.zeros(len(points), bool)
  for step in range(len(points)):
    walk[step], visited[current] = current, True
    near = points @ points[current]
    near[visited] = -np.inf
    current = int(near.argmax())
  return walk
