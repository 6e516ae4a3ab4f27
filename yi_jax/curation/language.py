"""The stage that tells languages apart: fastText's lid.176 (CC BY-SA 3.0).

CCNet's first step (arXiv:1911.00359). The identifier reads a few windows of a
document, without addresses, and what it says is held against the script: text
in Han characters without kana is Chinese, whatever kin of it was named, and
what has hardly any is not.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from yi_jax import paths
from yi_jax.curation import documents, stage
from yi_jax.data import raw

_ADDRESS = re.compile(r'(?:https?://|www\.)\S+|[@#]\w+')
_SPACE = re.compile(r'[\s\x00]+')
_HAN = re.compile('[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]')
_KANA = re.compile('[\u3040-\u30ff]')
_LETTER = re.compile(r'[^\W\d_]')
# Labels of text in Han characters; for text without kana they mean Chinese.
_CHINESE = frozenset(('zh', 'wuu', 'yue', 'ja', 'ko', 'vi'))
_HAN_SHARE = 0.3  # of the letters: above it a text may be Chinese
_KANA_SHARE = 0.05  # of kana to Han characters: above it, it is Japanese
_WINDOWS = 4


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'model': 'data/raw/lid.176.ftz',  # or lid.176.bin of fastText
    'languages': ('en', 'zh'),  # what the cascade is for
    'threshold': 0.5,  # probability; below it the language is unknown; CCNet
    'others': 'drop',  # or 'route': keep them, under their own language
    # Languages that come with a document and are believed: code is none.
    'trusted': ('code',),
    'characters': 2_000,  # read of each document, in windows; 0 reads it all
    'strip_addresses': True,  # URLs and @names are no language
  }


class Language(stage.Stage):
  """Finds each document's language and drops or routes the others."""

  name = 'language'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    stage.check_keys('language', config, defaults())
    self._settings = {**defaults(), **config}
    self._model = None
    others = self._settings['others']
    if others not in ('drop', 'route'):
      raise ValueError(f"language.others is {others!r}: 'drop' or 'route'")
    threshold = self._settings['threshold']
    if not 0 <= threshold <= 1:
      raise ValueError(
        f'language.threshold is {threshold}: a probability, 0 to 1'
      )

  def identity(self) -> str:
    """Returns the hash of the model."""
    return raw.sha256(_found(self._settings['model']))

  def setup(self) -> None:
    """Loads the model."""
    self._model = load(self._settings['model'])

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Sets languages and `language_score`, and removes what is not wanted."""
    if self._model is None:
      self.setup()
    settings = self._settings
    scores = batch.score('language_score')
    for i in batch.alive():
      if batch.languages[i] in settings['trusted']:
        continue
      label, score = identify(
        self._model,
        batch.texts[i],
        settings['characters'],
        settings['strip_addresses'],
      )
      scores[i] = score
      batch.languages[i] = label
      if score < settings['threshold']:
        detail = f'{label} {score:.3f} < {settings["threshold"]:g}'
        batch.remove(i, self.name, 'score', detail)
      elif label not in settings['languages']:
        if settings['others'] == 'drop':
          batch.remove(i, self.name, 'other', f'{label} {score:.3f}')
        else:
          batch.note(i, self.name, f'routed as {label} {score:.3f}')
    return batch


def load(model: str) -> Any:
  """Returns a fastText model; FileNotFoundError names the command."""
  import fasttext

  return fasttext.load_model(str(_found(model)))


def _found(model: str) -> pathlib.Path:
  path = pathlib.Path(paths.in_repository(model))
  if not path.is_file():
    raise FileNotFoundError(
      f'{path}, the language model, is not there; fetch it with\n'
      '  python -m yi_jax.data.raw --group=text\n'
      'or set language.model'
    )
  return path


def identify(
  model: Any, text: str, size: int = 0, strip_addresses: bool = True
) -> tuple[str, float]:
  """Returns the language of a text and its probability.

  Args:
    model: see `load`.
    text: a document.
    size: characters to read, in windows over the text; 0 reads it all.
    strip_addresses: leave out URLs, @names and #tags.

  Returns:
    A code as 'en', '' if there is nothing to read, and 0 to 1. Of several
    labels that mean Chinese, the sum.
  """
  sample = windows(text, size) if size else text
  if strip_addresses:
    sample = _ADDRESS.sub(' ', sample)
  sample = _SPACE.sub(' ', sample)
  try:
    labels, scores = model.predict(sample, k=5)
  except (TypeError, UnicodeError):  # lone surrogates
    sample = sample.encode('utf-8', 'ignore').decode()
    labels, scores = model.predict(sample, k=5)
  if not _LETTER.search(sample):
    return '', 0.0
  labels = [label.removeprefix('__label__') for label in labels]
  return _by_script(sample, labels, [min(1.0, float(s)) for s in scores])


def _by_script(
  sample: str, labels: Sequence[str], scores: Sequence[float]
) -> tuple[str, float]:
  """Returns the best label that the characters allow."""
  if sample.isascii():
    return labels[0], scores[0]
  han = len(_HAN.findall(sample))
  if not han:
    return labels[0], scores[0]
  letters = len(_LETTER.findall(sample))
  kana = len(_KANA.findall(sample))
  if han >= _HAN_SHARE * letters and kana < _KANA_SHARE * han:
    # No other language is written so; how sure that is, their sum says.
    pairs = zip(labels, scores, strict=True)
    together = sum(score for label, score in pairs if label in _CHINESE)
    return 'zh', min(1.0, max(together, han / letters))
  return labels[0], scores[0]


def windows(text: str, size: int) -> str:
  """Returns about `size` characters of a text, from four places.

  A page's head is often a menu, and its foot in another language.
  """
  if len(text) <= size:
    return text
  width = size // _WINDOWS
  step = (len(text) - width) / (_WINDOWS - 1)
  starts = [round(number * step) for number in range(_WINDOWS)]
  return ' '.join(text[start : start + width] for start in starts)
