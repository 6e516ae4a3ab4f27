"""Kinds of characters: a table over Unicode, so that counting is arithmetic.

A text becomes an array of code points once; the share of Han characters, of
digits or of garbage in it is then one lookup and one count.
"""

import functools
import unicodedata

import numpy as np

# What a character is. Order matters only to the arrays `counts` returns.
OTHER = 0  # letters and marks of other scripts
HAN = 1
KANA = 2
LATIN = 3
DIGIT = 4
SPACE = 5  # line ends too
HALF_PUNCTUATION = 6  # ASCII's, its symbols too
FULL_PUNCTUATION = 7  # Chinese marks, and ASCII's in full width
SYMBOL = 8  # of other blocks: arrows, emoji, currencies, curly quotes
GARBLED = 9  # never in good text: U+FFFD, control, private, unassigned
_KINDS = 10

# First and last of what Unicode's categories do not tell.
_RANGES = (
  (0x3400, 0x4DBF, HAN),
  (0x4E00, 0x9FFF, HAN),
  (0x3005, 0x3007, HAN),  # 々〆〇 stand among Han characters
  (0xF900, 0xFAFF, HAN),
  (0x20000, 0x323AF, HAN),
  (0x3040, 0x30FF, KANA),
  (0x31F0, 0x31FF, KANA),
  (0xFF66, 0xFF9F, KANA),
  (0x3001, 0x3004, FULL_PUNCTUATION),
  (0x3008, 0x3020, FULL_PUNCTUATION),
  (0xFF10, 0xFF19, DIGIT),
  (0xFF21, 0xFF3A, LATIN),
  (0xFF41, 0xFF5A, LATIN),
  (0xFFFD, 0xFFFD, GARBLED),
)
# Chinese shares these with Europe, but always means its own.
_CHINESE = '“”‘’…—·'
_LAST = 0x323AF  # above it lie unassigned, private and variation characters


def codes(text: str) -> np.ndarray:
  """Returns the code points of a text, uint32[n]; lone surrogates too."""
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def kinds(points: np.ndarray) -> np.ndarray:
  """Returns the kind of each code point, uint8[n]."""
  return _table()[np.minimum(points, _LAST + 1)]


def counts(points: np.ndarray) -> np.ndarray:
  """Returns how many characters there are of each kind, int64[10]."""
  return np.bincount(kinds(points), minlength=_KINDS)


@functools.cache
def _table() -> np.ndarray:
  """Returns the kind of every code point up to _LAST, and of those above."""
  table = np.fromiter(map(_by_category, range(_LAST + 2)), np.uint8)
  for first, last, kind in _RANGES:
    span = table[first : last + 1]
    # Holes that Unicode has not assigned stay garbage, in blocks of letters.
    span[(span != GARBLED) | (kind in (HAN, GARBLED))] = kind
  for character in _CHINESE:
    table[ord(character)] = FULL_PUNCTUATION
  table[_LAST + 1] = SYMBOL
  return table


def _by_category(point: int) -> int:
  """Returns the kind that Unicode's category gives."""
  character = chr(point)
  category = unicodedata.category(character)
  if character.isspace():
    return SPACE
  if category in ('Cc', 'Co', 'Cn', 'Cs'):
    return GARBLED
  if category == 'Nd':
    return DIGIT
  if category[0] in 'PS':
    if point < 0x80:
      return HALF_PUNCTUATION
    return FULL_PUNCTUATION if 0xFF00 < point < 0xFF66 else SYMBOL
  if category[0] == 'L' and point < 0x250:
    return LATIN
  return OTHER
