"""The rows, the program and the held-out text of each phase of a run.

A phase (see `phases`) has a shape of its own: its step is compiled when it
begins, and its rows come from a loader of its own.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from yi_jax.data import loader as loaders
from yi_jax.data import prepared, tokenizer
from yi_jax.training import evaluation, goodput, phases, train_step
from yi_jax.training import state as train_state


class Course:
  """What the present phase of a run reads and computes."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    plan: phases.Phases,
    texts: Mapping[int, prepared.Prepared],
    heldout: Mapping[int, prepared.Prepared],
    vocabulary: tokenizer.Tokenizer,
    skipped: phases.Skipped,
    clock: goodput.Goodput,
    say: Callable[[str], None],
  ) -> None:
    """Opens nothing and compiles nothing yet; see `begin`.

    Args:
      config: of the run.
      mesh: its devices.
      plan: says what a step reads.
      texts: training rows by their length.
      heldout: held-out rows by their length.
      vocabulary: of both.
      skipped: rows to leave out.
      clock: counts where the time goes.
      say: is told when something was compiled.
    """
    self._config, self._mesh, self._plan = config, mesh, plan
    self._texts, self._heldout = texts, heldout
    self._vocabulary, self._skipped = vocabulary, skipped
    self._clock, self._say = clock, say
    self._run, self._loader, self._evaluator = None, None, None

  @property
  def is_over(self) -> bool:
    """Whether the next step belongs to a phase that has not begun."""
    return self._run != self._plan.present

  def begin(self, step: int) -> None:
    """Begins the phase that follows a step."""
    before, run = self._run, self._plan.present
    started = time.monotonic()
    with self._clock.on('compile'):
      self._step = train_step.make(run, self._mesh)
      self._update = self._step.lower().compile()
    told = f'compiled in {time.monotonic() - started:.0f} s'
    if before:
      tokens = run.rows * run.length
      told = (
        f'after step {step:,}: {run.rows:,} rows of {run.length:,} = {tokens:,} '
        f'tokens a step; {told}'
      )
    self._say(told)
    self._run = run
    if before is None or before.length != run.length:
      self._evaluator = self._evaluator_of(run.length)
    self.close()
    group, groups = train_step.row_group(run, self._mesh)
    texts = self._texts[run.length]
    self._loader = loaders.Loader(
      texts.readers,
      texts.stages,
      batch_size=run.rows,
      seed=self._config.seed,
      rows_consumed=self._plan.row(step),
      process_index=group,
      process_count=groups,
      skipped=[
        (a, b) for a, b, length in self._skipped if length == run.length
      ],
    )

  def rows(self) -> dict[str, np.ndarray]:
    """Returns this process's rows of the next step."""
    with self._clock.on('data'):
      return next(self._loader)

  def update(
    self, state: train_state.TrainState, rows: dict[str, np.ndarray]
  ) -> tuple[train_state.TrainState, train_step.Metrics]:
    """Makes the next step; see `train_step.TrainStep.update`."""
    return self._update(state, train_step.put_batch(rows, self._step.batch))

  def evaluate(self, params: dict[str, Any]) -> evaluation.Heldout:
    """Reads the held-out text in rows as long as those of this phase."""
    return self._evaluator(params)

  def close(self) -> None:
    """Ends the loader's thread."""
    if self._loader:
      self._loader.close()

  def _evaluator_of(self, length: int) -> evaluation.Evaluator:
    # As many tokens in rows of any length.
    most = self._config.train.eval_rows
    if most:
      most = max(1, most * self._config.data.length // length)
    return evaluation.Evaluator(
      self._plan.present,
      self._mesh,
      self._heldout[length],
      self._vocabulary,
      most,
      self._config.train.eval_buckets,
    )
