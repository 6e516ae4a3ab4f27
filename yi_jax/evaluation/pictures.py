"""Pictures of what was found: heat maps of a grid, and lines."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.figure

_MOST_NUMBERS = 16  # columns, beyond which cells bear no numbers


def heat_maps(
  title: str,
  lengths: Sequence[int],
  depths: Sequence[float],
  maps: Mapping[str, Sequence[Sequence[float]]],
) -> bytes:
  """Returns the well-known picture of needles as PNG: green is found.

  Args:
    title: over all maps.
    lengths: across, in tokens.
    depths: down, in percent.
    maps: name -> values from 0 to 1, a row a depth.
  """
  width = 1.6 + 0.55 * len(lengths)
  figure = matplotlib.figure.Figure(
    figsize=(max(width, 3.2) * len(maps) + 0.8, 1.8 + 0.32 * len(depths)),
    layout='constrained',
  )
  figure.suptitle(title)
  every = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
  for axes, (name, grid) in zip(every, maps.items(), strict=True):
    image = axes.imshow(grid, cmap='RdYlGn', vmin=0, vmax=1, aspect='auto')
    mean = sum(map(sum, grid)) / sum(map(len, grid))
    axes.set_title(f'{name}: {100 * mean:.1f} %', fontsize=10)
    names = [_short(length) for length in lengths]
    axes.set_xticks(range(len(lengths)), names, rotation=45)
    axes.set_yticks(range(len(depths)), [f'{depth:g} %' for depth in depths])
    axes.set_xlabel('length, tokens')
    if len(lengths) <= _MOST_NUMBERS:
      for i, row in enumerate(grid):
        for j, value in enumerate(row):
          text = f'{100 * value:.0f}'
          axes.text(j, i, text, ha='center', va='center', fontsize=7)
  every[0].set_ylabel('depth of the needle')
  figure.colorbar(image, ax=list(every), label='share of needles found')
  return _png(figure)


def lines(
  title: str,
  curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  labels: tuple[str, str],
  logarithmic: bool = False,
) -> bytes:
  """Returns a line for each curve as PNG.

  Args:
    title: over the picture.
    curves: name -> (where, how much).
    labels: what is across, and what is up.
    logarithmic: whether what is across is spaced by its logarithm.
  """
  figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout='constrained')
  axes = figure.subplots()
  for name, (across, up) in curves.items():
    axes.plot(across, up, marker='o', label=name)
  if logarithmic:
    axes.set_xscale('log', base=2)
  axes.set_xlabel(labels[0])
  axes.set_ylabel(labels[1])
  axes.set_title(title)
  axes.grid(alpha=0.3)
  axes.legend()
  return _png(figure)


def _short(length: int) -> str:
  """Example: _short(8192) -> '8K'; _short(1500) -> '1500'."""
  return f'{length // 1024}K' if length % 1024 == 0 else str(length)


def _png(figure: matplotlib.figure.Figure) -> bytes:
  file = io.BytesIO()
  figure.savefig(file, dpi=120, format='png')
  return file.getvalue()
