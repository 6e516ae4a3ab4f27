"""The stage that asks how surprising a text is to a model of edited text.

As in CCNet (arXiv:1911.00359): an n-gram model a language, the perplexity of
each document by it, and three buckets, head, middle and tail, with bounds from
the terciles of web text. Yi dropped what lies far above the average
(arXiv:2403.04652, 2.1) and published no number.

Tokens of Chinese are its characters, so nothing depends on a segmenter. Other
languages have pieces of a SentencePiece vocabulary, as CCNet does, so that no
word is unknown; it is trained on the same text, as `curate` runs before there
is a vocabulary of the run. Case and digits are folded.

Models are trained by KenLM's `lmplz` where it is installed and by `ngrams`
elsewhere, and asked by the package `kenlm` where it is and by `ngrams` elsewhere.
"""

import importlib
import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np

from yi_jax.curation import characters, documents, learned, ngrams, samples
from yi_jax.curation import language as language_stage
from yi_jax.data import vocabulary

BUCKETS = ('head', 'middle', 'tail')
_BY_CHARACTER = ('zh', 'ja')
_DIGIT = re.compile(r'\d')
_SAMPLE = 3_000_000  # characters that a vocabulary is trained on


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'model': 'data/filters/perplexity',
    # Language -> perplexities that end head and middle; () takes the terciles
    # of the web text in the card. Yours: --calibrate, percentiles 33 and 66.
    'bounds': {'en': (), 'zh': ()},
    # Buckets that go; CCNet keeps all and lets its users choose.
    'drop': (),
    # Times the median perplexity of that web text, above which a document goes
    # (Yi: "far above the average"; the number is ours). 0: none does.
    'far': 5.0,
    # 'kenlm', 'own', or 'auto': KenLM where it is installed.
    'reader': 'auto',
    'characters': 4_000,  # read of a document, in windows
    'training': {
      # Language -> edited text to train on; sources of yi_jax.data.sources.
      'sources': {
        'en': (
          *('web_wiki', 'en_news', 'en_parliament', 'en_docs_django'),
          *('en_docs_paddlex', 'en_plays', 'en_bible'),
        ),
        'zh': ('zh_news', 'zh_law', 'zh_docs_paddlex', 'zh_dict', 'zh_novel'),
      },
      # Language -> text that stands for the web: its terciles bound buckets.
      'web': {
        'en': ('web_c4', 'en_news', 'en_chat'),
        'zh': ('zh_reviews', 'zh_news'),
      },
      'characters': 800_000,  # of a source
      'heldout': 0.1,
      # For each length of n-grams, counts up to which they are left out.
      'prune': (0, 0, 1, 1),
      'pieces': 4_000,  # of the vocabulary, where one is needed
      'trainer': 'auto',  # 'lmplz', 'own', or 'auto': lmplz if installed
      'seed': 0,
    },
  }


class Perplexity(learned.Learned):
  """Scores documents, puts them into buckets, and removes what is far off."""

  name = 'perplexity'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    self._scorers: dict[str, Scorer] | None = None
    settings = self.settings
    for bucket in settings['drop']:
      learned.choices('perplexity.drop', bucket, BUCKETS)
    learned.choices(
      'perplexity.reader', settings['reader'], ('auto', 'kenlm', 'own')
    )
    learned.choices(
      'perplexity.training.trainer',
      self.training['trainer'],
      ('auto', 'lmplz', 'own'),
    )
    for language, bounds in settings['bounds'].items():
      if len(bounds) and not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1]):
        raise ValueError(
          f'perplexity.bounds.{language} is {tuple(bounds)}: two perplexities, '
          'the lower first, or ()'
        )
    if settings['far'] and settings['far'] <= 1:
      raise ValueError(
        f'perplexity.far is {settings["far"]}: times the median, above 1, or 0'
      )

  def setup(self) -> None:
    """Loads the models."""
    web = {row['language']: row for row in self.card()['metrics']['Web text']}
    self._scorers, self._web = {}, web
    for language in web:
      self._scorers[language] = Scorer(
        self.folder, language, self.settings['reader']
      )

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Sets `perplexity` and the bucket, and removes what is not wanted."""
    if self._scorers is None:
      self.setup()
    values = batch.score('perplexity')
    for language, scorer in self._scorers.items():
      mine = [i for i in batch.alive() if batch.languages[i] == language]
      values[mine] = scorer.perplexities(
        [
          language_stage.windows(batch.texts[i], self.settings['characters'])
          for i in mine
        ]
      )
      for i in mine:
        self._judge(batch, i, float(values[i]))
    return batch

  def _judge(self, batch: documents.Batch, i: int, value: float) -> None:
    if value != value:
      return  # nothing to read
    web = self._web[batch.languages[i]]
    bounds = self.settings['bounds'].get(batch.languages[i]) or (
      web['33.3%'],
      web['66.7%'],
    )
    bucket = BUCKETS[sum(value > bound for bound in bounds)]
    batch.metadata[i]['perplexity'] = bucket
    limit = self.settings['far'] * web['50%']
    if limit and value > limit:
      batch.remove(i, self.name, 'far', f'{value:.0f} > {limit:.0f}')
    elif bucket in self.settings['drop']:
      batch.remove(i, self.name, bucket, f'{value:.0f}')

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a model a language and measures web text with it."""
    training = self.training
    every, web, by_source = [], [], []
    for language, names in training['sources'].items():
      wanted = dict.fromkeys([*names, *training['web'][language]])
      found = samples.read(
        root,
        wanted,
        most=training['characters'],
        characters=20_000,
        seed=training['seed'],
        heldout=training['heldout'],
      )
      seen = [o for o in found if o.source in names and not o.heldout]
      _train(folder, language, [one.text for one in seen], training)
      every += [one for one in found if one.source in names]
      scorer = Scorer(folder, language, 'own')
      heldout = [one for one in found if one.heldout or one.source not in names]
      values = scorer.perplexities([one.text[:4_000] for one in heldout])
      sources = np.array([one.source for one in heldout])
      common = {'language': language}
      inside = np.isin(sources, training['web'][language])
      web.append({**common, **_percentiles(_even(values, sources, inside))})
      by_source += [
        {**common, 'source': name, **_percentiles(values[sources == name])}
        for name in wanted
        if np.any(sources == name)
      ]
    return {
      'what': 'N-gram models (modified Kneser-Ney) of edited text, characters '
      'for Chinese and pieces for other languages, in the format of KenLM; '
      'perplexities are those of a token.',
      'data': samples.table(every),
      'metrics': {'Web text': web, 'Held-out documents of a source': by_source},
      'limits': [
        'Trained on a few sources of a few megabytes: a page about something '
        'else is surprising too. Models for a crawl are trained on a '
        'Wikipedia, by another `training.sources`.',
        'Perplexities of two languages, or two models, cannot be compared.',
        'Lists, tables and code are surprising; endless repetition is not.',
      ],
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
  """Returns the terciles and others of perplexities."""
  wanted = {'5%': 5, '33.3%': 100 / 3, '50%': 50, '66.7%': 200 / 3, '95%': 95}
  values = values[~np.isnan(values)]
  return {key: float(np.percentile(values, p)) for key, p in wanted.items()}


def _even(
  values: np.ndarray, sources: np.ndarray, inside: np.ndarray
) -> np.ndarray:
  """Returns percentiles of each source, so that all sources count alike."""
  shares = np.linspace(0, 100, 201)
  return np.concatenate(
    [
      np.nanpercentile(values[sources == name], shares)
      for name in np.unique(sources[inside])
    ]
  )


def fold(
  texts: Sequence[str], by_character: bool
) -> tuple[list[str], list[int]]:
  """Returns the lines of texts as models read them, and each line's text.

  Example: ['It is 12.\\n\\nYes'] -> ['it is 00.', 'yes'], [0, 0].
  """
  lines, owners = [], []
  for number, text in enumerate(texts):
    for line in _DIGIT.sub('0', text.lower()).split('\n'):
      words = line.split()
      if words:
        lines.append(('' if by_character else ' ').join(words))
        owners.append(number)
  return lines, owners


class Tokens:
  """Lines as ids of a model's tokens."""

  def __init__(
    self, names: Sequence[str], pieces: vocabulary.Vocabulary | None
  ) -> None:
    """Takes the tokens of a model.

    Args:
      names: by id.
      pieces: vocabulary they are of; None if they are characters.
    """
    self.names, self.pieces = list(names), pieces
    if pieces is None:
      self._table = np.zeros(0x110000, np.int32)
      for number, name in enumerate(names):
        if len(name) == 1:
          self._table[ord(name)] = number
    else:
      ids = {name: number for number, name in enumerate(names)}
      self._table = np.array(
        [ids.get(piece, 0) for piece in piece_names(pieces)], np.int32
      )

  def encode(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns <s> line </s> for each line, int32[tokens], and its owner."""
    if self.pieces is None:
      found = self._table[characters.codes(''.join(lines))]
      sizes = np.array([len(line) for line in lines], np.int64)
    else:
      encoded = [self.pieces.encode(line) for line in lines]
      sizes = np.array([len(line) for line in encoded], np.int64)
      found = [np.array(line, np.int64) for line in encoded]
      found = self._table[np.concatenate([np.zeros(0, np.int64), *found])]
    starts = np.cumsum(sizes + 2) - sizes - 2
    corpus = np.zeros(int(sizes.sum()) + 2 * len(sizes), np.int32)
    inside = np.ones(len(corpus), bool)
    inside[starts] = inside[starts + sizes + 1] = False
    corpus[starts], corpus[starts + sizes + 1] = 1, 2
    corpus[inside] = found
    return corpus, np.repeat(np.arange(len(sizes)), sizes + 2)


def piece_names(pieces: vocabulary.Vocabulary) -> list[str]:
  """Returns how the pieces of a vocabulary are spelled in a model."""
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto()
  model.ParseFromString(pieces.proto)
  return [piece.piece for piece in model.pieces]


class Scorer:
  """The model of one language."""

  def __init__(self, folder: pathlib.Path, language: str, reader: str) -> None:
    """Loads it.

    Args:
      folder: of the models.
      language: as 'en'.
      reader: 'kenlm', 'own' or 'auto'.

    Raises:
      ValueError: if KenLM is asked for and not installed.
    """
    self._model = ngrams.load(folder / f'{language}.npz')
    path = folder / f'{language}.model'
    pieces = None
    if path.exists():
      pieces = vocabulary.Vocabulary(path.read_bytes(), str(path))
    self._tokens = Tokens(self._model.names, pieces)
    self._kenlm = None
    if reader != 'own':
      try:
        kenlm = importlib.import_module('kenlm')
      except ImportError as error:
        if reader == 'kenlm':
          raise ValueError(
            "perplexity.reader is 'kenlm', which is not installed; pip install "
            "kenlm==0.3.0, or take 'own'"
          ) from error
      else:
        self._kenlm = kenlm.Model(str(folder / f'{language}.arpa'))

  def perplexities(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the perplexity of a token of each text, float32[texts].

    The ends of lines are tokens too. nan: there is nothing to read.
    """
    lines, owners = fold(texts, self._tokens.pieces is None)
    corpus, line = self._tokens.encode(lines)
    real = corpus != 1
    text = np.array(owners, np.int64)[line]
    tokens = np.bincount(text[real], minlength=len(texts))
    if self._kenlm:
      logs = np.array(self._ask_kenlm(corpus))
      total = np.bincount(owners, logs, minlength=len(texts))
    else:
      logs = self._model.logs(corpus)
      total = np.bincount(text[real], logs[real], minlength=len(texts))
    with np.errstate(divide='ignore', invalid='ignore'):
      return np.power(10, -total / tokens).astype(np.float32)

  def _ask_kenlm(self, corpus: np.ndarray) -> list[float]:
    """Returns log10 of the probability of each line."""
    names = np.array(self._tokens.names, object)
    starts = np.flatnonzero(corpus == 1) + 1
    ends = np.flatnonzero(corpus == 2)
    return [
      self._kenlm.score(' '.join(names[corpus[start:end]]))
      for start, end in zip(starts, ends, strict=True)
    ]


def _train(
  folder: pathlib.Path,
  language: str,
  texts: Sequence[str],
  training: dict[str, Any],
) -> None:
  """Writes the model of a language: .npz, .arpa, and .model of its pieces."""
  by_character = language in _BY_CHARACTER
  lines, _ = fold(texts, by_character)
  if not lines:
    raise ValueError(f'perplexity.training has no text of {language!r}')
  if by_character:
    pieces, names = None, sorted(set(''.join(lines)))
  else:
    pieces = _pieces(lines, training['pieces'], folder / 'vocabulary')
    (folder / f'{language}.model').write_bytes(pieces.proto)
    names = piece_names(pieces)[1:]  # its <unk> is the model's
  tokens = Tokens([*ngrams.SPECIAL, *names], pieces)
  corpus, _ = tokens.encode(lines)
  arpa = folder / f'{language}.arpa'
  lmplz = training['trainer'] != 'own' and shutil.which('lmplz')
  if training['trainer'] == 'lmplz' and not lmplz:
    raise ValueError(
      "perplexity.training.trainer is 'lmplz', which is not on the PATH; build "
      "KenLM, or take 'own'"
    )
  if lmplz:
    _lmplz(lmplz, tokens.names, corpus, training['prune'], arpa)
    model = ngrams.read_arpa(arpa)
  else:
    orders = ngrams.train(corpus, len(tokens.names), training['prune'])
    model = ngrams.Model(tokens.names, orders)
    model.write_arpa(arpa)
  model.save(folder / f'{language}.npz')


def _pieces(
  lines: Sequence[str], size: int, folder: pathlib.Path
) -> vocabulary.Vocabulary:
  """Returns a vocabulary of about _SAMPLE characters of lines."""
  step = max(1, sum(map(len, lines)) // _SAMPLE)
  found = vocabulary.train(lines[::step], size, folder)
  shutil.rmtree(folder)
  return found


def _lmplz(
  program: str,
  names: Sequence[str],
  corpus: np.ndarray,
  prune: Sequence[int],
  arpa: pathlib.Path,
) -> None:
  """Trains with KenLM's own program; ValueError has what it says."""
  names = np.array(names, object)
  starts = np.flatnonzero(corpus == 1) + 1
  ends = np.flatnonzero(corpus == 2)
  text = '\n'.join(
    ' '.join(names[corpus[start:end]])
    for start, end in zip(starts, ends, strict=True)
  )
  command = [program, '-o', str(len(prune)), '--discount_fallback']
  command += ['--prune', *map(str, prune), '--arpa', str(arpa), '-S', '50%']
  done = subprocess.run(
    command, input=text.encode(), capture_output=True, check=False
  )
  if done.returncode:
    raise ValueError(f'{program} failed: {done.stderr.decode()[-500:]}')
