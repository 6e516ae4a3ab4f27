"""Thresholds from percentiles of recorded scores, as CulturaX chose them.

CulturaX (Nguyen et al. 2023, section 2.2) took for each metric and language a
percentile of its values as the threshold: the tenth where low values are bad,
the ninetieth where high ones are. Which they are the rule knows, so both are
shown.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from yi_jax.curation import documents, engine, shards

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_SHARE = 1e-3  # of a score's documents, below which a language is not shown
_MOST = 200_000  # values of a score and language; more are thinned by hash


def percentiles(found: Sequence[engine.Pass]) -> dict[str, dict[str, Any]]:
  """Returns score -> language -> {'documents': n, 'percentiles': [...]}.

  Each score is taken where it was made first, from the documents that went on
  and those that were removed there.

  Raises:
    ValueError: if no stage recorded a score.
  """
  seen, result = set(), {}
  for one in found:
    new = set(one.manifest()['scores']) - seen
    seen |= new
    values = collections.defaultdict(list)
    share = 1.0
    for batch in _batches(one) if new else ():
      for name in new & batch.scores.keys():
        for i in np.flatnonzero(~np.isnan(batch.scores[name])):
          draw = documents.draw(0, batch.ids[i])
          if draw < share:
            values[name, batch.languages[i]].append(
              (draw, float(batch.scores[name][i]))
            )
      while values and max(map(len, values.values())) > _MOST:
        share /= 2
        for key, entries in values.items():
          values[key] = [entry for entry in entries if entry[0] < share]
    for (name, language), entries in sorted(values.items()):
      scores = [value for _, value in entries]
      result.setdefault(name, {})[language] = {
        'documents': len(scores),
        'percentiles': np.percentile(scores, PERCENTILES).tolist(),
      }
  if not result:
    raise ValueError(
      'no score was recorded: set record=True in the sections of the rules, '
      'e.g. --config.rules.record=True'
    )
  return dict(sorted(result.items()))


def _batches(one: engine.Pass) -> Any:
  for kind in ('kept', 'removed'):
    for path in sorted((one.folder / kind).glob('*.parquet')):
      yield from shards.read(path)


def lines(table: dict[str, dict[str, Any]]) -> list[str]:
  """Returns the percentiles as a table of text."""
  head = ''.join(f'{f"{p}%":>10}' for p in PERCENTILES)
  found = [f'{"score":<36}{"language":>9}{"documents":>10}{head}']
  for name, languages in table.items():
    total = sum(entry['documents'] for entry in languages.values())
    for language, entry in languages.items():
      if entry['documents'] < _SHARE * total:
        continue
      row = ''.join(f'{value:>10.4g}' for value in entry['percentiles'])
      found.append(
        f'{name:<36}{language or "-":>9}{entry["documents"]:>10,}{row}'
      )
  return found
