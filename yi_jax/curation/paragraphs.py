"""Removes paragraphs that another document has: menus, notices, quotations.

A paragraph is a line with at least a few units (see `shingles`; case, space
and punctuation do not count). Of all its copies the one in the best document
stays, in that document the first.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from yi_jax.curation import documents, exact, shingles, stage, tables

_LINE = re.compile(r'[^\n]+')


def defaults() -> dict[str, Any]:
  """Returns the section of a config with every key."""
  return {
    # Shorter paragraphs stay: headings, list items, "Yes." (ours).
    'least_units': 12,
    # A document of which fewer units are left goes too (ours).
    'least_left': 20,
    # Pieces that shuffles are cut into; the outcome is the same for any.
    'partitions': 64,
  }


def hashes(batch: documents.Batch, least_units: int) -> tables.Table:
  """Returns a row for each paragraph of each document that is kept so far.

  Columns: `paragraph`, its hash; `line`, its number among the lines that are
  not empty; number, place and rank of the document.
  """
  alive = batch.alive()
  owners, lines, texts = [], [], []
  for row, i in enumerate(alive):
    for line, text in enumerate(_LINE.findall(batch.texts[i])):
      if len(text) >= least_units:  # a unit has a character at least
        owners.append(row)
        lines.append(line)
        texts.append(text)
  found, about = [], tables.about(batch, alive)
  for first, units in shingles.blocks(texts):
    counts = np.diff(units.offsets)
    rows = np.flatnonzero(counts >= least_units)
    of_lines = shingles.wholes(units)[rows]
    rows = rows + first
    table = tables.take(about, np.array(owners, np.int64)[rows])
    table['paragraph'] = of_lines
    table['line'] = np.array(lines, np.uint32)[rows]
    found.append(table)
  return tables.concatenate(found)


def decide(rows: tables.Table) -> tables.Table:
  """Returns the rows of the copies that go.

  Args:
    rows: all with such a `paragraph`.
  """
  if not rows:
    return rows
  found = tables.choose(rows, ('paragraph',), 'line')
  found = tables.take(found, ~found['first'])
  return {k: found[k] for k in ('place', 'number', 'line', 'paragraph')}


def cut(text: str, lines: set[int]) -> str:
  """Returns a text without some lines.

  Args:
    text: of a document.
    lines: their numbers among the lines that are not empty.
  """
  kept, end = [], 0
  for number, match in enumerate(_LINE.finditer(text)):
    if number in lines:
      kept.append(text[end : match.start()])
      # The line's end goes with it.
      end = min(match.end() + 1, len(text))
  kept.append(text[end:])
  return re.sub(r'\n{3,}', '\n\n', ''.join(kept)).strip('\n')


def apply(
  batch: documents.Batch, decisions: tables.Table, config: dict[str, Any]
) -> documents.Batch:
  """Cuts copies out of the documents, and removes those with little left.

  Args:
    batch: changed in place.
    decisions: `number`, `line` and `paragraph`, see `decide`.
    config: see `defaults`.
  """
  if not decisions:
    return batch
  alive = batch.alive()
  rows_of = {}
  for row, number in enumerate(decisions['number']):
    rows_of.setdefault(number, []).append(row)
  for i, number in zip(
    alive, tables.numbers([batch.ids[i] for i in alive]), strict=True
  ):
    rows = rows_of.get(number)
    if not rows:
      continue
    text = cut(batch.texts[i], {int(decisions['line'][row]) for row in rows})
    first = decisions['paragraph'][min(rows, key=decisions['line'].__getitem__)]
    exact.shorten(
      batch,
      i,
      'paragraphs',
      text,
      f'{len(rows)} paragraphs, {first:016x} first',
      config['least_left'],
    )
  return batch


class Paragraphs(stage.GlobalStage):
  """Removes paragraphs that stand elsewhere too."""

  name = 'paragraphs'

  def __init__(self, config: Any) -> None:
    """Checks the section, see `defaults`."""
    least = {'least_units': 1, 'least_left': 0, 'partitions': 1}
    super().__init__(exact.checked(self.name, config, defaults(), least))

  def expand(self, batches: Any) -> Any:
    """Returns the batches without copies of paragraphs.

    Hashes move, 40 bytes a paragraph.
    """
    import apache_beam as beam

    from yi_jax.curation import shuffle

    config, name = self.config, self.name
    partitions = config['partitions']

    def reduce(rows: tables.Table) -> Iterator[tables.Table]:
      yield decide(rows)

    def finish(
      batch: documents.Batch, decisions: tables.Table
    ) -> Iterator[documents.Batch]:
      yield apply(batch, decisions, config)

    rows = batches | f'{name}: hashes' >> beam.Map(
      hashes, config['least_units']
    )
    decisions = shuffle.reduce(
      rows, f'{name}: copies', 'paragraph', partitions, reduce
    )
    side = shuffle.to_batches(decisions, f'{name}: decisions', partitions)
    return shuffle.visit(batches, f'{name}: apply', side, finish)
