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
    multiple: how many times the batch is what it was at the beginning.
    begun: step after which the present stretch began.
    count: updates of it that were applied.
    total: sum of their losses, nats a token.
    before: mean loss of the stretch before, None if there is none to compare.
  """

  multiple: int = 1
  begun: int = 0
  count: int = 0
  total: float = 0.0
  before: float | None = None


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
  if not 0 <= settings.least_gain < 1:
    raise ValueError(
      f'{where}.least_gain is a share of the loss, from 0 to below 1; not '
      f'{settings.least_gain}'
    )
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


def is_due(settings: Settings, state: State, step: int) -> bool:
  """Returns whether a stretch ends with a step."""
  return bool(settings.window) and step - state.begun == settings.window


def see(
  settings: Settings,
  state: State,
  step: int,
  loss: float | None,
  batch_tokens: int,
) -> State:
  """Returns what is known after one more step.

  Args:
    settings: of the growth.
    state: what was known.
    step: number of the step, from 1; each is seen once, in order. One that is
      no part of the present stretch changes nothing.
    loss: of it, nats a token; None if its update was skipped.
    batch_tokens: of a step now.
  """
  if not settings.window or step <= state.begun:
    return state
  if loss is not None:
    state = dataclasses.replace(
      state, count=state.count + 1, total=state.total + loss
    )
  if not is_due(settings, state, step):
    return state
  # Of a stretch whose updates were all skipped nothing is known.
  mean = state.total / state.count if state.count else state.before
  if state.before is None or mean is None:
    return State(state.multiple, step, before=mean)
  falls = state.before - mean >= settings.least_gain * state.before
  known = state.count > 0
  room = batch_tokens * settings.factor <= settings.most_tokens
  if known and room and not falls:
    return State(state.multiple * settings.factor, step)
  return State(state.multiple, step, before=mean)


def anew(state: State, step: int) -> State:
  """Returns the state where comparing starts anew after a step."""
  return State(state.multiple, step)
