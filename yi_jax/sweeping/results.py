"""What came of a sweep: a table, a plot, and the best run.

A result is a number of a run's report.json, named as `bits_per_byte.en`; for
a group of numbers, such as `bits_per_byte`, it is their mean. `loss` is the
mean of the last tenth of the training losses in metrics.jsonl.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

from yi_jax import spelling
from yi_jax.sweeping import points as sweep_points
from yi_jax.training import metrics

DEFAULT = 'bits_per_byte'
# Other columns of a table: these, and the members of these groups.
_SHOWN = ('loss', 'steps', 'seconds')
_GROUPS = ('bits_per_byte.', 'response_loss.', 'turns_ended.')


@dataclasses.dataclass(frozen=True)
class Row:
  """A run and its result.

  Attributes:
    point: the run.
    value: what the sweep is about, None if the run has none.
    numbers: other columns of the table.
    remark: why it did not come to its end, '' if it did.
  """

  point: sweep_points.Point
  value: float | None
  numbers: dict[str, float]
  remark: str = ''


def collect(
  path: epath.Path,
  points: Sequence[sweep_points.Point],
  metric: str,
  remarks: dict[str, str],
) -> list[Row]:
  """Reads the results of all runs.

  Args:
    path: folder of the sweep.
    points: its runs.
    metric: see above.
    remarks: run -> why it did not come to its end.

  Raises:
    ValueError: if a report has no such number, with those it has.
  """
  rows = []
  for point in points:
    folder = path / point.name
    if not (folder / 'report.json').exists():
      remark = remarks.get(point.name, 'not finished')
      rows.append(Row(point, None, {}, remark))
      continue
    report = json.loads((folder / 'report.json').read_text())
    loss = _last_losses(folder)
    numbers = {'loss': loss, **_flat('', report)}
    value = _pick(numbers, metric)
    shown = {
      key: number
      for key, number in numbers.items()
      if key in _SHOWN or key.startswith(_GROUPS)
    }
    rows.append(Row(point, value, shown))
  return rows


def best(rows: Sequence[Row], highest: bool = False) -> Row | None:
  """Returns the row with the lowest (or highest) result, None without any."""
  found = [row for row in rows if row.value is not None]
  found.sort(key=lambda row: row.value, reverse=highest)
  return found[0] if found else None


def columns(
  rows: Sequence[Row], metric: str
) -> tuple[list[str], list[list[Any]]]:
  """Returns the head of the table and its lines, in the order of the runs."""
  keys = varied(rows)
  extra = list(dict.fromkeys(k for row in rows for k in row.numbers))
  extra = [name for name in extra if name != metric]
  head = ['run', *keys, metric, *extra, 'remark']
  lines = [
    [
      row.point.name,
      *(row.point.changes.get(key, '') for key in keys),
      '' if row.value is None else row.value,
      *(row.numbers.get(name, '') for name in extra),
      row.remark,
    ]
    for row in rows
  ]
  return head, lines


def varied(rows: Sequence[Row]) -> list[str]:
  """Returns the keys that the runs change, in the order of the points."""
  return list(dict.fromkeys(key for row in rows for key in row.point.changes))


def markdown(rows: Sequence[Row], metric: str, highest: bool = False) -> str:
  """Returns the table as Markdown, the best run in bold."""
  head, lines = columns(rows, metric)
  winner = best(rows, highest)
  name = winner.point.name if winner else None
  text = [head, ['---'] * len(head)]
  for line in lines:
    cells = [_cell(value) for value in line]
    text.append([f'**{c}**' if c and line[0] == name else c for c in cells])
  return ''.join(f'| {" | ".join(line)} |\n' for line in text)


def write(
  path: epath.Path, rows: Sequence[Row], metric: str, highest: bool = False
) -> None:
  """Writes results.md, results.csv and results.png into a folder.

  Without any result there is no picture.
  """
  from yi_jax.sweeping import plot  # matplotlib takes 0.5 s

  (path / 'results.md').write_text(markdown(rows, metric, highest))
  head, lines = columns(rows, metric)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(head)
  writer.writerows(lines)
  (path / 'results.csv').write_text(text.getvalue())
  if best(rows) is not None:
    (path / 'results.png').write_bytes(plot.draw(rows, metric, highest))


def outcome(folder: epath.Path) -> str:
  """Returns in a few words how a finished run ended."""
  report = json.loads((folder / 'report.json').read_text())
  bits = [f'{k} {v:.3f}' for k, v in report.get('bits_per_byte', {}).items()]
  return ', '.join(
    [
      f'{report["steps"]:,} steps in {metrics.duration(report["seconds"])}',
      *([f'bits per byte {", ".join(bits)}'] if bits else []),
    ]
  )


def latest(folder: epath.Path) -> str:
  """Returns in a few words how far a run is."""
  lines = _lines(folder)
  if not lines:
    return 'no step logged yet'
  loss = lines[-1].get('loss')
  shown = '' if loss is None else f', loss {loss:.3f}'
  return f'step {lines[-1]["step"]:,}{shown}'


def _lines(folder: epath.Path) -> list[dict[str, Any]]:
  """Returns the objects of a run's metrics.jsonl, none if there is none."""
  path, found = folder / 'metrics.jsonl', []
  if path.exists():
    for line in path.read_text().split('\n'):
      # The last one is empty, or half-written.
      with contextlib.suppress(ValueError):
        found.append(json.loads(line))
  return found


def _last_losses(folder: epath.Path) -> float:
  """Returns the mean of the last tenth of the logged losses, in nats."""
  losses = [line.get('loss') for line in _lines(folder)]
  losses = [loss for loss in losses if loss is not None]
  if not losses:
    return math.nan
  return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def _flat(prefix: str, value: Any) -> dict[str, float]:
  """Returns the numbers of a report as 'group.name' -> number."""
  if isinstance(value, dict):
    found = {}
    for key, item in value.items():
      found.update(_flat(f'{prefix}.{key}' if prefix else key, item))
    return found
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return {prefix: value} if number else {}


def _pick(numbers: dict[str, float], metric: str) -> float:
  """Returns the number of this name, or the mean of the group."""
  if metric in numbers:
    return numbers[metric]
  group = [v for k, v in numbers.items() if k.startswith(f'{metric}.')]
  if not group:
    raise ValueError(
      f'no result {metric!r} in a report{spelling.nearest(metric, numbers)}'
    )
  return statistics.fmean(group)


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.6g}'
  return str(value).replace('|', '\\|')
