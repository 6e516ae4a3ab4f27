"""Rules for Chinese, which is counted in characters, not in words.

Yi publishes no thresholds for Chinese. Where a rule of Gopher has a counterpart
its threshold is taken over, an English word being worth two characters; the
others are ours, set so that edited Chinese passes (docs/curation_rules.md has
the percentiles).
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from yi_jax.curation import characters, repetition, rules

# What nearly every Chinese text of some length has: its stop words.
_FUNCTION = frozenset('的了是在不有和人这中大为上个以我到说们')
_TERMINAL = tuple('。！？；…”’」』）》.!?;"\')')
# Of web pages, not of their texts; whole lines that are short and have one go.
_FOOTER = re.compile(
  r'版权所有|隐私政策|使用条款|服务条款|免责声明|ICP[备证]|公网安备|cookie|'
  r'javascript|All Rights Reserved',
  re.IGNORECASE,
)
_SENTENCE = re.compile(r'[。！？!?…]+')


class Chinese(rules.Text):
  """A Chinese document."""

  @functools.cached_property
  def _points(self) -> np.ndarray:
    """Code points without space."""
    points = characters.codes(self.text)
    return points[characters.kinds(points) != characters.SPACE]

  @functools.cached_property
  def repeats(self) -> repetition.Repeats:
    """N-grams of characters that repeat."""
    points = self._points.astype(np.uint64)
    return repetition.Repeats(points, np.ones(len(points), np.int64))

  def of_text(self, count: int) -> float:
    """Returns a share of the text's characters but space."""
    return count / len(self._points) if len(self._points) else 0.0

  @property
  def ink(self) -> int:
    """Characters but space."""
    return len(self._points)

  @functools.cached_property
  def duplicate_paragraphs(self) -> tuple[int, int]:
    """Paragraphs that repeat an earlier one, and their characters."""
    return repetition.duplicates(self.paragraphs)

  @functools.cached_property
  def duplicate_lines(self) -> tuple[int, int]:
    """Lines that repeat an earlier one, and their characters."""
    return repetition.duplicates(self.lines)

  def cleaned(self) -> str:
    """Returns the text without footers and, by config, fragments of menus."""
    options = self.options
    short, needs_mark = options['short_line'], options['cut_fragments']
    if not options['cut_footers'] and not needs_mark:
      return self.text
    footers = options['cut_footers'] and _FOOTER.search(self.text)
    if not footers and not needs_mark:
      return self.text
    kept = []
    for line in self.text.split('\n'):
      bare = line.strip()
      if footers and len(bare) <= 100 and _FOOTER.search(bare):
        continue
      if needs_mark and 0 < len(bare) < short and not bare.endswith(_TERMINAL):
        continue
      kept.append(line)
    return '\n'.join(kept).strip('\n')


def _mean_line(text: Chinese) -> float:
  return text.ink / len(text.lines) if text.lines else 0.0


def _marks(text: Chinese) -> float:
  kinds = text.kinds
  marks = (
    kinds[characters.FULL_PUNCTUATION] + kinds[characters.HALF_PUNCTUATION]
  )
  return float(marks / text.ink) if text.ink else 0.0


def _full_width(text: Chinese) -> float:
  """Share of full-width marks among the commas, stops and their like."""
  full = sum(map(text.text.count, '，。！？：；（）'))
  half = sum(map(text.text.count, ',.!?:;()'))
  return full / (full + half) if full + half else 1.0


def _function_characters(text: Chinese) -> float:
  return len(_FUNCTION.intersection(text.text))


def _longest_run(text: Chinese) -> float:
  """Most characters between two marks that end a sentence or clause."""
  points = text._points
  kinds = characters.kinds(points)
  marks = (kinds == characters.FULL_PUNCTUATION) | (
    kinds == characters.HALF_PUNCTUATION
  )
  places = np.flatnonzero(marks)
  edges = np.concatenate([[-1], places, [len(points)]])
  return float(np.diff(edges).max() - 1)


def _top(n: int) -> rules.Measure:
  # `top` counts spaces between the items; characters have none.
  def share(text: Chinese) -> float:
    count = text.repeats.top(n)
    return text.of_text(count * n // (2 * n - 1))

  return share


def _duplicated(n: int) -> rules.Measure:
  return lambda text: text.of_text(text.repeats.duplicated(n))


TABLE: dict[str, rules.Measure] = {
  **rules.DOCUMENT,
  'chinese.characters': lambda text: text.ink,
  'chinese.han': lambda text: text.share(characters.HAN),
  'chinese.marks': _marks,
  'chinese.full_width_marks': _full_width,
  'chinese.function_characters': _function_characters,
  'chinese.mean_line': _mean_line,
  'chinese.sentences': lambda text: len(_SENTENCE.findall(text.text)),
  'chinese.longest_run': _longest_run,
  'chinese.ellipsis_lines': lambda text: rules.line_share(
    text, rules.has_open_end
  ),
  'chinese.bullet_lines': lambda text: rules.line_share(text, rules.is_bullet),
  'repetition.paragraphs': lambda text: (
    text.duplicate_paragraphs[0] / len(text.paragraphs)
  ),
  'repetition.paragraph_characters': lambda text: text.of_text(
    text.duplicate_paragraphs[1]
  ),
  'repetition.lines': lambda text: (
    text.duplicate_lines[0] / max(1, len(text.lines))
  ),
  'repetition.line_characters': lambda text: text.of_text(
    text.duplicate_lines[1]
  ),
  **{f'repetition.top_{n}_gram': _top(n) for n in (4, 6, 8)},
  **{
    f'repetition.duplicated_{n}_grams': _duplicated(n) for n in range(10, 21, 2)
  },
}


def defaults() -> dict[str, Any]:
  """Returns options and the range of each rule; None is no limit."""
  return {
    'options': {
      'few_lines': 3,  # below it, rules on shares of lines pass; ours
      'short_line': 10,  # characters, below which a line is short; ours
      'cut_footers': True,  # short lines of a page's footer; ours
      'cut_fragments': False,  # short lines without a mark at the end; ours
    },
    'document': {
      'characters': (1, 2_000_000),  # longer is a dump, not a page; ours
      'garbled': (None, 0.01),  # ours
      'digits': (None, 0.3),  # ours
      'symbols': (None, 0.35),  # ours
      'short_lines': (None, 0.67),  # FineWeb
      'consecutive_lines': (None, 0.3),  # Yi names it; as Gopher's lines
      'incomplete_lines': (None, 0.88),  # FineWeb
    },
    'chinese': {
      'characters': (100, 200_000),  # Gopher's 50 to 100,000 words
      'han': (0.3, None),  # ours
      'marks': (0.01, 0.35),  # ours: keyword lists have none
      'full_width_marks': (None, None),  # ours: off, web writers mix
      'function_characters': (2, None),  # Gopher's stop words
      'mean_line': (10, None),  # ours
      'sentences': (1, None),  # ours; C4's five would end every review
      'longest_run': (None, 200),  # ours: prose pauses sooner
      'ellipsis_lines': (None, 0.3),  # Gopher
      'bullet_lines': (None, 0.9),  # Gopher
    },
    'repetition': {  # Gopher, table A1, a word being two characters
      'paragraphs': (None, 0.3),
      'paragraph_characters': (None, 0.2),
      'lines': (None, 0.3),
      'line_characters': (None, 0.2),
      'top_4_gram': (None, 0.2),
      'top_6_gram': (None, 0.18),
      'top_8_gram': (None, 0.16),
      # Ours: 95 % of China's statutes, which repeat their terms, pass; with
      # Gopher's 0.15 to 0.1 half of them would go.
      'duplicated_10_grams': (None, 0.4),
      'duplicated_12_grams': (None, 0.38),
      'duplicated_14_grams': (None, 0.36),
      'duplicated_16_grams': (None, 0.34),
      'duplicated_18_grams': (None, 0.32),
      'duplicated_20_grams': (None, 0.3),
    },
  }


def make(config: Mapping[str, Any]) -> rules.RuleSet:
  """Returns the rules with a config's ranges."""
  return rules.RuleSet('rules.chinese', Chinese, TABLE, defaults(), config)
