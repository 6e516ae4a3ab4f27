"""Rows much longer or shorter, or of more turns, than others of their kind.

Lengths are compared inside a language and ability, by their logarithms, with
the modified z-score of Iglewicz and Hoaglin (How to Detect and Handle Outliers,
1993): distances from the median in units of the median distance, which outliers
do not move, flagged above 3.5.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding, texts

# Of a normal distribution: standard deviations a median, and a mean, distance.
_MEDIAN, _MEAN = 1.4826, 1.2533


def defaults() -> dict[str, Any]:
  """Returns the section of the check."""
  return {
    'score': 3.5,  # Iglewicz and Hoaglin
    # And so many times the median, or so small a part of it: where all rows are
    # nearly alike, one more word would be far off (ours).
    'factor': 3,
    'least': 20,  # rows of a group that is judged; ours
  }


def measures(found: Sequence[rows.Row]) -> dict[str, np.ndarray]:
  """Returns what lengths are compared, float64[rows] each.

  Words count one, and Chinese characters.
  """
  turns = np.array([len(row.exchanges) for row in found], float)
  return {
    'words a question': texts.sizes([row.questions for row in found]) / turns,
    'words an answer': texts.sizes([row.answers for row in found]) / turns,
    'turns': turns,
  }


def scores(values: np.ndarray) -> np.ndarray:
  """Returns modified z-scores of the logarithms of numbers, float64[n].

  Where more than half are the same, mean distances take the place of median
  ones; where all are, the scores are 0.
  """
  logs = np.log1p(values)
  apart = logs - np.median(logs)
  scale = _MEDIAN * np.median(np.abs(apart))
  scale = scale or _MEAN * np.mean(np.abs(apart))
  return apart / scale if scale else np.zeros(len(values))


def find(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields a finding for each length of a row that is far from the others'."""
  groups = collections.defaultdict(list)
  for i, row in enumerate(found):
    groups[row.group].append(i)
  for name, values in measures(found).items():
    for (language, ability), group in groups.items():
      if len(group) < settings['least']:
        continue
      mine = values[group]
      median = np.median(mine)
      for i, value, score in zip(group, mine, scores(mine), strict=True):
        factor = max(value, median) / max(min(value, median), 1e-9)
        if abs(score) > settings['score'] and factor >= settings['factor']:
          yield finding.Finding(
            i,
            'outliers',
            f'{value:.4g} {name}, where {language} {ability} has {median:.4g} '
            f'(score {score:+.1f})',
          )
