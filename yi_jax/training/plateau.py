"""When a loss has stopped falling, and what the batch is then.

Yi-9B's batch began at 4M tokens and was raised whenever the loss stopped
falling (Yi report 7.3); by how much, and how that was judged, is not published.
The rule here is ours, after McCandlish et al. 2018 (the larger the share of
noise in a gradient, the larger the batch that still pays) and Smith et al. 2018
(where a learning rate would be lowered, a batch can be raised instead):

  Steps fall into stretches of `window` each. A stretch whose mean loss is not
  at least `least_gain` below that of the stretch before, as a share of it, ends
  with a batch `factor` times as large, as long as that is at most `most_tokens`.
  Then, and where other text or another length begins, comparing starts anew.

All of it is arithmetic on numbers that a checkpoint keeps, in the order of the
steps: a run that was interrupted grows where it would have grown.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
  """The section `data.batch_growth`; `run_config.defaults` explains it."""

  window: int = 0
  least_gain: float = 0.0
  factor: int = 2
  most_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class State:
  """What is known of the loss; JSON types only.

  Attributes:
    grown: how often the batch has grown.
    begun: step after which the present stretch began.
    count: updates of it that were applied.
    total: sum of their losses, nats a token.
    before: mean loss of the stretch before, None if there is none to compare.
  """

  grown: int = 0
  begun: int = 0
  count: int = 0
  total: float = 0.0
  before: float | None = None

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields by name."""
    return dataclasses.asdict(self)


def check(settings: Settings, batch_tokens: int) -> None:
  """Raises ValueError, naming the key, if the settings cannot be right.

  Args:
    settings: of the growth.
    batch_tokens: tokens a step at the beginning.
  """
  where = 'data.batch_growth'
  if settings.window < 0:
    raise ValueError(f'{where}.window must not be negative')
  if not settings.window:
    return
  if settings.factor != int(settings.factor) or settings.factor < 2:
    raise ValueError(
      f'{where}.factor is a whole number from 2 on, so that rows still divide '
      f'over the devices; not {settings.factor}'
    )
  if settings.most_tokens < settings.factor * batch_tokens:
    raise ValueError(
      f'{where}.most_tokens ({settings.most_tokens:,}) leaves no room to grow: '
      f'set it to {settings.factor} x data.batch_tokens = '
      f'{settings.factor * batch_tokens:,} or more'
    )


def batch_tokens(settings: Settings, first: int, grown: int) -> int:
  """Returns the tokens of a step.

  Args:
    settings: of the growth.
    first: tokens of a step at the beginning.
    grown: see `State`.
  """
  return first * settings.factor**grown if settings.window else first


def is_due(settings: Settings, state: State, step: int) -> bool:
  """Returns whether a stretch ends with a step."""
  return bool(settings.window) and step - state.begun == settings.window


def see(
  settings: Settings,
  state: State,
  step: int,
  loss: float | None,
  tokens: int,
) -> State:
  """Returns what is known after one more step.

  Args:
    settings: of the growth.
    state: what was known.
    step: number of the step, from 1; each is seen once, in order.
    loss: of it, nats a token; None if its update was skipped.
    tokens: of a step now.
  """
  if not settings.window:
    return state
  if loss is not None:
    state = dataclasses.replace(
      state, count=state.count + 1, total=state.total + loss
    )
  if not is_due(settings, state, step):
    return state
  if not state.count:  # all were skipped: nothing is known of this stretch
    return State(state.grown, step, before=state.before)
  mean = state.total / state.count
  falls = state.before is None or (
    state.before - mean >= settings.least_gain * state.before
  )
  if falls:
    return State(state.grown, step, before=mean)
  if tokens * settings.factor > settings.most_tokens:
    return State(state.grown, step, before=mean)
  return State(state.grown + 1, step)


def anew(state: State, step: int) -> State:
  """Returns the state where comparing starts anew after a step."""
  return State(state.grown, step)
