"""The stage that knows what a document is about, and keeps less of some topics.

Yi labels topics such as news, ads and knowledge and down-samples what is of
little use, ads above all (arXiv:2403.04652, 2.1); it published no ratios, so the
rates are ours. To want more of knowledge is to keep less of the others.

A topic is learnt from sources that are about it: a logistic regression on
hashed words and pairs of words (see `linear`; Chinese: characters) for each
topic against the rest, a set of them for each language. Runs of characters,
which `linear` can count too, would tell of style more than of subject. What no
topic is sure of is `unknown`. No source of ours is made of ads, so they are
known by words that sell, from a list.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yi_jax.curation import documents, learned, linear, samples
from yi_jax.curation import language as language_stage

UNKNOWN, ADS = 'unknown', 'ads'
_WEIGHTS = 'weights.npz'
_SHORTEST, _LONGEST = 100, 3_000  # characters of a training passage
_HAN = re.compile('[\u3400-\u9fff]')
_HAN_A_WORD = 1.5
_LEAST_WORDS = 40  # a text of fewer words counts as one of so many


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'model': 'data/filters/topics',
    # Topic -> share that stays, by hash of the id; 1 for those not named, and
    # for 'unknown' (ours).
    'rates': {'ads': 0.1, 'posts': 0.5, 'news': 0.7},
    # A topic below this probability is none.
    'least': 0.3,
    'seed': 0,
    'training': {
      # Language -> topic -> sources of yi_jax.data.sources.
      'topics': {
        'en': {
          'news': ('en_news',),
          'posts': ('en_tweets',),
          'conversation': ('en_chat',),
          'knowledge': ('web_wiki',),
          'manuals': ('en_docs_django', 'en_docs_paddlex'),
          'literature': ('en_plays', 'en_bible'),
          'politics': ('en_parliament',),
          'other': ('web_c4',),
        },
        'zh': {
          'news': ('zh_news',),
          'reviews': ('zh_reviews',),
          'knowledge': ('zh_dict', 'zh_en_dict'),
          'manuals': ('zh_docs_paddlex',),
          'literature': ('zh_novel',),
          'law': ('zh_law',),
          'exercises': ('zh_math',),
        },
      },
      # A document is an ad if so many of a hundred of its words begin one of
      # the phrases, whatever its language or topic.
      'ads_per_hundred': 1.0,
      'phrases': (
        *('free shipping', 'add to cart', 'buy now', 'shop now', 'order now'),
        *('our products', 'our services', 'our customers', 'our clients'),
        *('best price', 'price', 'prices', 'discount', 'discounts', 'on sale'),
        *('for sale', 'coupon', 'coupons', 'contact us', 'call us', 'deals'),
        *('book online', 'sign up', 'subscribe', 'we offer', 'we provide'),
        *('we specialize', 'guarantee', 'guaranteed', 'click here', 'cheap'),
        *('affordable', 'shipping', 'warranty', 'suppliers', 'purchase'),
        *('包邮', '特价', '优惠', '折扣', '促销', '抢购', '秒杀', '批发'),
        *(
          '厂家直销',
          '立即购买',
          '欢迎来电',
          '咨询热线',
          '联系电话',
          '免费咨询',
        ),
        *('限时', '报价', '加微信', '代理加盟'),
      ),
      'characters': 600_000,  # of a source
      'heldout': 0.2,  # share of the documents, for measuring
      'bits': 16,  # 2**bits columns
      'penalty': 1e-5,  # of the squared weights
      'steps': 30,  # of L-BFGS
      'seed': 0,
    },
  }


class Topics(learned.Learned):
  """Finds the topic of each document, and keeps a share of some topics."""

  name = 'topics'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    self._model: dict[str, np.ndarray] | None = None
    if not 0 <= self.settings['least'] <= 1:
      raise ValueError(
        f'topics.least is {self.settings["least"]}: a probability, 0 to 1'
      )
    _check(self.training)
    every = {UNKNOWN, ADS}
    for topics in self.training['topics'].values():
      every.update(topics)
    for topic, rate in self.settings['rates'].items():
      learned.choices('topics.rates: a topic', topic, sorted(every))
      if not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise ValueError(f'topics.rates.{topic} is {rate!r}: a share, 0 to 1')

  def setup(self) -> None:
    """Loads the weights."""
    self.card()
    with np.load(self.folder / _WEIGHTS) as file:
      self._model = dict(file)

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Sets metadata['topics'] and scores, and removes what is too many."""
    if self._model is None:
      self.setup()
    found = batch.score('topics.probability')
    margins = batch.score('topics.margin')
    by_language: dict[str, list[int]] = {}
    for i in batch.alive():
      by_language.setdefault(batch.languages[i], []).append(i)
    for language, mine in sorted(by_language.items()):
      topics = [UNKNOWN] * len(mine)
      if language in self._model:
        rows = self._features().rows([batch.texts[i] for i in mine])
        values = linear.scores(rows, self._model[language])
        ordered = np.sort(values, 1)
        found[mine] = ordered[:, -1]
        margins[mine] = ordered[:, -1] - ordered[:, -2]
        names = sorted(self.training['topics'][language])
        topics = said(values, names, self.settings['least'])
      for i, topic in zip(mine, topics, strict=True):
        self._place(batch, i, topic)
    return batch

  def _place(self, batch: documents.Batch, i: int, topic: str) -> None:
    """Gives a document its topic, and removes it if chance says so."""
    training = self.training
    share = sells(batch.texts[i], training['phrases'])
    why = f'{batch.scores["topics.probability"][i]:.2f}'
    if share >= training['ads_per_hundred']:
      topic, why = ADS, f'{share:.1f} of a hundred words'
    batch.metadata[i][self.name] = topic
    rate = self.settings['rates'].get(topic, 1)
    key = f'{self.name} {batch.ids[i]}'
    draw = documents.draw(self.settings['seed'], key)
    if draw >= rate:
      detail = f'{topic} {why}: {draw:.3f} >= {rate:g}'
      batch.remove(i, self.name, topic, detail)

  def _features(self) -> linear.Features:
    return linear.Features(self.training['bits'], characters=0)

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a set of models a language; others have not seen a source."""
    training = self.training
    every, model, metrics = [], {}, {}
    by_topic, confused, apart = [], [], []
    # Sorted: a config may come back from a file in another order.
    for language, topics in sorted(training['topics'].items()):
      found = samples.read(
        root,
        [name for topic in sorted(topics) for name in topics[topic]],
        most=training['characters'],
        characters=_LONGEST * 2,
        seed=training['seed'],
        heldout=training['heldout'],
      )
      every += found
      trial = _Trial(self._features(), found, language, training)
      model[language] = trial.fit()
      guesses = trial.guess(model[language], self.settings['least'])
      metrics[f'accuracy, {language}'] = float(np.mean(guesses == trial.truth))
      by_topic += trial.by_topic(guesses)
      confused += trial.confused(guesses)
      apart += trial.left_out(self.settings['least'])
    np.savez_compressed(folder / _WEIGHTS, **model)
    topic = {
      name: topic
      for topics in training['topics'].values()
      for topic, names in topics.items()
      for name in names
    }
    return {
      'what': 'Says what a text is about: for each topic a logistic '
      'regression on hashed words and pairs of words (Chinese: characters), '
      'against all other topics of the language.',
      'data': samples.table(every, topic=topic),
      'metrics': {
        **metrics,
        'Held-out documents by topic': by_topic,
        'Most frequent mistakes': sorted(
          confused, key=lambda row: -row['documents']
        )[:20],
        'Recall of a source that training has not seen': apart,
        'Documents that are ads by the list': self._ads(every),
      },
      'limits': [
        'A topic is one or two sources, so the model knows their style as '
        'well as their subject: the last table is nearer to what a new site '
        'is to it than the one of held-out documents.',
        'Ads are what a list of words finds; no source says what is one, so '
        'only how rarely it finds some elsewhere is known.',
        'News are of 2016 and 2017 in English and of January 1998 in Chinese.',
        'Only the first few thousand characters, in windows, are read.',
      ],
    }

  def _ads(self, found: Sequence[samples.Sample]) -> list[dict[str, Any]]:
    """Returns how many documents of each source the list takes for ads."""
    training, rows = self.training, []
    for name in dict.fromkeys(one.source for one in found):
      shares = [
        sells(one.text, training['phrases'])
        for one in found
        if one.source == name
      ]
      hits = np.array(shares) >= training['ads_per_hundred']
      rows.append(
        {
          'source': name,
          'documents': len(shares),
          'ads': int(hits.sum()),
          'share': float(hits.mean()),
        }
      )
    return rows


def said(values: np.ndarray, names: Sequence[str], least: float) -> list[str]:
  """Returns the topics of the highest probabilities.

  Args:
    values: float32[n, topics].
    names: of the topics.
    least: below it a topic is UNKNOWN.
  """
  return [
    names[row.argmax()] if row.max() >= least else UNKNOWN for row in values
  ]


def _check(training: Mapping[str, Any]) -> None:
  """Raises ValueError, naming what is wrong."""
  for language, topics in training['topics'].items():
    name = f'topics.training.topics.{language}'
    if len(topics) < 2 or not all(topics.values()):
      raise ValueError(f'{name}: at least two topics, each with sources')
    for reserved in (ADS, UNKNOWN):
      if reserved in topics:
        raise ValueError(
          f'{name}: {reserved!r} is taken; give the topic another name'
        )


@functools.cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
  """Returns what finds phrases; Chinese ones need no space around them."""
  ordered = sorted(phrases, key=len, reverse=True)
  spaced, others = (
    '|'.join(re.escape(p) for p in ordered if p.isascii() == ascii)
    for ascii in (True, False)
  )
  parts = [rf'\b(?:{spaced})\b'] if spaced else []
  return re.compile('|'.join([*parts, others] if others else parts) or '(?!)')


def sells(text: str, phrases: Sequence[str]) -> float:
  """Returns how many of a hundred words begin a phrase that sells.

  Example: 'Buy now! Prices fell.' has two of four words, but a text counts as
  one of 40 words at least, so 5. A Chinese word has 1.5 characters.
  """
  read = language_stage.windows(text, _LONGEST).lower()
  count = sum(1 for _ in _pattern(tuple(phrases)).finditer(read))
  rest, han = _HAN.subn(' ', read)
  words = len(rest.split()) + han / _HAN_A_WORD
  return 100 * count / max(words, _LEAST_WORDS)


class _Trial:
  """The documents of one language, as rows."""

  def __init__(
    self,
    features: linear.Features,
    found: Sequence[samples.Sample],
    language: str,
    training: Mapping[str, Any],
  ) -> None:
    self._language, self._training = language, training
    self._topics = sorted(training['topics'][language])
    topic = {
      name: topic
      for topic, names in training['topics'][language].items()
      for name in names
    }
    marked = [
      dataclasses.replace(one, source=f'{topic[one.source]} {one.source}')
      for one in found
    ]
    passages = samples.passages(
      [one for one in marked if not one.heldout],
      shortest=_SHORTEST,
      longest=_LONGEST,
      seed=training['seed'],
    )
    self._rows = features.rows([one.text for one in passages])
    self._sources = np.array([one.source for one in passages])
    heldout = [one for one in marked if one.heldout]
    self._heldout = features.rows([one.text for one in heldout])
    self._heldout_sources = np.array([one.source for one in heldout])
    self.truth = self._topic(self._heldout_sources)

  def _topic(self, marked: np.ndarray) -> np.ndarray:
    return np.array([name.partition(' ')[0] for name in marked.tolist()], str)

  def fit(self, without: str = '') -> np.ndarray:
    """Returns weights, float32[columns + 1, topics], without one source.

    Raises:
      ValueError: for a topic without a text.
    """
    inside = np.flatnonzero(self._sources != without)
    rows, names = self._rows[inside], self._sources[inside]
    truth = self._topic(names)
    found = []
    for topic in self._topics:
      labels = truth == topic
      if not labels.any():
        raise ValueError(
          f'topics.training: no text of {topic!r} in {self._language!r} to '
          'train on; name other sources, or hold out less'
        )
      found.append(
        linear.fit(
          rows,
          labels,
          linear.balanced(names, labels),
          penalty=self._training['penalty'],
          steps=self._training['steps'],
        )
      )
    return np.stack(found, 1)

  def guess(self, weights: np.ndarray, least: float) -> np.ndarray:
    """Returns the topics of the held-out documents."""
    values = linear.scores(self._heldout, weights)
    return np.array(said(values, self._topics, least))

  def by_topic(self, guesses: np.ndarray) -> list[dict[str, Any]]:
    """Returns precision and recall of each topic."""
    table = []
    for topic in self._topics:
      mine, said = self.truth == topic, guesses == topic
      hits = np.count_nonzero(mine & said)
      table.append(
        {
          'language': self._language,
          'topic': topic,
          'documents': int(mine.sum()),
          'precision': float(hits / max(said.sum(), 1)),
          'recall': float(hits / max(mine.sum(), 1)),
          'unknown': float(np.mean(guesses[mine] == UNKNOWN))
          if mine.any()
          else 0.0,
        }
      )
    return table

  def confused(self, guesses: np.ndarray) -> list[dict[str, Any]]:
    """Returns pairs of topics, by how often one was taken for the other."""
    wrong = guesses != self.truth
    pairs, counts = np.unique(
      np.stack([self.truth[wrong], guesses[wrong]], 1),
      axis=0,
      return_counts=True,
    )
    order = np.argsort(-counts, kind='stable')
    return [
      {
        'language': self._language,
        'topic': str(pairs[k][0]),
        'taken for': str(pairs[k][1]),
        'documents': int(counts[k]),
      }
      for k in order
    ]

  def left_out(self, least: float) -> list[dict[str, Any]]:
    """Returns the recall of each source without which a topic has others."""
    result = []
    for name in dict.fromkeys(self._sources.tolist()):
      topic = name.partition(' ')[0]
      others = {n for n in self._sources.tolist() if n.startswith(f'{topic} ')}
      mine = self._heldout_sources == name
      if others == {name} or not mine.any():
        continue
      guesses = self.guess(self.fit(without=name), least)[mine]
      names, counts = np.unique(guesses, return_counts=True)
      most = names[counts.argmax()]
      result.append(
        {
          'language': self._language,
          'without': name.partition(' ')[2],
          'topic': topic,
          'documents': int(mine.sum()),
          'recall': float(np.mean(guesses == topic)),
          'most often': str(most),
        }
      )
    return result
