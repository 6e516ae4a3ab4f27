"""The stage that prefers encyclopaedic text to the noise of the web.

Yi trained a classifier on pages like those of Wikipedia and dropped what was
below a standard (arXiv:2403.04652, 2.1); it published neither the kind of the
model nor a threshold. Ours is a logistic regression on hashed n-grams for each
language: edited text (encyclopaedias, manuals, books, laws, news) on one side,
what people type and pages of a crawl on the other. Of several copies of a
document the later stages keep the one that this score prefers.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yi_jax.curation import documents, learned, linear, samples

_WEIGHTS = 'weights.npz'
_SHORTEST, _LONGEST = 100, 3_000  # characters of a training passage


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'model': 'data/filters/quality',
    # Language -> score, 0 to 1, below which a document goes; ours. Languages
    # without a model have no score and stay.
    'thresholds': {'en': 0.05, 'zh': 0.05},
    'training': {
      # Language -> sources of yi_jax.data.sources.
      'good': {
        'en': (
          *('web_wiki', 'en_news', 'en_parliament', 'en_docs_django'),
          *('en_docs_paddlex', 'en_plays', 'en_bible'),
        ),
        'zh': ('zh_law', 'zh_news', 'zh_dict', 'zh_docs_paddlex', 'zh_novel'),
      },
      'bad': {'en': ('en_tweets', 'en_chat', 'web_c4'), 'zh': ('zh_reviews',)},
      'characters': 600_000,  # of a source
      'heldout': 0.2,  # share of the documents, for measuring
      'bits': 18,  # 2**bits columns
      'penalty': 1e-5,  # of the squared weights
      'steps': 40,  # of L-BFGS
      'seed': 0,
    },
  }


class Quality(learned.Learned):
  """Scores documents, and removes those of low quality."""

  name = 'quality'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    self._model: dict[str, np.ndarray] | None = None
    for language, threshold in self.settings['thresholds'].items():
      if not 0 <= threshold <= 1:
        raise ValueError(
          f'quality.thresholds.{language} is {threshold}: a score, 0 to 1'
        )
    sides = [self.training[side] for side in ('good', 'bad')]
    if any(not names for side in sides for names in side.values()) or (
      sides[0].keys() != sides[1].keys()
    ):
      raise ValueError(
        'quality.training: good and bad want sources of the same languages'
      )

  def setup(self) -> None:
    """Loads the weights."""
    self.card()
    with np.load(self.folder / _WEIGHTS) as file:
      self._model = dict(file)

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Sets `quality`, and removes what is below the threshold."""
    if self._model is None:
      self.setup()
    values = batch.score('quality')
    by_language: dict[str, list[int]] = {}
    for i in batch.alive():
      by_language.setdefault(batch.languages[i], []).append(i)
    for language in sorted(by_language.keys() & self._model.keys()):
      mine = by_language[language]
      rows = self._features().rows([batch.texts[i] for i in mine])
      values[mine] = linear.scores(rows, self._model[language])
      limit = self.settings['thresholds'].get(language, 0)
      for i in mine:
        if values[i] < limit:
          batch.remove(i, self.name, 'low', f'{values[i]:.3f} < {limit:g}')
    return batch

  def _features(self) -> linear.Features:
    return linear.Features(self.training['bits'])

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a model a language, and others that have not seen a source."""
    training = self.training
    every, model, metrics, apart, by_source = [], {}, {}, [], []
    for language, good in training['good'].items():
      found = samples.read(
        root,
        [*good, *training['bad'][language]],
        most=training['characters'],
        characters=_LONGEST * 2,
        seed=training['seed'],
        heldout=training['heldout'],
      )
      every += found
      trial = _Trial(self._features(), found, good, training)
      model[language] = trial.fit()
      values = linear.scores(trial.rows, model[language])
      metrics[f'AUC, {language}'] = linear.area(values, trial.labels)
      by_source += trial.by_source(language, values)
      apart += trial.left_out(language)
    np.savez_compressed(folder / _WEIGHTS, **model)
    sides = {
      name: side
      for side in ('good', 'bad')
      for names in training[side].values()
      for name in names
    }
    return {
      'what': 'Scores how much a text reads like an edited one (1) and not '
      'like what people type or a page of a crawl (0): logistic regressions on '
      'hashed words, pairs of words and runs of up to four characters.',
      'data': samples.table(every, side=sides),
      'metrics': {
        **metrics,
        'Scores of held-out documents': by_source,
        'AUC of a source that training has not seen': apart,
      },
      'limits': [
        'The AUC above is of new documents of known sources, which is easy; '
        'the last table is nearer to what a new site is to the model.',
        'Chinese has one source of noise, reviews of shops: of other noise '
        'the score says little.',
        'Good and bad are sources, not verdicts on documents: some pages of a '
        'crawl are good, some articles are not.',
        'Only the first few thousand characters, in windows, are read.',
      ],
    }


class _Trial:
  """The documents of one language, as rows."""

  def __init__(
    self,
    features: linear.Features,
    found: Sequence[samples.Sample],
    good: Sequence[str],
    training: Mapping[str, Any],
  ) -> None:
    self._good, self._training = set(good), training
    passages = samples.passages(
      [one for one in found if not one.heldout],
      shortest=_SHORTEST,
      longest=_LONGEST,
      seed=training['seed'],
    )
    self._rows = features.rows([one.text for one in passages])
    self._sources = np.array([one.source for one in passages])
    heldout = [one for one in found if one.heldout]
    self.rows = features.rows([one.text for one in heldout])
    self.sources = np.array([one.source for one in heldout])
    self.labels = self._side(self.sources)

  def _side(self, names: np.ndarray) -> np.ndarray:
    return np.isin(names, sorted(self._good))

  def fit(self, without: str = '') -> np.ndarray:
    """Returns weights; of the sources but one, if that is asked for."""
    inside = np.flatnonzero(self._sources != without)
    names = self._sources[inside]
    labels = self._side(names)
    return linear.fit(
      self._rows[inside],
      labels,
      linear.balanced(names, labels),
      penalty=self._training['penalty'],
      steps=self._training['steps'],
    )

  def by_source(self, language: str, values: np.ndarray) -> list[dict]:
    """Returns percentiles of the scores of each source.

    The AUC is that of its documents against those of the other side.
    """

    def area(name: str) -> float:
      side = name in self._good
      shown = (self.sources == name) | (self.labels != side)
      return linear.area(values[shown], self.labels[shown])

    return [
      {
        'language': language,
        'source': str(name),
        'side': 'good' if name in self._good else 'bad',
        'AUC': area(name),
        **{
          f'{p}%': float(np.percentile(values[self.sources == name], p))
          for p in (5, 25, 50, 75, 95)
        },
      }
      for name in dict.fromkeys(self.sources.tolist())
    ]

  def left_out(self, language: str) -> list[dict[str, Any]]:
    """Returns the AUC of each source, trained without it.

    It is that of the source's held-out documents against those of the other
    side. The only source of a side cannot be left out.
    """
    result = []
    for name in dict.fromkeys(self._sources.tolist()):
      side = name in self._good
      others = {n for n in self._sources.tolist() if (n in self._good) == side}
      if others == {name}:
        continue
      values = linear.scores(self.rows, self.fit(without=name))
      shown = (self.sources == name) | (self.labels != side)
      area = linear.area(values[shown], self.labels[shown])
      result.append({'language': language, 'without': name, 'AUC': area})
    return result
