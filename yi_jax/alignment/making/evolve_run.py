"""Makes rows with generators and puts them into the ledger, unreviewed.

Each result, a row or why there is none, is a line of a journal as soon as those
before it are known. A run that was killed asks for the rest only, and gives the
same rows in the same order; rows made with other prompts, another model or
other settings are made anew.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from yi_jax.alignment.making import endpoint, evolve
from yi_jax.alignment.review import ledger
from yi_jax.data import conversations, journal, progress

_IN_A_ROW = 5  # requests refused one after the other: it is not the rows


def defaults() -> dict[str, Any]:
  """Returns the section `evolve` of a config."""
  return {
    'generators': evolve.EVOLUTIONS,  # a row gets one of them
    'rounds': 1,  # the next one begins with what the last one made
    'abilities': (),  # of the rows to begin with; () is all
    'limit': 0,  # rows to begin with; 0 is all
    'seed': 0,
  }


class Parent(NamedTuple):
  """A row to make another of.

  Attributes:
    id: see `conversations.identity`.
    messages: the conversation.
  """

  id: str
  messages: conversations.Messages


class _Job(NamedTuple):
  """One row to make: of what, and how."""

  parent: Parent
  generator: evolve.Generator
  key: str


@dataclasses.dataclass
class Made:
  """What came of a run.

  Attributes:
    rows: how many rows there are, in the journal before or new.
    new: how many are new in the ledger.
    asked: how many jobs were done in this run and not before.
    eliminated: why -> how many.
  """

  rows: int = 0
  new: int = 0
  asked: int = 0
  eliminated: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


def run(
  parents: Sequence[Parent],
  names: Sequence[str],
  asked: endpoint.Endpoint,
  path: pathlib.Path,
  book: ledger.Ledger,
  *,
  rounds: int = 1,
  seed: int = 0,
) -> Made:
  """Makes a row of each parent, and in later rounds of each row made.

  Args:
    parents: rows to begin with.
    names: generators; each row gets one of them, chosen by its id.
    asked: the endpoint.
    path: the journal.
    book: where the rows go, after each round.
    rounds: how often.
    seed: of the choice.

  Raises:
    EndpointError: if the endpoint cannot be used; the journal has what was
      made until then.
    ValueError: for an unknown generator, or a bad journal.
  """
  generators = {name: evolve.get(name) for name in names}
  if not generators or rounds < 1:
    raise ValueError('there is nothing to do: no generator, or no round')
  journal.mend_if_cut(path)
  log = journal.Journal(path)
  done = {row['key']: row for _, row in log.rows if 'key' in row}
  found = Made()
  for number in range(1, rounds + 1):
    jobs = []
    for parent in parents:
      name = evolve.choose(list(names), f'{number} {parent.id}', seed)
      jobs.append(_job(parent, generators[name], asked))
    entries, seen = [], {parent.id for parent in parents}
    for row in _results(jobs, asked, log, done, found):
      if row['eliminated']:
        found.eliminated[row['eliminated'].partition(':')[0]] += 1
        continue
      entry = ledger.Entry(
        tuple(row['messages']),
        {**row['provenance'], 'round': number},
        row['provenance']['parent'],
      )
      key = conversations.identity(entry.messages)
      if key in seen:
        found.eliminated['made before'] += 1
        continue
      seen.add(key)
      entries.append(entry)
    found.new += book.add(entries)
    found.rows += len(entries)
    _tell(number, found)
    parents = [
      Parent(conversations.identity(e.messages), e.messages) for e in entries
    ]
  return found


def _job(
  parent: Parent, generator: evolve.Generator, asked: endpoint.Endpoint
) -> _Job:
  settings = [parent.id, generator.name, generator.hash(), asked.provenance()]
  text = json.dumps(settings, sort_keys=True)
  return _Job(parent, generator, hashlib.sha256(text.encode()).hexdigest()[:24])


def _results(
  jobs: Sequence[_Job],
  asked: endpoint.Endpoint,
  log: journal.Journal,
  done: dict[str, journal.Row],
  found: Made,
) -> Iterator[journal.Row]:
  """Yields the lines of the journal for jobs, in their order."""
  missing = [job for job in jobs if job.key not in done]
  refused: list[journal.Row] = []  # not written before something passes
  work = functools.partial(_do, asked)
  for job, result in endpoint.in_order(work, missing, asked.parallel):
    if isinstance(result, endpoint.RefusedError):
      refused.append(_line(job, asked, eliminated=f'refused: {result}'))
      if len(refused) >= _IN_A_ROW:
        raise endpoint.EndpointError(
          f'{asked.name} refused {len(refused)} requests in a row: {result}'
        )
      continue
    if isinstance(result, evolve.Eliminated):
      row = _line(job, asked, eliminated=str(result))
    elif isinstance(result, Exception):
      raise result
    else:
      row = _line(job, asked, messages=result)
    lines = [*refused, row]
    log.append(lines)
    done.update({line['key']: line for line in lines})
    found.asked += len(lines)
    refused = []
  log.append(refused)
  done.update({line['key']: line for line in refused})
  found.asked += len(refused)
  for job in jobs:
    yield done[job.key]


def _do(asked: endpoint.Endpoint, job: _Job) -> conversations.Messages:
  return job.generator.run(job.parent.messages, asked.ask)


def _line(
  job: _Job,
  asked: endpoint.Endpoint,
  *,
  messages: conversations.Messages | None = None,
  eliminated: str = '',
) -> journal.Row:
  row: dict[str, Any] = {
    'key': job.key,
    'provenance': evolve.provenance(
      job.generator, job.parent.id, asked.provenance(), ledger.now()
    ),
    'eliminated': eliminated,
  }
  if messages is not None:
    row['messages'] = ledger.plain(messages)
  return row


def _tell(number: int, found: Made) -> None:
  progress.tell(
    'evolve',
    f'round {number}: {found.rows:,} rows so far, {found.new:,} of them new in '
    f'the ledger; eliminated: {_counts(found.eliminated)}',
  )


def _counts(counts: Mapping[str, int]) -> str:
  parts = [f'{count:,} {why}' for why, count in sorted(counts.items())]
  return ', '.join(parts) or 'none'
