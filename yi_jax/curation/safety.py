"""The stage that scores subjects which may do harm, by class.

Yi filters its pretraining text by rules, keywords and classifiers for sexual,
violent and extremist text, and names 14 classes in its taxonomy for alignment
(arXiv:2403.04652, 2.1 and 5); no list and no threshold is published. Here short
lists of words label real text, and a linear scorer a class and language learns
from it. In half of the training texts the words themselves are blanked out, so
that it learns what stands around them. It tells a subject, and not whether a
text does harm: a statute against violence and a threat score alike. So only
what `drop` names is removed; the rest is noted.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yi_jax import paths
from yi_jax.curation import documents, learned, linear, lists, samples

CLASSES = (
  *('environmental_disharmony', 'superstition', 'religious_sensitivity'),
  *('discrimination', 'substance_abuse', 'violence', 'illegal_activity'),
  *('hate_speech', 'ethics', 'privacy', 'self_harm', 'sexual_content'),
  *('mental_health', 'cybersecurity'),
)
_FOLDER = 'yi_jax/curation/safety_lists'
_WEIGHTS = 'weights.npz'
# Words of a list in 1,000 characters (a shorter text counts as 1,000) at which
# a class without a scorer of its own has the score 1; ours.
_PER_THOUSAND = 5
_LONGEST = 1_500  # characters of a training passage
_WORDS = 3  # longest run of words (Chinese: characters) that is a feature
_NO_BOUNDS = ('zh', 'ja')  # languages that put nothing between words


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'model': 'data/filters/safety',
    # Class -> score from which a document goes; ours. Scores of subjects that
    # news and law are full of (violence, illegal_activity) should not be here.
    'drop': {'sexual_content': 0.95},
    # Words of the class's list that a document needs to have before it goes:
    # a score alone removes nothing. 0 asks for none.
    'words': 2,
    # Score from which the class is noted in the metadata.
    'note': 0.8,
    # Keeps the score of every class as safety.CLASS; else the highest alone.
    'record': False,
    'training': {
      # Language -> list: [class] and below it a term a line. Classes of your
      # own are classes too.
      'lists': {'en': f'{_FOLDER}/en.txt', 'zh': f'{_FOLDER}/zh.txt'},
      'sources': {
        'en': (
          *('en_news', 'en_tweets', 'en_chat', 'web_c4', 'web_wiki'),
          *('en_parliament', 'en_bible', 'en_plays', 'en_docs_django'),
        ),
        'zh': ('zh_news', 'zh_reviews', 'zh_law', 'zh_novel', 'zh_dict'),
      },
      # Words of a list, at least, in a text of the class.
      'words': 2,
      # Texts of a class, at least; with fewer its list alone gives the score.
      'least': 60,
      'characters': 20_000_000,  # of a source
      # Texts of no class, about; the others are left out.
      'others': 4_000,
      'heldout': 0.25,
      'bits': 17,  # 2**bits columns
      'penalty': 1e-6,
      'steps': 30,  # of L-BFGS
      'seed': 0,
    },
  }


class Safety(learned.Learned):
  """Scores documents by class; removes or notes those with a high score."""

  name = 'safety'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    self._weights: dict[str, np.ndarray] | None = None
    self._entries = {
      language: read_list(file)
      for language, file in self.training['lists'].items()
    }
    known = set(CLASSES).union(*self._entries.values())
    for name, limit in self.settings['drop'].items():
      learned.choices('safety.drop', name, sorted(known))
      if not 0 < limit <= 1:
        raise ValueError(f'safety.drop.{name} is {limit}: a score, 0 to 1')
    if self.training['lists'].keys() != self.training['sources'].keys():
      raise ValueError(
        'safety.training: lists and sources want the same languages'
      )

  def recipe(self) -> Any:
    """Returns the lists too: with others the model is another."""
    return [self.training, self._entries]

  def setup(self) -> None:
    """Loads the weights."""
    self.card()
    self._terms = {
      language: Terms(entries, language not in _NO_BOUNDS)
      for language, entries in self._entries.items()
    }
    with np.load(self.folder / _WEIGHTS) as file:
      self._weights = {name: file[name] for name in file.files}

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Sets `safety`, the highest score of a document."""
    if self._weights is None:
      self.setup()
    highest = batch.score('safety')
    for language, entries in self._entries.items():
      mine = [i for i in batch.alive() if batch.languages[i] == language]
      if not mine:
        continue
      names = list(entries)
      values = self._score(language, [batch.texts[i] for i in mine])
      highest[mine] = values.max(1)
      if self.settings['record']:
        for k, name in enumerate(names):
          batch.score(f'safety.{name}')[mine] = values[:, k]
      for i, row in zip(mine, values, strict=True):
        if row.max() >= self._lowest():
          self._judge(batch, i, dict(zip(names, row.tolist(), strict=True)))
    return batch

  def _score(self, language: str, texts: Sequence[str]) -> np.ndarray:
    """Returns the score of each class, float32[texts, classes]."""
    rows = self._features().rows(texts)
    counts = [self._terms[language].count(text) for text in texts]
    sizes = np.array([max(1, len(text) / 1_000) for text in texts])
    columns = []
    for name in self._entries[language]:
      theta = self._weights.get(f'{language}.{name}')
      if theta is None:
        found = np.array([count.get(name, 0) for count in counts])
        columns.append(np.minimum(1, found / sizes / _PER_THOUSAND))
      else:
        columns.append(linear.scores(rows, theta))
    return np.stack(columns, axis=1).astype(np.float32)

  def _lowest(self) -> float:
    return min([self.settings['note'], *self.settings['drop'].values()])

  def _judge(
    self, batch: documents.Batch, i: int, values: Mapping[str, float]
  ) -> None:
    noted = {
      name: round(value, 3)
      for name, value in values.items()
      if value >= self.settings['note']
    }
    if noted:
      batch.metadata[i]['safety'] = noted
    for name, limit in self.settings['drop'].items():
      if values.get(name, 0) < limit:
        continue
      found = self._terms[batch.languages[i]].count(batch.texts[i])
      count = found.get(name, 0)
      if count >= self.settings['words']:
        detail = f'{values[name]:.3f} >= {limit:g}, {count} words'
        batch.remove(i, self.name, name, detail)

  def _features(self) -> linear.Features:
    return linear.Features(self.training['bits'], _WORDS, 0)

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a scorer for each class and language that has enough texts."""
    training = self.training
    every, weights, rows = [], {}, []
    classes: dict[str, list[str]] = {}
    entries = self._entries
    for language, names in training['sources'].items():
      found = samples.read(
        root,
        names,
        most=training['characters'],
        characters=8_000,
        seed=training['seed'],
        heldout=training['heldout'],
      )
      every += found
      terms = Terms(entries[language], language not in _NO_BOUNDS)
      passages = samples.passages(
        _pieces(found), shortest=1_000, longest=_LONGEST, seed=training['seed']
      )
      trial = _Trial(self._features(), passages, terms, training)
      for name in entries[language]:
        theta, row = trial.fit(name)
        rows.append({'language': language, 'class': name, **row})
        if theta is not None:
          weights[f'{language}.{name}'] = theta
          classes.setdefault(language, []).append(name)
    np.savez_compressed(folder / _WEIGHTS, **weights)
    return {
      'what': 'Scores how much a text is about a subject of each class: '
      'logistic regressions on hashed words, labelled by short lists of words.',
      'data': samples.table(every),
      'classes': classes,
      'metrics': {'By class': rows},
      'limits': [
        'Labels are words of a list and no verdicts of people: the figures say '
        'how well the lists are followed where their words are blanked out, and '
        'nothing about harm.',
        'It tells a subject, not an attitude: news, law, medicine and scripture '
        'score high in violence, substance_abuse and others.',
        'Texts of no class were thinned out: among all texts the precision is '
        'lower.',
        'A class without figures had too few texts in the sources: its score is '
        'how often words of its list occur. Those with a few dozen texts are '
        'hardly better. Pornography and '
        'hate as a crawl has them are not among the sources.',
      ],
    }


def _pieces(found: Sequence[samples.Sample]) -> list[samples.Sample]:
  """Returns documents cut to the length of a passage."""
  return [
    dataclasses.replace(one, id=f'{one.id}:{start}', text=text)
    for one in found
    for start in range(0, len(one.text), _LONGEST)
    if (text := one.text[start : start + _LONGEST])
  ]


class _Trial:
  """The passages of one language, as rows."""

  def __init__(
    self,
    features: linear.Features,
    passages: Sequence[samples.Sample],
    terms: 'Terms',
    training: Mapping[str, Any],
  ) -> None:
    self._training = training
    passages, self._counts = _thinned(passages, terms, training)
    self._heldout = np.array([one.heldout for one in passages], bool)
    texts = []
    for one in passages:
      draw = documents.draw(training['seed'] + 3, f'{one.source}/{one.id}')
      blank = one.heldout or draw < 0.5
      texts.append(terms.blank(one.text) if blank else one.text)
    self._rows = features.rows(texts)

  def fit(self, name: str) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Returns the weights of a class and its row in the card."""
    training, aside = self._training, self._heldout
    labels = np.array(
      [found.get(name, 0) >= training['words'] for found in self._counts]
    )
    facts = {
      'texts': int(np.count_nonzero(labels & ~aside)),
      'held out': int(np.count_nonzero(labels & aside)),
    }
    if facts['texts'] < training['least']:
      return None, {
        **facts,
        'AUC': '',
        'precision at 0.5': '',
        'recall at 0.5': '',
      }
    seen = np.flatnonzero(~aside)
    theta = linear.fit(
      self._rows[seen],
      labels[seen],
      linear.balanced([''] * len(seen), labels[seen]),
      penalty=training['penalty'],
      steps=training['steps'],
    )
    values = linear.scores(self._rows[np.flatnonzero(aside)], theta)
    truth = labels[aside]
    area = linear.area(values, truth)
    high = values >= 0.5
    right = np.count_nonzero(high & truth)
    return theta, {
      **facts,
      'AUC': '' if area != area else area,
      'precision at 0.5': right / max(1, np.count_nonzero(high)),
      'recall at 0.5': right / max(1, np.count_nonzero(truth)),
    }


def _thinned(
  passages: Sequence[samples.Sample],
  terms: 'Terms',
  training: Mapping[str, Any],
) -> tuple[list[samples.Sample], list[dict[str, int]]]:
  """Returns the passages of a class, some others, and their words by class."""
  counts = [terms.count(one.text) for one in passages]
  known = [max(c.values(), default=0) >= training['words'] for c in counts]
  share = training['others'] / max(1, len(known) - sum(known))
  kept = [
    k
    for k, one in enumerate(passages)
    if known[k]
    or documents.draw(training['seed'] + 4, f'{one.source}/{one.id}') < share
  ]
  return [passages[k] for k in kept], [counts[k] for k in kept]


class Terms:
  """The words of all classes of a language, counted in one pass."""

  def __init__(
    self, entries: Mapping[str, Sequence[str]], bounds: bool
  ) -> None:
    """Takes the list.

    Args:
      entries: class -> terms.
      bounds: whether terms stand between non-letters.
    """
    self._classes: dict[str, list[str]] = {}
    for name, terms in entries.items():
      for term in terms:
        self._classes.setdefault(term, []).append(name)
    self._words = lists.Words(list(self._classes), bounds)

  def count(self, text: str) -> dict[str, int]:
    """Returns class -> how many of its terms stand in a text, repeated ones too."""
    found: dict[str, int] = {}
    for term, count in self._words.count(text).items():
      for name in self._classes[term]:
        found[name] = found.get(name, 0) + count
    return found

  def blank(self, text: str) -> str:
    """Returns a text in small letters without the terms."""
    text = text.lower()
    for term in self._words.count(text):
      text = text.replace(term, ' ')
    return text


def read_list(file: str) -> dict[str, list[str]]:
  """Returns class -> terms of a list.

  Raises:
    FileNotFoundError: naming it.
    ValueError: for a term before any class.
  """
  path = pathlib.Path(paths.in_repository(file))
  if not path.is_file():
    raise FileNotFoundError(f'{path}, a list of safety.training, is not there')
  found: dict[str, list[str]] = {}
  name = ''
  for line in path.read_text(encoding='utf-8').splitlines():
    line = line.strip().lower()
    if line.startswith('[') and line.endswith(']'):
      name = line[1:-1]
      found[name] = []
    elif line and not line.startswith('#'):
      if not name:
        raise ValueError(f'{path}: {line!r} stands above the first [class]')
      found[name].append(line)
  return found
