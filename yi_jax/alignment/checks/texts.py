"""What several checks ask of a text: its prose, numbers, quotes, sentences."""

import json
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from yi_jax.curation import shingles

FENCE = re.compile(r'^[^\S\n]*(?:```|~~~)', re.MULTILINE)
_FENCED = re.compile(
  r'^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)', re.MULTILINE | re.DOTALL
)
LIST_LINE = re.compile(
  r'^\s*(?:[-*•·▪●–—]\s*|\(?\d{1,3}[.)、．:：]\s*|[（(]?[一二三四五六七八九十]+'
  r'[)）、.]\s*|[a-zA-Z][.)]\s+|#+\s|\||>)'
)
_INLINE = re.compile(r'`[^`\n]+`')
# 1,000 and 3.50 and 1/2; a sign belongs to it only where nothing stands before.
_NUMBER = re.compile(r'(?<![A-Za-z0-9_.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?')
_QUOTED = re.compile(
  r'“([^”]+)”|"([^"]+)"|「([^」]+)」|《([^》]+)》|‘([^’]+)’'
  r"|(?<!\w)'([^'\n]+)'(?!\w)"
)
_WORD = re.compile('[\u3400-\u9fff]|[^\\W_\u3400-\u9fff]+')
_SIGN = re.compile(r'[-+*/×÷=<>^\u2190-\u2bff]')  # arrows to shapes
_SENTENCE = re.compile(r'[^。！？!?.\n]*[。！？!?.\n]+|[^。！？!?.\n]+')
_CODE_LINE = re.compile(
  r'\s*(?:(?:def|class|import|from|public|private|protected|function|var|let|'
  r'const|return|package|namespace|struct|void|int|float|double|char)\b[^.。]*'
  r'[;:(){}=\w]$|#include|(?:for|while|if|switch|elif|else|try|except|catch)\b'
  r'.*[:{(]\s*$|(?:SELECT|INSERT|UPDATE|CREATE|DELETE|FROM|WHERE) |</?\w+[^>]*>|'
  r'[A-Za-z_][\w.\[\]]* ?[-+*/]?= ?[^=\s].*|[{}()\];]+$|\w+(?:\.\w+)*\(.*\);?$|'
  r'.*[{};]$|//|\w[\w-]*: [\w#-]+;?$)',
  re.ASCII,
)


def prose(text: str) -> str:
  """Returns a text without code in fences and in backquotes."""
  return _INLINE.sub(' ', _FENCED.sub('\n', text))


def is_data(text: str) -> bool:
  """Returns whether a text is a JSON object or array: a call, a result."""
  text = text.strip()
  if text[:1] + text[-1:] not in ('{}', '[]'):
    return False
  try:
    json.loads(text)
  except ValueError:
    return False
  return True


def is_code(text: str) -> bool:
  """Returns whether two lines or more, and half of all, look like code."""
  lines = [line for line in text.splitlines() if line.strip()]
  code = sum(map(bool, map(_CODE_LINE.match, lines)))
  return code >= max(2, len(lines) / 2)


def written(text: str) -> str:
  """Returns the prose of a text without lines of code, tables and lists."""
  return '\n'.join(
    line
    for line in prose(text).split('\n')
    if not _CODE_LINE.match(line) and not LIST_LINE.match(line)
  )


def plain(text: str) -> str:
  """Returns a text in compatible form: full-width digits are digits."""
  return unicodedata.normalize('NFKC', text)


def numbers(text: str) -> tuple[str, ...]:
  """Returns the numbers of a text in order, each in one form.

  Example: '共1,000元，3.50元，1/2' has '1000', '3.5', '1/2'.
  """
  return tuple(map(_number, _NUMBER.findall(plain(text))))


def _number(text: str) -> str:
  text = text.replace(',', '')
  if '/' in text:
    return text
  return f'{float(text):.12g}' if len(text) < 16 else text


def slots(text: str) -> tuple[tuple[str, ...], ...]:
  """Returns what a template is filled with: numbers, signs, what is quoted.

  Two prompts of the same wording ask the same only if these are the same.
  """
  text = plain(text)
  quoted = (next(filter(None, m)) for m in _QUOTED.findall(text))
  return (
    numbers(text),
    tuple(_SIGN.findall(text)),
    tuple(part.strip().lower() for part in quoted),
  )


def template(text: str) -> str:
  """Returns a text with nothing in quotation marks, and 0 for each number."""
  return _NUMBER.sub('0', _QUOTED.sub('“”', plain(text)))


def sentences(text: str) -> list[str]:
  """Returns the sentences of a text, lines and marks ending them."""
  return [s.strip() for s in _SENTENCE.findall(text) if s.strip()]


def sizes(texts: Sequence[str]) -> np.ndarray:
  """Returns the units of texts: words, or single Chinese characters."""
  counts = [np.zeros(0, np.int64)]
  done = 0
  for first, units in shingles.blocks(texts):
    counts.append(np.zeros(first - done, np.int64))
    counts.append(np.diff(units.offsets))
    done = first + len(units.offsets) - 1
  counts.append(np.zeros(len(texts) - done, np.int64))
  return np.concatenate(counts)


def words(text: str) -> list[str]:
  """Returns the words of a text in lower case; a Chinese character is one."""
  return _WORD.findall(text.lower())
