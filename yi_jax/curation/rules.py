"""The stage of heuristic rules: numbers measured on a document, and ranges.

A rule is a name, a number that it measures, and the range in which a document
is kept; they are in `rules_english` and `rules_chinese`, because English is
counted in words and Chinese in characters. The first rule that a document
fails removes it; cheap rules stand first. Documents of other languages pass.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from yi_jax.curation import characters, documents, stage

# Lowest and highest number that is kept; None is no limit.
Range = tuple[float | None, float | None]

# What a finished line ends with, in either language; quotes close sentences.
_FINISHED = tuple('.!?"\')]}:;。！？…”’」』）】：；')
_DIGITS = re.compile(r'\d+')


class Text:
  """A document, and what several rules ask of it, found once."""

  def __init__(self, text: str, options: Mapping[str, Any]) -> None:
    """Takes the text and the options of its language's rules."""
    self.text = text
    self.options = options

  @functools.cached_property
  def lines(self) -> list[str]:
    """Lines without space around them, blank ones left out."""
    return [line for line in map(str.strip, self.text.splitlines()) if line]

  @functools.cached_property
  def paragraphs(self) -> list[str]:
    """What stands between blank lines."""
    return re.split(r'\n{2,}', self.text.strip())

  @functools.cached_property
  def kinds(self) -> np.ndarray:
    """Number of characters of each kind, see `characters`."""
    return characters.counts(characters.codes(self.text))

  def share(self, *kinds: int) -> float:
    """Returns the share of some kinds among all characters but space."""
    inked = len(self.text) - self.kinds[characters.SPACE]
    return float(self.kinds[list(kinds)].sum() / inked) if inked else 0.0

  def cleaned(self) -> str:
    """Returns the text with bad lines cut, if the rules cut lines."""
    return self.text


Measure = Callable[[Any], float]


def _short_lines(text: Text) -> float:
  short = text.options['short_line']
  return _line_share(text, [len(line) < short for line in text.lines])


def _consecutive_lines(text: Text) -> float:
  alike = [_DIGITS.sub('0', line) for line in text.lines]
  pairs = zip(alike, alike[1:], strict=False)
  return _line_share(text, [a == b for a, b in pairs])


def _incomplete_lines(text: Text) -> float:
  ends = [not line.endswith(_FINISHED) for line in text.lines]
  return _line_share(text, ends)


def _line_share(text: Text, flags: list[bool]) -> float:
  """Returns a share; of few lines it says nothing and is 0."""
  if len(text.lines) < text.options['few_lines']:
    return 0.0
  return sum(flags) / max(1, len(flags))


# Of both languages: what Yi names without numbers (arXiv:2403.04652, 2.1).
DOCUMENT: dict[str, Measure] = {
  'document.characters': lambda text: len(text.text),
  'document.garbled': lambda text: text.share(characters.GARBLED),
  'document.digits': lambda text: text.share(characters.DIGIT),
  'document.symbols': lambda text: text.share(
    characters.HALF_PUNCTUATION,
    characters.FULL_PUNCTUATION,
    characters.SYMBOL,
  ),
  'document.short_lines': _short_lines,
  'document.consecutive_lines': _consecutive_lines,
  'document.incomplete_lines': _incomplete_lines,
}


def line_share(text: Text, test: Callable[[str], bool]) -> float:
  """Returns the share of lines, blank ones too, that pass a test."""
  lines = text.text.splitlines()
  return sum(map(test, lines)) / len(lines) if lines else 0.0


def is_bullet(line: str) -> bool:
  """Returns whether a line starts with a bullet point or a hyphen."""
  return line.lstrip().startswith(('•', '-'))


def has_open_end(line: str) -> bool:
  """Returns whether a line ends with an ellipsis."""
  return line.rstrip().endswith(('...', '…'))


class RuleSet:
  """The rules of one language, with their ranges."""

  def __init__(
    self,
    name: str,
    text: type[Text],
    table: Mapping[str, Measure],
    defaults: Mapping[str, Any],
    config: Mapping[str, Any],
  ) -> None:
    """Checks the config against the table.

    Args:
      name: of the section, for messages.
      text: what the rules measure.
      table: 'family.rule' -> what it measures, in order.
      defaults: {'options': {...}, family: {rule: range}}.
      config: like defaults, where some keys may be missing.

    Raises:
      ValueError: for an unknown key or a value that is no range.
    """
    stage.check_keys(name, config, defaults)
    self._text = text
    self._options = {**defaults['options'], **config.get('options', {})}
    stage.check_keys(f'{name}.options', self._options, defaults['options'])
    self.rules = []
    for family in defaults:
      ranges = {**defaults[family], **config.get(family, {})}
      stage.check_keys(f'{name}.{family}', ranges, defaults[family])
      if family != 'options':
        for rule, bounds in ranges.items():
          low, high = _bounds(f'{name}.{family}.{rule}', bounds)
          self.rules.append((f'{family}.{rule}', low, high))
    order = {rule: number for number, rule in enumerate(table)}
    self.rules.sort(key=lambda rule: order[rule[0]])
    self._measures = table

  def judge(
    self, text: str, record: Callable[[str, float], None] | None = None
  ) -> tuple[str, str, str]:
    """Returns what the rules say of a text.

    Args:
      text: a document.
      record: gets the name and number of every rule; without it, the first
        failure ends the work.

    Returns:
      '' or the rule that removes it, why, and the text with bad lines cut.
    """
    view = self._text(text, self._options)
    failed = ('', '')
    for name, low, high in self.rules:
      if record is None and low == -np.inf and high == np.inf:
        continue
      value = self._measures[name](view)
      if record is not None:
        record(name, value)
      if not failed[0]:
        if value < low:
          failed = name, f'{value:.4g} < {low:g}'
        elif value > high:
          failed = name, f'{value:.4g} > {high:g}'
        if failed[0] and record is None:
          break
    return *failed, text if failed[0] else view.cleaned()


def _bounds(name: str, bounds: Any) -> tuple[float, float]:
  """Returns a range with infinities for None."""
  try:
    low, high = bounds
    low = -np.inf if low is None else float(low)
    high = np.inf if high is None else float(high)
  except (TypeError, ValueError):
    low, high = 1, 0
  if not low <= high:
    raise ValueError(
      f'{name} is {bounds!r}: give the lowest and the highest number that is '
      'kept, e.g. (50, 100_000), None for no limit'
    )
  return low, high


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  from yi_jax.curation import rules_chinese, rules_english

  return {
    # Keep every rule's number as a score, for thresholds from percentiles.
    'record': False,
    'english': rules_english.defaults(),
    'chinese': rules_chinese.defaults(),
  }


class Rules(stage.Stage):
  """Removes what fails a rule of its language, and cuts bad lines."""

  name = 'rules'

  def __init__(self, config: Any) -> None:
    """Checks ranges and names."""
    from yi_jax.curation import rules_chinese, rules_english

    super().__init__(config)
    stage.check_keys('rules', config, defaults())
    self._record = config.get('record', False)
    self._sets = {
      'en': rules_english.make(config.get('english', {})),
      'zh': rules_chinese.make(config.get('chinese', {})),
    }

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Judges each document by the rules of its language."""
    for i in batch.alive():
      rules = self._sets.get(batch.languages[i])
      if rules is None:
        continue
      text = batch.texts[i]
      record = functools.partial(_put, batch, i) if self._record else None
      failed, why, cleaned = rules.judge(text, record)
      if failed:
        batch.remove(i, self.name, failed, why)
      elif cleaned != text:
        cut = len(text) - len(cleaned)
        batch.change(i, self.name, cleaned, f'cut lines, {cut} characters')
    return batch


def _put(batch: documents.Batch, i: int, name: str, value: float) -> None:
  """Keeps a number as a score of document i."""
  batch.score(name)[i] = value
