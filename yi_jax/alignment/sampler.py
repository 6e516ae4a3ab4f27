"""Chooses rows that balance tags and difficulty inside each language.

A row stands in a cell for each of its tags, at its difficulty. Rows are taken
one after the other: the next is the one whose cells have been chosen least, by
the mean of 1 / (1 + rows chosen of a cell), so that a row of many tags has no
advantage by their number. The gain only falls with each row chosen, so greedy
picking is near the best there is (Nemhauser, Wolsey and Fisher 1978). Ties are
broken by a hash of seed and id: the same rows and seed, the same choice.
"""

import collections
import glob
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from yi_jax.alignment import rows
from yi_jax.alignment.checks import texts
from yi_jax.curation import documents
from yi_jax.data import files

DIFFICULTIES = ('easy', 'medium', 'hard')


def defaults() -> dict[str, Any]:
  """Returns the section `sample` of a config."""
  return {
    'rows': 1_000,
    'seed': 0,
    # What --knowledge has written of a model: its loss on the answers counts as
    # difficulty too; '' does without.
    'losses': '',
    # Checks whose findings keep a row from being chosen. The others are only
    # told: a long answer or another style is no fault by itself.
    'exclude': (
      *('duplicates', 'templates', 'contradictions', 'language', 'repetition'),
      'stop',
    ),
  }


def read_losses(path: str) -> dict[str, float]:
  """Returns id -> loss of a model on the answers of a row, nats a token.

  Args:
    path: JSON lines with id, tokens and log_probability, an answer a line, as
      `polish --knowledge` writes them; '' is none.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a line of another form, naming it.
  """
  if not path:
    return {}
  sums: dict[str, tuple[float, int]] = {}
  (found,) = files.matches(glob.escape(path))
  for number, line in enumerate(found.read_bytes().splitlines(), 1):
    try:
      entry = json.loads(line)
      tokens = int(entry['tokens'])
      loss = -tokens * float(entry['log_probability'])
      key = str(entry['id'])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path}, line {number} is no line of --knowledge: {error}'
      ) from error
    before = sums.get(key, (0.0, 0))
    sums[key] = before[0] + loss, before[1] + tokens
  return {key: loss / max(1, tokens) for key, (loss, tokens) in sums.items()}


def difficulty(
  found: Sequence[rows.Row],
  tags: Sequence[Sequence[str]],
  losses: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, list[str]]:
  """Returns how hard rows are, and as a word.

  The mean of ranks inside the language, each 0 to 1: tags (InsTag's complexity,
  arXiv:2308.07074), words of the questions, words of the answers, and, for rows
  that have one, the loss of a model. Thirds of a language are easy, medium and
  hard.

  Args:
    found: rows.
    tags: of each.
    losses: by id, see `read_losses`.

  Returns:
    float64[rows] and rows of DIFFICULTIES.
  """
  losses = losses or {}
  measures = (
    np.array([len(mine) for mine in tags], float),
    texts.sizes([row.questions for row in found]).astype(float),
    texts.sizes([row.answers for row in found]).astype(float),
    np.array([losses.get(row.id, np.nan) for row in found]),
  )
  values = np.zeros(len(found))
  words = np.zeros(len(found), int)
  for mine in _by_language(found).values():
    ranks = np.full((len(measures), len(mine)), np.nan)
    for rank, measure in zip(ranks, measures, strict=True):
      known = np.flatnonzero(~np.isnan(measure[mine]))
      rank[known] = _ranks(measure[mine][known])
    values[mine] = np.nanmean(ranks, 0)
    words[mine] = np.minimum(3 * _ranks(values[mine]), 2).astype(int)
  return values, [DIFFICULTIES[k] for k in words]


def _ranks(values: np.ndarray) -> np.ndarray:
  """Returns ranks from 0 to 1, those of equal numbers being their mean."""
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  ends = np.cumsum(counts)
  middle = (ends - counts + ends - 1) / 2
  return middle[inverse] / max(1, len(values) - 1)


def cells(
  tags: Sequence[Sequence[str]], difficulties: Sequence[str]
) -> list[list[str]]:
  """Returns the cells of rows: each tag at the row's difficulty."""
  return [
    [f'{tag} {hard}' for tag in mine]
    for mine, hard in zip(tags, difficulties, strict=True)
  ]


def choose(
  found: Sequence[rows.Row],
  where: Sequence[Sequence[str]],
  count: int,
  seed: int,
) -> list[int]:
  """Returns the indices of the chosen rows, in the order they were chosen.

  Languages have the same number of rows, as far as they have them.

  Args:
    found: rows to choose from.
    where: cells of each.
    count: rows to choose; all if there are no more.
    seed: of the ties.
  """
  members = _by_language(found)
  chosen = []
  for language, share in quotas(members, count).items():
    mine = members[language]
    picks = _greedy(
      [where[i] for i in mine], [found[i].id for i in mine], share, seed
    )
    chosen += [mine[k] for k in picks]
  return chosen


def _by_language(found: Sequence[rows.Row]) -> dict[str, list[int]]:
  members = collections.defaultdict(list)
  for i, row in enumerate(found):
    members[row.language].append(i)
  return dict(sorted(members.items()))


def quotas(members: Mapping[str, Sequence[int]], count: int) -> dict[str, int]:
  """Returns how many rows each language gives: as equal as they can be."""
  shares, left = {}, count
  smallest_first = sorted(members, key=lambda name: (len(members[name]), name))
  for number, name in enumerate(smallest_first):
    even = -(-left // (len(members) - number))
    shares[name] = min(len(members[name]), even)
    left -= shares[name]
  return dict(sorted(shares.items()))


def _greedy(
  where: Sequence[Sequence[str]], ids: Sequence[str], count: int, seed: int
) -> list[int]:
  """Returns the rows of the best coverage, one after the other."""
  names = {
    cell: k for k, cell in enumerate(sorted({c for w in where for c in w}))
  }
  sizes = np.array([len(mine) for mine in where])
  matrix = sparse.csr_matrix(
    (
      np.repeat(1 / np.maximum(sizes, 1), sizes),
      [names[cell] for mine in where for cell in mine],
      np.concatenate([[0], np.cumsum(sizes)]),
    ),
    shape=(len(where), len(names)),
  )
  # Far below the smallest difference of two gains.
  ties = 1e-9 * np.array([documents.draw(seed, key) for key in ids])
  taken = np.zeros(len(names))
  free = np.ones(len(where), bool)
  picks = []
  for _ in range(min(count, len(where))):
    gains = np.where(free, matrix @ (1 / (1 + taken)) + ties, -np.inf)
    best = int(np.argmax(gains))
    free[best] = False
    taken[[names[cell] for cell in where[best]]] += 1
    picks.append(best)
  return picks


def at_random(found: Sequence[rows.Row], count: int, seed: int) -> list[int]:
  """Returns rows chosen by chance, as many of each language as `choose` takes."""
  members = _by_language(found)
  chosen = []
  for language, share in quotas(members, count).items():
    ordered = sorted(
      members[language],
      key=lambda i: documents.draw(seed, f'{found[i].id} random'),
    )
    chosen += ordered[:share]
  return chosen


def coverage(
  found: Sequence[rows.Row],
  where: Sequence[Sequence[str]],
  chosen: Sequence[int],
) -> dict[str, dict[str, Any]]:
  """Returns, by language, how evenly some rows fill the cells of all.

  Args:
    found: all rows.
    where: cells of each.
    chosen: indices of those that are looked at.

  Returns:
    Rows, cells there are, cells with a row, cells with five, the evenness
    (entropy over the cells, 1 if all are as full), the share of the fullest.
  """
  members, taken = _by_language(found), set(chosen)
  result = {}
  for language, mine in members.items():
    every = {cell for i in mine for cell in where[i]}
    picked = [i for i in mine if i in taken]
    counts = collections.Counter(cell for i in picked for cell in where[i])
    values = np.array(sorted(counts.values()), float)
    shares = values / max(1, values.sum())
    entropy = float(-(shares * np.log(shares)).sum())
    result[language] = {
      'rows': len(picked),
      'cells there are': len(every),
      'cells with a row': len(counts),
      'cells with five': int((values >= 5).sum()),
      'evenness': round(entropy / np.log(max(2, len(every))), 4),
      'fullest': round(float(shares.max(initial=0)), 4),
    }
  return result
