"""The picture of a sweep: a line for one key, a heat map for two, else bars."""

import io
import math
from collections.abc import Collection, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np

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
    return as_png(_line(rows, keys[0], metric, highest))
  if len(keys) == 2 and complete:
    return as_png(_map(rows, keys, metric, highest))
  return as_png(_bars(rows, metric, highest))


def as_png(figure: matplotlib.figure.Figure) -> bytes:
  """Returns a figure as PNG and closes it."""
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
  winner = results.best(rows, highest).value
  figure = heat_map(
    grid,
    [_label(value) for value in down],
    [_label(value) for value in across],
    {(i, j) for i, j in np.argwhere(np.array(grid) == winner).tolist()},
    metric,
    highest,
  )
  figure.axes[0].set_ylabel(keys[0])
  figure.axes[0].set_xlabel(keys[1])
  return figure


def heat_map(
  grid: Sequence[Sequence[float]],
  down: Sequence[str],
  across: Sequence[str],
  chosen: Collection[tuple[int, int]],
  metric: str,
  highest: bool = False,
) -> matplotlib.figure.Figure:
  """Draws a table of results in colours, the best ones dark.

  Args:
    grid: results; NaN is a gap.
    down: name of each line.
    across: name of each column.
    chosen: (line, column) of the cells to point out.
    metric: what the results are.
    highest: whether more is better.
  """
  figure, axes = plt.subplots(
    figsize=(2.5 + len(across), 1.8 + 0.7 * len(down)), layout='constrained'
  )
  image = axes.imshow(
    grid, cmap='viridis_r' if highest else 'viridis', aspect='auto'
  )
  figure.colorbar(image, label=metric)
  for i, line in enumerate(grid):
    for j, value in enumerate(line):
      bold = (i, j) in chosen
      axes.text(
        *(j, i, '-' if math.isnan(value) else f'{value:.4g}'),
        ha='center',
        va='center',
        color='white' if bold else 'black',
        weight='bold' if bold else 'normal',
        bbox=dict(fc='black' if bold else 'white', lw=0),
      )
  axes.set_yticks(range(len(down)), down)
  axes.set_xticks(range(len(across)), across)
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
