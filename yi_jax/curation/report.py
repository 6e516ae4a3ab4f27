"""The report of a run: one HTML page, a funnel as PNG, and the same as JSON.

Documents, characters and tokens after each stage by source and language; what
each rule removed, with samples of both sides of its threshold; sizes of the
clusters of duplicates; time and cost. Stages that sort documents into groups
get a page each, see `groups`. A page to read before training on what
it tells of.
"""

import collections
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from yi_jax.curation import counting, engine, groups, markup, shards
from yi_jax.data import vocabulary

_TOKEN_SAMPLE = 300_000  # characters of a source that are tokenised


def defaults() -> dict[str, Any]:
  """Returns every key of the section `report` with its default."""
  return {
    # Folder below ROOT/vocabularies that counts tokens; '' counts none.
    'vocabulary': 'quickstart',
    # What a core costs an hour, for the cost of a million documents.
    'dollars_per_core_hour': 0.04,
  }


def write(
  config: Any, folder: str, found: Sequence[engine.Pass], workers: int
) -> dict[str, Any]:
  """Writes report.html, funnel.png and report.json, and returns the last.

  Args:
    config: of the run.
    folder: of the run.
    found: its passes, all of them whole.
    workers: processes that ran it.
  """
  settings = {**defaults(), **engine.plain(config.report)}
  manifests = [one.manifest() for one in found]
  counted = [
    (counts, one)
    for one, manifest in zip(found, manifests, strict=True)
    for counts in manifest['counts']
  ]
  rates = tokens_per_character(found[0], settings['vocabulary'], config)
  facts = {
    'stages': [
      _stage(counts, one, rates, settings['dollars_per_core_hour'])
      for counts, one in counted
    ],
    'quarantine': manifests[0]['quarantine'],
    'tokens_per_character': rates,
    'clusters': {
      f'{counts["name"]}: {kind}': sizes
      for counts, _ in counted
      for kind, sizes in sorted(counts['clusters'].items())
    },
    'groups': {
      counts['name']: groups.rows(counts)
      for counts, _ in counted
      if counts['groups']
    },
    'workers': workers,
  }
  base = epath.Path(folder)
  for counts, _ in counted:
    if counts['groups']:
      groups.write(base, counts)
  shards.write_json(base / 'report.json', facts)
  with shards.new_file(base / 'funnel.png') as file:
    _funnel(facts['stages'], file)
  page = _page(facts, [counts for counts, _ in counted])
  with shards.new_file(base / 'report.html') as file:
    file.write(page.encode())
  return facts


def _stage(
  counts: Mapping[str, Any],
  one: engine.Pass,
  rates: Mapping[str, float],
  price: float,
) -> dict[str, Any]:
  """Returns the figures of a stage."""
  kept = counting.totals(counts['kept'])
  seconds, seen, _ = shards.read_json(one.folder / 'seconds.json')[
    counts['name']
  ]
  return {
    'name': counts['name'],
    'documents': kept[0],
    'characters': kept[1],
    'tokens': _tokens(counts['kept'], rates),
    'changed': sum(counts['changed'].values()),
    'by': {
      key: [*entry, _tokens({key: entry}, rates)]
      for key, entry in sorted(counts['kept'].items())
    },
    'removed': {
      rule: counting.totals(entry)
      for rule, entry in sorted(counts['removed'].items())
    },
    'seconds': round(seconds, 3),
    'documents_per_core_second': round(seen / max(seconds, 1e-9), 1),
    'dollars_per_million': round(
      seconds / 3600 * price / max(seen, 1) * 1e6, 6
    ),
  }


def tokens_per_character(
  first: engine.Pass, name: str, config: Any
) -> dict[str, float]:
  """Returns source -> tokens a character, measured on its first documents.

  Args:
    first: the pass that read them.
    name: of the vocabulary; no figures if there is none of that name.
    config: of the run, for the data root.
  """
  folder = engine.root(config) / 'vocabularies' / name
  if not name or not (folder / vocabulary.MODEL_FILE).is_file():
    return {}
  words = vocabulary.load(folder)
  characters, tokens = collections.Counter(), collections.Counter()
  for entry in first.manifest()['shards']:
    path = first.folder / 'kept' / f'{entry["name"]}.parquet'
    for batch in shards.read(path):
      for source, text in zip(batch.sources, batch.texts, strict=True):
        if characters[source] < _TOKEN_SAMPLE:
          part = text[:_TOKEN_SAMPLE]
          characters[source] += len(part)
          tokens[source] += len(words.encode(part))
      if all(characters[s] >= _TOKEN_SAMPLE for s in set(batch.sources)):
        break
  return {s: tokens[s] / count for s, count in characters.items()}


def _tokens(
  counted: Mapping[str, Sequence[int]], rates: Mapping[str, float]
) -> int | None:
  """Returns about how many tokens some documents have, None if unknown."""
  if not rates:
    return None
  return round(
    sum(
      entry[1] * rates.get(key.split('|')[0], 0)
      for key, entry in counted.items()
    )
  )


def _funnel(stages: Sequence[Mapping[str, Any]], file: Any) -> None:
  """Draws what is left after each stage, as shares of what was read."""
  from matplotlib import figure

  drawn = figure.Figure(figsize=(9, 0.5 * len(stages) + 1.3))
  axes = drawn.subplots()
  names = [stage['name'] for stage in stages]
  rows = np.arange(len(stages))
  for offset, key, colour in (
    (-0.2, 'documents', '#4878a8'),
    (0.2, 'characters', '#e0a050'),
  ):
    whole = max(stages[0][key], 1)
    shares = [100 * stage[key] / whole for stage in stages]
    axes.barh(rows + offset, shares, 0.38, color=colour, label=key)
    for row, share, stage in zip(rows, shares, stages, strict=True):
      axes.text(
        share + 0.5, row + offset, f'{stage[key]:,}', va='center', fontsize=8
      )
  axes.set_yticks(rows, names)
  axes.invert_yaxis()
  axes.set_xlim(0, 118)
  axes.set_xlabel('% of what was read')
  axes.legend(loc='lower right', fontsize=8)
  drawn.savefig(
    file, format='png', dpi=110, bbox_inches='tight', metadata={'Software': ''}
  )


def _page(
  facts: Mapping[str, Any], counted: Sequence[Mapping[str, Any]]
) -> str:
  """Returns the HTML page."""
  parts = ['<img src="funnel.png" alt="funnel">']
  first, last = facts['stages'][0], facts['stages'][-1]
  documents, characters = (
    markup.share(last[key], first[key]) for key in ('documents', 'characters')
  )
  parts.append(
    f'<p>{first["documents"]:,} documents were read, {last["documents"]:,} are '
    f'left: {documents} of the documents, {characters} of the characters.</p>'
  )
  parts += ['<h2>After each stage</h2>', _stage_table(facts)]
  parts += ['<h2>By source and language</h2>', _source_table(facts['stages'])]
  parts += ['<h2>What was put aside while reading</h2>', _quarantine(facts)]
  parts += ['<h2>Groups</h2>', *_groups(facts)]
  parts += ['<h2>Sizes of clusters of copies</h2>', _clusters(facts)]
  parts += ['<h2>What the rules removed</h2>', *_samples(counted)]
  return markup.page('Curation', parts)


def _stage_table(facts: Mapping[str, Any]) -> str:
  stages, rows = facts['stages'], []
  for number, stage in enumerate(stages):
    before = stages[max(number - 1, 0)]
    rows.append(
      [
        stage['name'],
        stage['documents'],
        markup.share(stage['documents'], before['documents']),
        stage['characters'],
        markup.share(stage['characters'], before['characters']),
        stage['tokens'],
        stage['changed'],
        stage['seconds'],
        stage['documents_per_core_second'],
        stage['dollars_per_million'],
      ]
    )
  rows.append(
    ['all']
    + [None] * 6
    + [round(sum(stage['seconds'] for stage in stages), 1), None]
    + [round(sum(stage['dollars_per_million'] for stage in stages), 4)]
  )
  note = (
    '<p>Shares are of what the stage before left. Tokens are estimated from '
    'tokens a character of each source. Seconds are of all workers '
    f'({facts["workers"]}), but of the clock for stages that see all documents '
    'at once; the cost is of a million documents that reach a stage.</p>'
  )
  head = ['stage', 'documents', '', 'characters', '', 'tokens', 'changed']
  return note + markup.table(
    [*head, 'seconds', 'documents/s a core', '$ a million'], rows
  )


def _source_table(stages: Sequence[Mapping[str, Any]]) -> str:
  """Returns a foldable table a stage; the last one is open."""
  parts = []
  for stage in stages:
    rows = [
      [*key.partition('|')[::2], *entry] for key, entry in stage['by'].items()
    ]
    open_tag = ' open' if stage is stages[-1] else ''
    parts.append(
      f'<details{open_tag}><summary>after {html.escape(stage["name"])}'
      '</summary>'
      + markup.table(
        ['source', 'language', 'documents', 'characters', 'tokens'], rows
      )
      + '</details>'
    )
  return '\n'.join(parts)


def _quarantine(facts: Mapping[str, Any]) -> str:
  rows = [
    [name, why, count]
    for name, found in sorted(facts['quarantine'].items())
    for why, count in sorted(found.items())
  ]
  return (
    markup.table(['input', 'reason', 'documents'], rows) if rows else 'Nothing.'
  )


def _groups(facts: Mapping[str, Any]) -> Iterable[str]:
  """Yields a line a stage that sorts documents, with a link to its page."""
  for name, rows in facts['groups'].items():
    before = sum(row['documents'] for row in rows)
    kept = sum(row['kept'] for row in rows)
    yield (
      f'<p><a href="{name}.html">{name}</a>: {len(rows):,} groups, '
      f'{before:,} documents, {markup.share(kept, before)} of them kept.</p>'
    )
  if not facts['groups']:
    yield 'None.'


def _clusters(facts: Mapping[str, Any]) -> str:
  """Returns sizes in powers of two, by rule."""
  rows = []
  for kind, sizes in facts['clusters'].items():
    grouped = collections.Counter()
    for size, count in sizes.items():
      grouped[int(size).bit_length() - 1] += count
    rows += [
      [kind, f'{2**power} – {2 ** (power + 1) - 1}', count]
      for power, count in sorted(grouped.items())
    ]
  return (
    markup.table(['kind', 'documents', 'clusters'], rows) if rows else 'None.'
  )


def _samples(counted: Sequence[Mapping[str, Any]]) -> Iterable[str]:
  """Yields a foldable part a rule: how much, and what, near the threshold."""
  for counts in counted:
    for rule, entry in sorted(counts['removed'].items()):
      count, characters = counting.totals(entry)
      edges = counts['edges'].get(rule.removeprefix(f'{counts["name"]}.'))
      by = ', '.join(f'{key} {n:,}' for key, (n, _) in sorted(entry.items()))
      yield (
        f'<details><summary><code>{html.escape(rule)}</code> removed '
        f'{count:,} documents, {characters:,} characters</summary>'
        f'<p>{html.escape(by)}</p>'
      )
      yield markup.sample_table('removed, at random', counts['samples'][rule])
      if edges:
        near = counting.near(edges)
        yield markup.sample_table(
          'removed, nearest to being kept', near['removed']
        )
        yield markup.sample_table(
          'kept, nearest to being removed', near['kept']
        )
      yield '</details>'


def describe(facts: Mapping[str, Any]) -> list[str]:
  """Returns the funnel as lines of text."""
  lines, before = [], None
  for stage in facts['stages']:
    share = markup.share(stage['documents'], before) if before else ''
    tokens = stage['tokens']
    lines.append(
      f'{stage["name"]:>16} {stage["documents"]:>12,} documents {share:>8} '
      f'{stage["characters"] / 1e6:>10.2f} M characters'
      + (f' {tokens / 1e6:>9.2f} M tokens' if tokens is not None else '')
    )
    before = stage['documents']
  return lines
