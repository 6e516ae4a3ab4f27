"""Rules for English: Gopher's quality and repetition rules, C4's lines.

Sources: Gopher, arXiv:2112.11446, appendix A.1 and table A1; C4,
arXiv:1910.10683, section 2.2, and how TFDS made it; FineWeb, arXiv:2406.17557,
section 3.6; CulturaX, arXiv:2309.09400. A word is a run of letters and digits,
and a mark of punctuation is a word of its own, as tokenizers of English count.
"""

import array
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from yi_jax.curation import repetition, rules

# What tokenizers of English make of a text, without their lists of exceptions:
# addresses; words and numbers with marks inside, as in example.com, 1,000, R&D,
# Mi-17; endings as in it's; dots in a row; any other mark by itself.
_WORD = re.compile(
  r"""
  @?\w+(?: ://[^\s<>"]+\w/?
        | (?: (?: [.@&/] | [,:](?=\d) | (?<=[^\W\d])-(?=\d) ) \w+ )* )
  | (?<=\w)['’][A-Za-z]{1,2}\b
  | \.\.+
  | [^\w\s]
  """,
  re.VERBOSE,
)
_STOP_WORDS = ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')
# Flags of a word: what it is not, what it has, then a bit a stop word.
_MARK, _LETTER, _STOP = 1, 2, 4

_CITATION = re.compile(r'\[\d*\]|\[edit\]|\[citation needed\]')
_POLICY = (
  'terms of use',
  'privacy policy',
  'cookie policy',
  'uses cookies',
  'use of cookies',
  'use cookies',
)
_END = ('.', '?', '!', '"', "'")
# A sentence ends where a mark after a word, not after an initial or a title,
# is followed by space and more text.
_SENTENCE = re.compile(
  r'(?:[!?]|(?<=[a-z0-9)\]"\'’”%])\.|(?<=[A-Z][A-Z])\.)["\'’”)\]]*\s+(?=\S)'
)
_TITLE = re.compile(
  r'\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|Inc|Ltd|Co|Corp|No|Gen|'
  r'Sen|Rep|Gov|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)\.\s+(?=\S)'
)
_LOST = re.compile(r'[a-z]["?][a-z]|"\?')
_KNOWN = 4_000_000  # characters after which the vocabulary starts anew


class _Words(dict):
  """Words that were seen -> number; each word's length and flags."""

  def __init__(self) -> None:
    super().__init__()
    self.lengths = array.array('q')
    self.flags = array.array('q')

  def __missing__(self, word: str) -> int:
    """Takes a new word in."""
    number = self[word] = len(self)
    flags = 0 if any(map(str.isalnum, word)) else _MARK
    flags |= _LETTER if any(map(str.isalpha, word)) else 0
    if word in _STOP_WORDS:
      flags |= _STOP << _STOP_WORDS.index(word)
    self.lengths.append(len(word))
    self.flags.append(flags)
    return number


class _Chunks(dict):
  """What stands between spaces -> number; the words that each is made of.

  No word reaches over a space, and most of what stands between spaces was seen
  before: so the pattern runs over what is new only.
  """

  def __init__(self) -> None:
    super().__init__()
    self.words = _Words()
    self.flat = array.array('q')  # numbers of the words of all chunks
    self.starts = array.array('q')  # of each chunk in `flat`
    self.counts = array.array('q')
    self.characters = 0

  def __missing__(self, chunk: str) -> int:
    """Takes a new chunk in."""
    number = self[chunk] = len(self)
    words = _WORD.findall(chunk)
    self.starts.append(len(self.flat))
    self.counts.append(len(words))
    self.flat.extend(map(self.words.__getitem__, words))
    self.characters += len(chunk)
    return number


_chunks = _Chunks()


def _split(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns number, length and flags of each word of a text, int64[n]."""
  global _chunks
  if _chunks.characters > _KNOWN:
    _chunks = _Chunks()
  seen = _chunks
  chunks = np.array(list(map(seen.__getitem__, text.split())), np.int64)
  if not len(seen.flat) or not len(chunks):
    return chunks[:0], chunks[:0], chunks[:0]
  counts = np.frombuffer(seen.counts, np.int64)[chunks]
  starts = np.frombuffer(seen.starts, np.int64)[chunks]
  # Word k of chunk c is at starts[c] + k.
  ends = np.cumsum(counts)
  places = np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1])
  numbers = np.frombuffer(seen.flat, np.int64)[places]
  return (
    numbers,
    np.frombuffer(seen.words.lengths, np.int64)[numbers],
    np.frombuffer(seen.words.flags, np.int64)[numbers],
  )


class English(rules.Text):
  """An English document."""

  @functools.cached_property
  def _words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _split(self.text)

  @property
  def flags(self) -> np.ndarray:
    """What each word is, int64[words]; marks of punctuation are words."""
    return self._words[2]

  @functools.cached_property
  def spelled(self) -> np.ndarray:
    """Lengths of the words that are no punctuation, int64."""
    return self._words[1][(self.flags & _MARK) == 0]

  @functools.cached_property
  def repeats(self) -> repetition.Repeats:
    """N-grams of words that repeat."""
    return repetition.Repeats(self._words[0].astype(np.uint64), self._words[1])

  @functools.cached_property
  def duplicate_paragraphs(self) -> tuple[int, int]:
    """Paragraphs that repeat an earlier one, and their characters."""
    return repetition.duplicates(self.paragraphs)

  @functools.cached_property
  def duplicate_lines(self) -> tuple[int, int]:
    """Lines that repeat an earlier one, and their characters."""
    return repetition.duplicates(self.filled)

  @functools.cached_property
  def filled(self) -> list[str]:
    """Lines as they are, without empty ones."""
    return [line for line in self.text.split('\n') if line]

  def per_word(self, *signs: str) -> float:
    """Returns how often signs occur, for each word."""
    count = sum(map(self.text.count, signs))
    return count / len(self.flags) if len(self.flags) else 0.0

  def of_text(self, characters: int) -> float:
    """Returns a share of the text's characters."""
    return characters / len(self.text) if self.text else 0.0

  @functools.cached_property
  def c4(self) -> tuple[list[str], int, int, int]:
    """Lines that C4 keeps, their sentences; placeholder text, braces."""
    return _c4(self.text, self.options)

  def cleaned(self) -> str:
    """Returns the lines that C4 keeps, where lines are cut."""
    if not self.options['cut_lines']:
      return self.text
    return '\n'.join(self.c4[0]).strip()


def _c4(
  text: str, options: Mapping[str, Any]
) -> tuple[list[str], int, int, int]:
  """Reads a page line by line, as C4 does.

  Returns:
    The lines kept, their sentences, and how many lines that would be kept have
    'lorem ipsum' and a curly bracket.
  """
  lower = text.lower()
  # What the page nowhere has, no line of it need be asked for.
  lorem, script = 'lorem ipsum' in lower, 'javascript' in lower
  brace, cited = '{' in text, '[' in text
  policies = [phrase for phrase in _POLICY if phrase in lower]
  long, words = options['longest_word'], options['line_words']
  kept, sentences, lorems, braces = [], 0, 0, 0
  for line in map(str.strip, text.splitlines()):
    if len(line) > long and max(map(len, line.split())) > long:
      continue
    count = len(line.split(None, words))
    if cited:
      line = _CITATION.sub('', line)
    if not line.endswith(_END) or line.endswith('...') or count < words:
      continue
    small = line.lower() if lorem or script or policies else ''
    lorems += lorem and 'lorem ipsum' in small
    if script and 'javascript' in small:
      continue
    braces += brace and '{' in line
    if policies and any(phrase in small for phrase in policies):
      continue
    sentences += _sentences(line)
    kept.append(line)
  return kept, sentences, lorems, braces


def _sentences(line: str) -> int:
  """Returns the number of sentences of a line that is not empty."""
  ends = len(_SENTENCE.findall(line))
  if ends:
    ends -= len(_TITLE.findall(line))
  return 1 + max(0, ends)


def _lost_marks(text: English) -> float:
  lost = len(_LOST.findall(text.text))
  return 1000 * lost / max(1000, len(text.text))


def _stop_words(text: English) -> float:
  present = int(np.bitwise_or.reduce(text.flags)) // _STOP
  return present.bit_count()


def _letters(text: English) -> float:
  return float(np.mean((text.flags & _LETTER) > 0)) if len(text.flags) else 0.0


def _mean_length(text: English) -> float:
  return float(text.spelled.mean()) if len(text.spelled) else 0.0


def _top(n: int) -> rules.Measure:
  return lambda text: text.of_text(text.repeats.top(n))


def _duplicated(n: int) -> rules.Measure:
  return lambda text: text.of_text(text.repeats.duplicated(n))


# In the order in which they are asked: what is cheap first.
TABLE: dict[str, rules.Measure] = {
  **rules.DOCUMENT,
  'document.lost_marks': _lost_marks,
  'gopher.words': lambda text: len(text.spelled),
  'gopher.mean_word_length': _mean_length,
  'gopher.hashes': lambda text: text.per_word('#'),
  'gopher.ellipses': lambda text: text.per_word('...', '…'),
  'gopher.bullet_lines': lambda text: rules.line_share(text, rules.is_bullet),
  'gopher.ellipsis_lines': lambda text: rules.line_share(
    text, rules.has_open_end
  ),
  'gopher.words_with_letters': _letters,
  'gopher.stop_words': _stop_words,
  'repetition.paragraphs': lambda text: (
    text.duplicate_paragraphs[0] / len(text.paragraphs)
  ),
  'repetition.paragraph_characters': lambda text: text.of_text(
    text.duplicate_paragraphs[1]
  ),
  'repetition.lines': lambda text: (
    text.duplicate_lines[0] / max(1, len(text.filled))
  ),
  'repetition.line_characters': lambda text: text.of_text(
    text.duplicate_lines[1]
  ),
  **{f'repetition.top_{n}_gram': _top(n) for n in (2, 3, 4)},
  **{f'repetition.duplicated_{n}_grams': _duplicated(n) for n in range(5, 11)},
  'c4.lorem_ipsum': lambda text: text.c4[2],
  'c4.curly_brackets': lambda text: text.c4[3],
  'c4.sentences': lambda text: text.c4[1],
}


def defaults() -> dict[str, Any]:
  """Returns options and the range of each rule; None is no limit."""
  return {
    'options': {
      'few_lines': 3,  # below it, rules on shares of lines pass; ours
      'short_line': 30,  # characters, below which a line is short; FineWeb
      'cut_lines': True,  # keep only the lines that C4 keeps
      'line_words': 3,  # words a line has at least; C4
      'longest_word': 1000,  # characters; lines with a longer one go; C4
    },
    'document': {
      'characters': (1, 2_000_000),  # longer is a dump, not a page; ours
      'garbled': (None, 0.01),  # ours
      # Marks that became ? or " (haven"t, says "?we) in 1,000 characters: 1 in
      # 300 clean pages has more, 1 in 6 of the news with broken quotes; ours
      'lost_marks': (None, 1),
      'digits': (None, 0.3),  # ours
      'symbols': (None, 0.3),  # ours
      'short_lines': (None, 0.67),  # FineWeb
      'consecutive_lines': (None, 0.3),  # Yi names it; as Gopher's lines
      'incomplete_lines': (None, 0.88),  # FineWeb: 12 % end with a mark
    },
    'gopher': {  # appendix A.1
      'words': (50, 100_000),
      'mean_word_length': (3, 10),
      'hashes': (None, 0.1),
      'ellipses': (None, 0.1),
      'bullet_lines': (None, 0.9),
      'ellipsis_lines': (None, 0.3),
      'words_with_letters': (0.8, None),
      'stop_words': (2, None),
    },
    'repetition': {  # Gopher, table A1
      'paragraphs': (None, 0.3),
      'paragraph_characters': (None, 0.2),
      'lines': (None, 0.3),
      'line_characters': (None, 0.2),
      'top_2_gram': (None, 0.2),
      'top_3_gram': (None, 0.18),
      'top_4_gram': (None, 0.16),
      'duplicated_5_grams': (None, 0.15),
      'duplicated_6_grams': (None, 0.14),
      'duplicated_7_grams': (None, 0.13),
      'duplicated_8_grams': (None, 0.12),
      'duplicated_9_grams': (None, 0.11),
      'duplicated_10_grams': (None, 0.1),
    },
    'c4': {  # section 2.2
      'lorem_ipsum': (None, 0),
      'curly_brackets': (None, 0),
      'sentences': (5, None),
    },
  }


def make(config: Mapping[str, Any]) -> rules.RuleSet:
  """Returns the rules with a config's ranges."""
  return rules.RuleSet('rules.english', English, TABLE, defaults(), config)
