"""HTML of the reports: a page, tables, samples of documents."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto;
       max-width: 72em; color: #222; padding: 0 1em; }
table { border-collapse: collapse; margin: .7em 0; }
td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
td.text { text-align: left; max-width: 44em; white-space: pre-wrap;
          font-size: 13px; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: .3em 0; }
code { background: #f3f3f3; padding: 0 .2em; }
img { max-width: 100%; }
"""


def page(title: str, parts: Iterable[str]) -> str:
  """Returns a whole page; the title is its first heading too."""
  body = '\n'.join([f'<h1>{html.escape(title)}</h1>', *parts])
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style>'
    f'<body>{body}</body></html>'
  )


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
  """Returns an HTML table; strings are escaped."""

  def line(cells: Iterable[Any], tag: str) -> str:
    inner = ''.join(
      f'<{tag}>{html.escape(_shown(cell))}</{tag}>' for cell in cells
    )
    return f'<tr>{inner}</tr>'

  body = '\n'.join(line(row, 'td') for row in rows)
  return f'<table>{line(head, "th")}{body}</table>'


def _shown(cell: Any) -> str:
  if cell is None:
    return '–'
  return f'{cell:,}' if isinstance(cell, int | float) else str(cell)


def share(part: float, whole: float) -> str:
  """Returns a share in percent."""
  return f'{100 * part / whole:.1f} %' if whole else '–'


def sample_table(title: str, samples: Sequence[Mapping[str, Any]]) -> str:
  """Returns documents as `counting` keeps them, '' for none."""
  if not samples:
    return ''
  rows = []
  for sample in samples:
    why = '; '.join(text for _, text in sample['trail'])
    score = f' ({sample["score"]:.4g})' if 'score' in sample else ''
    rows.append(
      f'<tr><td>{html.escape(sample["id"])}<br>{html.escape(why + score)}</td>'
      f'<td class="text">{html.escape(sample["text"])}</td></tr>'
    )
  return f'<p>{title}</p><table>{"".join(rows)}</table>'
