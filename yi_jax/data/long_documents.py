"""Documents for long rows: whole, weighed by their length, in a good order.

The tasks of `data.long.tasks` are read so. Three things happen to them, each by
config, and none of them changes how much of a task a run reads: that is the
rate of the mixture, so domains keep their shares.

* What was cut into sections is one document again (`sources.whole`).
* A document stands in the rows as often as its length in tokens weighs (Fu et
  al. 2024, which Yi follows: report 7.1): weight 2.5 is two copies of every
  document and a third one of half of them, chosen by hash; weight 0.25 keeps a
  quarter. A copy comes after all documents have been there once, so no row
  holds a text twice unless a task is hardly longer than a row.
* Documents are brought into an order in which neighbours are alike, so that a
  row which is longer than a document holds related text (Shi et al. 2024; Yi-
  Lightning's report, 3.1).

  from 0 tokens weight 1, from 4,096 weight 2
  documents a (900 tokens), b (5,000), c (700), c being like b
  stream    EOS a EOS b EOS c EOS b EOS
"""

import dataclasses
import hashlib
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from yi_jax import spelling
from yi_jax.data import mixtures

JOINS = ('given', 'similar')
VIEWS = ('document', 'row')
# Where tokens are told by length and no weights are set.
_EDGES = (0, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)

Upsample = tuple[tuple[int, float], ...]


class Order(NamedTuple):
  """An order of documents.

  Attributes:
    numbers: int64[N], a permutation of the documents' places.
    likeness: mean cosine of two that follow each other, by the name of an
      order: 'similar' (this one), 'given' and 'random'.
  """

  numbers: np.ndarray
  likeness: dict[str, float]


# (call it for the texts, as often as needed) -> their order
Orderer = Callable[[Callable[[], Iterable[str]]], Order]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is done with the documents of a task; see `run_config.defaults`.

  Attributes:
    upsample: (first tokens of a bucket, its weight), from 0 on.
    join: one of JOINS.
    attend: one of VIEWS.
  """

  upsample: Upsample
  join: str
  attend: str

  def facts(self) -> list[Any]:
    """Returns what decides the rows."""
    return [[list(pair) for pair in self.upsample], self.join, self.attend]


def settings(
  data: Any, tasks: Mapping[str, mixtures.Task]
) -> dict[str, Settings]:
  """Returns the settings of those tasks whose documents are long.

  Args:
    data: the data section of a run's config.
    tasks: that the run reads, by name.

  Raises:
    ValueError: naming what is wrong, and the cure.
  """
  section = data.long
  pairs = _upsample(section.upsample)
  for key, known in (('join', JOINS), ('attend', VIEWS)):
    if section[key] not in known:
      raise ValueError(
        f'data.long.{key} is one of {", ".join(known)}, not {section[key]!r}'
        f'{spelling.nearest(str(section[key]), known)}'
      )
  if pairs and not section.tasks:
    raise ValueError(
      'data.long.upsample weighs no document: name tasks in data.long.tasks'
    )
  for name in section.tasks:
    if mixtures.get(name).chat:
      raise ValueError(
        f'data.long.tasks names {name}: conversations are neither joined nor '
        'weighed by length; leave it out'
      )
    if name not in tasks:
      raise ValueError(
        f'data.long.tasks names {name}, which the run does not read; give it a '
        'rate in data.rates'
      )
  found = Settings(pairs, section.join, section.attend)
  return dict.fromkeys(section.tasks, found)


def _upsample(given: Any) -> Upsample:
  """Returns buckets with their weights, checked."""
  found = []
  for pair in given:
    try:
      first, weight = pair
      right = int(first) == first and 0 <= weight < math.inf
    except (TypeError, ValueError, OverflowError):
      right = False
    if not right or (first <= found[-1][0] if found else first != 0):
      raise ValueError(
        'data.long.upsample is ((first tokens of a bucket, weight), ...), with '
        'buckets that rise from 0 and weights of 0 or more; '
        + (f'{pair!r} cannot follow {found[-1]}' if found else f'not {pair!r}')
      )
    found.append((int(first), float(weight)))
  if found and not any(weight for _, weight in found):
    raise ValueError('data.long.upsample: all weights are 0, nothing is left')
  return tuple(found)


def copies(text: str, weight: float) -> int:
  """Returns how often a document of a weight is read: the same everywhere."""
  digest = hashlib.blake2b(text.encode(), digest_size=8, person=b'copies')
  place = int.from_bytes(digest.digest(), 'big') / 2**64
  return int(weight) + (place < weight % 1)


class Shelf:
  """Token ids of documents, on disk until their order is known.

  Attributes:
    likeness: see `Order`; empty until somebody sets it.
  """

  def __init__(self, folder: pathlib.Path, upsample: Upsample) -> None:
    """Opens a file without a name in a folder; it goes with the process."""
    self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    self._buckets = upsample or tuple((edge, 1.0) for edge in _EDGES)
    self._starts, self._bytes, self._copies = [0], [], []
    self.likeness: dict[str, float] = {}

  def __enter__(self) -> 'Shelf':
    return self

  def __exit__(self, *error: object) -> None:
    self._file.close()

  def __len__(self) -> int:
    return len(self._copies)

  def add(self, text: str, ids: Sequence[int]) -> None:
    """Puts a document behind the others."""
    self._file.write(np.asarray(ids, np.int32).tobytes())
    self._starts.append(self._starts[-1] + len(ids))
    self._bytes.append(len(text.encode()))
    weight = self._buckets[self._bucket(len(ids) + 1)][1]
    self._copies.append(copies(text, weight))

  def read(self, numbers: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields ids and UTF-8 bytes of documents, every copy in its round.

    Args:
      numbers: the places of all documents, in the order they shall have.
    """
    self._file.flush()
    numbers = list(numbers)
    for number in range(max(self._copies, default=0)):
      for i in numbers:
        if self._copies[i] > number:
          yield self._ids(i), self._bytes[i]

  def buckets(self) -> list[dict[str, float]]:
    """Returns a row for each bucket of lengths.

    Returns:
      Dicts of first (tokens), weight, documents and tokens (each document and
      its EOS once), and read_documents and read_tokens (as rows have them).
    """
    table = [
      {
        'first': first,
        'weight': weight,
        **dict.fromkeys(
          ('documents', 'tokens', 'read_documents', 'read_tokens'), 0
        ),
      }
      for first, weight in self._buckets
    ]
    for i, times in enumerate(self._copies):
      tokens = self._starts[i + 1] - self._starts[i] + 1
      row = table[self._bucket(tokens)]
      row['documents'] += 1
      row['tokens'] += tokens
      row['read_documents'] += times
      row['read_tokens'] += times * tokens
    return table

  def facts(self) -> dict[str, Any]:
    """Returns what `merged` and `describe` take."""
    return {'buckets': self.buckets(), 'likeness': self.likeness}

  def _bucket(self, tokens: int) -> int:
    """Returns the place of the bucket that a length falls into."""
    return sum(first <= tokens for first, _ in self._buckets) - 1

  def _ids(self, number: int) -> np.ndarray:
    start, end = self._starts[number : number + 2]
    content = os.pread(self._file.fileno(), 4 * (end - start), 4 * start)
    return np.frombuffer(content, np.int32)


def check_enough(
  name: str, table: Sequence[Mapping[str, float]], length: int
) -> None:
  """Raises ValueError if a task's documents do not even fill one row."""
  documents = sum(row['documents'] for row in table)
  tokens = sum(row['read_tokens'] for row in table)
  if tokens <= length:
    raise ValueError(
      f'{name} has {documents:,} documents to train on and reads {tokens:,} '
      f'tokens of them, which joined do not fill one row of {length:,}: lower '
      'data.length or --shard, raise the weights of data.long.upsample, or take '
      'a task with more text'
    )


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the facts of a task from those of its shards.

  Args:
    parts: dicts of buckets and likeness, as `describe` takes them.
  """
  buckets = [dict(row) for row in parts[0]['buckets']]
  for part in parts[1:]:
    for row, other in zip(buckets, part['buckets'], strict=True):
      for key in row.keys() - {'first', 'weight'}:
        row[key] += other[key]
  sizes = [sum(row['documents'] for row in part['buckets']) for part in parts]
  return {
    'buckets': buckets,
    'likeness': {
      key: sum(
        size * part['likeness'][key]
        for size, part in zip(sizes, parts, strict=True)
      )
      / max(sum(sizes), 1)
      for key in parts[0]['likeness']
    },
  }


def describe(facts: Mapping[str, Any]) -> Iterator[str]:
  """Yields lines: tokens by length before and after, and how alike they are."""
  total = sum(row['tokens'] for row in facts['buckets'])
  read = sum(row['read_tokens'] for row in facts['buckets'])
  firsts = [row['first'] for row in facts['buckets'][1:]]
  for row, end in zip(facts['buckets'], [*firsts, None], strict=True):
    if not row['documents']:
      continue
    span = f'{row["first"]:,} to {end - 1:,}' if end else f'{row["first"]:,} up'
    yield (
      f'{span} tokens: {row["documents"]:,} documents, {row["tokens"]:,} tokens '
      f'({row["tokens"] / total:.1%}), weight {row["weight"]:g}: '
      f'{row["read_documents"]:,} read, {row["read_tokens"]:,} tokens '
      f'({row["read_tokens"] / max(read, 1):.1%})'
    )
  if likeness := facts['likeness']:
    yield 'mean cosine of two documents in a row: ' + ', '.join(
      f'{key} {value:.3f}' for key, value in likeness.items()
    )
