"""What a search for a mixture goes through: abilities, shares, runs at them.

A share is a factor of an ability's rate, so it decides which part of the rows
of a run are of that ability; the rates of all tasks are scaled to sum to one.
"""

import dataclasses
import fractions
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yi_jax import spelling
from yi_jax.data import mixtures, prepared
from yi_jax.sweeping import growing

COUNTS = (4, 16, 64, 256)  # ours, for "a few to a few hundred"
SHARES = tuple(fractions.Fraction(1, 2**power) for power in range(7))
# What no grid may name: the search sets it, or it moves what is read.
_OWN_KEYS = ('data.rates', 'data.samples', 'data.mixture', 'data.stages')
# A run that changes nothing: it tells the losses before any tuning.
UNTUNED = {
  'train.steps': '1',
  'optimizer.learning_rate': '0.0',
  'optimizer.schedule': 'constant',
  'optimizer.warmup_steps': '0',
}

Setting = dict[str, Any]  # ability -> share, and config key -> text


@dataclasses.dataclass(frozen=True)
class Space:
  """What is searched.

  Attributes:
    rates: task -> rate of the mixture that the search starts from.
    tasks: ability -> its tasks; of all abilities of the mixture, in its order.
    abilities: those that are lifted and shared; the others keep their rates.
    counts: conversations of an ability in the single phase, rising.
    shares: factors of an ability's rate, falling.
    grid: config key -> values as texts, the first being the start.
  """

  rates: dict[str, float]
  tasks: dict[str, tuple[str, ...]]
  abilities: tuple[str, ...]
  counts: tuple[int, ...]
  shares: tuple[fractions.Fraction, ...]
  grid: dict[str, list[str]]

  def axes(self) -> dict[str, tuple[Any, ...]]:
    """Returns the axes of the fused phase in their order, and their values.

    Hyperparameters first: a poor learning rate would hide what shares do.
    """
    keys = {key: tuple(values) for key, values in self.grid.items()}
    return keys | dict.fromkeys(self.abilities, self.shares)

  def lone(self, ability: str, count: int) -> growing.Trial:
    """Returns the run on so many conversations of one ability."""
    rates = {
      task: rate if task in self.tasks[ability] else 0.0
      for task, rate in self.rates.items()
    }
    changes = _rates(rates) | _samples(self.samples({ability: count}))
    return growing.Trial({ability: count}, changes)

  def fused(
    self, setting: Setting, samples: Mapping[str, int]
  ) -> growing.Trial:
    """Returns the run at a setting of all axes.

    Args:
      setting: axis -> value.
      samples: ability -> most conversations.
    """
    label = {
      axis: float(value) if axis in self.tasks else value
      for axis, value in setting.items()
    }
    changes = _rates(self.mixed(setting)) | _samples(self.samples(samples))
    return growing.Trial(label, changes | {k: setting[k] for k in self.grid})

  def untuned(self) -> growing.Trial:
    """Returns the run that tells the losses before any tuning."""
    return growing.Trial({'learning_rate': 0}, _rates(self.rates) | UNTUNED)

  def mixed(self, setting: Setting) -> dict[str, float]:
    """Returns the rates of all tasks at a setting; they sum to one."""
    found = dict(self.rates)
    for ability, names in self.tasks.items():
      for task in names:
        found[task] *= float(setting.get(ability, 1))
    total = sum(found.values())
    return {task: rate / total for task, rate in found.items()}

  def samples(self, counts: Mapping[str, int]) -> dict[str, int]:
    """Returns how many conversations of each task make these of abilities.

    An ability's tasks share its number by their rates.
    """
    found = {}
    for ability, count in counts.items():
      read = self.read(ability)
      left, weight = count, sum(self.rates[task] for task in read)
      for index, task in enumerate(read):
        part = round(left * self.rates[task] / weight)
        found[task] = min(max(part, 1), left - (len(read) - 1 - index))
        left, weight = left - found[task], weight - self.rates[task]
    return found

  def read(self, ability: str) -> list[str]:
    """Returns the tasks of an ability that have a rate."""
    return [task for task in self.tasks[ability] if self.rates[task] > 0]


def make_space(
  config: Any,
  *,
  abilities: Sequence[str] = (),
  counts: Sequence[str] = tuple(map(str, COUNTS)),
  shares: Sequence[str] = tuple(map(str, SHARES)),
  grid: Mapping[str, list[str]] | None = None,
) -> Space:
  """Returns what a command asks to search.

  Args:
    config: of the run that the search changes.
    abilities: of its mixture, as in 'zh_math'; none means all.
    counts: of conversations; none leaves the single phase out.
    shares: as '1/4' or '0.25'.
    grid: config key -> values.

  Raises:
    ValueError: naming what cannot be searched, and the cure.
  """
  if len(prepared.stages(config.data)) > 1:
    raise ValueError(
      'data.stages changes the rates on the way, and the search sets them: '
      'leave it empty'
    )
  rates = prepared.stages(config.data)[0][1]
  if mixtures.samples(config.data.mixture, dict(config.data.samples)):
    raise ValueError(
      'data.samples is what the search finds, and the mixture or the config '
      'sets it: leave it unset'
    )
  tasks: dict[str, tuple[str, ...]] = {}
  for name in rates:
    task = mixtures.get(name)
    if task.chat:
      ability = f'{task.language}_{task.kind}'
      tasks[ability] = (*tasks.get(ability, ()), name)
  read = [a for a, names in tasks.items() if any(rates[n] for n in names)]
  if len(read) < 2:
    raise ValueError(
      f'the mixture has {len(read)} abilities to read, and there is nothing to '
      'fuse; take a data.mixture of conversations such as chat'
    )
  for ability in abilities:
    if ability not in read:
      hint = spelling.nearest(ability, read)
      raise ValueError(f'no ability {ability!r} in the mixture{hint}')
  rising = _numbers(
    *('share', shares, fractions.Fraction, 1),
    'a share is above 0 and at most 1; to leave an ability out set the '
    'data.rates of its tasks to 0',
  )
  if not rising:
    raise ValueError('--share names no share')
  for key in grid or {}:
    if key.startswith(_OWN_KEYS):
      raise ValueError(f'--grid {key}: the search sets it itself')
  space = Space(
    rates=rates,
    tasks=tasks,
    abilities=tuple(dict.fromkeys(abilities)) or tuple(read),
    counts=_numbers(
      *('samples', counts, int, math.inf, 'a number of samples is 1 or more')
    ),
    shares=rising[::-1],
    grid=dict(grid or {}),
  )
  for ability in space.abilities:
    if space.counts and space.counts[0] < len(space.read(ability)):
      raise ValueError(
        f'--samples has {space.counts[0]}, and {ability} has '
        f'{len(space.read(ability))} tasks, each of which gives one at least'
      )
  return space


def check_rows(config: Any, space: Space) -> None:
  """Raises ValueError unless there are rows for all that is searched.

  Args:
    config: of the run.
    space: of `make_space`.

  Raises:
    ValueError: naming an ability without held-out conversations, or with fewer
      to train on than are asked for.
    FileNotFoundError: if `prepare` has not made the rows.
  """
  heldout = prepared.open_prepared(config.data, 'heldout').readers
  for ability, names in space.tasks.items():
    if not heldout.keys() & set(names):
      raise ValueError(
        f'no conversation of {ability} is held out, so nothing would judge it: '
        'raise data.heldout_fraction and run yi_jax.prepare again, or take '
        f'{", ".join(names)} out of the mixture'
      )
  facts = prepared.read_index(config.data)['tasks']
  most = max(space.counts, default=0)
  for ability in space.abilities if most else ():
    for task, count in space.samples({ability: most}).items():
      there = facts[task]['train']['documents']
      if count > there:
        raise ValueError(
          f'--samples asks for {most:,} conversations of {ability}, {count:,} '
          f'of them from {task}, which has {there:,} to train on: ask for fewer'
        )


def _rates(rates: Mapping[str, float]) -> dict[str, str]:
  """Returns rates as changes of the config."""
  total = sum(rates.values())
  # Rounded, so that the same mixture is the same run; no rate becomes 0.
  parts = {t: x and max(round(x / total, 6), 1e-6) for t, x in rates.items()}
  return {f'data.rates.{t}': repr(float(x)) for t, x in parts.items()}


def _samples(samples: Mapping[str, int]) -> dict[str, str]:
  """Returns numbers of conversations as changes of the config."""
  return {f'data.samples.{task}': str(n) for task, n in samples.items()}


def _numbers(
  flag: str,
  texts: Sequence[str],
  kind: Callable[[str], Any],
  most: float,
  what: str,
) -> tuple[Any, ...]:
  """Returns the numbers of a flag, above 0, rising, each once."""
  found = set()
  for text in texts:
    try:
      number = kind(text)
    except (ValueError, ZeroDivisionError):
      number = 0
    if not 0 < number <= most:
      raise ValueError(f'--{flag} has {text!r}: {what}')
    found.add(number)
  return tuple(sorted(found))
