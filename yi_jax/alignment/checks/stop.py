"""Answers that were cut off: an open fence, an open bracket, no last mark.

Hard signs count wherever they are found. That the last mark is missing counts
only where most answers of a language and ability have one, and only for prose:
not for code, data, a list, a table, verse, an address or a name.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding, texts

_PAIRS = {'(': ')', '[': ']', '{': '}', '（': '）', '【': '】', '《': '》'}
_PAIRS |= {'「': '」', '“': '”'}
_CLOSERS = {closer: opener for opener, closer in _PAIRS.items()}
# ":(" and "(:" are faces and open nothing.
_FACE = re.compile(r"[:;=]['\-^]?[(\[{]+|(?<!\S)[(\[]['\-^]?[:;=]")
_FACE_LAST = re.compile(r"[:;=]['\-^]?[()\[\]DPpOo/|]+$")
_GLOSS = 5  # words: fewer may be a phrase by itself
_FINISHED = tuple('.!?…。！？~～"”\'’」』)）】]》}*_`;；|>:：☆★♥❤)')
_CLOSED = tuple('.!?…。！？~～')
_OPEN_END = re.compile(
  r'(?:[,，、]|(?<=[a-z,])\s(?:and|or|the|a|an|because|such as|their|your|my|its|whose)|'
  r'(?:和|与|或|但|但是|因为|所以|而且|以及|例如|比如|通过|对于|为了|如果|并且|包括))\s*$'
)
# "Answer: 42 apples" names a result.
_NAMED = re.compile(
  r'\s*\**(?:答案?|answer|result|结果)\**\s*[:：]', re.IGNORECASE
)
# That of a mail begins with its word: elsewhere a long text without a space
# would be looked through from each character on.
_ADDRESS = re.compile(r'(?:https?://|www\.)\S+|(?<!\S)\S+@\S+\.\w+')


def defaults() -> dict[str, Any]:
  """Returns the section of the check."""
  return {
    # Words, or Chinese characters, of a last line that has to end with a mark
    # (ours): fewer may be a title, a name or a result.
    'least': {'en': 8, 'zh': 12},
    # Share of a group's answers of prose that end with a mark, from which on it
    # is a rule there (ours).
    'rule': 0.8,
  }


def open_fence(text: str) -> bool:
  """Returns whether code begins and does not end."""
  return len(texts.FENCE.findall(text)) % 2 == 1


def open_bracket(text: str) -> str:
  """Returns the bracket of the last lines that is never closed, or ''.

  Those of the last paragraph count, as an answer is cut at its end; a bracket
  that is closed in a later line or in another one's place is a slip of writing.
  """
  last = re.split(r'\n\s*\n', texts.prose(text).strip())[-1]
  last = _FACE.sub(' ', _ADDRESS.sub(' ', last))
  depth: list[str] = []
  for character in last:
    if character in _PAIRS:
      depth.append(character)
    elif character in _CLOSERS:
      if _CLOSERS[character] in depth:
        depth.reverse()
        depth.remove(_CLOSERS[character])
        depth.reverse()
      elif depth:
        depth.pop()  # one kind opened, another closed
  return depth[-1] if depth else ''


def hard(text: str) -> str:
  """Returns a sign that shows by itself that an answer was cut off, or ''."""
  if texts.is_data(text):
    return ''
  if open_fence(text):
    return 'a fence of code is not closed'
  end = text.rstrip()
  if end.endswith(('```', '~~~')) or texts.is_code(text):
    return ''
  bracket = open_bracket(text)
  if bracket and not end.endswith(_CLOSED):
    return f'{bracket!r} is not closed'
  if _OPEN_END.search(end) and len(texts.words(end)) > _GLOSS:
    return f'it ends with {end[-12:]!r}'
  return ''


def is_prose(text: str, language: str, least: Mapping[str, int]) -> bool:
  """Returns whether the last line of an answer has to end with a mark."""
  if texts.is_data(text) or texts.is_code(text):
    return False
  lines = [line for line in text.rstrip().split('\n') if line.strip()]
  if lines[-1].lstrip().startswith(('```', '~~~')):
    return False
  if _NAMED.match(lines[-1]) or texts.LIST_LINE.match(lines[-1]):
    return False
  if _ADDRESS.search(lines[-1].split()[-1]) or _verse(lines):
    return False
  needed = least.get(language, least['en'])
  return len(texts.words(lines[-1])) >= needed


def _verse(lines: Sequence[str]) -> bool:
  """Returns whether most of four lines or more end without a full stop."""
  ends = [line.rstrip().endswith(_CLOSED) for line in lines]
  return len(lines) >= 4 and 2 * sum(ends) < len(ends)


def finished(text: str) -> bool:
  """Returns whether a text ends with a mark, a number, or a sign that draws."""
  end = text.rstrip()
  last = end[-1:]
  if _FACE_LAST.search(end) or last.isdigit():
    return True
  return last in _FINISHED or ord(last) >= 0x2190 and not last.isalnum()


def find(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields rows with an answer that was cut off."""
  least = settings['least']
  ends = collections.defaultdict(list)
  prose: list[list[tuple[int, bool]]] = []
  for row in found:
    mine = [
      (turn, finished(answer))
      for turn, (_, answer) in enumerate(row.exchanges, 1)
      if is_prose(answer, row.language, least)
    ]
    prose.append(mine)
    ends[row.group] += [end for _, end in mine]
  rule = {
    group: sum(seen) >= settings['rule'] * len(seen)
    for group, seen in ends.items()
  }
  for i, row in enumerate(found):
    why = ''
    for turn, (_, answer) in enumerate(row.exchanges, 1):
      sign = hard(answer)
      if sign:
        why = f'turn {turn}: {sign}'
        break
    open_turns = [turn for turn, end in prose[i] if not end]
    if not why and open_turns and rule[row.group]:
      answer = row.exchanges[open_turns[0] - 1][1].rstrip()
      why = f'turn {open_turns[0]}: no mark at the end: {answer[-16:]!r}'
    if why:
      yield finding.Finding(i, 'stop', why)
