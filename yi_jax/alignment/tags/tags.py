"""What rows are about: tags by classifiers of our own, a few a row.

A tag is an intention or a subject (`tag_seeds`). No set here was labelled by
people, so labels are weak: words of a question give a tag away. What a model
would learn from that are those words; so half of the training rows have them
taken out of the question, and the model has to tell from the rest of it and
from the answer. Each tag is a logistic regression on hashed words and pairs of
words (Chinese: characters); the probability from which on a row has it is the
one of the best F1 on rows held out for that, and F1 is told on others still.
What a seed gives away counts too: a reader agreed with both together most.
"""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from yi_jax.alignment import rows
from yi_jax.alignment.tags import tag_judged, tag_seeds
from yi_jax.curation import documents, learned, linear
from yi_jax.data import mixtures, progress

OTHER = 'other'  # of a row without a tag
_WEIGHTS = 'weights.npz'
_CUTS = np.arange(0.1, 0.96, 0.05)
_MOST_WEIGHT = 10  # of a row with a rare tag, against one without
_READ = 600  # characters of questions, and of answers
_LATIN = re.compile('[a-z0-9]')
_HAN = re.compile('[\u3400-\u9fff]')
_LEAST = 8  # rows with a tag, below which nothing is learned


def defaults() -> dict[str, Any]:
  """Returns the section `tags` of a config."""
  return {
    'model': 'data/filters/tags',
    'most': 6,  # tags of a row, the likeliest; long talk touches on everything
    'training': {
      'tasks': tuple(mixtures.MIXTURES['chat']),
      'blanked': 0.5,  # share of training rows without their seeds
      'heldout': 0.2,  # half for thresholds, half for figures
      'bits': 16,  # 2**bits columns
      'penalty': 1e-5,  # of the squared weights
      'steps': 40,  # of L-BFGS
      'seed': 0,
    },
  }


def seeded(question: str) -> list[str]:
  """Returns the tags that words of a question give away."""
  read = question[:_READ].lower()
  # A script that is not there need not be looked through.
  latin, han = _LATIN.search(read), _HAN.search(read)
  return [
    tag
    for tag, (english, chinese) in _patterns(0).items()
    if (latin and english.search(read)) or (han and chinese.search(read))
  ]


def blank(question: str) -> str:
  """Returns a question without the words of its seeds."""
  read = question[:_READ]
  for tag in seeded(read):
    for pattern in _patterns(re.IGNORECASE)[tag]:
      read = pattern.sub(' ', read)
  return read


@functools.cache
def _patterns(
  case: int,
) -> dict[str, tuple[re.Pattern[str], re.Pattern[str]]]:
  """Returns the seeds of each tag: English, Chinese.

  Args:
    case: 0 for texts in lower case, which is faster, or re.IGNORECASE.
  """
  return {
    tag: tuple(re.compile(s, case | re.MULTILINE) for s in seeds)
    for tag, seeds in tag_seeds.SEEDS.items()
  }


def _text(question: str, row: rows.Row) -> str:
  """Returns what a model reads of a row."""
  return f'{question[:_READ]}\n{row.answers[:_READ]}'


class Tags(learned.Learned):
  """Knows the tags of rows."""

  name = 'tags'

  def recipe(self) -> Any:
    """Returns the training, its tasks as they are, and the seeds."""
    seeds = json.dumps([tag_seeds.SEEDS, _READ], sort_keys=True)
    return {
      **self.training,
      'tasks': [
        mixtures.get(name).identity() for name in self.training['tasks']
      ],
      'seeds': hashlib.sha256(seeds.encode()).hexdigest()[:12],
    }

  def load(self, root: pathlib.Path) -> None:
    """Loads the model, and trains it first if it is not there.

    Args:
      root: data root.
    """
    if not self.trained():
      progress.tell('train', f'the model of the tags, into {self.folder}')
      self.train(root, anew=False)
    with np.load(self.folder / _WEIGHTS) as file:
      self._take(file['names'], file['theta'], file['cuts'])

  def _take(
    self, names: Sequence[str], theta: np.ndarray, cuts: Sequence[float]
  ) -> None:
    """Keeps the names of tags, their weights, and where each begins."""
    self._names = [str(name) for name in names]
    self._theta, self._cuts = theta, cuts

  def tag(self, found: Sequence[rows.Row]) -> list[tuple[str, ...]]:
    """Returns the tags of rows, the likeliest first; (OTHER,) for none.

    Those that the model is sure of, and those that the question gives away.
    """
    result = []
    for first in range(0, len(found), documents.SIZE):
      part = found[first : first + documents.SIZE]
      for row, values in zip(part, self._values(part), strict=True):
        given = np.isin(self._names, seeded(row.questions))
        over = np.flatnonzero((values >= self._cuts) | given)
        ordered = over[np.argsort(-values[over], kind='stable')]
        names = [self._names[k] for k in ordered[: self.settings['most']]]
        result.append(tuple(names) or (OTHER,))
    return result

  def _values(self, found: Sequence[rows.Row]) -> np.ndarray:
    """Returns the probabilities of the tags, float32[rows, tags]."""
    texts = [_text(row.questions, row) for row in found]
    return linear.scores(self._features().rows(texts), self._theta)

  def _features(self) -> linear.Features:
    return linear.Features(
      self.training['bits'], characters=0, read=2 * _READ + 1
    )

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a model a tag; see the module."""
    training = self.training
    tasks = [mixtures.get(name) for name in training['tasks']]
    found = rows.of_tasks(tasks, root / 'raw')
    trial = _Trial(found, self._features(), training)
    names, theta, cuts, table = [], [], [], []
    for tag in tag_seeds.SEEDS:
      labels = trial.labels(tag)
      if min(np.bincount(labels[trial.learning], minlength=2)) < _LEAST:
        continue
      weights = trial.fit(labels)
      cut = trial.cut(weights, labels)
      names.append(tag)
      theta.append(weights)
      cuts.append(cut)
      table.append({'tag': tag, **trial.judge(weights, labels, cut)})
      if len(names) % 10 == 0:
        progress.tell('train', f'{len(names)} tags')
    if not names:
      raise ValueError(
        f'{len(found):,} rows of tags.training.tasks have too few seeds to '
        'learn a tag from'
      )
    self._take(names, np.stack(theta, 1), np.array(cuts))
    np.savez_compressed(
      folder / _WEIGHTS, names=names, theta=self._theta, cuts=self._cuts
    )
    return {
      'what': 'Says what a conversation is about and what its user wants: for '
      'each tag a logistic regression on hashed words and pairs of words of '
      'questions and answers. Labels are words of the question; half of the '
      'training rows have those words taken out.',
      'data': [
        {
          'task': task.name,
          'rows': sum(row.task == task.name for row in found),
        }
        for task in tasks
      ],
      'metrics': {
        **{
          f'mean F1, {kind}': float(np.mean([row[kind] for row in table]))
          for kind in ('F1', 'F1 without seeds')
        },
        'rows that are measured on': int(trial.measuring.sum()),
        **self._by_hand([found[i] for i in np.flatnonzero(trial.measuring)]),
        'By tag': table,
      },
      'limits': [
        'Labels are weak: a seed is one word, and a row without it may be '
        'about the tag all the same.',
        'F1 is against the same weak labels; "without seeds" has the words '
        'that the labels come from taken out, and is nearer to what the model '
        'knows.',
      ],
    }

  def _by_hand(self, heldout: Sequence[rows.Row]) -> dict[str, float]:
    """Returns F1 against a reader: of the tags, the model, the seeds."""
    mine = [row for row in heldout if row.id in tag_judged.JUDGED]
    if not mine:
      return {}
    judged = [set(tag_judged.JUDGED[row.id]) for row in mine]
    result = {'rows judged by hand': len(mine)}
    sure = self._values(mine) >= self._cuts
    for name, said in (
      ('both', self.tag(mine)),
      ('model alone', [np.array(self._names)[flags] for flags in sure]),
      ('seeds alone', [seeded(row.questions) for row in mine]),
    ):
      known = [set(tags) - {OTHER} for tags in said]
      both = sum(len(a & b) for a, b in zip(known, judged, strict=True))
      told, right = (sum(map(len, side)) for side in (known, judged))
      result |= {
        f'precision by hand, {name}': both / max(1, told),
        f'recall by hand, {name}': both / right,
        f'F1 by hand, {name}': 2 * both / (told + right),
      }
    return result


class _Trial:
  """Rows with weak labels, cut into those to learn from and those to judge."""

  def __init__(
    self,
    found: Sequence[rows.Row],
    features: linear.Features,
    training: Mapping[str, Any],
  ) -> None:
    self._training = training
    self._seeded = [set(seeded(row.questions)) for row in found]
    blanked = [blank(row.questions) for row in found]
    seed, heldout = training['seed'], training['heldout']
    draws = np.array([documents.draw(seed, row.id) for row in found])
    self.measuring = draws < heldout / 2
    self._tuning = (draws >= heldout / 2) & (draws < heldout)
    self.learning = draws >= heldout
    chance = np.array([documents.draw(seed, f'{row.id} x') for row in found])
    bare = self.learning & (chance < training['blanked'])
    self._rows = features.rows(
      [
        _text(blanked[i] if bare[i] else row.questions, row)
        for i, row in enumerate(found)
      ]
    )
    apart = np.flatnonzero(~self.learning)
    self._blank_rows = features.rows(
      [_text(blanked[i], found[i]) for i in apart]
    )
    self._apart = apart

  def labels(self, tag: str) -> np.ndarray:
    """Returns which rows have the tag, bool[rows]."""
    return np.array([tag in mine for mine in self._seeded])

  def fit(self, labels: np.ndarray) -> np.ndarray:
    """Returns the weights, float32[columns + 1]."""
    inside = np.flatnonzero(self.learning)
    mine = labels[inside]
    rare = min(_MOST_WEIGHT, np.sqrt(np.sum(~mine) / np.sum(mine)))
    return linear.fit(
      self._rows[inside],
      mine,
      np.where(mine, rare, 1.0),
      penalty=self._training['penalty'],
      steps=self._training['steps'],
    )

  def cut(self, weights: np.ndarray, labels: np.ndarray) -> float:
    """Returns the probability of the best F1, with seeds and without."""
    scores = []
    for values, mine in self._values(weights, labels, self._tuning):
      scores.append([f1(values >= cut, mine) for cut in _CUTS])
    return float(_CUTS[np.argmax(np.mean(scores, 0))])

  def judge(
    self, weights: np.ndarray, labels: np.ndarray, cut: float
  ) -> dict[str, Any]:
    """Returns figures on rows that nothing was chosen by."""
    (whole, mine), (bare, _) = self._values(weights, labels, self.measuring)
    return {
      'rows': int(labels.sum()),
      'cut': round(cut, 2),
      'F1': f1(whole >= cut, mine),
      'F1 without seeds': f1(bare >= cut, mine),
    }

  def _values(
    self, weights: np.ndarray, labels: np.ndarray, some: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields probabilities and labels of held-out rows, then without seeds."""
    inside = np.flatnonzero(some)
    yield linear.scores(self._rows[inside], weights), labels[inside]
    chosen = some[self._apart]
    yield (
      linear.scores(self._blank_rows[np.flatnonzero(chosen)], weights),
      labels[self._apart[chosen]],
    )


def f1(said: np.ndarray, labels: np.ndarray) -> float:
  """Returns the harmonic mean of precision and recall; 1 if both are empty."""
  both, every = np.sum(said & labels), np.sum(said) + np.sum(labels)
  return float(2 * both / every) if every else 1.0
