"""What stages did, in figures and samples: the material of the report.

Counts are made shard by shard and added up; samples are chosen by hash of the
id, so that neither workers nor the cut of batches decides them.
"""

import collections
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from yi_jax.curation import documents

SAMPLES = 5  # of each rule, in the report
_EXCERPT = 300  # characters
_MEMBERS = 4  # of a group that are shown, the most typical and at its border
# What stages say of the copy they keep: kept as the best of 3 exact copies, ...
_BEST = re.compile(r'kept as the best of (\d+) ([^,]+)')


def table(batch: documents.Batch, indices: Iterable[int]) -> dict[str, list]:
  """Returns 'source|language' -> [documents, characters]."""
  found = collections.defaultdict(lambda: [0, 0])
  for i in indices:
    entry = found[f'{batch.sources[i]}|{batch.languages[i]}']
    entry[0] += 1
    entry[1] += len(batch.texts[i])
  return dict(found)


class Counts:
  """What one stage did to some documents.

  Attributes:
    name: of the stage.
    kept: 'source|language' -> [documents, characters] after it.
    removed: rule -> the same, of what it removed.
    changed: source -> documents that go on with its name on their trail.
    samples: rule -> removed documents; those with the least draw.
    edges: rule -> {'kept', 'removed'} -> documents with the smallest and the
      largest recorded score, from which those near the threshold are taken.
    clusters: kind of copies -> how many there were -> of how many documents;
      as those that were kept have it on their trail.
    groups: for a stage that sorts documents, that is, sets metadata[name]:
      group -> 'kept' and 'removed', as above; 'card', what metadata[name.card]
      of one of them says of it; 'typical' and 'border', the documents with the
      smallest scores name.distance and name.margin.
  """

  def __init__(self, name: str) -> None:
    """Starts at nothing."""
    self.name = name
    self.kept: dict[str, list[int]] = {}
    self.removed: dict[str, dict[str, list[int]]] = {}
    self.changed: collections.Counter[str] = collections.Counter()
    self.samples: dict[str, list[dict[str, Any]]] = {}
    self.edges: dict[str, dict[str, list[dict[str, Any]]]] = {}
    self.clusters: dict[str, dict[str, int]] = {}
    self.groups: dict[str, dict[str, Any]] = {}

  def add(self, batch: documents.Batch, known: Iterable[str] = ()) -> None:
    """Counts a batch that the stage has seen; removed documents are in it.

    Args:
      batch: after the stage, without what was removed before.
      known: names of scores that were there before.
    """
    alive = batch.alive()
    _sum(self.kept, table(batch, alive))
    by_rule = collections.defaultdict(list)
    for i, rule in enumerate(batch.removed):
      if rule:
        by_rule[rule].append(i)
    for rule, indices in by_rule.items():
      _sum(self.removed.setdefault(rule, {}), table(batch, indices))
      drawn = [
        {**_sample(batch, i), 'draw': documents.draw(0, batch.ids[i])}
        for i in indices
      ]
      self._keep_samples(rule, drawn)
    for i in alive:
      told = [text for name, text in batch.trails[i] if name == self.name]
      if told:
        self.changed[batch.sources[i]] += 1
      for text in told:
        if best := _BEST.match(text):
          sizes = self.clusters.setdefault(best[2], {})
          sizes[best[1]] = sizes.get(best[1], 0) + 1
    for name in batch.scores.keys() - set(known):
      self._add_edges(name, batch, alive, by_rule)
    self._add_groups(batch)

  def _keep_samples(self, rule: str, drawn: list[dict[str, Any]]) -> None:
    joined = self.samples.get(rule, []) + drawn
    joined.sort(key=lambda sample: (sample['draw'], sample['id']))
    self.samples[rule] = joined[:SAMPLES]

  def _add_edges(
    self,
    name: str,
    batch: documents.Batch,
    alive: list[int],
    by_rule: dict[str, list[int]],
  ) -> None:
    """Keeps the documents with extreme scores, kept and removed by the rule."""
    removed = by_rule.get(f'{self.name}.{name}', [])
    for side, indices in (('kept', alive), ('removed', removed)):
      values = batch.scores[name][indices]
      names = np.array([batch.ids[i] for i in indices], str)
      order = np.lexsort((names, values))[: np.count_nonzero(values == values)]
      ends = dict.fromkeys([*order[:SAMPLES], *order[-SAMPLES:]])
      found = [
        {**_sample(batch, indices[i]), 'score': float(values[i])} for i in ends
      ]
      edges = self.edges.setdefault(name, {'kept': [], 'removed': []})
      edges[side] = _ends(edges[side] + found)

  def _add_groups(self, batch: documents.Batch) -> None:
    """Counts the documents that the stage has sorted, and keeps some."""
    members = collections.defaultdict(list)
    for i, entry in enumerate(batch.metadata):
      if self.name in entry:
        members[str(entry[self.name])].append(i)
    for group, indices in members.items():
      sides = {'kept': [], 'removed': []}
      card = None
      for i in indices:
        sides['removed' if batch.removed[i] else 'kept'].append(i)
        card = card or batch.metadata[i].get(f'{self.name}.card')
      shown = {
        side: _least(batch, indices, f'{self.name}.{score}')
        for side, score in (('typical', 'distance'), ('border', 'margin'))
      }
      counted = {side: table(batch, some) for side, some in sides.items()}
      self._merge_group(group, {**counted, **shown, 'card': card})

  def _merge_group(self, group: str, other: dict[str, Any]) -> None:
    mine = self.groups.setdefault(
      group,
      {'kept': {}, 'removed': {}, 'card': None, 'typical': [], 'border': []},
    )
    mine['card'] = mine['card'] or other['card']
    for side in ('kept', 'removed'):
      _sum(mine[side], other[side])
    for side in ('typical', 'border'):
      joined = sorted(mine[side] + other[side], key=_by_score)
      mine[side] = joined[:_MEMBERS]

  def to_json(self) -> dict[str, Any]:
    """Returns all of it as JSON has it."""
    return {**vars(self), 'changed': dict(self.changed)}

  def merge(self, other: dict[str, Any]) -> None:
    """Adds what `to_json` gave for other documents."""
    _sum(self.kept, other['kept'])
    for rule, entry in other['removed'].items():
      _sum(self.removed.setdefault(rule, {}), entry)
    self.changed.update(other['changed'])
    for rule, samples in other['samples'].items():
      self._keep_samples(rule, samples)
    for kind, sizes in other['clusters'].items():
      mine = self.clusters.setdefault(kind, {})
      for size, count in sizes.items():
        mine[size] = mine.get(size, 0) + count
    for group, entry in other['groups'].items():
      self._merge_group(group, entry)
    for name, sides in other['edges'].items():
      edges = self.edges.setdefault(name, {'kept': [], 'removed': []})
      for side, found in sides.items():
        edges[side] = _ends(edges[side] + found)


def near(
  edges: dict[str, list[dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
  """Returns the kept and removed documents nearest to a rule's threshold.

  Which side of the threshold is kept is seen from where the removed ones lie.

  Args:
    edges: of a rule, see Counts.
  """
  kept, removed = edges['kept'], edges['removed']
  if not kept or not removed:
    return {'kept': [], 'removed': removed[:SAMPLES]}
  middle = np.median([entry['score'] for entry in kept])
  above = np.median([entry['score'] for entry in removed]) > middle
  if above:
    return {'kept': kept[-SAMPLES:], 'removed': removed[:SAMPLES]}
  return {'kept': kept[:SAMPLES], 'removed': removed[-SAMPLES:]}


def totals(counted: dict[str, list[int]]) -> list[int]:
  """Returns [documents, characters] over all sources and languages."""
  return [sum(entry[k] for entry in counted.values()) for k in (0, 1)]


def _ends(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the samples with the smallest and the largest scores, sorted."""
  ordered = sorted(samples, key=_by_score)
  if len(ordered) <= 2 * SAMPLES:
    return ordered
  return ordered[:SAMPLES] + ordered[-SAMPLES:]


def _by_score(sample: dict[str, Any]) -> tuple[float, str]:
  return sample['score'], sample['id']


def _least(
  batch: documents.Batch, indices: list[int], name: str
) -> list[dict[str, Any]]:
  """Returns the documents of the smallest scores; by hash without scores."""
  if name in batch.scores:
    values = np.nan_to_num(batch.scores[name][indices])
  else:
    values = np.array([documents.draw(0, batch.ids[i]) for i in indices])
  names = np.array([batch.ids[i] for i in indices], str)
  return [
    {**_sample(batch, indices[k]), 'score': float(values[k])}
    for k in np.lexsort((names, values))[:_MEMBERS]
  ]


def _sum(total: dict[str, list[int]], more: dict[str, list[int]]) -> None:
  for key, entry in more.items():
    before = total.get(key, [0, 0])
    total[key] = [a + b for a, b in zip(before, entry, strict=True)]


def _sample(batch: documents.Batch, i: int) -> dict[str, Any]:
  """Returns what the report shows of a document."""
  return {
    'id': batch.ids[i],
    'text': batch.texts[i][:_EXCERPT],
    'trail': [list(entry) for entry in batch.trails[i][-1:]],
  }
