"""What can go wrong in the middle of a run: bad updates, and being stopped.

A single broken batch or a bit flip must not destroy weeks of work, and a run
that has really diverged must not burn the rest of its budget. So the training
step judges every update before applying it: one that is not finite or sticks
out of its recent past is skipped and counted; many in a row end the run.
"""

import signal
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

_MEMORY = 50  # updates the running means look back on
_SETTLED = 50  # good updates before anything can count as a spike


class Diverged(RuntimeError):
  """Too many updates in a row had to be skipped.

  Attributes:
    first: step of the first of them.
    last: step of the last.
  """

  def __init__(self, message: str, first: int, last: int) -> None:
    super().__init__(message)
    self.first, self.last = first, last


class GoBack(RuntimeError):
  """The run shall be continued from before, without some rows.

  Attributes:
    skipped: all rows it leaves out: (first, end, their length), see
      `loader.place`.
  """

  def __init__(self, message: str, skipped: list[tuple[int, int, int]]) -> None:
    super().__init__(message)
    self.skipped = skipped


class Guard(NamedTuple):
  """What the judge remembers; part of the training state.

  Attributes:
    loss: float32 scalar, running mean of the loss.
    norm: float32 scalar, running mean of the gradients' global norm.
    good: int32 scalar, updates applied.
    bad: int32 scalar, updates skipped in a row until now.
    skipped: int32 scalar, updates skipped in all.
  """

  loss: jax.Array
  norm: jax.Array
  good: jax.Array
  bad: jax.Array
  skipped: jax.Array


def fresh_guard() -> Guard:
  """Returns the guard of a run without a past."""
  # One buffer each: the state is donated, and a buffer only once.
  return Guard(
    loss=jnp.zeros((), jnp.float32),
    norm=jnp.zeros((), jnp.float32),
    good=jnp.zeros((), jnp.int32),
    bad=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
  )


def judge(
  guard: Guard, loss: jax.Array, norm: jax.Array, spike_factor: float
) -> tuple[jax.Array, Guard]:
  """Decides whether an update is applied.

  Args:
    guard: what is known of the updates before.
    loss: float32 scalar of this batch.
    norm: float32 scalar, gradients' global norm, before clipping.
    spike_factor: an update whose loss or norm exceeds so many times the running
      mean is skipped; 0 skips only what is not finite.

  Returns:
    (bool scalar: apply it, the guard after it).
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  ok = finite
  seen_loss, seen_norm = loss, norm
  if spike_factor:
    settled = guard.good >= _SETTLED
    top_loss = jnp.where(settled, spike_factor * guard.loss, jnp.inf)
    top_norm = jnp.where(settled, spike_factor * guard.norm, jnp.inf)
    ok &= (loss <= top_loss) & (norm <= top_norm)
    # A spike moves the means too, but not further than the limit: should the
    # larger scale be here to stay, the guard gets used to it in a few steps.
    seen_loss = jnp.minimum(loss, top_loss)
    seen_norm = jnp.minimum(norm, top_norm)
  good = guard.good + ok
  share = 1 / jnp.clip(guard.good + 1, 1, _MEMORY).astype(jnp.float32)

  def mean(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(finite, old + (new - old) * share, old)

  return ok, Guard(
    loss=mean(guard.loss, seen_loss),
    norm=mean(guard.norm, seen_norm),
    good=good,
    bad=jnp.where(ok, 0, guard.bad + 1),
    skipped=guard.skipped + ~ok,
  )


def check(step: int, bad: int, loss: float, max_bad_steps: int) -> None:
  """Raises Diverged once so many updates in a row were skipped.

  Args:
    step: the last one.
    bad: updates skipped in a row up to it.
    loss: of that step.
    max_bad_steps: how many are too many.
  """
  if bad >= max_bad_steps:
    raise Diverged(
      f'the updates of steps {step - bad + 1} to {step} were skipped, because '
      f'their loss or gradient was not finite or spiked (loss now {loss:.4g}); '
      'the weights are those from before. Lower optimizer.learning_rate, look '
      'at the rows read there, or raise train.spike_factor',
      first=step - bad + 1,
      last=step,
    )


class StopSignal:
  """Turns SIGTERM (preemption) and Ctrl-C into an orderly end.

  The first signal only sets `received`; the loop looks at it after each step,
  saves, and leaves. A second one acts as it does everywhere. With several
  processes JAX listens to SIGTERM, and Ctrl-C interrupts at once.
  """

  def __init__(self) -> None:
    self.received = 0  # signal number, 0 for none
    self._previous = {}

  def __enter__(self) -> 'StopSignal':
    # JAX's listener must stay in place where it is needed, see `agreed`.
    ours = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
    for number in ours:
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    self.received = number
    signal.signal(number, self._previous[number])

  def agreed(self, step: int) -> bool:
    """Returns whether all processes stop after this step.

    With several processes, the signal reaches them at different steps; JAX's
    preemption service picks one step that all of them will reach.
    """
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(self.received)
