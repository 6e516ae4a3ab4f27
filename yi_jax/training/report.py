"""What stands at the end of a run: report.json, loss.png, positions.png."""

import os
from typing import Any

from yi_jax.training import metrics


def write(folder: str, values: dict[str, Any]) -> None:
  """Writes report.json, whole or not at all, and draws pictures beside it.

  Args:
    folder: local folder of the run, with its metrics.jsonl.
    values: content of the report.
  """
  lines = metrics.read(os.path.join(folder, 'metrics.jsonl'))
  draw(lines, values['xz'], os.path.join(folder, 'loss.png'))
  told = [line for line in lines if 'loss_by_position' in line]
  if told:
    draw_positions(told, os.path.join(folder, 'positions.png'))
  metrics.write_json(os.path.join(folder, 'report.json'), values)


def summary(values: dict[str, Any], workdir: str) -> str:
  """Returns what a person wants to see of a report first.

  Args:
    values: content of the report.
    workdir: where it is.
  """
  lines = []
  for sample in values['samples']:
    lines.append(f'> {sample["prompt"]}{sample["text"]}')
  for language, bits in values['bits_per_byte'].items():
    xz = values['xz'].get(language)
    beside = f' (xz -9e: {xz:.3f})' if xz else ''
    lines.append(f'held-out {language}: {bits:.3f} bits per byte{beside}')
  for ability, loss in values['response_loss'].items():
    lines.append(f'held-out {ability}: {loss:.3f} nats a token of answers')
  if places := values['loss_by_position']:
    shown = ', '.join(f'{place} {loss:.3f}' for place, loss in places.items())
    lines.append(f'held-out nats a token from position: {shown}')
  for ability, share in values['turns_ended'].items():
    lines.append(f'held-out {ability}: {share:.1%} of answers end their turn')
  lines.append(
    f'{values["steps"]:,} steps, {values["tokens"]:,} tokens in '
    f'{metrics.duration(values["seconds"])}; report.json, loss.png and '
    f'checkpoints are in {workdir}'
  )
  return '\n'.join(lines)


def draw(
  lines: list[dict[str, Any]], xz: dict[str, float | None], path: str
) -> None:
  """Draws the training loss and the held-out bits per byte by tokens read.

  Args:
    lines: of metrics.jsonl.
    xz: bits per byte of `xz -9e` by language, drawn as dashed lines.
    path: of the PNG.
  """
  import matplotlib.pyplot as plt  # 0.5 s, and only wanted at the end

  plt.switch_backend('Agg')
  figure, (above, below) = plt.subplots(
    2, 1, sharex=True, figsize=(8, 7), layout='constrained'
  )
  steps = [line for line in lines if 'loss' in line]  # step 0 has none
  above.plot(
    [line['tokens'] for line in steps],
    [line['loss'] for line in steps],
    color='tab:blue',
    lw=1,
  )
  above.set_ylabel('training loss (nats a token)')
  evaluated = [line for line in lines if 'bits_per_byte' in line]
  languages = sorted({k for line in evaluated for k in line['bits_per_byte']})
  for language in languages:
    points = [
      (line['tokens'], line['bits_per_byte'][language])
      for line in evaluated
      if language in line['bits_per_byte']
    ]
    [curve] = below.plot(*zip(*points, strict=True), marker='o', label=language)
    if xz.get(language):
      below.axhline(xz[language], color=curve.get_color(), ls='--', lw=1)
  if languages:
    below.legend(title='dashed: xz -9e')
  below.set_ylabel('held-out bits per byte')
  below.set_xlabel('tokens read')
  for axes in (above, below):
    axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def draw_positions(lines: list[dict[str, Any]], path: str) -> None:
  """Draws the held-out loss by position, of the first and last evaluation.

  Args:
    lines: of metrics.jsonl, those with `loss_by_position`.
    path: of the PNG.
  """
  import matplotlib.pyplot as plt

  plt.switch_backend('Agg')
  figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
  colours: dict[str, str] = {}
  # The last one on top of the first; one alone is drawn once.
  for line, style in (
    (lines[-1], '-'),
    *((one, '--') for one in lines[:-1][:1]),
  ):
    curves: dict[str, list[tuple[int, float]]] = {}
    for place, loss in line['loss_by_position'].items():
      language, first = place.split('/')
      curves.setdefault(language, []).append((int(first), loss))
    for language, points in curves.items():
      firsts, losses = zip(*points, strict=True)
      names = [f'{first:,}' for first in firsts]
      label = f'{language}, step {line["step"]:,}'
      [curve] = axes.plot(
        names,
        losses,
        style,
        marker='.',
        label=label,
        color=colours.get(language),
      )
      colours[language] = curve.get_color()
  axes.set_xlabel('from position')
  axes.set_ylabel('held-out loss (nats a token)')
  axes.tick_params(axis='x', rotation=45)
  axes.legend()
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)
