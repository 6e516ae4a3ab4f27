"""What polishing found, as files: facts, reasons, chosen rows, and a page."""

import collections
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from yi_jax.alignment import page, rows, sampler
from yi_jax.alignment.checks import checks, finding, style
from yi_jax.alignment.tags import tags
from yi_jax.curation import markup
from yi_jax.data import atomic, progress


def defaults() -> dict[str, Any]:
  """Returns the section `report` of a config."""
  return {
    # Rows that the page shows for each check, and chosen ones; by hash.
    'rows': 60,
    'characters': 1_500,  # shown of a turn
  }


def run(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
  """Checks, tags and samples rows, and writes what was found.

  Args:
    config: see `run_config`.
    workdir: folder of the run.

  Returns:
    The facts of report.json, which is written last.

  Raises:
    ValueError: if the config or a conversation is wrong.
    OSError: if a file is missing.
  """
  check(config)
  found = rows.read(config.data)
  said, seconds = checks.run(found, config.checks)
  started = time.monotonic()
  model = tags.Tags(config.tags.to_dict())
  model.load(rows.root(config.data))
  tagged = model.tag(found)
  seconds['tags'] = round(time.monotonic() - started, 2)
  progress.tell('tag', f'{len(found):,} rows, {seconds["tags"]:.1f} s')
  polished = Polished(config, found, said, tagged)
  facts = {
    **polished.facts(),
    'style': style.table(found, config.checks.style),
    'tag model': model.card()['metrics'],
    'seconds': seconds,
  }
  _write(workdir / 'reasons.jsonl', polished.reasons())
  _write(workdir / 'reviewed.jsonl', polished.reviewed())
  content = page.page(facts, polished.shown(config.report.rows), config.report)
  atomic.write(workdir / 'report.html', content.encode())
  text = json.dumps(facts, ensure_ascii=False, indent=1)
  atomic.write(workdir / 'report.json', f'{text}\n'.encode())
  return facts


def check(config: Any) -> None:
  """Raises ValueError for sizes and names that are wrong, before any work."""
  if config.sample.rows < 1:
    raise ValueError(f'sample.rows is {config.sample.rows}: 1 or more')
  for name in config.sample.exclude:
    if name not in checks.NAMES:
      raise ValueError(
        f'sample.exclude: no check {name!r}; there are: '
        f'{", ".join(checks.NAMES)}'
      )


def _write(path: pathlib.Path, entries: Iterable[Mapping[str, Any]]) -> None:
  with atomic.new_file(path) as file:
    for entry in entries:
      file.write(json.dumps(entry, ensure_ascii=False).encode() + b'\n')


class Polished:
  """Rows with what was found out about them, and the choice among them.

  Attributes:
    chosen: indices of the chosen rows, in order.
  """

  def __init__(
    self,
    config: Any,
    found: Sequence[rows.Row],
    said: Sequence[Sequence[finding.Finding]],
    tagged: Sequence[Sequence[str]],
  ) -> None:
    """Chooses rows."""
    self._found, self._said, self._tags = found, said, tagged
    sample = config.sample
    losses = sampler.read_losses(sample.losses)
    self._scores, self._levels = sampler.difficulty(found, tagged, losses)
    self._flagged = [
      any(one.check in sample.exclude for one in mine) for mine in said
    ]
    self._cells = sampler.cells(tagged, self._levels)
    free = [i for i, flagged in enumerate(self._flagged) if not flagged]
    clean = [found[i] for i in free]
    picks = sampler.choose(
      clean, [self._cells[i] for i in free], sample.rows, sample.seed
    )
    self.chosen = [free[k] for k in picks]
    self._random = [
      free[k] for k in sampler.at_random(clean, sample.rows, sample.seed)
    ]
    self._free = free

  def facts(self) -> dict[str, Any]:
    """Returns the counts of report.json."""
    found = self._found
    every = range(len(found))
    by_check = {name: collections.Counter() for name in checks.NAMES}
    for i, mine in enumerate(self._said):
      for name in {one.check for one in mine}:
        by_check[name][found[i].task] += 1
    return {
      'rows': sum(row.copies for row in found),
      'distinct': len(found),
      'flagged': sum(self._flagged),
      'chosen': len(self.chosen),
      'checks': {
        name: {'rows': counts.total(), 'tasks': dict(counts)}
        for name, counts in by_check.items()
      },
      'tasks': self._by_task(),
      'tags': {
        name: self._tag_counts(some)
        for name, some in self._selections(every).items()
      },
      'coverage': {
        name: sampler.coverage(found, self._cells, some)
        for name, some in self._selections(every).items()
      },
    }

  def _selections(self, every: Sequence[int]) -> dict[str, Sequence[int]]:
    return {
      'all': every,
      'kept': self._free,
      'at random': self._random,
      'chosen': self.chosen,
    }

  def _by_task(self) -> dict[str, dict[str, int]]:
    tasks: dict[str, dict[str, int]] = {}
    chosen = set(self.chosen)
    for i, row in enumerate(self._found):
      entry = tasks.setdefault(
        row.task, dict(rows=0, distinct=0, flagged=0, chosen=0)
      )
      entry['rows'] += row.copies
      entry['distinct'] += 1
      entry['flagged'] += self._flagged[i]
      entry['chosen'] += i in chosen
    return tasks

  def _tag_counts(self, some: Iterable[int]) -> dict[str, int]:
    counts = collections.Counter(tag for i in some for tag in self._tags[i])
    return dict(counts.most_common())

  def reasons(self) -> Iterable[dict[str, Any]]:
    """Yields an object a row: what became of it, and why."""
    chosen = set(self.chosen)
    for i, row in enumerate(self._found):
      yield {
        'id': row.id,
        'task': row.task,
        'language': row.language,
        'ability': row.ability,
        'copies': row.copies,
        'status': 'flagged' if self._flagged[i] else 'kept',
        'chosen': i in chosen,
        'tags': list(self._tags[i]),
        'difficulty': self._levels[i],
        'reasons': [
          {
            'check': one.check,
            'reason': one.reason,
            'others': list(one.others),
          }
          for one in self._said[i]
        ],
      }

  def reviewed(self) -> Iterable[dict[str, Any]]:
    """Yields the chosen rows in OpenAI's layout."""
    for i in self.chosen:
      row = self._found[i]
      yield {
        'id': row.id,
        'messages': list(row.messages),
        'language': row.language,
        'ability': row.ability,
        'tags': list(self._tags[i]),
        'difficulty': {
          'level': self._levels[i],
          'score': round(float(self._scores[i]), 4),
        },
      }

  def shown(self, most: int) -> list[page.Entry]:
    """Returns the rows of the page: of each check, and chosen ones, by hash.

    Args:
      most: rows of each.
    """
    groups = collections.defaultdict(list)
    for i in sorted(range(len(self._found)), key=lambda i: self._found[i].id):
      for name in dict.fromkeys(one.check for one in self._said[i]):
        groups[name].append(i)
    chosen = set(self.chosen)
    wanted = sorted(chosen, key=lambda i: self._found[i].id)[:most]
    for mine in groups.values():
      wanted += mine[:most]
    return [
      page.Entry(
        self._found[i],
        self._said[i],
        self._tags[i],
        self._levels[i],
        i in chosen,
      )
      for i in dict.fromkeys(wanted)
    ]


def describe(facts: Mapping[str, Any]) -> list[str]:
  """Returns the facts as lines of text."""
  whole = facts['distinct']
  lines = [
    f'{facts["rows"]:,} rows, {whole:,} of them different; '
    f'{facts["flagged"]:,} flagged, {facts["chosen"]:,} chosen'
  ]
  lines += [
    f'{name:>16} {entry["rows"]:>7,} rows {markup.share(entry["rows"], whole):>8}'
    for name, entry in facts['checks'].items()
  ]
  for language in facts['coverage']['all']:
    lines.append(
      f'{language:>16} evenness of tags and difficulty: '
      + ', '.join(
        f'{name} {entry[language]["evenness"]:.2f}'
        for name, entry in facts['coverage'].items()
        if language in entry
      )
    )
  return lines
