"""The points of a sweep: which keys of a run's config take which values.

  optimizer.learning_rate=1e-3,3e-3  seed=0,1     a grid of four points
  {"optimizer.learning_rate": 1e-3, "seed": 0}    one line of a list

A point is known by the values its config ends up with, so that 1e-3 and 0.001
are the same point, in whatever order a grid names them.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from yi_jax import app
from yi_jax.training import run_config

_NAME_LENGTH = 80  # letters of a folder name before it is cut short


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep.

  Attributes:
    name: of its folder below the sweep's.
    changes: config key -> value, JSON types.
  """

  name: str
  changes: dict[str, Any]

  def arguments(self) -> list[str]:
    """Returns the flags that make a run this point."""
    return [
      f'--config.{key}={_text(value)}' for key, value in self.changes.items()
    ]


def parse_grid(texts: Iterable[str]) -> dict[str, list[str]]:
  """Reads the axes of a grid.

  Example: ['seed=0,1', 'optimizer.betas=(0.9,0.95),(0.9,0.99)'] becomes
    {'seed': ['0', '1'], 'optimizer.betas': ['(0.9,0.95)', '(0.9,0.99)']}

  Args:
    texts: `KEY=VALUE,VALUE,...`; commas inside brackets or quotes do not count.

  Raises:
    ValueError: for an axis without a key or values, or one named twice.
  """
  grid = {}
  for text in texts:
    key, _, values = text.partition('=')
    found = [value.strip() for value in _split(values)]
    if not key or not all(found):
      raise ValueError(f'--grid is KEY=VALUE,VALUE,..., not {text!r}')
    if key in grid:
      raise ValueError(f'--grid names {key} twice; give all its values at once')
    grid[key] = found
  return grid


def _split(text: str) -> list[str]:
  """Splits at the commas that stand in no bracket or quotes."""
  parts, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    elif letter in '([{':
      depth += 1
    elif letter in ')]}':
      depth -= 1
    elif letter == ',' and not depth:
      parts.append('')
      continue
    parts[-1] += letter
  return parts


def read_list(path: str) -> list[dict[str, str]]:
  """Reads the points of a list, one JSON object a line, blank lines aside.

  Raises:
    ValueError: naming the line that is no object of keys and values.
    OSError: if it cannot be read.
  """
  found = []
  for number, line in enumerate(pathlib.Path(path).read_text().split('\n'), 1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
    except ValueError as error:
      raise ValueError(f'{path}, line {number} is no JSON: {error}') from None
    if not isinstance(entry, dict) or not entry:
      raise ValueError(
        f'{path}, line {number} is not like '
        '{"optimizer.learning_rate": 0.001, "seed": 1}'
      )
    found.append({key: _text(value) for key, value in entry.items()})
  if not found:
    raise ValueError(f'{path} has no points')
  return found


def combine(
  grid: dict[str, list[str]], listed: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
  """Returns every entry of the list at every point of the grid, as texts.

  Raises:
    ValueError: if there is neither, or both name the same key.
  """
  if not grid and not listed:
    raise ValueError('a sweep needs --grid KEY=VALUE,VALUE or --list FILE')
  for entry in listed:
    for key in entry.keys() & grid.keys():
      raise ValueError(f'{key} is in the list and in --grid; name it in one')
  corners = [
    dict(zip(grid, values, strict=True))
    for values in itertools.product(*grid.values())
  ]
  return [{**entry, **corner} for entry in listed or [{}] for corner in corners]


def check(
  config_spec: str,
  assignments: list[str],
  combined: Sequence[dict[str, str]],
) -> list[dict[str, Any]]:
  """Builds the config of every point, as its run will, before any starts.

  Args:
    config_spec: `FILE.py[:arg]`.
    assignments: `key=value` for all runs.
    combined: of `combine`.

  Returns:
    For each point config key -> value, JSON types.

  Raises:
    ValueError: naming the first point that cannot be run, or stands there
      twice, or the key that is also changed for all runs.
    OSError: if there is no such config.
  """
  fixed = {assignment.partition('=')[0] for assignment in assignments}
  checked, seen = [], {}
  for point in combined:
    for key in fixed & point.keys():
      raise ValueError(
        f'{key} is set for all runs by --config.{key} and swept as well'
      )
    shown = ' '.join(f'{key}={value}' for key, value in point.items())
    changed = [f'{key}={value}' for key, value in point.items()]
    try:
      config = app.override(
        app.load_config(config_spec), [*assignments, *changed]
      )
      run_config.resolve(config)
    except (ValueError, flags.Error) as error:
      raise ValueError(f'the run with {shown}: {error}') from None
    values = {key: _value(config, key) for key in point}
    if identity(values) in seen:
      raise ValueError(
        f'{shown} is the same run as {seen[identity(values)]}; name it once'
      )
    seen[identity(values)] = shown
    checked.append(values)
  return checked


def identity(changes: dict[str, Any]) -> str:
  """Returns what two sets of changes share if and only if they are the same."""
  return json.dumps(changes, sort_keys=True)


def names(
  all_changes: Sequence[dict[str, Any]], taken: Iterable[str] = ()
) -> list[str]:
  """Returns a folder name for each point: `learning_rate=0.001,seed=1`.

  Args:
    all_changes: config key -> value of each point.
    taken: names that are given away.
  """
  keys = {key for changes in all_changes for key in changes}
  lasts = [key.rpartition('.')[2] for key in keys]
  short = {
    key: last if lasts.count(last) == 1 else key
    for key, last in ((key, key.rpartition('.')[2]) for key in keys)
  }
  taken, found = set(taken), []
  for changes in all_changes:
    whole = ','.join(f'{short[k]}={_text(v)}' for k, v in changes.items())
    name = re.sub(r'[^\w.,=+-]+', '_', whole, flags=re.ASCII)
    if name != whole or len(name) > _NAME_LENGTH or name in taken:
      digest = hashlib.sha256(identity(changes).encode()).hexdigest()
      name = f'{name[:_NAME_LENGTH]}-{digest[:8]}'
    taken.add(name)
    found.append(name)
  return found


def _value(config: Any, key: str) -> Any:
  """Returns the value of 'section.key', as JSON would give it back."""
  for part in key.split('.'):
    config = config[part]
  return json.loads(json.dumps(config))


def _text(value: Any) -> str:
  """Returns a JSON value as it is written after --config.key=."""
  return value if isinstance(value, str) else repr(_tuples(value))


def _tuples(value: Any) -> Any:
  """Returns a JSON value with tuples, as configs have them, for lists."""
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return value
