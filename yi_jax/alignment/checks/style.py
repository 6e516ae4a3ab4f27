"""The form of answers, and how far a row drifts from the form of its kind.

The Yi report (section 3.1) wants one style: introduction, body, conclusion, the
body mostly bullets, and one form of reasoning. So each answer is described by a
few features of its form. What most rows of a language and ability do is their
style; a row drifts by the sum of -log2(share) over the features of which one
value holds the majority, the bits it would take to tell them.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding, outliers, texts

_BULLET = re.compile(r'^\s*(?:[-*•·▪●–—]|[➢✓→])\s*\S')
_NUMBER = re.compile(
  r'^\s*(?:\(?\d{1,2}[.)、．:：]|[（(][一二三四五六七八九十\d]+[)）]|'
  r'[一二三四五六七八九十]+、|第[一二三四五六七八九十]+[步，、：]|'
  r'(?:Step|步骤)\s*\d+)',
  re.IGNORECASE,
)
_HEADING = re.compile(r'^\s*(?:#{1,6}\s|\*\*[^*]+\*\*[:：]?\s*$)')
_STEPS = re.compile(
  r'\bstep\s*\d|步骤\s*\d|第[一二三四五]步|\bfirst(?:ly)?,|首先|其次|然后.*最后|'
  r'先算|再算',
  re.IGNORECASE | re.DOTALL,
)
_EQUATION = re.compile(r'[\d)）a-z%]\s*[=＝≈]\s*[-(（\da-z]', re.IGNORECASE)
_RESULT = re.compile(
  r'(?m)^\s*\**(?:答案?|answer)\**\s*[:：]|(?:the answer is|therefore|答案[是为]|'
  r'因此|所以|\bin conclusion|综上)',
  re.IGNORECASE,
)
_REASONING = ('math', 'reasoning')  # abilities where the form of thought counts


def defaults() -> dict[str, Any]:
  """Returns the section of the check."""
  return {
    # Share of a group, from which on a value is its style (ours).
    'majority': 0.6,
    # Of the drift: modified z-score, see `outliers`, and bits: what one row in
    # 256 does, or fewer (ours).
    'score': 3.5,
    'bits': 8,
    'least': 20,  # rows of a group that is judged; ours
    # Words of an answer from which on an introduction and an end are asked for
    # in the shares (ours).
    'long': 100,
  }


def features(answer: str, reasons: bool) -> dict[str, str]:
  """Returns the form of an answer, a word a feature.

  Args:
    answer: of the assistant.
    reasons: whether it is the answer to a problem that is reasoned about.
  """
  if texts.is_data(answer):
    return {'form': 'data'}
  code = 'with code' if texts.FENCE.search(answer) else 'without code'
  if code == 'without code' and texts.is_code(answer):
    return {'form': 'code'}
  lines = [line for line in texts.prose(answer).split('\n') if line.strip()]
  kinds = [_kind(line) for line in lines]
  listed = [k for k, kind in enumerate(kinds) if kind in ('bullet', 'number')]
  body = 'prose'
  if len(listed) >= 2:
    counts = collections.Counter(kinds[k] for k in listed)
    body = f'{counts.most_common(1)[0][0]}s'
  paragraphs = len(re.split(r'\n\s*\n', answer.strip()))
  introduced, concluded = _ends(kinds, listed, paragraphs)
  found = {
    'form': 'text',
    'code': code,
    'introduction': 'introduction' if introduced else 'no introduction',
    'body': body,
    'conclusion': 'conclusion' if concluded else 'no conclusion',
    'headings': 'headings' if 'heading' in kinds else 'no headings',
    'ends': 'mark' if answer.rstrip()[-1:] in '.!?。！？…' else 'no mark',
  }
  if reasons:
    found['thought'] = thought(answer)
  return found


def _kind(line: str) -> str:
  for name, pattern in (
    ('heading', _HEADING),
    ('bullet', _BULLET),
    ('number', _NUMBER),
  ):
    if pattern.match(line):
      return name
  return 'prose'


def _ends(
  kinds: Sequence[str], listed: Sequence[int], paragraphs: int
) -> tuple[bool, bool]:
  """Returns whether there is an introduction, and a conclusion.

  Around a list, prose before and after it; without one, of three paragraphs or
  more the first and the last.
  """
  if len(listed) >= 2:
    first, last = listed[0], listed[-1]
    return 'prose' in kinds[:first], 'prose' in kinds[last + 1 :]
  return paragraphs >= 3, paragraphs >= 3


def _begins(answer: str) -> str:
  """Returns what the first character is."""
  first = answer.lstrip()[:1]
  if first.isupper():
    return 'capital'
  return 'lower case' if first.islower() else 'other'


def thought(answer: str) -> str:
  """Returns the form of reasoning: steps, equations, and a named result."""
  parts = []
  if _STEPS.search(answer):
    parts.append('steps')
  if _EQUATION.search(answer):
    parts.append('equations')
  if _RESULT.search(answer):
    parts.append('result')
  return ', '.join(parts) or 'no reasoning'


class Group:
  """The rows of one language and ability, and their style."""

  def __init__(
    self, found: Sequence[rows.Row], settings: Mapping[str, Any]
  ) -> None:
    """Describes the last answers of rows."""
    reasons = found[0].ability in _REASONING
    answers = [row.exchanges[-1][1] for row in found]
    self.features = [features(answer, reasons) for answer in answers]
    if found[0].language != 'zh':  # which has no capitals
      for mine, answer in zip(self.features, answers, strict=True):
        mine['begins'] = _begins(answer)
    self._long = texts.sizes(answers) >= settings['long']
    counts = collections.defaultdict(collections.Counter)
    for mine in self.features:
      for name, value in mine.items():
        counts[name][value] += 1
    self.shares = {
      name: {v: n / values.total() for v, n in values.most_common()}
      for name, values in counts.items()
    }
    self.style = {
      name: next(iter(values))
      for name, values in self.shares.items()
      if max(values.values()) >= settings['majority']
    }

  def drift(self) -> np.ndarray:
    """Returns the bits by which each row drifts, float64[rows]."""
    return np.array(
      [
        sum(-np.log2(share) for _, _, share in self.departures(i))
        for i in range(len(self.features))
      ]
    )

  def departures(self, i: int) -> list[tuple[str, str, float]]:
    """Returns (feature, value, share of it) where a row is not as most are."""
    return [
      (name, value, self.shares[name][value])
      for name, value in self.features[i].items()
      if name in self.style and self.style[name] != value
    ]

  def facts(self) -> dict[str, Any]:
    """Returns the shares, and how many long answers have Yi's form."""
    long = [
      f for f, is_long in zip(self.features, self._long, strict=True) if is_long
    ]
    count = max(1, len(long))
    return {
      'rows': len(self.features),
      'style': self.style,
      'shares': {
        name: {value: round(share, 4) for value, share in values.items()}
        for name, values in self.shares.items()
      },
      'long answers': len(long),
      'with introduction, body, conclusion': _share(
        sum(
          f.get('introduction') == 'introduction'
          and f.get('conclusion') == 'conclusion'
          for f in long
        ),
        count,
      ),
      'with a list for a body': _share(
        sum(f.get('body', 'prose') != 'prose' for f in long), count
      ),
    }


def _share(part: int, whole: int) -> float:
  return round(part / whole, 4)


def find(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields the rows that drift far from the style of their group."""
  for indices, group in groups(found, settings):
    drift = group.drift()
    scores = outliers.scores(drift)
    for i, bits, score, k in zip(
      indices, drift, scores, range(len(indices)), strict=True
    ):
      if score > settings['score'] and bits >= settings['bits']:
        why = ', '.join(
          f'{value} ({share:.1%} of rows)'
          for _, value, share in group.departures(k)
        )
        yield finding.Finding(i, 'style', f'{bits:.1f} bits of drift: {why}')


def groups(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[tuple[list[int], Group]]:
  """Yields the indices of the rows of a language and ability, described."""
  members = collections.defaultdict(list)
  for i, row in enumerate(found):
    members[row.group].append(i)
  for indices in members.values():
    if len(indices) >= settings['least']:
      yield indices, Group([found[i] for i in indices], settings)


def table(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the facts of each group, by 'language ability'."""
  return {
    ' '.join(found[indices[0]].group): group.facts()
    for indices, group in groups(found, settings)
  }
