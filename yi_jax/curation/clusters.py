"""Keeps fewer documents of clusters that are poor on the whole.

Yi's cluster filter (arXiv:2403.04652, section 2.1): documents are clustered by
meaning, clusters get a label of quality, and labels steer how much of each is
kept. It publishes no numbers.

1. A sample of the documents, chosen by hash, teaches terms and axes (see
   `embedding`) and the centres of k-means (see `kmeans`).
2. The quality of a cluster is the mean label of its labelled documents.
3. Every document goes to the nearest centre, and stays if the hash of its id
   is below the rate of the cluster.

metadata['clusters'] is the number of the cluster, by size in the sample; -1 has
what shares no term with it. The document nearest to a centre in the sample
carries what is said of the cluster (metadata['clusters.card']), for the page.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from yi_jax import paths
from yi_jax.curation import (
  documents,
  embedding,
  exact,
  kmeans,
  stage,
  tables,
)

_NAME = 'clusters'
_RATES_BY = ('percentile', 'quality')
_TERMS = 10  # that name a cluster
_NEAREST = 20  # documents that its terms are spelled by
_DIGITS = 5  # of distances: below them sums may differ by their order
_LEAST_MEMBERS = 10  # sampled documents a cluster, on average


def defaults() -> dict[str, Any]:
  """Returns the section of a config with every key."""
  return {
    # How many; fewer if the sample has not ten documents for each.
    'count': 64,
    # Documents, chosen by hash, that terms, axes and centres are learnt from.
    'sample': 20_000,
    # Read of each document, from its beginning.
    'characters': 3_000,
    # '' is TF-IDF and `dimensions` singular vectors. Or an encoder of yours,
    # 'package.module:function', list of n texts -> float32[n, d]; what it makes
    # of a text must not depend on the others.
    'encoder': '',
    'dimensions': 64,
    # Of k-means: runs from other seeds, and rounds of each at most.
    'restarts': 4,
    'rounds': 100,
    # JSON lines of {"id": ..., "label": 0 to 1}, 1 is good; '' takes
    # scores['quality'] of the sample.
    'labels': '',
    # A cluster with fewer labelled documents has no quality, and stays whole.
    'least_labels': 5,
    # What the bounds below are: 'percentile' of the documents, in order of the
    # quality of their cluster, those of one quality together; or that 'quality'
    # itself.
    'rates_by': 'percentile',
    # (bound, share that stays): the first bound that is above the middle of a
    # cluster, or its quality, counts; beyond the last one all stays (ours).
    'rates': ((5, 0.2), (20, 0.6)),
    # Number of a cluster, as on its page -> share that stays, set by hand after
    # a look: {'17': 0}.
    'by_hand': {},
    'seed': 0,
    # Pieces that shuffles are cut into; the outcome is the same for any.
    'partitions': 64,
  }


@dataclasses.dataclass(frozen=True)
class Model:
  """What the sample has taught.

  Attributes:
    lsa: makes points of texts; None with an encoder.
    centres: float32[K, D].
    rates: float64[K], share that stays.
    cards: of the clusters, as the page shows them.
    nearest: uint64[K], number of the document nearest to each centre.
  """

  lsa: embedding.Lsa | None
  centres: np.ndarray
  rates: np.ndarray
  cards: list[dict[str, Any]]
  nearest: np.ndarray


def draws(batch: documents.Batch, seed: int) -> tables.Table:
  """Returns the place of each document in the order of the sample.

  Columns: `draw`, a hash of seed and id, uint64.
  """
  numbers = tables.numbers([batch.ids[i] for i in batch.alive()])
  return {'draw': _shuffled(numbers, seed)}


def _shuffled(numbers: np.ndarray, seed: int) -> np.ndarray:
  salt = tables.mix(np.array([seed], np.uint64) + np.uint64(1))
  return tables.mix(numbers ^ salt)


def smallest(rows: tables.Table, count: int) -> tables.Table:
  """Returns the rows with the smallest draws, at most so many."""
  draw = np.sort(rows['draw'])[:count]
  return {'draw': draw}


def sampled(
  batch: documents.Batch,
  limits: Sequence[tables.Table],
  labels: tuple[np.ndarray, np.ndarray] | None,
  config: dict[str, Any],
) -> tables.Table:
  """Returns a row for each document that is in the sample, or labelled.

  Args:
    batch: documents.
    limits: the draws of the sample, one table; or nothing.
    labels: sorted numbers and labels, float32; None for scores['quality'].
    config: the section.

  Returns:
    number; `inside`, whether the sample has it; label, NaN if unknown; sizes
    and values, the beginning of its text as UTF-8; `points` with an encoder.
  """
  alive = batch.alive()
  numbers = tables.numbers([batch.ids[i] for i in alive])
  limit = limits[0]['draw'][-1] if limits else np.uint64(0)
  inside = _shuffled(numbers, config['seed']) <= limit
  if labels is None:
    label = batch.scores.get('quality', np.full(len(batch), np.nan, np.float32))
    label = label[alive]
    chosen = np.flatnonzero(inside)
  else:
    at = np.searchsorted(labels[0], numbers)
    at = np.minimum(at, len(labels[0]) - 1)
    hit = labels[0][at] == numbers
    label = np.where(hit, labels[1][at], np.nan).astype(np.float32)
    chosen = np.flatnonzero(inside | hit)
  if not len(chosen):
    return {}
  texts = [batch.texts[alive[k]][: config['characters']] for k in chosen]
  pieces = [text.encode('utf-8', 'replace') for text in texts]
  rows = {
    'number': numbers[chosen],
    'inside': inside[chosen],
    'label': label[chosen],
    'sizes': np.array([len(piece) for piece in pieces], np.int64),
    'values': np.frombuffer(b''.join(pieces), np.uint8),
  }
  if config['encoder']:
    rows['points'] = _encoded(texts, config['encoder'])
  return rows


def _encoded(texts: list[str], name: str) -> np.ndarray:
  encoder = embedding.load_encoder(name, f'{_NAME}.encoder')
  return embedding.encode(encoder, texts, f'{_NAME}.encoder {name}')


def fit(rows: tables.Table, config: dict[str, Any]) -> Model:
  """Returns the model of a sample.

  Args:
    rows: see `sampled`, in any order.
    config: the section.

  Raises:
    ValueError: if labels were given and no document has one, or if documents
      of the sample share no terms.
  """
  rows = tables.take(rows, np.argsort(rows['number'], kind='stable'))
  ends = np.cumsum(rows['sizes'])
  content = rows['values'].tobytes()
  texts = [
    content[end - size : end].decode('utf-8')
    for end, size in zip(ends, rows['sizes'], strict=True)
  ]
  known = ~np.isnan(rows['label'])
  if config['labels'] and not known.any():
    raise ValueError(
      f'{_NAME}.labels: {config["labels"]} names no document that got here; ids '
      'are those of the run, input/own id, see --explain'
    )
  counts = embedding.terms(texts)
  inside = np.flatnonzero(rows['inside'])
  lsa, points = None, rows.get('points')
  if config['encoder']:
    weighing = embedding.weighing(counts[inside])
  else:
    lsa = embedding.fit(counts[inside], config['dimensions'], config['seed'])
    weighing, points = lsa, lsa.points_of(counts)
  seen = inside[points[inside].any(1)]
  count = min(config['count'], max(1, len(seen) // _LEAST_MEMBERS))
  found = kmeans.fit(
    points[seen],
    count,
    seed=config['seed'],
    restarts=config['restarts'],
    rounds=config['rounds'],
  )
  by_size = np.argsort(-np.bincount(found.members), kind='stable')
  centres = found.centres[by_size]
  members, near, _ = assign(points, centres)
  members[~points.any(1)] = -1
  quality = _quality(members, rows['label'], len(centres), config)
  sizes = np.bincount(members[seen], minlength=len(centres))
  rates = keep_rates(quality, sizes, config)
  nearest, names = _named(
    texts, weighing.weights(counts), weighing.columns, members, near
  )
  cards = [
    {
      'sample': int(size),
      'quality': None if np.isnan(q) else round(float(q), 4),
      'labels': int(np.count_nonzero(known & (members == k))),
      'rate': float(rate),
      'terms': terms,
      'x': round(float(x), 4),
      'y': round(float(y), 4),
    }
    for k, (size, q, rate, terms, (x, y)) in enumerate(
      zip(
        *(sizes, quality, rates, names, _plane(centres)),
        strict=True,
      )
    )
  ]
  return Model(lsa, centres, rates, cards, rows['number'][nearest])


def assign(
  points: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the nearest centre of points.

  In float64 and rounded, so that what a point gets does not depend on how many
  are with it.

  Args:
    points: float32[n, D].
    centres: float32[K, D].

  Returns:
    int64[n], the number of the centre; float32[n], the distance to it; and
    float32[n], how much further the second is, as a share of its distance: 0 is
    half way, and 1 where there is one centre only.
  """
  wide = centres.astype(np.float64)
  rows = points.astype(np.float64)
  squares = (wide**2).sum(1) + (rows**2).sum(1)[:, None] - 2 * rows @ wide.T
  distances = np.sqrt(np.maximum(squares, 0))
  members = distances.argmin(1)
  each = np.arange(len(points))
  near = distances[each, members]
  margins = np.ones(len(points))
  if len(centres) > 1:
    distances[each, members] = np.inf
    second = distances.min(1)
    margins = 1 - near / np.maximum(second, 1e-12)
  return (
    members,
    np.round(near, _DIGITS).astype(np.float32),
    np.round(margins, _DIGITS).astype(np.float32),
  )


def _quality(
  members: np.ndarray, labels: np.ndarray, count: int, config: dict[str, Any]
) -> np.ndarray:
  """Returns the mean label of each cluster, float64, NaN for too few."""
  known = ~np.isnan(labels) & (members >= 0)
  sums, counts = (
    np.bincount(members[known], weights, minlength=count)
    for weights in (labels[known].astype(np.float64), None)
  )
  enough = counts >= config['least_labels']
  return np.where(enough, sums / np.maximum(counts, 1), np.nan)


def keep_rates(
  quality: np.ndarray, sizes: np.ndarray, config: dict[str, Any]
) -> np.ndarray:
  """Returns the share of each cluster that stays, float64[K].

  Args:
    quality: float64[K], NaN where unknown: those stay whole.
    sizes: int[K], documents of the sample.
    config: the section.
  """
  known = np.flatnonzero(~np.isnan(quality))
  measure = quality.copy()
  if config['rates_by'] == 'percentile' and len(known):
    mine, weights = quality[known], sizes[known]
    below = (mine[None] < mine[:, None]) @ weights
    equal = (mine[None] == mine[:, None]) @ weights
    measure[known] = 100 * (below + equal / 2) / weights.sum()
  rates = np.ones(len(quality))
  for bound, rate in sorted(config['rates'], reverse=True):
    rates[known[measure[known] < bound]] = rate
  for number, rate in config['by_hand'].items():
    if int(number) >= len(rates):
      raise ValueError(
        f'{_NAME}.by_hand names the cluster {number}: there are '
        f'{len(rates)}, from 0'
      )
    rates[int(number)] = rate
  return rates


def _named(
  texts: Sequence[str],
  weights: Any,
  columns: np.ndarray,
  members: np.ndarray,
  near: np.ndarray,
) -> tuple[np.ndarray, list[list[str]]]:
  """Returns the document nearest to each centre, and the heaviest terms.

  Heavy is what weighs more in the cluster's mean than in that of all.
  """
  nearest, names = [], []
  overall = np.asarray(weights.mean(0)).ravel()
  for k in range(members.max() + 1):
    mine = np.flatnonzero(members == k)
    mine = mine[np.argsort(near[mine], kind='stable')]
    excess = np.asarray(weights[mine].mean(0)).ravel() - overall
    order = np.argsort(-excess, kind='stable')[: 3 * _TERMS]
    heavy = columns[order[excess[order] > 0]]
    spelled = embedding.spellings([texts[i] for i in mine[:_NEAREST]], heavy)
    terms = [spelled[column] for column in heavy if column in spelled]
    nearest.append(mine[0])
    names.append(list(dict.fromkeys(terms))[:_TERMS])
  return np.array(nearest), names


def _plane(centres: np.ndarray) -> np.ndarray:
  """Returns centres by their first two principal components, float64[K, 2]."""
  moved = centres.astype(np.float64) - centres.mean(0)
  left, values, _ = np.linalg.svd(moved, full_matrices=False)
  plane = np.zeros((len(centres), 2))
  plane[:, : len(values)] = (left * values)[:, :2]
  signs = np.sign(plane[np.abs(plane).argmax(0), [0, 1]])
  return plane * np.where(signs == 0, 1, signs)


def apply(
  batch: documents.Batch, models: Sequence[Model], config: dict[str, Any]
) -> documents.Batch:
  """Gives each document its cluster, and removes what is too many.

  Args:
    batch: changed in place.
    models: one; or none if there is no document at all.
    config: the section.
  """
  alive = batch.alive()
  if not alive:
    return batch
  model = models[0]
  texts = [batch.texts[i][: config['characters']] for i in alive]
  if model.lsa:
    points = model.lsa.points(texts)
  else:
    points = _encoded(texts, config['encoder'])
  members, near, margins = assign(points, model.centres)
  cards = dict(zip(model.nearest.tolist(), model.cards, strict=True))
  numbers = tables.numbers([batch.ids[i] for i in alive]).tolist()
  for row, i in enumerate(alive):
    if not points[row].any():
      batch.metadata[i][_NAME] = -1
      continue
    k = int(members[row])
    batch.metadata[i][_NAME] = k
    batch.score(f'{_NAME}.distance')[i] = near[row]
    batch.score(f'{_NAME}.margin')[i] = margins[row]
    if numbers[row] in cards:
      batch.metadata[i][f'{_NAME}.card'] = cards[numbers[row]]
    rate = model.rates[k]
    draw = documents.draw(config['seed'], f'{_NAME} {batch.ids[i]}')
    if draw >= rate:
      card = model.cards[k]
      detail = (
        f'cluster {k} ({", ".join(card["terms"][:3])}) of quality '
        f'{card["quality"]}: {draw:.3f} >= {rate:g}'
      )
      batch.remove(i, _NAME, 'rate', detail)
  return batch


class Clusters(stage.GlobalStage):
  """Keeps a share of each cluster that goes by its quality."""

  name = _NAME

  def __init__(self, config: Any) -> None:
    """Checks the section, see `defaults`."""
    least = {
      **dict(count=1, sample=1, characters=1, dimensions=2, restarts=1),
      **dict(rounds=1, least_labels=1, seed=0, partitions=1),
    }
    super().__init__(exact.checked(self.name, config, defaults(), least))
    _check(self.config)

  def identity(self) -> str:
    """Returns hashes of the labels and of the encoder's code."""
    digest = hashlib.sha256()
    if self.config['labels']:
      digest.update(_file(self.config['labels']).read_bytes())
    if self.config['encoder']:
      module = inspect.getmodule(
        embedding.load_encoder(self.config['encoder'], f'{_NAME}.encoder')
      )
      digest.update(inspect.getsource(module).encode() if module else b'')
    return digest.hexdigest()

  def expand(self, batches: Any) -> Any:
    """Returns the batches without what is too many.

    Hashes of all documents move, 8 bytes each, and the texts of the sample.
    """
    import apache_beam as beam

    from yi_jax.curation import shuffle

    config, name = self.config, self.name
    labels = read_labels(config['labels']) if config['labels'] else None
    least = functools.partial(smallest, count=config['sample'])

    def once(function: Any) -> Any:
      return lambda table: [function(table)] if table else []

    hashes = batches | f'{name}: draws' >> beam.Map(draws, config['seed'])
    each = shuffle.reduce(
      hashes, f'{name}: smallest', 'draw', config['partitions'], once(least)
    )
    limit = shuffle.reduce(each, f'{name}: limit', 'draw', 1, once(least))
    rows = batches | f'{name}: sample' >> beam.Map(
      sampled, beam.pvalue.AsList(limit), labels, config
    )
    model = shuffle.reduce(
      rows, f'{name}: fit', 'number', 1, once(lambda rows: fit(rows, config))
    )
    return batches | f'{name}: apply' >> beam.Map(
      apply, beam.pvalue.AsList(model), config
    )


def _check(config: dict[str, Any]) -> None:
  """Raises ValueError, naming the key and the cure."""
  if config['rates_by'] not in _RATES_BY:
    raise ValueError(
      f'{_NAME}.rates_by is {config["rates_by"]!r}: one of {list(_RATES_BY)}'
    )
  pairs = list(config['rates'])
  for pair in pairs:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
      raise ValueError(
        f'{_NAME}.rates has {pair!r}: it holds pairs (bound, share that stays)'
      )
  shares = [(f'rates[{k}]', rate) for k, (_, rate) in enumerate(pairs)]
  for number, rate in config['by_hand'].items():
    if not str(number).isdecimal():
      raise ValueError(f'{_NAME}.by_hand: {number!r} is no number of a cluster')
    shares.append((f'by_hand[{number}]', rate))
  for key, rate in shares:
    if not isinstance(rate, int | float) or not 0 <= rate <= 1:
      raise ValueError(f'{_NAME}.{key} is {rate!r}: a share, 0 to 1')
  if config['labels'] and not _file(config['labels']).is_file():
    raise ValueError(
      f'{_NAME}.labels: there is no {_file(config["labels"])}; give JSON lines '
      "of id and label, or '' for scores['quality']"
    )
  if config['encoder']:
    embedding.load_encoder(config['encoder'], f'{_NAME}.encoder')


def _file(path: str) -> pathlib.Path:
  return pathlib.Path(paths.in_repository(path))


def read_labels(path: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns sorted numbers of documents, uint64, and their labels, float32.

  Args:
    path: JSON lines of {"id": ..., "label": 0 to 1 or true or false}.

  Raises:
    ValueError: for a line that is none, naming it, or a file without lines.
  """
  ids, labels = [], []
  with _file(path).open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      try:
        entry = json.loads(line)
        key, label = str(entry['id']), float(entry['label'])
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'{_NAME}.labels: line {number} of {path} is no '
          '{"id": ..., "label": 0 to 1}'
        ) from error
      if not 0 <= label <= 1:
        raise ValueError(
          f'{_NAME}.labels: line {number} of {path} has the label {label:g}: 0 '
          'is bad and 1 is good'
        )
      ids.append(key)
      labels.append(label)
  if not ids:
    raise ValueError(f'{_NAME}.labels: {path} is empty')
  numbers, first = np.unique(tables.numbers(ids), return_index=True)
  return numbers, np.array(labels, np.float32)[first]
