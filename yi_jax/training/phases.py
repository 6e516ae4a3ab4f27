"""What each step of a run reads: how many rows, how long, and from which on.

Two things change in the course of a run: the length of rows, by the tokens that
were read (`data.lengths`), and their number, by the loss (`data.batch_growth`,
see `plateau`). What holds between two changes is a phase. The place of a run in
its data is the number of tokens read, whatever phases these were in, so that a
checkpoint keeps that number and the memory of the growth, and a resumed run
reads what it would have read.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from yi_jax.data import lengths, loader
from yi_jax.training import plateau, run_config

# (first row, end, their length): rows that a run leaves out, counted as in
# `loader.place`.
Skipped = list[tuple[int, int, int]]


class _Change(NamedTuple):
  """From which step on a phase holds.

  Attributes:
    step: the step before its first one.
    tokens: read up to there.
    run: rows, length and microbatches of its steps.
  """

  step: int
  tokens: int
  run: run_config.Run


class Phases:
  """Keeps count of a run's tokens, and says what its next step reads."""

  def __init__(
    self,
    run: run_config.Run,
    step: int,
    past: Mapping[str, Any],
    turns: Sequence[int] = (),
  ) -> None:
    """Begins, or goes on, after a step.

    Args:
      run: the run, as it begins.
      step: of the state the run goes on from, 0 for a fresh one.
      past: manifest of that state, {} for a fresh one.
      turns: tokens at which other text begins, rising: the loss before and
        after is not the same thing.

    Raises:
      ValueError: if the batch had grown beyond what it may be now.
    """
    self._run, self._turns = run, turns
    tokens = tokens_read(past, run.length)
    self._state = plateau.State(**past.get('growth', {'begun': step}))
    if step - self._state.begun >= run.growth.window:
      # A stretch that ran under another window, or none, would never end.
      self._state = plateau.anew(self._state, step)
    _check_grown(run, self._state)
    self._changes = [_Change(step, tokens, self._at(tokens))]

  @property
  def present(self) -> run_config.Run:
    """The run with the rows, length and microbatches of its next step."""
    return self._changes[-1].run

  def tokens(self, step: int) -> int:
    """Returns what is read up to and with a step that this object has seen."""
    change = self._change(step)
    return change.tokens + (step - change.step) * _batch_tokens(change.run)

  def run(self, step: int) -> run_config.Run:
    """Returns the run with the rows, length and microbatches of a step."""
    return self._change(step).run

  def row(self, step: int) -> int:
    """Returns the row, in the order of its length, that follows a step."""
    return -(-self.tokens(step) // self._at(self.tokens(step)).length)

  def made(self, step: int) -> None:
    """Says that a step has been started: its rows are read."""
    before, tokens = self.tokens(step - 1), self.tokens(step)
    turns = [bisect.bisect_right(self._turns, at) for at in (before, tokens)]
    longer = self._at(tokens).length != self.present.length
    if longer or turns[0] != turns[1]:
      self._state = plateau.anew(self._state, step)
    self._turn(step)

  def saw(self, step: int, loss: float, applied: bool) -> None:
    """Tells the loss of a step: of each once, in order, after `made`.

    Those of a step that is `due` and of all before it must be told before the
    next one is started.
    """
    before = self._state
    self._state = plateau.see(
      self._run.growth,
      before,
      step,
      loss if applied else None,
      _batch_tokens(self.present),
    )
    if self._state.multiple != before.multiple:
      self._turn(step)

  def ends(self, step: int) -> bool:
    """Returns whether the run ends with a step."""
    run = self._run
    enough = run.tokens and self.tokens(step) >= run.tokens
    return step >= run.steps or bool(enough)

  def due(self, step: int) -> bool:
    """Returns whether the batch may grow after a step."""
    return plateau.is_due(self._run.growth, self._state, step)

  def manifest(self, step: int) -> dict[str, Any]:
    """Returns what a checkpoint after a step keeps, all losses being told."""
    return {
      'rows_consumed': self.row(step),
      'tokens_consumed': self.tokens(step),
      'growth': dataclasses.asdict(self._state),
    }

  def left_out(self, skipped: Skipped, first: int, last: int) -> Skipped:
    """Returns what is left out once the rows of some more steps are.

    Args:
      skipped: what is left out already.
      first: the first of these steps.
      last: the last.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for begin, end, length in skipped:
      found.setdefault(length, []).append((begin, end))
    # From the last on: what is left out moves the rows behind it. Steps of one
    # length together, as `train.rollback` counts ranges.
    for length, steps in itertools.groupby(
      range(last, first - 1, -1), lambda step: self.run(step).length
    ):
      steps = list(steps)
      begin, end = (
        -(-self.tokens(step) // length) for step in (steps[-1] - 1, steps[0])
      )
      found[length] = loader.leave_out(found.get(length, []), begin, end)
    return [(*pair, length) for length in found for pair in found[length]]

  def _change(self, step: int) -> _Change:
    """Returns the phase of a step; the first also of the step before it."""
    steps = [change.step for change in self._changes]
    return self._changes[max(bisect.bisect_left(steps, step) - 1, 0)]

  def _turn(self, step: int) -> None:
    """Begins another phase after a step if anything is another then."""
    tokens = self.tokens(step)
    if (run := self._at(tokens)) != self.present:
      self._changes.append(_Change(step, tokens, run))

  def _at(self, tokens: int) -> run_config.Run:
    """Returns the run as it is after so many tokens."""
    length = lengths.at(self._run.lengths, tokens)
    return _sized(self._run, length, self._state.multiple)


def runs(run: run_config.Run) -> list[run_config.Run]:
  """Returns a run as it begins with each of its lengths, to be checked."""
  return [_sized(run, length, 1) for _, length in run.lengths]


def turns(data: Any) -> list[int]:
  """Returns the tokens at which `data.stages` of a config begin."""
  return [math.ceil(first) for first, _ in data.stages]


def skipped_rows(manifest: Mapping[str, Any], length: int) -> Skipped:
  """Returns the rows that a checkpoint's run leaves out.

  Args:
    manifest: of the checkpoint; {} is that of a fresh run.
    length: that of the rows of an older checkpoint, which names none.
  """
  return [
    (first, end, *(rest or [length]))
    for first, end, *rest in manifest.get('skipped_rows', ())
  ]


def tokens_read(manifest: Mapping[str, Any], length: int) -> int:
  """Returns the tokens read until a checkpoint; {} is that of a fresh run.

  Args:
    manifest: of the checkpoint.
    length: that the rows of an older checkpoint, which keeps their number, had.
  """
  rows = manifest.get('rows_consumed', 0)
  return manifest.get('tokens_consumed', rows * length)


def _check_grown(run: run_config.Run, state: plateau.State) -> None:
  """Refuses a batch that earlier growth makes larger than the most."""
  grown, most = _batch_tokens(run) * state.multiple, run.growth.most_tokens
  if run.growth.window and state.multiple > 1 and grown > most:
    raise ValueError(
      f'the batch of this run has grown to {state.multiple} x '
      f'data.batch_tokens = {grown:,} tokens, more than '
      f'data.batch_growth.most_tokens = {most:,}: raise that, or lower '
      'data.batch_tokens'
    )


def _batch_tokens(run: run_config.Run) -> int:
  return run.rows * run.length


def _sized(run: run_config.Run, length: int, multiple: int) -> run_config.Run:
  """Returns a run with rows of a length and a batch so many times as large.

  A larger batch is taken in more pieces, so that it fits where it did.
  """
  pieces = run.optimizer.accumulate_steps * multiple
  return dataclasses.replace(
    run,
    length=length,
    rows=_batch_tokens(run) * multiple // length,
    optimizer=dataclasses.replace(run.optimizer, accumulate_steps=pieces),
  )
