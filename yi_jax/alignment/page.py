"""The page of polishing: counts, pictures, and rows to filter and read.

One file that needs nothing else: pictures are inside it. Whatever people have
written is escaped.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding
from yi_jax.curation import markup

_TURNS = 40  # shown of a row
_STYLE = """<style>
.row { border: 1px solid #ddd; border-radius: 6px; margin: .7em 0;
       padding: .4em .8em; }
.row.hidden { display: none; }
.why { color: #a33; } .tag { background: #eef3f8; border-radius: 4px;
       padding: 0 .4em; margin-right: .3em; font-size: 13px; }
.turn { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px;
       margin: .3em 0; padding-left: .6em; border-left: 3px solid #ccc; }
.turn.assistant { border-color: #4878a8; }
.filters { position: sticky; top: 0; background: white; padding: .5em 0; }
</style>"""
_SCRIPT = """<script>
const rows = [...document.querySelectorAll('.row')];
const field = name => document.getElementById(name);
function filter() {
  const check = field('check').value, task = field('task').value;
  const text = field('text').value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = (!check || row.dataset.checks.split(' ').includes(check)) &&
      (!task || row.dataset.task === task) &&
      (!text || row.textContent.toLowerCase().includes(text));
    row.classList.toggle('hidden', !fits);
    shown += fits;
  }
  field('count').textContent = shown + ' rows';
}
for (const name of ['check', 'task', 'text']) {
  field(name).addEventListener('input', filter);
}
filter();
</script>"""


class Entry(NamedTuple):
  """A row of the page.

  Attributes:
    row: the conversation.
    findings: what the checks say.
    tags: of it.
    level: how hard it is.
    chosen: whether it was chosen.
  """

  row: rows.Row
  findings: Sequence[finding.Finding]
  tags: Sequence[str]
  level: str
  chosen: bool


def page(
  facts: Mapping[str, Any], entries: Sequence[Entry], settings: Any
) -> str:
  """Returns the HTML page.

  Args:
    facts: of report.json.
    entries: the rows to show.
    settings: the section `report`.
  """
  whole = facts['distinct']
  parts = [
    _STYLE,
    f'<p>{facts["rows"]:,} rows were read, {whole:,} of them different. '
    f'{facts["flagged"]:,} are flagged and not chosen from; '
    f'{facts["chosen"]:,} were chosen.</p>',
    '<h2>Checks</h2>',
    _picture(_draw_checks, facts),
    markup.table(
      ['check', 'rows', '', *facts['tasks']],
      [
        [
          name,
          entry['rows'],
          markup.share(entry['rows'], whole),
          *(entry['tasks'].get(task, 0) for task in facts['tasks']),
        ]
        for name, entry in facts['checks'].items()
      ],
    ),
    '<h2>Sources</h2>',
    markup.table(
      ['task', 'rows', 'different', 'flagged', '', 'chosen'],
      [
        [
          task,
          entry['rows'],
          entry['distinct'],
          entry['flagged'],
          markup.share(entry['flagged'], entry['distinct']),
          entry['chosen'],
        ]
        for task, entry in facts['tasks'].items()
      ],
    ),
    '<h2>Style</h2>',
    *_style(facts['style']),
    '<h2>Tags and difficulty</h2>',
    '<p>Share of the rows that have a tag, of all, at random, chosen.</p>',
    _picture(_draw_tags, facts),
    _coverage(facts['coverage']),
    *_model(facts['tag model']),
    '<h2>Rows</h2>',
    _filters(facts),
    *(_entry(entry, settings['characters']) for entry in entries),
    _SCRIPT,
  ]
  return markup.page('Polishing', parts)


def _picture(draw: Any, facts: Mapping[str, Any]) -> str:
  """Returns a picture as part of the page."""
  from matplotlib import figure

  drawn = figure.Figure()
  draw(drawn, facts)
  file = io.BytesIO()
  drawn.savefig(file, format='png', dpi=100, bbox_inches='tight')
  content = base64.b64encode(file.getvalue()).decode()
  return f'<img alt="" src="data:image/png;base64,{content}">'


def _draw_checks(drawn: Any, facts: Mapping[str, Any]) -> None:
  """Draws the rows of each check, a colour a task."""
  checks = facts['checks']
  drawn.set_size_inches(9, 0.35 * len(checks) + 1)
  axes = drawn.subplots()
  left = np.zeros(len(checks))
  for task in facts['tasks']:
    counts = np.array([c['tasks'].get(task, 0) for c in checks.values()])
    axes.barh(list(checks), counts, left=left, label=task)
    left += counts
  axes.invert_yaxis()
  axes.set_xlabel('rows')
  axes.legend(fontsize=7, loc='lower right')


def _draw_tags(drawn: Any, facts: Mapping[str, Any]) -> None:
  """Draws the share of rows with each tag: all, at random, chosen."""
  names = list(facts['tags']['all'])
  drawn.set_size_inches(9, 0.3 * len(names) + 1)
  axes = drawn.subplots()
  places = np.arange(len(names))
  for k, (selection, colour) in enumerate(
    (('all', '#bbbbbb'), ('at random', '#e0a050'), ('chosen', '#4878a8'))
  ):
    counts = facts['tags'][selection]
    count = sum(e['rows'] for e in facts['coverage'][selection].values())
    shares = [100 * counts.get(name, 0) / max(1, count) for name in names]
    axes.barh(
      places + 0.27 * (k - 1), shares, 0.27, color=colour, label=selection
    )
  axes.set_yticks(places, names)
  axes.invert_yaxis()
  axes.set_xlabel('% of rows')
  axes.legend(fontsize=8, loc='lower right')


def _style(table: Mapping[str, Any]) -> Iterable[str]:
  """Yields the shares of each language and ability."""
  yield markup.table(
    [
      *('language, ability', 'rows', 'long answers'),
      *('with introduction and conclusion', 'with a list', 'most are'),
    ],
    [
      [
        group,
        entry['rows'],
        entry['long answers'],
        f'{entry["with introduction, body, conclusion"]:.1%}',
        f'{entry["with a list for a body"]:.1%}',
        ', '.join(entry['style'].values()),
      ]
      for group, entry in table.items()
    ],
  )
  for group, entry in table.items():
    yield f'<details><summary>{html.escape(group)}: shares</summary>'
    yield markup.table(
      ['feature', 'value', 'share'],
      [
        [name, value, f'{share:.1%}']
        for name, values in entry['shares'].items()
        for value, share in values.items()
      ],
    )
    yield '</details>'


def _coverage(coverage: Mapping[str, Any]) -> str:
  table = []
  for name, languages in coverage.items():
    for language, entry in languages.items():
      table.append([f'{name}, {language}', *entry.values()])
  head = next(iter(next(iter(coverage.values())).values()))
  return markup.table(['rows', *head], table)


def _model(metrics: Mapping[str, Any]) -> Iterable[str]:
  """Yields how good the classifier of tags is."""
  numbers = [k for k, v in metrics.items() if isinstance(v, int | float)]
  text = ', '.join(f'{name} {metrics[name]:.4g}' for name in numbers)
  yield f'<p>The classifier, on held-out rows: {html.escape(text)}.</p>'
  rows_of = metrics['By tag']
  yield '<details><summary>By tag</summary>'
  yield markup.table(
    rows_of[0],
    [
      [f'{v:.2f}' if isinstance(v, float) else v for v in row.values()]
      for row in rows_of
    ],
  )
  yield '</details>'


def _filters(facts: Mapping[str, Any]) -> str:
  """Returns what rows are filtered with."""
  checks = ''.join(
    f'<option>{html.escape(name)}</option>' for name in facts['checks']
  )
  tasks = ''.join(
    f'<option>{html.escape(name)}</option>' for name in facts['tasks']
  )
  return (
    '<p class="filters">'
    f'<select id="check"><option value="">any check</option>{checks}'
    '<option>chosen</option></select> '
    f'<select id="task"><option value="">any source</option>{tasks}</select> '
    '<input id="text" placeholder="words"> <span id="count"></span></p>'
  )


def _entry(entry: Entry, characters: int) -> str:
  """Returns one row: why, tags, and the turns to unfold."""
  row = entry.row
  names = [one.check for one in entry.findings]
  names += ['chosen'] if entry.chosen else []
  why = ''.join(
    f'<div class="why">{html.escape(one.check)}: {html.escape(one.reason)}'
    + (f' ({html.escape(", ".join(one.others[:3]))})' if one.others else '')
    + '</div>'
    for one in entry.findings
  )
  tags = ''.join(
    f'<span class="tag">{html.escape(tag)}</span>'
    for tag in (entry.level, *entry.tags)
  )
  turns = ''.join(
    f'<div class="turn {html.escape(message["role"])}">'
    f'{html.escape(_cut(message["content"], characters))}</div>'
    for message in row.messages[:_TURNS]
  )
  if len(row.messages) > _TURNS:
    turns += f'<p>and {len(row.messages) - _TURNS} more turns</p>'
  first = html.escape(_cut(row.exchanges[0][0], 100))
  return (
    f'<div class="row" data-checks="{html.escape(" ".join(names))}" '
    f'data-task="{html.escape(row.task)}"><code>{row.id}</code> '
    f'{html.escape(row.task)} {"chosen" if entry.chosen else ""}{why}'
    f'<div>{tags}</div><details><summary>{first}</summary>{turns}</details>'
    '</div>'
  )


def _cut(text: str, size: int) -> str:
  """Returns a text, or its beginning and its end."""
  if len(text) <= size:
    return text
  half = size // 2
  return f'{text[:half]} […] {text[-half:]}'
