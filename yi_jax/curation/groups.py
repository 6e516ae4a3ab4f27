"""Pages of the stages that sort documents: NAME.html, and a map as NAME.png.

One part a group: how many documents it has, of which sources and languages,
how many stayed, what its card says (terms, quality, rate), and documents that
are typical of it and that stand at its border. What a card says of `x` and `y`
puts the group on the map.
"""

import collections
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from yi_jax.curation import counting, markup, shards

_NAMED = 3  # sources and languages that a row names
_LABELLED = 40  # largest groups that have their number on the map


def rows(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the figures of the groups of a stage, the largest first.

  Args:
    counts: see `counting.Counts`.

  Returns:
    Dicts of group, documents, kept, characters, sources and languages (name ->
    documents), and what its card says.
  """
  found = []
  for group, entry in counts['groups'].items():
    by = {'sources': collections.Counter(), 'languages': collections.Counter()}
    for side in ('kept', 'removed'):
      for key, (count, _) in entry[side].items():
        source, _, language = key.partition('|')
        by['sources'][source] += count
        by['languages'][language] += count
    kept, removed = (counting.totals(entry[s]) for s in ('kept', 'removed'))
    found.append(
      {
        'group': group,
        'documents': kept[0] + removed[0],
        'kept': kept[0],
        'characters': kept[1] + removed[1],
        **{name: dict(_by_size(found)) for name, found in by.items()},
        **(entry['card'] or {}),
      }
    )
  return sorted(found, key=lambda row: (-row['documents'], row['group']))


def _by_size(found: collections.Counter[str]) -> list[tuple[str, int]]:
  return sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))


def write(folder: epath.Path, counts: Mapping[str, Any]) -> None:
  """Writes the page of a stage, and its map if its groups have places.

  Args:
    folder: of the run.
    counts: see `counting.Counts`.
  """
  name, table = counts['name'], rows(counts)
  parts = ['<p><a href="report.html">report</a></p>']
  placed = [row for row in table if row.get('x') is not None]
  if placed:
    with shards.new_file(folder / f'{name}.png') as file:
      _map(placed, file)
    parts.append(f'<img src="{name}.png" alt="map of {name}">')
    parts.append(
      '<p>Dots are groups, as large as they have documents, by the first two '
      'principal components of their centres.</p>'
    )
  parts.append(_overview(table))
  for row in table:
    parts += _part(row, counts['groups'][row['group']])
  with shards.new_file(folder / f'{name}.html') as file:
    file.write(markup.page(name.capitalize(), parts).encode())


def _overview(table: Sequence[Mapping[str, Any]]) -> str:
  """Returns a table of all groups; columns that no group has are left out."""
  total = sum(row['documents'] for row in table)
  columns = {
    'group': lambda row: row['group'],
    'documents': lambda row: row['documents'],
    'share': lambda row: markup.share(row['documents'], total),
    'kept': lambda row: markup.share(row['kept'], row['documents']),
    'rate': lambda row: row.get('rate'),
    'quality': lambda row: row.get('quality'),
    'languages': lambda row: _named(row['languages'], row['documents']),
    'sources': lambda row: _named(row['sources'], row['documents']),
    'terms': lambda row: ', '.join(row.get('terms', ())) or None,
  }
  cells = {name: [of(row) for row in table] for name, of in columns.items()}
  shown = [name for name, column in cells.items() if any(column)]
  return markup.table(shown, zip(*(cells[name] for name in shown), strict=True))


def _named(found: Mapping[str, int], whole: int) -> str:
  """Returns the most frequent names with their shares."""
  return ', '.join(
    f'{name or "?"} {markup.share(count, whole)}'
    for name, count in list(found.items())[:_NAMED]
  )


def _part(row: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterable[str]:
  """Yields the foldable part of a group."""
  terms = html.escape(', '.join(row.get('terms', ())))
  yield (
    f'<details id="{html.escape(row["group"])}"><summary>'
    f'<b>{html.escape(row["group"])}</b>: {row["documents"]:,} documents, '
    f'{row["characters"]:,} characters. {terms}</summary>'
  )
  yield markup.table(
    ['source', 'documents'], [[k, n] for k, n in row['sources'].items()]
  )
  yield markup.sample_table('typical', entry['typical'])
  yield markup.sample_table('at the border', entry['border'])
  yield '</details>'


def _map(table: Sequence[Mapping[str, Any]], file: Any) -> None:
  """Draws groups as dots."""
  from matplotlib import figure

  drawn = figure.Figure(figsize=(9, 7))
  axes = drawn.subplots()
  sizes = np.array([row['documents'] for row in table], float)
  quality = np.array([row.get('quality') for row in table], float)
  known = ~np.isnan(quality)
  places = np.array([(row['x'], row['y']) for row in table])
  areas = 30 + 1500 * sizes / sizes.max()
  axes.scatter(*places[~known].T, s=areas[~known], c='#999999', alpha=0.5)
  dots = axes.scatter(
    *places[known].T,
    s=areas[known],
    c=quality[known],
    cmap='RdYlGn',
    alpha=0.7,
    edgecolors='#555555',
  )
  if known.any():
    drawn.colorbar(dots, label='quality')
  for row in table[:_LABELLED]:
    terms = [term for term in row.get('terms', ()) if term.isascii()]
    text = ' '.join([row['group'], *terms[:2]])
    axes.annotate(text, (row['x'], row['y']), fontsize=7, ha='center')
  axes.set_xticks([])
  axes.set_yticks([])
  drawn.savefig(
    file, format='png', dpi=110, bbox_inches='tight', metadata={'Software': ''}
  )
