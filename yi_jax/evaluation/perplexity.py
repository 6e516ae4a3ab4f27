"""How well each position of a long text is predicted.

A model that uses its context predicts late tokens better than early ones; one
beyond its window predicts them far worse. Rows are real documents of exactly
the asked length, read once through the cache in chunks, so that memory is that
of the cache and one chunk; what is kept is sums by bucket of positions.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from yi_jax.data import atomic, progress
from yi_jax.evaluation import documents, options, pictures, record
from yi_jax.evaluation import subject as subjects
from yi_jax.training import metrics

_FIRST = 64  # tokens of the first bucket that doubles


@dataclasses.dataclass(frozen=True)
class Options(documents.Options):
  """What `--task=perplexity` can be told."""

  length: int = options.option(
    0, 'tokens of a row; 0 takes the positions of the model'
  )
  samples: int = options.option(4, 'rows a language')
  buckets: int = options.option(
    0, 'equal buckets of positions; 0 doubles them: 0, 64, 128, 256 ...'
  )

  def __post_init__(self) -> None:
    """Raises ValueError for options that make no sense for any model."""
    if self.length < 2 and self.length != 0:
      raise ValueError(f'--length must be at least 2, not {self.length}')
    if self.samples < 1:
      raise ValueError(f'--samples must be at least 1, not {self.samples}')
    super().__post_init__()


def edges(length: int, buckets: int) -> list[int]:
  """Returns where buckets of positions begin, and the end of the last.

  Example: edges(300, 0) -> [0, 64, 128, 256, 300]; edges(300, 3) -> [0, 100,
  200, 300]

  Args:
    length: positions.
    buckets: equal ones; 0 for doubling ones.

  Raises:
    ValueError: if there are more buckets than positions.
  """
  if not 0 <= buckets <= length:
    raise ValueError(
      f'--buckets takes 0 to the length of {length:,}, not {buckets}'
    )
  if buckets:
    return [length * i // buckets for i in range(buckets + 1)]
  found, edge = [0], _FIRST
  while edge < length:
    found.append(edge)
    edge *= 2
  return [*found, length]


def run(
  subject: subjects.Subject, wanted: Options, folder: pathlib.Path
) -> dict[str, Any]:
  """Measures rows that have no result yet, and reports.

  Args:
    subject: the model.
    wanted: the options.
    folder: gets journal.jsonl, report.json, table.txt and bits.png.

  Returns:
    What report.json holds.

  Raises:
    OSError: if documents cannot be read.
    ValueError: for options or documents that do not fit.
  """
  length = wanted.length or subject.config.max_position_embeddings
  subject.check_length(length)
  limits = edges(length, wanted.buckets)
  # What stands before a text is no token of it.
  inside = length - len(subject.start)
  rows = {
    language: documents.rows(
      wanted.texts(language),
      subject.words,
      inside,
      wanted.samples,
    )
    for language in wanted.languages
  }
  identity = {'task': 'perplexity', **subject.identity, 'edges': limits}
  identity |= wanted.identity()
  book = record.Record(folder / 'journal.jsonl', identity)
  _work(subject, rows, limits, book)
  return _report(subject, rows, limits, book, folder)


def _work(
  subject: subjects.Subject,
  rows: dict[str, list[np.ndarray]],
  limits: list[int],
  book: record.Record,
) -> None:
  every = [
    (language, number, row)
    for language, found in rows.items()
    for number, row in enumerate(found)
    if f'{language} {number}' not in book.done
  ]
  if not every:
    return
  reader = subject.reader(limits[-1])
  started = time.monotonic()
  for done, (language, number, row) in enumerate(every, start=1):
    reader.read([])
    ids = np.concatenate([np.asarray(subject.start, np.int32), row])
    bits = -reader.score(ids, keep=True).logprobs / math.log(2)
    # Position p is predicted from p tokens before it; 0 has no prediction.
    sums, counts = by_bucket(bits, np.arange(1, len(ids)), limits)
    book.add(
      f'{language} {number}',
      {
        'bits': sums,
        'tokens': counts,
        # Of what was predicted: without a start, all but the first token.
        'bytes': len(subject.words.decode(ids[1:].tolist()).encode()),
      },
    )
    left = (time.monotonic() - started) / done * (len(every) - done)
    progress.tell(
      'perplexity',
      f'{done} of {len(every)} rows; {language}: {np.mean(bits):.3f} bits a '
      f'token; {metrics.duration(left)} left',
    )


def by_bucket(
  bits: np.ndarray, positions: np.ndarray, limits: Sequence[int]
) -> tuple[list[float], list[int]]:
  """Returns the sum of bits and the count of tokens of each bucket.

  Args:
    bits: of each token.
    positions: of each token.
    limits: see `edges`.
  """
  bucket = np.searchsorted(limits, positions, side='right') - 1
  size = len(limits) - 1
  sums = np.bincount(bucket, np.asarray(bits, np.float64), size)
  return sums.tolist(), np.bincount(bucket, minlength=size).tolist()


def _report(
  subject: subjects.Subject,
  rows: dict[str, list[np.ndarray]],
  limits: list[int],
  book: record.Record,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Writes report.json, table.txt and bits.png, and shows the table."""
  facts = {'task': 'perplexity', 'checkpoint': subject.name}
  facts.update(subject.identity, length=limits[-1], languages={})
  curves, lines = {}, [f'perplexity by position, {subject.name}']
  for language, found in rows.items():
    results = [book.done[f'{language} {i}'] for i in range(len(found))]
    sums = np.sum([result['bits'] for result in results], axis=0)
    counts = np.sum([result['tokens'] for result in results], axis=0)
    buckets = [
      {
        'from': first,
        'to': end,
        'tokens': int(count),
        'bits_per_token': bits / count,
        'perplexity': 2 ** (bits / count),
      }
      for first, end, bits, count in zip(
        limits[:-1], limits[1:], sums.tolist(), counts.tolist(), strict=True
      )
      if count
    ]
    total = sum(sums) / sum(counts)
    facts['languages'][language] = {
      'bits_per_token': total,
      'perplexity': 2**total,
      'bits_per_byte': sum(sums) / sum(result['bytes'] for result in results),
      'rows': len(results),
      'buckets': buckets,
    }
    curves[language] = (
      [(bucket['from'] + bucket['to']) / 2 for bucket in buckets],
      [bucket['bits_per_token'] for bucket in buckets],
    )
    lines.append(f'{language}: {total:.3f} bits a token')
    lines.append(f'{"tokens before":>17}{"bits":>9}{"perplexity":>12}')
    for bucket in buckets:
      where = f'{bucket["from"]:,}-{bucket["to"] - 1:,}'
      lines.append(
        f'{where:>17}{bucket["bits_per_token"]:>9.3f}'
        f'{bucket["perplexity"]:>12.2f}'
      )
  is_doubling = limits == edges(limits[-1], 0)
  picture = pictures.lines(
    f'{subject.name}, {limits[-1]:,} tokens',
    curves,
    ('tokens before it', 'bits a token'),
    is_doubling,
  )
  atomic.write(folder / 'bits.png', picture)
  text = '\n'.join(lines) + '\n'
  atomic.write(folder / 'table.txt', text.encode())
  atomic.write(
    folder / 'report.json', f'{json.dumps(facts, indent=1)}\n'.encode()
  )
  print(text)
  progress.tell('perplexity', str(folder / 'report.json'))
  return facts
