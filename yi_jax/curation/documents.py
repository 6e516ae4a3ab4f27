"""Documents in batches of about 1,000: what passes through the cascade.

A batch holds columns of equal length. Stages change it in place: they remove
documents, change their texts, note what happened, and add columns of scores.
What was removed stays, so that a document's whole story can be told.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow

SIZE = 1_000  # documents a batch
# Characters, at which a batch of long documents ends: what bounds memory.
CHARACTERS = 16_000_000

_SCORE = pyarrow.map_(pyarrow.string(), pyarrow.float32())
SCHEMA = pyarrow.schema(
  [
    ('id', pyarrow.string()),
    ('text', pyarrow.large_string()),
    ('url', pyarrow.string()),
    ('source', pyarrow.string()),
    ('language', pyarrow.string()),
    ('removed', pyarrow.string()),
    ('scores', _SCORE),
    ('trail', pyarrow.string()),  # JSON
    ('metadata', pyarrow.string()),  # JSON
  ]
)


def _empty() -> Any:
  return dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Batch:
  """Columns of some documents.

  Attributes:
    ids: unique in a run: the source's name, '/', and an id of its own.
    texts: without lone surrogates or NULs.
    urls: '' where there is none.
    sources: name of the input each came from.
    languages: '' until known; 'en', 'zh', 'code' ...
    removed: '' = kept, else stage.rule of the first stage that removed it.
    scores: name -> float32[n]; NaN is unknown, and a name may be missing.
    trails: (stage, what happened) in order.
    metadata: small JSON objects that travel along.
    place: number of the shard and of the batch in it; the engine puts batches
      that went through a shuffle back where they were. Leave it alone.
  """

  ids: list[str] = _empty()
  texts: list[str] = _empty()
  urls: list[str] = _empty()
  sources: list[str] = _empty()
  languages: list[str] = _empty()
  removed: list[str] = _empty()
  scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  trails: list[list[tuple[str, str]]] = _empty()
  metadata: list[dict[str, Any]] = _empty()
  place: tuple[int, int] = (-1, -1)

  def __post_init__(self) -> None:
    """Fills columns that were left out; refuses columns of other lengths."""
    count = len(self.ids)
    for name in ('urls', 'sources', 'languages', 'removed'):
      if not getattr(self, name):
        setattr(self, name, [''] * count)
    self.trails = self.trails or [[] for _ in range(count)]
    self.metadata = self.metadata or [{} for _ in range(count)]
    for name, column in [*self._columns(), *self.scores.items()]:
      if len(column) != count:
        raise ValueError(f'{count} ids and {len(column)} {name}')

  def __len__(self) -> int:
    """Returns the number of documents, removed ones too."""
    return len(self.ids)

  def _columns(self) -> list[tuple[str, list[Any]]]:
    return [(name, getattr(self, name)) for name in _COLUMNS]

  def remove(self, i: int, stage: str, rule: str, detail: str = '') -> None:
    """Removes document i, unless a rule before has done so.

    Args:
      i: index in the batch.
      stage: name of the stage.
      rule: name of the rule inside the stage, e.g. 'gopher.mean_word_length'.
      detail: why, e.g. '12.3 > 10'.
    """
    if not self.removed[i]:
      self.removed[i] = f'{stage}.{rule}'
      reason = f': {detail}' if detail else ''
      self.trails[i].append((stage, f'removed by {rule}{reason}'))

  def change(self, i: int, stage: str, text: str, detail: str) -> None:
    """Gives document i another text and says why on its trail."""
    self.texts[i] = text
    self.trails[i].append((stage, detail))

  def note(self, i: int, stage: str, detail: str) -> None:
    """Says something on the trail of document i."""
    self.trails[i].append((stage, detail))

  def alive(self) -> list[int]:
    """Returns the indices of the documents that were not removed."""
    return [i for i, rule in enumerate(self.removed) if not rule]

  def score(self, name: str) -> np.ndarray:
    """Returns the scores of a name, float32[n], all NaN if there are none."""
    if name not in self.scores:
      self.scores[name] = np.full(len(self), np.nan, np.float32)
    return self.scores[name]

  def select(self, indices: Sequence[int]) -> 'Batch':
    """Returns a batch of some of the documents, in the order given."""
    indices = list(indices)
    return Batch(
      scores={k: v[indices] for k, v in self.scores.items()},
      place=self.place,
      **{k: [column[i] for i in indices] for k, column in self._columns()},
    )

  def to_arrow(self) -> pyarrow.RecordBatch:
    """Returns the documents as Arrow has them, by SCHEMA; not the place."""
    columns = {
      'id': self.ids,
      'text': self.texts,
      'url': self.urls,
      'source': self.sources,
      'language': self.languages,
      'removed': self.removed,
      'scores': self._score_array(),
      'trail': [_json(trail) for trail in self.trails],
      'metadata': [_json(entry) for entry in self.metadata],
    }
    return pyarrow.RecordBatch.from_pydict(columns, schema=SCHEMA)

  def _score_array(self) -> pyarrow.MapArray:
    """Returns scores as one map a document, unknown ones left out."""
    names = sorted(self.scores)
    values = np.array([self.scores[name] for name in names], np.float32)
    values = values.reshape(len(names), len(self)).T
    known = ~np.isnan(values)
    offsets = np.concatenate([[0], np.cumsum(known.sum(1))])
    keys = np.array(names, object)[np.nonzero(known)[1]]
    return pyarrow.MapArray.from_arrays(
      pyarrow.array(offsets, pyarrow.int32()),
      pyarrow.array(keys, pyarrow.string()),
      pyarrow.array(values[known], pyarrow.float32()),
    )


# Lists of one entry a document; the last two hold an object each.
_COLUMNS = (
  'ids',
  'texts',
  'urls',
  'sources',
  'languages',
  'removed',
  'trails',
  'metadata',
)


def from_arrow(table: pyarrow.RecordBatch | pyarrow.Table) -> Batch:
  """Returns what `Batch.to_arrow` was given; scores all unknown are gone."""
  column = {name: table.column(name) for name in table.schema.names}
  return Batch(
    ids=column['id'].to_pylist(),
    texts=column['text'].to_pylist(),
    urls=column['url'].to_pylist(),
    sources=column['source'].to_pylist(),
    languages=column['language'].to_pylist(),
    removed=column['removed'].to_pylist(),
    scores=_scores(column['scores'], table.num_rows),
    # Most are empty.
    trails=[
      [tuple(entry) for entry in json.loads(trail)] if trail != '[]' else []
      for trail in column['trail'].to_pylist()
    ],
    metadata=[
      json.loads(entry) if entry != '{}' else {}
      for entry in column['metadata'].to_pylist()
    ],
  )


def _scores(
  maps: pyarrow.MapArray | pyarrow.ChunkedArray, count: int
) -> dict[str, np.ndarray]:
  """Returns maps of scores as columns."""
  if isinstance(maps, pyarrow.ChunkedArray):
    maps = pyarrow.concat_arrays(maps.chunks) if maps.num_chunks else []
  if not count:
    return {}
  offsets = maps.offsets.to_numpy()
  rows = np.repeat(np.arange(count), np.diff(offsets))
  inside = slice(offsets[0], offsets[-1])
  keys = maps.keys[inside].dictionary_encode()
  values = maps.items[inside].to_numpy(zero_copy_only=False)
  codes = keys.indices.to_numpy()
  found = {}
  for code, name in enumerate(keys.dictionary.to_pylist()):
    found[name] = np.full(count, np.nan, np.float32)
    found[name][rows[codes == code]] = values[codes == code]
  return found


def concatenate(batches: Iterable[Batch]) -> Batch:
  """Returns the documents of several batches, in order, as one."""
  batches = list(batches)
  joined = Batch(
    place=batches[0].place if len(batches) == 1 else (-1, -1),
    **{
      name: [entry for batch in batches for entry in getattr(batch, name)]
      for name in _COLUMNS
    },
  )
  for name in sorted({name for batch in batches for name in batch.scores}):
    joined.scores[name] = np.concatenate(
      [
        batch.scores.get(name, np.full(len(batch), np.nan, np.float32))
        for batch in batches
      ]
    )
  return joined


def draw(seed: int, identifier: str) -> float:
  """Returns a number in [0, 1) that depends on the seed and the id alone.

  What stages choose by chance they choose by this, so that neither the workers
  nor the cut of the batches matters.
  """
  digest = hashlib.blake2b(f'{seed} {identifier}'.encode(), digest_size=8)
  return int.from_bytes(digest.digest(), 'big') / 2**64


def _json(value: list[Any] | dict[str, Any]) -> str:
  if not value:
    return '{}' if isinstance(value, dict) else '[]'
  return json.dumps(value, ensure_ascii=False, separators=(',', ':'))
