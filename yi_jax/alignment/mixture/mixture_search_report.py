"""What a search for a mixture leaves: the mixture, tables and pictures.

WORKDIR/mixture.json   rates, samples and hyperparameters; --config.data.mixture
                       takes it
WORKDIR/results.md     the choice with its reasons, all numbers
WORKDIR/results.csv    a line a run
WORKDIR/single.png     a curve an ability: loss by number of conversations
WORKDIR/fused.png      a heat map: score by ability and share
"""

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.pyplot as plt
from etils import epath

from yi_jax.alignment.mixture import mixture_search
from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import plot

MIXTURE = 'mixture.json'
_SCORE = 'mean of held-out losses as parts of those before tuning'


def write(
  workdir: str, outcome: mixture_search.Outcome, flags: Sequence[str]
) -> None:
  """Writes everything into the folder of a search.

  Args:
    workdir: absolute path or URL.
    outcome: of the search.
    flags: of every run: its config, and what is changed for all.
  """
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  content = json.dumps(mixture(outcome), indent=2, ensure_ascii=False)
  sweep_folder.write_whole(folder / MIXTURE, content + '\n')
  results_md = markdown(workdir, outcome, flags)
  sweep_folder.write_whole(folder / 'results.md', results_md)
  sweep_folder.write_whole(folder / 'results.csv', table(outcome))
  plt.switch_backend('Agg')
  if outcome.curves:
    (folder / 'single.png').write_bytes(plot.as_png(curves(outcome)))
  (folder / 'fused.png').write_bytes(plot.as_png(heat_map(outcome)))


def mixture(outcome: mixture_search.Outcome) -> dict[str, Any]:
  """Returns the mixture that was found, as `mixtures.read` takes it."""
  space, best = outcome.space, outcome.best
  rates = space.mixed(best)
  return {
    'rates': {task: round(rate, 6) for task, rate in rates.items()},
    'samples': space.samples(outcome.samples),
    'shares': {a: str(best[a]) for a in space.abilities},
    'changes': {key: best[key] for key in space.grid},
    'score': outcome.line.score,
    'losses': mixture_search.losses(outcome.line.row),
    'untuned': outcome.untuned,
    'run': outcome.line.row.point.name,
  }


def markdown(
  workdir: str, outcome: mixture_search.Outcome, flags: Sequence[str]
) -> str:
  """Returns the choice with its reasons, and all numbers."""
  space, best = outcome.space, outcome.best
  abilities = list(space.tasks)
  parts = ['# Mixture', '']
  parts.append(
    f'Best: `{outcome.line.row.point.name}`, score {outcome.line.score:.4f} '
    f'({_SCORE}; 1 is the untuned model, lower is better).'
  )
  rates, limits = space.mixed(best), space.samples(outcome.samples)
  parts += [
    '',
    *_lines(
      ['task', 'rate', 'conversations'],
      [
        [task, f'{rate:.4f}', limits.get(task, 'all')]
        for task, rate in rates.items()
      ],
    ),
  ]
  command = shlex.join([*flags, *outcome.line.row.point.arguments()])
  parts += ['', '```bash', f'python -m yi_jax.train {command}', '```', '']
  parts.append(
    'trains on it; where the config sets no data.rates, its rates and numbers of '
    f'conversations are also `--config.data.mixture={workdir}/{MIXTURE}`.'
  )
  if outcome.curves:
    counts = space.counts
    parts += [
      '',
      '## Single abilities',
      '',
      'Held-out loss of the ability.',
      '',
    ]
    parts += _lines(
      ['ability', 'untuned', *counts, 'enough'],
      [
        [
          *(ability, _number(outcome.untuned[ability])),
          *(_number(curve[count]) for count in counts),
          outcome.samples.get(ability, 'all'),
        ]
        for ability, curve in outcome.curves.items()
      ],
    )
    parts.append('')
    parts += [
      f'* {mixture_search.lifted(a, curve, outcome.untuned[a])}'
      for a, curve in outcome.curves.items()
    ]
  parts += ['', '## Fused', '', f'Score: {_SCORE}.', '']
  parts += [
    f'{number}. {mixture_search.turned(turn)}'
    for number, turn in enumerate(outcome.turns, 1)
  ]
  parts += [
    '',
    *_lines(
      ['run', 'score', *abilities, 'remark'],
      [
        _cells(line, abilities)
        for line in outcome.lines
        if line.phase != 'single'
      ],
    ),
  ]
  return '\n'.join(parts) + '\n'


def table(outcome: mixture_search.Outcome) -> str:
  """Returns all runs as CSV: phase, run, score, losses, seconds, remark."""
  abilities = list(outcome.space.tasks)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  losses = [f'{mixture_search.METRIC}.{ability}' for ability in abilities]
  writer.writerow(['phase', 'run', 'score', *losses, 'seconds', 'remark'])
  for line in outcome.lines:
    numbers = line.row.numbers
    score = '' if math.isinf(line.score) else line.score
    writer.writerow(
      [
        *(line.phase, line.row.point.name, score),
        *(numbers.get(name, '') for name in (*losses, 'seconds')),
        line.row.remark,
      ]
    )
  return text.getvalue()


def curves(outcome: mixture_search.Outcome) -> matplotlib.figure.Figure:
  """Draws the loss of each ability by the number of its conversations."""
  figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
  counts = outcome.space.counts
  # The untuned model stands one step before the first number.
  places = [0, *range(1, len(counts) + 1)]
  for ability, curve in outcome.curves.items():
    before = outcome.untuned[ability]
    parts = [1.0, *(curve[count] / before for count in counts)]
    parts = [part if math.isfinite(part) else math.nan for part in parts]
    [drawn] = axes.plot(places, parts, marker='o', label=ability)
    if ability in outcome.samples:
      place = 1 + counts.index(outcome.samples[ability])
      axes.plot(
        place, parts[place], 'o', ms=14, mfc='none', color=drawn.get_color()
      )
  axes.axhline(1, color='gray', lw=1, ls='--')
  axes.set_xticks(places, ['0', *map(str, counts)])
  axes.set_xlabel('conversations of the ability (circle: enough)')
  axes.set_ylabel('its held-out loss / before tuning')
  axes.grid(alpha=0.3)
  axes.legend()
  return figure


def heat_map(outcome: mixture_search.Outcome) -> matplotlib.figure.Figure:
  """Draws the scores of each ability's last turn by share."""
  space = outcome.space
  turns = {turn.axis: turn for turn in outcome.turns}  # the last of each
  grid = [
    [
      score if math.isfinite(score := turns[a].scores[share]) else math.nan
      for share in space.shares
    ]
    for a in space.abilities
  ]
  chosen = {
    (i, space.shares.index(turns[ability].chosen))
    for i, ability in enumerate(space.abilities)
  }
  figure = plot.heat_map(
    grid, space.abilities, list(map(str, space.shares)), chosen, 'score'
  )
  figure.axes[0].set_xlabel('share, the others being at the best so far')
  return figure


def _cells(line: mixture_search.Line, abilities: Iterable[str]) -> list[str]:
  """Returns a run as cells of a table."""
  losses = mixture_search.losses(line.row)
  return [
    f'{line.phase}/{line.row.point.name}',
    _number(line.score),
    *(_number(losses.get(ability, math.inf)) for ability in abilities),
    line.row.remark,
  ]


def _number(value: float) -> str:
  return f'{value:.4f}' if math.isfinite(value) else '-'


def _lines(head: Sequence[Any], lines: Iterable[Sequence[Any]]) -> list[str]:
  """Returns a table as lines of Markdown."""
  rows = [head, ['---'] * len(head), *lines]
  texts = [[str(cell).replace('|', '\\|') for cell in row] for row in rows]
  return [f'| {" | ".join(row)} |' for row in texts]
