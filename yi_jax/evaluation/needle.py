"""Needle in a haystack: does a model find one sentence in a long text?

A grid of lengths and depths (Yi report 7.1 and figure 6; its sentences and
scorer were not published). Every cell is scored twice: what the model writes
must be the value, word for word, and the value must be likelier than others of
its form. Results are kept cell by cell, so a run that was stopped goes on.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from yi_jax.data import atomic, progress
from yi_jax.evaluation import (
  cells,
  documents,
  needles,
  options,
  pictures,
  record,
  scoring,
)
from yi_jax.evaluation import subject as subjects
from yi_jax.serving import reading
from yi_jax.training import metrics

_STEPS = 8  # lengths, if none are named
_SHORTEST = 256  # of those: a question takes about a hundred tokens
_NEEDLES = 3
_TOLD = 5  # seconds between two lines of progress


@dataclasses.dataclass(frozen=True)
class GridOptions(documents.Options):
  """What every task on a grid can be told."""

  lengths: tuple[int, ...] = options.option(
    (), 'tokens of a row; default: eight up to the positions of the model', int
  )
  depths: tuple[float, ...] = options.option(
    tuple(range(0, 101, 10)), 'where the needle is, 0 to 100 percent', float
  )
  needles: int = options.option(
    _NEEDLES, 'needles a language, tried one by one'
  )
  seed: int = options.option(0, 'of what is drawn')

  def __post_init__(self) -> None:
    """Raises ValueError for options that make no sense for any model."""
    if any(length < 1 for length in self.lengths):
      raise ValueError(f'--lengths are at least 1, not {min(self.lengths)}')
    for depth in self.depths:
      if not 0 <= depth <= 100:
        raise ValueError(f'a depth of {depth:g} % is outside 0 to 100')
    if not self.depths:
      raise ValueError('--depths names no depth')
    super().__post_init__()


@dataclasses.dataclass(frozen=True)
class Options(GridOptions):
  """What `--task=needle` can be told."""

  needles: int | None = options.option(
    None,
    f'needles a language, tried one by one; default: {_NEEDLES}, or all of '
    '--needles_file',
    int,
  )
  needles_file: str = options.option(
    '', 'needles of your own, JSON lines; see docs/evaluate.md'
  )


@dataclasses.dataclass(frozen=True)
class KeyOptions(GridOptions):
  """What `--task=ruler_multikey` can be told."""

  keys: int = options.option(4, 'keys in the text, one of which is asked for')
  values: int = options.option(1, 'numbers of the asked key, all wanted')


def run(
  subject: subjects.Subject, wanted: Options, folder: pathlib.Path
) -> dict[str, Any]:
  """Hides sentences of facts and asks for them.

  Args:
    subject: the model.
    wanted: the options.
    folder: gets journal.jsonl, report.json, table.txt and a picture a language.

  Returns:
    What report.json holds.

  Raises:
    OSError: if documents cannot be read.
    ValueError: for options or documents that do not fit.
  """
  own = needles.read(wanted.needles_file) if wanted.needles_file else None

  def make(language: str) -> list[needles.Needle]:
    count = wanted.needles
    if own is None:
      count = _NEEDLES if count is None else count
      return needles.facts(language, count, wanted.seed)
    found = [needle for needle in own if needle.language == language]
    if not found:
      raise ValueError(
        f'{wanted.needles_file} has no needles of language {language!r}; say '
        'which there are with --languages'
      )
    if count is not None and not 1 <= count <= len(found):
      raise ValueError(
        f'--needles takes 1 to {len(found)}, not {count}: {wanted.needles_file} '
        f'has no more of language {language!r}'
      )
    return found[:count]

  return run_grid('needle', subject, wanted, make, folder)


def run_keys(
  subject: subjects.Subject, wanted: KeyOptions, folder: pathlib.Path
) -> dict[str, Any]:
  """Hides numbers of many keys and asks for those of one; see `run`."""

  def make(language: str) -> list[needles.Needle]:
    return needles.keys(
      language, wanted.needles, wanted.keys, wanted.values, wanted.seed
    )

  return run_grid('ruler_multikey', subject, wanted, make, folder)


def run_grid(
  task: str,
  subject: subjects.Subject,
  wanted: GridOptions,
  make: Callable[[str], list[needles.Needle]],
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Runs all cells that have no result yet, and reports.

  Args:
    task: its name.
    subject: the model.
    wanted: the options.
    make: language -> needles.
    folder: see `run`.
  """
  lengths = lengths_of(subject, wanted)
  planned = plan(subject, wanted, lengths, make)
  # A grid may grow: which lengths and depths are asked for is no part of it.
  identity = {'task': task, **subject.identity}
  for name in ('seed', 'keys', 'values', 'needles_file'):
    if hasattr(wanted, name):
      identity[name] = getattr(wanted, name)
  if getattr(wanted, 'needles_file', ''):
    identity['needles_file'] = documents.hash_file(wanted.needles_file)
  identity |= wanted.identity()
  book = record.Record(folder / 'journal.jsonl', identity)
  every = [cell for found in planned.values() for cell in found]
  left = [cell for cell in every if cell.name not in book.done]
  if 0 < len(left) < len(every):
    done = len(every) - len(left)
    progress.tell(task, f'{done} of {len(every)} cells are there already')
  if left:
    reader = subject.reader(max(cell.length for cell in left))
    work(task, reader, subject, left, book)
  return report(task, subject, planned, book, folder)


def lengths_of(subject: subjects.Subject, wanted: GridOptions) -> list[int]:
  """Returns the lengths, each once.

  Raises:
    ValueError: if the model has not so many positions.
  """
  most = subject.config.max_position_embeddings
  lengths = sorted(set(wanted.lengths))
  if not lengths:
    steps = [most * step // _STEPS for step in range(1, _STEPS + 1)]
    lengths = [length for length in steps if length >= _SHORTEST] or [most]
  subject.check_length(lengths[-1])
  return lengths


def plan(
  subject: subjects.Subject,
  wanted: GridOptions,
  lengths: Sequence[int],
  make: Callable[[str], list[needles.Needle]],
) -> dict[str, list[cells.Cell]]:
  """Returns language -> cells."""
  planned = {}
  for language in wanted.languages:
    found = make(language)
    stream = documents.stream(
      wanted.texts(language), subject.words, lengths[-1]
    )
    depths = sorted(set(wanted.depths))
    planned[language] = cells.plan(subject, found, stream, lengths, depths)
  return planned


def work(
  task: str,
  reader: reading.Reader,
  subject: subjects.Subject,
  left: Iterable[cells.Cell],
  book: record.Record,
) -> None:
  """Runs cells and keeps each result as soon as it is there."""
  ordered = cells.in_order(list(left))
  clock = _Clock(task, reader, ordered)
  for number, cell in enumerate(ordered, start=1):
    result = score(cell, reader, subject)
    book.add(cell.name, result)
    clock.tell(number, cell, result)


def score(
  cell: cells.Cell, reader: reading.Reader, subject: subjects.Subject
) -> dict[str, Any]:
  """Returns the scores of a cell, and what they come from."""
  words = subject.words
  *row, last = cell.row().tolist()
  read = reader.read(row)
  sums, first = [], None
  right, wrong = cell.answers(words)
  for ids in (*right, *wrong):
    reader.read(row)  # nothing, unless a layer has a window
    found = reader.score([last, *ids])
    first = found if first is None else first
    sums.append(float(np.sum(found.logprobs)))
  judged, probability = scoring.judged(sums[: len(right)], sums[len(right) :])
  reader.read(row)
  text = scoring.write(reader, last, right[0], first.best, cell.room, words)
  return {
    'language': cell.needle.language,
    'needle': cell.needle.name,
    'length': cell.length,
    'depth': cell.depth,
    'place': cell.place,
    'document': cell.document,
    'exact': scoring.exact(text, cell.needle.right),
    'judged': judged,
    'probability': probability,
    'answer': text,
    'right': list(cell.needle.right),
    'logprobs': [round(x, 4) for x in sums],
    'read': read,
  }


class _Clock:
  """Tells how far a grid is, and how long the rest will take."""

  def __init__(
    self, task: str, reader: reading.Reader, ordered: Sequence[cells.Cell]
  ) -> None:
    c = reader.config
    heads = c.num_attention_heads * c.head_dim
    # Work of a token: its products, and those with the tokens before it.
    flat = (
      c.num_hidden_layers
      * c.hidden_size
      * (heads + c.intermediate_size * 1.5 + c.num_key_value_heads * c.head_dim)
    )
    steep = c.num_hidden_layers * heads
    self._task, self._count = task, len(ordered)
    self._costs, before = [], np.zeros(0, np.int32)
    for cell in ordered:
      row = cell.row()
      shared = reading.common_prefix(before, row)
      fresh = len(row) - shared
      self._costs.append(fresh * (flat + steep * (len(row) + shared) / 2))
      before = row
    self._started = self._told = time.monotonic()
    self._begun = 0.0

  def tell(self, number: int, cell: cells.Cell, result: dict) -> None:
    """Says what came out, now and then."""
    now = time.monotonic()
    if number == 1:
      # The first cell compiles: it says little about the others.
      self._begun, self._started = self._costs[0], now
    if 1 < number < self._count and now - self._told < _TOLD:
      return
    self._told = now
    done = sum(self._costs[:number]) - self._begun
    rest = sum(self._costs[number:])
    remark = ''
    if done and rest:
      seconds = (now - self._started) * rest / done
      remark = f'; {metrics.duration(seconds)} left'
    progress.tell(
      self._task,
      f'{number} of {self._count} cells; {cell.needle.language}, '
      f'{cell.length:,} tokens, depth {cell.depth:g} %: exact '
      f'{result["exact"]:g}, judged {result["judged"]:g}{remark}',
    )


def report(
  task: str,
  subject: subjects.Subject,
  planned: dict[str, list[cells.Cell]],
  book: record.Record,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Writes report.json, table.txt and the pictures, and shows the table."""
  facts = {'task': task, 'checkpoint': subject.name, **subject.identity}
  facts['languages'], tables = {}, []
  for language, found in planned.items():
    results = [book.done[cell.name] for cell in found]
    scores = ('exact', 'judged', 'probability')
    facts['languages'][language] = {
      **{name: _mean(results, name) for name in scores},
      'tokens': sum(cell.length for cell in found),
      'tokens_read': sum(result['read'] for result in results),
      'cells': results,
    }
    lengths = sorted({cell.length for cell in found})
    depths = sorted({cell.depth for cell in found})
    at = {}
    for cell, result in zip(found, results, strict=True):
      at.setdefault((cell.depth, cell.length), []).append(result)
    maps = {
      name: [
        [_mean(at[depth, length], name) for length in lengths]
        for depth in depths
      ]
      for name in ('exact', 'judged')
    }
    title = f'{task}, {subject.name}, {language}'
    atomic.write(
      folder / f'{language}.png',
      pictures.heat_maps(title, lengths, depths, maps),
    )
    tables.append(_table(title, lengths, depths, maps))
  text = '\n\n'.join(tables) + '\n'
  atomic.write(folder / 'table.txt', text.encode())
  content = json.dumps(facts, ensure_ascii=False, indent=1)
  atomic.write(folder / 'report.json', f'{content}\n'.encode())
  print(text)
  progress.tell(task, str(folder / 'report.json'))
  return facts


def _mean(results: Sequence[dict[str, Any]], name: str) -> float:
  return sum(result[name] for result in results) / len(results)


def _table(
  title: str,
  lengths: Sequence[int],
  depths: Sequence[float],
  maps: dict[str, list[list[float]]],
) -> str:
  """Returns the maps as text: depths down, lengths across."""
  lines = []
  for name, grid in maps.items():
    mean = sum(map(sum, grid)) / sum(map(len, grid))
    lines.append(f'{title}: {name} {100 * mean:.1f} %')
    head = ''.join(f'{length:>9,}' for length in lengths)
    lines.append(f'{"depth":>7}{head}')
    for depth, row in zip(depths, grid, strict=True):
      cells_of_row = ''.join(f'{100 * value:>9.0f}' for value in row)
      lines.append(f'{depth:>6g}%{cells_of_row}')
  return '\n'.join(lines)
