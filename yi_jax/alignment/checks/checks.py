"""What may be wrong with rows: the checks, by name, and how they are run."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from yi_jax import spelling
from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding, outliers, pairs, stop, style, turns
from yi_jax.data import progress

# Name -> what it says, given the rows and the section `checks`. `duplicates`
# tells of templates too.
_CHECKS: dict[
  str, Callable[[Sequence[rows.Row], Any], Iterator[finding.Finding]]
] = {
  'duplicates': pairs.duplicates,
  'contradictions': lambda found, c: pairs.contradictions(
    found, c['contradictions']
  ),
  'outliers': lambda found, c: outliers.find(found, c['outliers']),
  'language': lambda found, c: turns.languages(found, c['language']),
  'repetition': lambda found, c: turns.repetitions(found, c['repetition']),
  'stop': lambda found, c: stop.find(found, c['stop']),
  'style': lambda found, c: style.find(found, c['style']),
}
# What findings name.
NAMES = ('duplicates', 'templates', *list(_CHECKS)[1:])


def defaults() -> dict[str, Any]:
  """Returns the section `checks` of a config."""
  return {
    'run': tuple(_CHECKS),
    **pairs.defaults(),
    'outliers': outliers.defaults(),
    'language': turns.language_defaults(),
    'repetition': turns.repetition_defaults(),
    'stop': stop.defaults(),
    'style': style.defaults(),
  }


def run(
  found: Sequence[rows.Row], config: Any
) -> tuple[list[list[finding.Finding]], dict[str, float]]:
  """Runs the checks.

  Args:
    found: rows.
    config: the section `checks`.

  Returns:
    Findings by row, and the seconds of each check.

  Raises:
    ValueError: for a check of another name.
  """
  for name in config['run']:
    if name not in _CHECKS:
      raise ValueError(
        f'checks.run: no check {name!r}{spelling.nearest(name, _CHECKS)}'
      )
  said: list[list[finding.Finding]] = [[] for _ in found]
  seconds = {}
  for name in config['run']:
    started = time.monotonic()
    counts = collections.Counter()
    for one in _CHECKS[name](found, config):
      said[one.row].append(one)
      counts[one.check] += 1
    seconds[name] = round(time.monotonic() - started, 2)
    told = ', '.join(f'{count:,} {check}' for check, count in counts.items())
    progress.tell(
      'check', f'{name}: {told or "nothing"}, {seconds[name]:.1f} s'
    )
  return said, seconds
