"""The stage that finds documents glued together from unrelated parts.

Yi's coherence scorer splits such documents for further analysis, or drops them
(arXiv:2403.04652, 2.1); how it works is not published. Ours goes as TextTiling
(Hearst 1997) does: between two sentences or lines, the text before is compared
with the text after. Both are points of `embedding` (TF-IDF, and its singular
vectors); a logistic regression on these and a few plainer likenesses says
how probable a seam is. It is trained on real documents glued at known places.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from yi_jax.curation import (
  characters,
  documents,
  embedding,
  learned,
  linear,
  samples,
  tables,
)

_MODEL = 'model.npz'
_END = re.compile(r'\n+|[.!?]["”’)\]]*\s+|[。！？][”’」）]*\s*')
_PIECE = 40  # characters, at least, between two places where a seam may be
_WIDE = 4  # times the window: a second look from further away
_ROUNDS = 3  # texts that are made of each document
_NEAR = 10  # places on both sides that a place is compared with
_PLAIN = 13  # likenesses of a place, see Model.features
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
ACTIONS = ('split', 'longest', 'drop', 'note')


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'model': 'data/filters/coherence',
    # Probability of a seam from which it is one; ours, see the card.
    'threshold': 0.3,
    # What becomes of a document with a seam: 'split', its parts go on as
    # documents ID~part1, ID~part2; 'longest', its longest part stays; 'drop';
    # 'note', only its trail says so.
    'action': 'split',
    'part': 300,  # characters, at least, of a part
    'window': 800,  # characters on both sides that are compared
    'training': {
      'sources': {
        'en': (
          *('web_wiki', 'web_c4', 'en_news', 'en_parliament', 'en_chat'),
          *('en_docs_django', 'en_docs_paddlex', 'en_plays', 'en_bible'),
        ),
        'zh': ('zh_law', 'zh_news', 'zh_docs_paddlex', 'zh_novel'),
      },
      'characters': 500_000,  # of a source
      'heldout': 0.25,
      'dimensions': 96,
      'seed': 0,
    },
  }


class Coherence(learned.Learned):
  """Finds seams, and splits, cuts or removes documents that have one."""

  name = 'coherence'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    self._model: Model | None = None
    settings = self.settings
    learned.choices('coherence.action', settings['action'], ACTIONS)
    if not 0 < settings['threshold'] < 1:
      raise ValueError(
        f'coherence.threshold is {settings["threshold"]}: a probability'
      )
    for key in ('part', 'window'):
      if settings[key] < _PIECE:
        raise ValueError(
          f'coherence.{key} is {settings[key]}: at least {_PIECE} characters'
        )

  def setup(self) -> None:
    """Loads the model."""
    self.card()
    self._model = load(self.folder / _MODEL)

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Sets `coherence`: 1 less the probability of the likeliest seam."""
    if self._model is None:
      self.setup()
    settings = self.settings
    values = batch.score('coherence')
    mine = [
      i for i in batch.alive() if len(batch.texts[i]) >= 2 * settings['part']
    ]
    found = self._model.seams(
      [batch.texts[i] for i in mine], settings['window'], settings['part']
    )
    parts = []
    for i, (places, odds) in zip(mine, found, strict=True):
      values[i] = 1 - odds.max(initial=0)
      cuts = chosen(places, odds, settings['threshold'], settings['part'])
      if cuts:
        parts.append((i, cuts, float(odds.max())))
    return self._act(batch, parts)

  def _act(
    self,
    batch: documents.Batch,
    found: Sequence[tuple[int, list[int], float]],
  ) -> documents.Batch:
    """Does with documents that have seams what the config says."""
    action, added = self.settings['action'], [batch]
    for i, cuts, odds in found:
      ends = [0, *cuts, len(batch.texts[i])]
      detail = f'{len(cuts)} seams, the likeliest {odds:.3f}'
      texts = [
        batch.texts[i][a:b] for a, b in zip(ends, ends[1:], strict=False)
      ]
      if action == 'note':
        batch.note(i, self.name, detail)
      elif action == 'longest':
        batch.change(
          i, self.name, max(texts, key=len), f'longest part: {detail}'
        )
      elif action == 'drop':
        batch.remove(i, self.name, 'seams', detail)
      else:
        made = batch.select([i] * len(texts))
        made.ids = [f'{batch.ids[i]}~part{n + 1}' for n in range(len(texts))]
        # Lists of their own: select shares them.
        made.trails = [list(trail) for trail in made.trails]
        made.metadata = [dict(entry) for entry in made.metadata]
        made.score('coherence')[:] = np.nan
        for part, text in enumerate(texts):
          made.change(part, self.name, text.strip(), f'part of {batch.ids[i]}')
        added.append(made)
        batch.remove(i, self.name, 'split', f'{detail}; goes on in parts')
    return documents.concatenate(added) if len(added) > 1 else batch

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains on glued documents, and counts the seams found in others."""
    training, settings = self.training, defaults()
    every, sets = [], {False: [], True: []}
    for names in training['sources'].values():
      found = samples.read(
        root,
        names,
        most=training['characters'],
        characters=6_000,
        seed=training['seed'],
        heldout=training['heldout'],
      )
      every += found
      for side, glued in sets.items():
        glued += glue([o for o in found if o.heldout == side], training['seed'])
    texts = [one.text for one in every if not one.heldout]
    counts = embedding.terms([t[a:b] for t in texts for a, b in _windows(t)])
    lsa = embedding.fit(counts, training['dimensions'], training['seed'])
    model = Model(lsa, np.zeros(0), np.zeros(0), np.zeros(1))
    rows, labels = [], []
    seen = sets[False]
    found = model.features([text for text, _ in seen], settings['window'])
    for (text, seams), (places, values) in zip(seen, found, strict=True):
      inner = _inner(places, len(text), settings['part'])
      rows.append(values[inner])
      labels.append(_nearest(places[inner], seams))
    values = np.concatenate(rows)
    middle, scale = values.mean(0), values.std(0) + 1e-6
    theta = linear.fit(
      sparse.csr_matrix(_squared((values - middle) / scale)),
      np.concatenate(labels),
      np.ones(len(values)),
      penalty=1e-5,
      steps=200,
    )
    model = Model(lsa, middle, scale, theta)
    model.save(folder / _MODEL)
    measured = measure(model, sets[True], settings)
    return {
      'what': 'Says how probable it is that a text is glued together from two '
      'at a given place: a logistic regression on how alike the text before '
      'and after is.',
      'data': samples.table(every),
      'metrics': {
        'glued documents held out': sum(bool(s) for _, s in sets[True]),
        'whole documents held out': sum(not s for _, s in sets[True]),
        'By threshold': measured,
      },
      'limits': [
        'Seams in the card are between whole passages of 400 characters and '
        'more; half of them join documents of one source. Real pages are glued '
        'of menus, teasers and comments too, of which it has seen few.',
        'Manuals and statutes change their subject by nature: what it calls a '
        'seam there is often the beginning of a section.',
        'Where a sentence has no end that it knows, it sees no place to cut.',
      ],
    }


def _windows(text: str) -> list[tuple[int, int]]:
  """Returns slices of a text as long as what is compared."""
  return [(n, n + 800) for n in range(0, max(1, len(text) - 400), 800)]


def chosen(
  places: np.ndarray, odds: np.ndarray, threshold: float, part: int
) -> list[int]:
  """Returns where to cut: the likeliest seams, `part` characters apart.

  Args:
    places: int[n], in rising order.
    odds: float[n], probabilities.
    threshold: least probability.
    part: characters between two cuts, at least.
  """
  cuts: list[int] = []
  for k in np.argsort(-odds, kind='stable'):
    if odds[k] < threshold:
      break
    if all(abs(places[k] - cut) >= part for cut in cuts):
      cuts.append(int(places[k]))
  return sorted(cuts)


def glue(
  found: Sequence[samples.Sample], seed: int
) -> list[tuple[str, list[int]]]:
  """Returns texts and their seams: two of three glued, the others whole.

  Passages of 400 characters and more are glued by a line end or a space; their
  partners are of the same source half of the time.
  """
  rng = np.random.default_rng(seed)
  long = [one for one in found if len(one.text) >= 1_000]
  made = []
  for number, one in enumerate(one for one in long for _ in range(_ROUNDS)):
    first = one.text[: int(rng.integers(900, 4_000))]
    if number % 3 == 0:
      made.append((first, []))
      continue
    same = [o for o in long if (o.source == one.source) == (number % 2 == 0)]
    other = same[int(rng.integers(len(same)))] if same else one
    if other.id.partition('#')[0] == one.id.partition('#')[0]:
      made.append((first, []))
      continue
    first = _whole(first[: int(rng.integers(400, 2_000))])
    start = int(rng.integers(0, max(1, len(other.text) - 800)))
    begins = [m.end() for m in _END.finditer(other.text, start)]
    second = other.text[begins[0] if begins else 0 :][
      : int(rng.integers(500, 2_000))
    ]
    if min(len(first), len(second)) < 400:
      continue
    joined = first.rstrip() + ('\n' if rng.random() < 0.5 else ' ')
    made.append((joined + second.lstrip(), [len(joined)]))
  return made


def _whole(text: str) -> str:
  """Returns a text up to its last sentence or line end."""
  ends = [m.end() for m in _END.finditer(text)]
  return text[: ends[-1]] if ends else text


def measure(
  model: 'Model',
  made: Sequence[tuple[str, list[int]]],
  settings: dict[str, Any],
) -> list[dict[str, float]]:
  """Returns precision and recall of seams and of documents, by threshold.

  A seam counts as found where a cut is within 100 characters of it.
  """
  found = model.seams(
    [text for text, _ in made], settings['window'], settings['part']
  )
  rows = []
  for threshold in _THRESHOLDS:
    hits = cuts = seams = flagged = right = glued = 0
    for (_, wanted), (places, odds) in zip(made, found, strict=True):
      mine = chosen(places, odds, threshold, settings['part'])
      near = sum(any(abs(c - w) <= 100 for w in wanted) for c in mine)
      hits, cuts, seams = hits + near, cuts + len(mine), seams + len(wanted)
      flagged += bool(mine)
      glued += bool(wanted)
      right += bool(mine) and bool(wanted)
    rows.append(
      {
        'threshold': threshold,
        'seams: precision': hits / max(cuts, 1),
        'seams: recall': hits / max(seams, 1),
        'documents: precision': right / max(flagged, 1),
        'documents: recall': right / max(glued, 1),
      }
    )
  return rows


class Model:
  """What tells seams.

  Attributes:
    lsa: makes points of texts.
    middle, scale: float[features], of the training values.
    theta: float[features + 1], see `linear.fit`.
  """

  def __init__(
    self,
    lsa: embedding.Lsa,
    middle: np.ndarray,
    scale: np.ndarray,
    theta: np.ndarray,
  ) -> None:
    """Takes the parts."""
    self.lsa, self.middle, self.scale, self.theta = lsa, middle, scale, theta

  def save(self, path: pathlib.Path) -> None:
    """Writes what `load` reads."""
    np.savez_compressed(
      path,
      **vars(self.lsa),
      middle=self.middle,
      scale=self.scale,
      theta=self.theta,
    )

  def seams(
    self, texts: Sequence[str], window: int, part: int
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns where each text may have a seam, and how probable it is.

    Args:
      texts: any.
      window: characters on both sides that are compared.
      part: characters from the ends of a text without a seam.

    Returns:
      For each text int64[n], and float64[n].
    """
    result = []
    for text, (places, values) in zip(
      texts, self.features(texts, window), strict=True
    ):
      inner = _inner(places, len(text), part)
      likeness = _squared((values[inner] - self.middle) / self.scale)
      margins = likeness @ self.theta[:-1] + self.theta[-1]
      odds = 1 / (1 + np.exp(-np.clip(margins, -50, 50)))
      result.append((places[inner], odds))
    return result

  def features(
    self, texts: Sequence[str], window: int
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the places of each text, and float64[places, _PLAIN].

    For the window, and a wide one: the cosines of both sides as TF-IDF and as
    points, how much their kinds of characters differ, and how far the cosines
    lie below the others of the text and below their neighbours; last, how
    much text there is.
    """
    places = [_places(text) for text in texts]
    sizes = np.array([len(p) - 1 for p in places], np.int64)
    pieces = [
      text[a:b]
      for text, ends in zip(texts, places, strict=True)
      for a, b in zip(ends, ends[1:], strict=False)
    ]
    if not pieces:
      return [(np.zeros(0, np.int64), np.zeros((0, _PLAIN)))] * len(texts)
    counts = embedding.terms(pieces)
    signs = _signs(pieces)
    first = np.cumsum(sizes) - sizes
    columns = []
    for size in (window, _WIDE * window):
      ranges = [_around(ends, size) for ends in places]
      left, middle, right = (
        np.concatenate([r[k] + f for r, f in zip(ranges, first, strict=True)])
        for k in range(3)
      )
      sides = (
        _gather(left, middle, len(pieces)),
        _gather(middle, right, len(pieces)),
      )
      weights = [self.lsa.weights((side @ counts).tocsr()) for side in sides]
      points = [embedding.normalised(w @ self.lsa.axes) for w in weights]
      tfidf = np.asarray(weights[0].multiply(weights[1]).sum(1)).ravel()
      lsa = (points[0] * points[1]).sum(1)
      shares = [_shares(side @ signs) for side in sides]
      columns += [tfidf, lsa, np.abs(shares[0] - shares[1]).sum(1)]
      for values in (tfidf, lsa):
        columns.append(_depth(values, sizes))
        if size == window:
          columns.append(_valley(values, sizes))
    lengths = np.array([len(p) for p in pieces], np.float64)
    columns.append(np.log(np.minimum(*(side @ lengths for side in sides))))
    values = np.stack(columns, 1).astype(np.float64)
    cuts = np.cumsum(np.maximum(sizes - 1, 0))[:-1]
    return [
      (np.array(ends[1:-1], np.int64), mine)
      for ends, mine in zip(places, np.split(values, cuts), strict=True)
    ]


def load(path: pathlib.Path) -> Model:
  """Returns what `Model.save` wrote."""
  with np.load(path) as file:
    lsa = embedding.Lsa(file['columns'], file['idf'], file['axes'])
    return Model(lsa, file['middle'], file['scale'], file['theta'])


def _places(text: str) -> list[int]:
  """Returns 0, the ends of sentences and lines _PIECE apart, and the end."""
  places = [0]
  for match in _END.finditer(text):
    if match.end() - places[-1] >= _PIECE and match.end() < len(text):
      places.append(match.end())
  return [*places, len(text)] if text else [0]


def _around(
  ends: Sequence[int], window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns first, middle and last piece around each place inside a text."""
  ends = np.array(ends)
  middle = np.arange(1, max(len(ends) - 1, 1))
  left = np.searchsorted(ends, ends[middle] - window, 'left')
  right = np.searchsorted(ends, ends[middle] + window, 'right') - 1
  return (
    np.minimum(left, middle - 1),
    middle,
    np.maximum(right, middle + 1),
  )


def _gather(
  first: np.ndarray, last: np.ndarray, count: int
) -> sparse.csr_matrix:
  """Returns a matrix that adds up the rows first to last of `count` pieces."""
  sizes = last - first
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  indices = tables.ranges(first, sizes)
  values = np.ones(len(indices), np.float32)
  return sparse.csr_matrix((values, indices, offsets), (len(first), count))


def _signs(pieces: Sequence[str]) -> np.ndarray:
  """Returns how many characters of each kind pieces have, float32[n, 10]."""
  kinds = characters.kinds(characters.codes(''.join(pieces))).astype(np.int64)
  owner = np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])
  found = np.bincount(owner * 10 + kinds, minlength=len(pieces) * 10)
  return found.reshape(len(pieces), 10).astype(np.float32)


def _nearest(places: np.ndarray, seams: Sequence[int]) -> np.ndarray:
  """Returns which places are those nearest to a seam, bool[places]."""
  found = np.zeros(len(places), bool)
  for seam in seams:
    away = np.abs(places - seam)
    if len(away) and away.min() <= _PIECE:
      found[away.argmin()] = True
  return found


def _inner(places: np.ndarray, size: int, part: int) -> np.ndarray:
  """Returns which places are far enough from both ends of a text."""
  return (places >= part) & (places <= size - part)


def _squared(values: np.ndarray) -> np.ndarray:
  """Returns columns and their products, float32[n, F + F (F + 1) / 2]."""
  values = np.clip(values, -5, 5)
  one, two = np.triu_indices(values.shape[1])
  products = values[:, one] * values[:, two]
  return np.concatenate([values, products], 1).astype(np.float32)


def _shares(counts: np.ndarray) -> np.ndarray:
  return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _depth(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """Returns values less the mean of their text."""
  gaps = np.maximum(sizes - 1, 0)
  owner = np.repeat(np.arange(len(gaps)), gaps)
  total = np.bincount(owner, values, minlength=len(gaps))
  return values - (total / np.maximum(gaps, 1))[owner]


def _valley(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """Returns how deep values lie between the highest near them on both sides.

  That is the depth score of TextTiling, over a few neighbours.
  """
  gaps = np.maximum(sizes - 1, 0)
  owner = np.repeat(np.arange(len(gaps)), gaps)
  before, after = values.copy(), values.copy()
  for step in range(1, min(_NEAR, len(values) - 1) + 1):
    same = owner[step:] == owner[:-step]
    before[step:] = np.maximum(
      before[step:], np.where(same, values[:-step], -np.inf)
    )
    after[:-step] = np.maximum(
      after[:-step], np.where(same, values[step:], -np.inf)
    )
  return before + after - 2 * values
