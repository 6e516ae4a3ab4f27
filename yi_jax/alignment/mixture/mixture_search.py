"""Which mixture of abilities to tune on: a search in two phases.

Source of the phases: 01.AI's own account of Yi-34B-Chat (single abilities are
lifted first, each by a few to a few hundred samples, then fused) and the Yi
report, section 3.1 (of each ability the shares 1, 1/2, ... 1/64 are tried, an
approximate grid search in the way of Dong et al., arXiv:2310.05492).

Single: a run for each ability and number of its conversations, on nothing
else. Fused: shares of all abilities and hyperparameters, one at a time, each
from the best setting so far. The whole grid would have 7^n settings of n
abilities; this takes 6 n + 1, and finds the best of the grid where the axes do
not change each other's order. A share is a factor of an ability's rate (rows
that are read), not of its conversations: nothing is packed anew, and all runs
take as many steps.

What is lowest wins: the mean, over the abilities of the mixture, of the
held-out loss a token of answers divided by the loss before any tuning, so that
all abilities weigh alike.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from yi_jax.alignment.mixture import mixture_search_space as spaces
from yi_jax.sweeping import growing, results

METRIC = 'response_loss'
PHASES = ('untuned', 'single', 'fused')
# Ours: samples are enough that lower the loss by this part of the largest fall.
_ENOUGH = 0.95


@dataclasses.dataclass(frozen=True)
class Turn:
  """One axis, tried from the best setting so far.

  Attributes:
    number: of the round, from 1.
    axis: ability or config key.
    scores: value -> score, inf of a run that has failed.
    before: value until now.
    chosen: value from now on.
  """

  number: int
  axis: str
  scores: dict[Any, float]
  before: Any
  chosen: Any


@dataclasses.dataclass(frozen=True)
class Line:
  """A run of the search.

  Attributes:
    phase: one of PHASES.
    trial: what was asked for.
    row: what came of it.
    score: see above; inf of a run that has failed.
  """

  phase: str
  trial: growing.Trial
  row: results.Row
  score: float


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a search has found.

  Attributes:
    space: what was searched.
    untuned: ability -> held-out loss before any tuning.
    curves: ability -> number of conversations -> its own held-out loss.
    samples: ability -> how many are enough; not of those that want them all.
    turns: of the fused phase.
    best: setting of all axes.
    line: the run at that setting.
    lines: all runs, each once.
  """

  space: spaces.Space
  untuned: dict[str, float]
  curves: dict[str, dict[int, float]]
  samples: dict[str, int]
  turns: list[Turn]
  best: spaces.Setting
  line: Line
  lines: list[Line]


class Runs(Protocol):
  """What the search needs: something that runs trials."""

  def run(
    self, phase: str, trials: Sequence[growing.Trial]
  ) -> list[results.Row]:
    """Returns what came of the trials, in order."""

  def forget(self, phase: str, names: Iterable[str]) -> None:
    """Is told whose weights nobody will ask for."""


def search(
  space: spaces.Space,
  runs: Runs,
  rounds: int = 1,
  tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
  """Goes through both phases.

  Args:
    space: what is searched.
    runs: runs what is asked for.
    rounds: times that all axes are gone through; the search ends before if a
      round has changed nothing.
    tell: is told each choice.

  Raises:
    ValueError: if nothing can be compared: the untuned run or all runs of a
      turn have failed, or an ability has no held-out loss.
    whatever `runs` raises.
  """
  lines: dict[tuple[str, str], Line] = {}
  untuned: dict[str, float] = {}

  def take(phase: str, trials: Sequence[growing.Trial]) -> list[Line]:
    rows = runs.run(phase, trials)
    if phase == 'untuned':
      untuned.update(_untuned(space, rows[0]))
    found = [
      Line(phase, trial, row, score(row, untuned))
      for trial, row in zip(trials, rows, strict=True)
    ]
    lines.update({(phase, line.row.point.name): line for line in found})
    return found

  def forget(phase: str, keep: Line | None = None) -> None:
    """Lets go the weights of what has ended; a failed run may be continued."""
    done = [n for (p, n), x in lines.items() if p == phase and x.row.numbers]
    kept = keep.row.point.name if keep else None
    runs.forget(phase, [name for name in done if name != kept])

  take('untuned', [space.untuned()])
  forget('untuned')
  curves, samples = {}, {}
  pairs = [(a, count) for a in space.abilities for count in space.counts]
  if pairs:
    singles = take('single', [space.lone(*pair) for pair in pairs])
    forget('single')
    for (ability, count), line in zip(pairs, singles, strict=True):
      own = losses(line.row).get(ability, math.inf)
      curves.setdefault(ability, {})[count] = own
    for ability, curve in curves.items():
      if limit := enough(curve, untuned[ability]):
        samples[ability] = limit
      tell(lifted(ability, curve, untuned[ability]))

  best: list[Line] = []

  def scores(settings: Sequence[spaces.Setting]) -> list[float]:
    found = take('fused', [space.fused(s, samples) for s in settings])
    best[:] = [min([*best, *found], key=lambda line: line.score)]
    forget('fused', best[0])
    return [line.score for line in found]

  setting, turns = descend(space.axes(), scores, rounds, tell)
  [line] = take('fused', [space.fused(setting, samples)])
  return Outcome(
    *(space, untuned, curves, samples, turns, setting, line),
    lines=list(lines.values()),
  )


def descend(
  axes: Mapping[str, Sequence[Any]],
  scores: Callable[[Sequence[spaces.Setting]], list[float]],
  rounds: int,
  tell: Callable[[str], None] = lambda text: None,
) -> tuple[spaces.Setting, list[Turn]]:
  """Looks for the lowest score, one axis at a time.

  Args:
    axes: axis -> values; it starts from the first of each.
    scores: returns the scores of settings, inf of one that has failed.
    rounds: at most; a round that changes nothing is the last.
    tell: is told each choice.

  Returns:
    The setting, which has the lowest score of all that were tried, and how it
    came to it.

  Raises:
    ValueError: if all runs of a turn have failed.
  """
  best = {axis: values[0] for axis, values in axes.items()}
  turns = []
  for number in range(1, rounds + 1):
    start = dict(best)
    for axis, values in axes.items():
      tried = scores([{**best, axis: value} for value in values])
      found = dict(zip(values, tried, strict=True))
      lowest = min(found, key=found.get)
      if math.isinf(found[lowest]):
        raise ValueError(f'no run with another {axis} has come to its end')
      # What is as good as the value until now does not replace it.
      if found[best[axis]] <= found[lowest]:
        lowest = best[axis]
      turns.append(Turn(number, axis, found, best[axis], lowest))
      best[axis] = lowest
      tell(turned(turns[-1]))
    if best == start:
      break
  return best, turns


def score(row: results.Row, untuned: Mapping[str, float]) -> float:
  """Returns the mean of held-out losses as parts of those before tuning.

  inf of a run that has failed or whose losses are not finite.
  """
  found = losses(row)
  if found.keys() != untuned.keys():
    return math.inf
  parts = [found[ability] / before for ability, before in untuned.items()]
  return statistics.fmean(parts) if all(map(math.isfinite, parts)) else math.inf


def enough(curve: Mapping[int, float], before: float) -> int | None:
  """Returns how many conversations of an ability are enough.

  That is the smallest number that lowers the loss by 95 % of the largest fall.
  None, for all there are, if that is the largest number tried, as the curve
  still falls there, or if no number has lowered the loss.

  Args:
    curve: number -> held-out loss of the ability.
    before: its loss before tuning.
  """
  lowest = min(curve.values())
  if lowest >= before:
    return None
  near = before - _ENOUGH * (before - lowest)
  found = min(count for count, loss in curve.items() if loss <= near)
  return found if found < max(curve) else None


def lifted(ability: str, curve: Mapping[int, float], before: float) -> str:
  """Returns in a sentence what the curve of an ability has led to."""
  count = min(curve, key=curve.get)
  if curve[count] >= before:
    return (
      f'{ability}: no number of samples lowered its loss of {before:.4g}; all '
      'are kept'
    )
  limit = enough(curve, before)
  lowest = f'{curve[count]:.4g} (from {before:.4g}) with {count}'
  if limit is None:
    return f'{ability}: lowest loss {lowest}, the curve still falls: all kept'
  return (
    f'{ability}: lowest loss {lowest}; {limit} are enough, with '
    f'{curve[limit]:.4g}'
  )


def turned(turn: Turn) -> str:
  """Returns in a sentence what a turn has led to."""
  found = turn.scores[turn.chosen]
  if turn.chosen == turn.before:
    others = [x for value, x in turn.scores.items() if value != turn.chosen]
    beside = f', the best other {min(others):.4g}' if others else ''
    return f'{turn.axis} stays {turn.chosen}: {found:.4g}{beside}'
  return (
    f'{turn.axis} becomes {turn.chosen}: {found:.4g}, from '
    f'{turn.scores[turn.before]:.4g} at {turn.before}'
  )


def losses(row: results.Row) -> dict[str, float]:
  """Returns ability -> held-out loss of a run, none of one that failed."""
  start = f'{METRIC}.'
  return {
    key.removeprefix(start): value
    for key, value in row.numbers.items()
    if key.startswith(start)
  }


def _untuned(space: spaces.Space, row: results.Row) -> dict[str, float]:
  """Returns the losses of the untuned run, of every ability."""
  if row.value is None:
    raise ValueError(f'the run before any tuning did not finish: {row.remark}')
  found = losses(row)
  for ability in space.tasks:
    if not math.isfinite(found.get(ability, math.nan)):
      raise ValueError(
        f'the report of {row.point.name} has no {METRIC} of {ability}: are '
        'conversations of it held out?'
      )
  return found
