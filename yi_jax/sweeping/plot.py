"""The picture of a sweep: a line for one key, a heat map for two, else bars."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import matplotlib.pyplot as plt

from yi_jax.sweeping import results


def draw(
  rows: Sequence[results.Row], metric: str, highest: bool = False
) -> bytes:
  """Returns the picture as PNG.

  Args:
    rows: of `results.collect`; runs without a result leave a gap.
    metric: what the result is.
    highest: whether more is better.
  """
  plt.switch_backend('Agg')
  keys = results.varied(rows)
  complete = all(set(row.point.changes) == set(keys) for row in rows)
  if len(keys) == 1 and complete:
    figure = _line(rows, keys[0], metric, highest)
  elif len(keys) == 2 and complete:
    figure = _map(rows, keys, metric, highest)
  else:
    figure = _bars(rows, metric, highest)
  file = io.BytesIO()
  figure.savefig(file, dpi=120, format='png')
  plt.close(figure)
  return file.getvalue()


def _line(
  rows: Sequence[results.Row], key: str, metric: str, highest: bool
) -> matplotlib.figure.Figure:
  values = _ordered(row.point.changes[key] for row in rows)
  by_value = {_hashable(row.point.changes[key]): row.value for row in rows}
  heights = [by_value[value] for value in values]
  heights = [math.nan if height is None else height for height in heights]
  figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
  numeric = all(_is_number(value) for value in values)
  places = values if numeric else range(len(values))
  axes.plot(places, heights, marker='o')
  if numeric and min(values) > 0 and max(values) / min(values) >= 8:
    axes.set_xscale('log')
  axes.set_xticks(places, [_label(value) for value in values])
  axes.minorticks_off()
  winner = results.best(rows, highest)
  index = values.index(_hashable(winner.point.changes[key]))
  axes.plot(
    places[index], winner.value, 'o', ms=14, mfc='none', color='tab:red'
  )
  axes.set_xlabel(key)
  axes.set_ylabel(metric)
  axes.grid(alpha=0.3)
  return figure


def _map(
  rows: Sequence[results.Row], keys: list[str], metric: str, highest: bool
) -> matplotlib.figure.Figure:
  down, across = (
    _ordered(row.point.changes[key] for row in rows) for key in keys
  )
  grid = [[math.nan] * len(across) for _ in down]
  for row in rows:
    i, j = (
      values.index(_hashable(row.point.changes[key]))
      for key, values in zip(keys, (down, across), strict=True)
    )
    grid[i][j] = math.nan if row.value is None else row.value
  figure, axes = plt.subplots(
    figsize=(2.5 + len(across), 1.8 + 0.7 * len(down)), layout='constrained'
  )
  # The best is dark, whichever way is better.
  image = axes.imshow(
    grid, cmap='viridis_r' if highest else 'viridis', aspect='auto'
  )
  figure.colorbar(image, label=metric)
  winner = results.best(rows, highest)
  for i, line in enumerate(grid):
    for j, value in enumerate(line):
      text = '-' if math.isnan(value) else f'{value:.4g}'
      axes.text(
        *(j, i, text),
        ha='center',
        va='center',
        color='white' if value == winner.value else 'black',
        weight='bold' if value == winner.value else 'normal',
        bbox=dict(fc='black' if value == winner.value else 'white', lw=0),
      )
  axes.set_yticks(range(len(down)), [_label(value) for value in down])
  axes.set_xticks(range(len(across)), [_label(value) for value in across])
  axes.set_ylabel(keys[0])
  axes.set_xlabel(keys[1])
  return figure


def _bars(
  rows: Sequence[results.Row], metric: str, highest: bool
) -> matplotlib.figure.Figure:
  found = [row for row in rows if row.value is not None]
  found.sort(key=lambda row: row.value, reverse=not highest)
  figure, axes = plt.subplots(
    figsize=(8, 1.2 + 0.3 * len(found)), layout='constrained'
  )
  axes.plot([row.value for row in found], range(len(found)), 'o')
  axes.set_yticks(range(len(found)), [row.point.name for row in found])
  axes.set_xlabel(metric)
  axes.grid(alpha=0.3)
  return figure


def _ordered(values: Any) -> list[Any]:
  """Returns the different values: numbers by size, others as they came."""
  different = list(dict.fromkeys(map(_hashable, values)))
  return sorted(different) if all(map(_is_number, different)) else different


def _hashable(value: Any) -> Any:
  return str(value) if isinstance(value, (list, dict)) else value


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _label(value: Any) -> str:
  return f'{value:g}' if _is_number(value) else str(value)
