"""Removes spans of 50 or more tokens that stand elsewhere too (Lee et al. 2022).

Spans go, not documents. Instead of one suffix array over everything, which no
set of machines can share, two shuffles of hashes give the same spans, exactly:

1. Of every run of `length - anchor + 1` hashes of `anchor` tokens the smallest
   is an anchor (winnowing, Schleimer et al. 2003), so every span of `length`
   tokens holds one, and the same one wherever the span stands. About one in 13
   tokens is an anchor, and only those that stand twice matter.
2. Around these, the hashes of all windows of `length` tokens are compared. Of
   equal windows the one in the best document stays, there the first.

A token is a unit of `shingles`: a word, or a Chinese character. What is cut
reaches from the first character of a span to the first that follows it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from yi_jax.curation import documents, exact, shingles, stage, tables


def defaults() -> dict[str, Any]:
  """Returns the section of a config with every key."""
  return {
    # Tokens of the shortest span (Lee et al., RefinedWeb: 50).
    'length': 50,
    # A document of which fewer units are left goes too (ours).
    'least_left': 20,
    # Pieces that shuffles are cut into; the outcome is the same for any.
    'partitions': 64,
  }


def _slide(function: np.ufunc, values: np.ndarray, run: int) -> np.ndarray:
  """Returns the minimum or maximum of each run of values, [n - run + 1].

  By doubling, as `shingles.windows`.
  """
  count, size = len(values) - run + 1, 1
  while 2 * size <= run:
    values = function(values[:-size], values[size:])
    size *= 2
  return function(values[:count], values[run - size :][:count])


def inside(offsets: np.ndarray, length: int) -> np.ndarray:
  """Returns which windows of all units lie in one text, bool[U - length + 1]."""
  owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  return owners[: len(owners) - length + 1] == owners[length - 1 :]


def anchors(
  hashes: np.ndarray, offsets: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns where anchors begin, and their hashes.

  Args:
    hashes: uint64[U], of the units of some texts.
    offsets: int64[texts + 1].
    length: of a span, in units; anchors are half as long.

  Returns:
    int64[a], indices of units, and uint64[a].
  """
  size = length // 2
  run = length - size + 1
  if len(hashes) < length:
    return np.zeros(0, np.int64), np.zeros(0, np.uint64)
  grams = shingles.windows(hashes, size)
  smallest = _slide(np.minimum, grams, run)
  smallest[~inside(offsets, length)] = 0
  # A gram is an anchor if one of the runs it stands in has no smaller one.
  edge = np.zeros(run - 1, np.uint64)
  largest = _slide(np.maximum, np.concatenate([edge, smallest, edge]), run)
  found = np.flatnonzero((largest == grams) & (grams > 0))
  return found, grams[found]


def anchor_rows(batch: documents.Batch, length: int) -> tables.Table:
  """Returns `anchor` and `place` for each anchor of the documents kept so far.

  One row for those that stand twice in a batch says so: `times` is 2.
  """
  alive = batch.alive()
  found = [
    anchors(units.hashes, units.offsets, length)[1]
    for _, units in shingles.blocks([batch.texts[i] for i in alive])
  ]
  if not found:
    return {}
  values, counts = np.unique(np.concatenate(found), return_counts=True)
  return {
    'anchor': values,
    'place': np.full(len(values), tables.place(batch), np.uint64),
    'times': np.minimum(counts, 2).astype(np.uint8),
  }


def repeated(rows: tables.Table) -> tables.Table:
  """Returns the anchors that stand twice or more, with each of their places.

  Args:
    rows: of `anchor_rows`: all with such an `anchor`.
  """
  if not rows:
    return rows
  rows = tables.take(rows, np.argsort(rows['anchor'], kind='stable'))
  starts = tables.first_of_runs(rows['anchor'])
  sizes = np.diff(np.append(starts, len(rows['anchor'])))
  often = np.repeat(np.add.reduceat(rows['times'], starts, dtype=int), sizes)
  rows = tables.take(rows, often > 1)
  return {'anchor': rows['anchor'], 'place': rows['place']}


def window_rows(
  batch: documents.Batch, marked: tables.Table, length: int
) -> tables.Table:
  """Returns a row for each window that holds a marked anchor.

  Columns: `window`, its hash; `start`, the first of its units; number, place
  and rank of its document.

  Args:
    batch: documents.
    marked: `anchor`: those that stand twice somewhere.
    length: of a window, in units.
  """
  if not marked:
    return {}
  alive, found = batch.alive(), []
  about, hot = tables.about(batch, alive), np.unique(marked['anchor'])
  for first, units in shingles.blocks([batch.texts[i] for i in alive]):
    where, values = anchors(units.hashes, units.offsets, length)
    count = len(units.hashes) - length // 2 + 1
    if not len(where):
      continue
    is_hot = np.zeros(count, bool)
    is_hot[where] = np.isin(values, hot)
    around = _slide(np.logical_or, is_hot, length - length // 2 + 1)
    chosen = np.flatnonzero(around & inside(units.offsets, length))
    owners = np.searchsorted(units.offsets, chosen, 'right') - 1
    found.append(
      {
        'window': shingles.windows(units.hashes, length)[chosen],
        'start': (chosen - units.offsets[owners]).astype(np.uint32),
        **tables.take(about, owners + first),
      }
    )
  return tables.concatenate(found)


def decide(rows: tables.Table, length: int) -> tables.Table:
  """Returns the spans that go: place, number, `start` and `end` in units.

  Args:
    rows: of `window_rows`: all with such a `window`.
    length: of a window.
  """
  if not rows:
    return rows
  found = tables.choose(rows, ('window',), 'start')
  firsts = np.flatnonzero(found['first'])
  best = np.repeat(firsts, np.diff(np.append(firsts, len(found['first']))))
  start, end = found['start'], found['start'] + np.uint32(length)
  # A copy that overlaps the window it is a copy of: only what comes after.
  same = found['number'] == found['number'][best]
  start = np.where(same, np.maximum(start, end[best]), start)
  spans = {
    'place': found['place'],
    'number': found['number'],
    'start': start,
    'end': end,
  }
  return tables.take(spans, ~found['first'] & (start < end))


def cut(text: str, spans: np.ndarray) -> tuple[str, int]:
  """Returns a text without some spans, and how many they were, joined.

  Args:
    text: of a document.
    spans: int64[s, 2], first unit of each and the one after its last, in any
      order; they may overlap, and reach over the ends.
  """
  units = shingles.units([text])
  spans = np.clip(spans, 0, len(units.hashes))
  gone = np.zeros(len(units.hashes) + 1, np.int64)
  np.add.at(gone, spans[:, 0], 1)
  np.add.at(gone, spans[:, 1], -1)
  gone = np.cumsum(gone) > 0
  turns = np.flatnonzero(np.diff(gone, prepend=False, append=False))
  begins = np.append(units.starts, len(text))
  kept, end = [], 0
  for begin, finish in turns.reshape(-1, 2):
    kept.append(text[end : begins[begin]])
    end = int(begins[finish])
  kept.append(text[end:])
  # Two pieces did not stand side by side: a line's end says so.
  joined = '\n'.join(piece.strip() for piece in kept if piece.strip())
  return joined, len(turns) // 2


def apply(
  batch: documents.Batch, decisions: tables.Table, config: dict[str, Any]
) -> documents.Batch:
  """Cuts spans out of the documents, and removes those with little left.

  Args:
    batch: changed in place.
    decisions: see `decide`.
    config: see `defaults`.
  """
  if not decisions:
    return batch
  alive = batch.alive()
  order = np.argsort(decisions['number'], kind='stable')
  numbers = decisions['number'][order]
  starts = decisions['start'][order].astype(np.int64)
  ends = decisions['end'][order].astype(np.int64)
  own = tables.numbers([batch.ids[i] for i in alive])
  first = np.searchsorted(numbers, own, 'left')
  last = np.searchsorted(numbers, own, 'right')
  for i, begin, end in zip(alive, first, last, strict=True):
    if begin == end:
      continue
    spans = np.stack([starts[begin:end], ends[begin:end]], 1)
    text, count = cut(batch.texts[i], spans)
    what = f'{count} spans of {config["length"]} tokens or more'
    exact.shorten(batch, i, 'substrings', text, what, config['least_left'])
  return batch


class Substrings(stage.GlobalStage):
  """Removes long spans that stand elsewhere too."""

  name = 'substrings'

  def __init__(self, config: Any) -> None:
    """Checks the section, see `defaults`."""
    least = {'length': 2, 'least_left': 0, 'partitions': 1}
    super().__init__(exact.checked(self.name, config, defaults(), least))

  def expand(self, batches: Any) -> Any:
    """Returns the batches without the spans.

    About 1.3 bytes a token of anchors move, and 36 a token of what stands
    twice.
    """
    import apache_beam as beam

    from yi_jax.curation import shuffle

    config, name = self.config, self.name
    partitions, length = config['partitions'], config['length']

    def windows(
      batch: documents.Batch, marked: tables.Table
    ) -> Iterator[tables.Table]:
      yield window_rows(batch, marked, length)

    def finish(
      batch: documents.Batch, decisions: tables.Table
    ) -> Iterator[documents.Batch]:
      yield apply(batch, decisions, config)

    rows = batches | f'{name}: anchors' >> beam.Map(anchor_rows, length)
    marked = shuffle.reduce(
      rows,
      f'{name}: repeated',
      'anchor',
      partitions,
      lambda table: [repeated(table)],
    )
    marked = shuffle.to_batches(marked, f'{name}: marked', partitions)
    rows = shuffle.visit(batches, f'{name}: windows', marked, windows)
    spans = shuffle.reduce(
      rows,
      f'{name}: copies',
      'window',
      partitions,
      lambda table: [decide(table, length)],
    )
    side = shuffle.to_batches(spans, f'{name}: spans', partitions)
    return shuffle.visit(batches, f'{name}: apply', side, finish)
