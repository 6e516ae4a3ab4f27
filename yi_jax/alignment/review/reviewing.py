"""What `polish` does with the ledger of a workdir.

WORKDIR/ledger.jsonl  who judged which row, see `ledger`
WORKDIR/evolve.jsonl  what models were asked to make, see `evolve_run`
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from yi_jax.alignment import rows
from yi_jax.alignment.knowledge import knowledge_run
from yi_jax.alignment.making import endpoint, evolve, evolve_run
from yi_jax.alignment.review import ledger, ledger_sheet, ledger_state
from yi_jax.data import journal, progress

LEDGER = 'ledger.jsonl'
REASONS = 'reasons.jsonl'  # of `polish`: what it says of each row
_JOURNAL = 'evolve.jsonl'


def defaults() -> dict[str, Any]:
  """Returns the section `review` of a config."""
  return {
    # 'chosen': what polish picks; 'all': what its checks flag too, to mend it.
    'rows': 'chosen',
    'limit': 0,  # rows of one export, in the order of the ledger; 0 is all
  }


def export(
  config: Any, workdir: pathlib.Path, path: pathlib.Path, iteration: int
) -> None:
  """Writes the rows that wait for a verdict to a file.

  Rows of the config that are not in the ledger go there first: those that
  `polish` has chosen, or all before it has run.

  Args:
    config: of the run.
    workdir: folder of the run.
    path: .jsonl or .csv, see `ledger_sheet`.
    iteration: asks for verdicts of that pass; 0 for any.

  Raises:
    ValueError: if no row waits.
  """
  book = _filled(workdir, _chosen(config, workdir))
  state = book.state()
  waiting = state.unreviewed(iteration or None)
  if not waiting:
    raise ValueError(
      f'no row of {book.path} waits for a verdict; another pass over the set is '
      f'--iteration={state.iteration + 1}'
    )
  given = waiting[: config.review.limit or None]
  too_long = ledger_sheet.write(path, given, _hints(workdir, given))
  progress.tell(
    'review',
    f'{len(given) - too_long:,} rows to judge in {path}, of {len(waiting):,} '
    'that wait'
    + (f'; {too_long:,} need a .jsonl, no cell holds them' if too_long else ''),
  )


def take_in(
  workdir: pathlib.Path, path: pathlib.Path, reviewer: str, iteration: int
) -> None:
  """Puts the verdicts of a file into the ledger, and tells what came of it.

  Args:
    workdir: folder of the run.
    path: what `export` wrote, with verdicts.
    reviewer: who gave them.
    iteration: of the pass; 0 is the ledger's own.
  """
  book = _existing(workdir)
  before = len(book.state().conflicts())
  verdicts = ledger_sheet.read(path, book.state())
  new = book.review(
    verdicts, reviewer, iteration=iteration, provenance={'file': path.name}
  )
  state = book.state()
  progress.tell(
    'review',
    f'{len(verdicts):,} verdicts in {path}, {new:,} new; '
    f'{len(state.unreviewed(iteration or None)):,} rows still wait',
  )
  _tell_conflicts(state.conflicts()[before:])


def release(
  workdir: pathlib.Path,
  path: pathlib.Path,
  iteration: int,
  leave_out_unreviewed: bool,
) -> None:
  """Writes the accepted rows to a file; see `ledger.Ledger.release`."""
  told = _existing(workdir).release(
    path,
    leave_out_unreviewed=leave_out_unreviewed,
    iteration=iteration or None,
  )
  progress.tell(
    'release',
    f'{told["rows"]:,} rows in {path}, {told["generated"]:,} of them made by '
    f'models; set {told["set_sha256"][:16]}, ledger '
    f'{told["ledger_sha256"][:16]} at line {told["ledger_lines"]:,}',
  )


def status(workdir: pathlib.Path, as_of: str) -> None:
  """Prints how far the review is, or was; see `ledger.Ledger.state`."""
  state = _existing(workdir).state(as_of)
  counts = ', '.join(f'{n:,} {name}' for name, n in state.counts().items())
  progress.tell('ledger', f'line {state.version:,}: {counts}')
  for number, seen in state.iterations().items():
    progress.tell('pass', f'{number} has seen {seen:,} of the accepted rows')
  for name, found in sorted(state.reviewers().items()):
    kinds = [
      f'{found[kind]:,} {kind}' for kind in ledger_state.VERDICTS if found[kind]
    ]
    progress.tell(
      'reviewer', f'{name}: {found["rows"]:,} rows ({", ".join(kinds)})'
    )
  _tell_conflicts(state.conflicts())


def history(workdir: pathlib.Path, name: str) -> None:
  """Prints a row, where it comes from, and all verdicts on it."""
  state = _existing(workdir).state()
  row = state.row(name)
  print(ledger_sheet.to_text(row.messages))
  made = json.dumps(row.provenance, ensure_ascii=False)
  progress.tell(row.state, f'{row.id}, line {row.line:,}, {row.date}, {made}')
  if row.parent:
    progress.tell('parent', row.parent)
  for event in state.history(row.id):
    into = f' into {event.new_id}' if event.new_id else ''
    progress.tell(
      event.verdict,
      f'{event.id}{into} by {event.reviewer}, {event.date}, iteration '
      f'{event.iteration}: {event.reason or "(no reason)"}',
    )


def make(
  config: Any, workdir: pathlib.Path, names: Sequence[str], rounds: int
) -> None:
  """Has a model make rows of those in the ledger; they wait for review.

  Args:
    config: of the run; sections `endpoint` and `evolve`.
    workdir: folder of the run.
    names: generators.
    rounds: how often, see `evolve_run.run`.

  Raises:
    EndpointError: if the model cannot be asked.
    ValueError: if there is nothing to make rows of.
  """
  for name in names:
    evolve.get(name)
  asked = endpoint.of_config(config.endpoint)
  found = _chosen(config, workdir)
  book = _filled(workdir, found)
  state, abilities = book.state(), set(config.evolve.abilities)
  parents = [
    evolve_run.Parent(row.id, row.messages)
    for row in found
    if state.rows[row.id].state in ('unreviewed', 'accepted')
    and (not abilities or row.ability in abilities)
  ]
  if config.evolve.limit:
    parents = parents[: config.evolve.limit]
  if not parents:
    raise ValueError(
      'there is no row to make others of; see data and evolve.abilities'
    )
  evolve_run.run(
    parents,
    names,
    asked,
    workdir / _JOURNAL,
    book,
    rounds=rounds,
    seed=config.evolve.seed,
  )


def look_up(config: Any, workdir: pathlib.Path) -> None:
  """Tells which answers the model to be tuned does not support."""
  facts = knowledge_run.run(config.knowledge, _chosen(config, workdir), workdir)
  if not facts['answers']:
    raise ValueError('there is no answer to look at; see knowledge.longest')
  progress.tell(
    'knowledge',
    f'{facts["flagged"]:,} of {facts["answers"]:,} answers are not supported, '
    f'in {facts["rows_flagged"]:,} rows; {facts["too_long"]:,} were too long; '
    f'medians: gap {facts["gap"]:.2f}, support {facts["support"]:.2f}, '
    f'agreement {facts["agreement"]:.2f}',
  )
  progress.tell('knowledge', str(workdir / knowledge_run.FILE))


def _chosen(config: Any, workdir: pathlib.Path) -> list[rows.Row]:
  """Returns the rows to review: those chosen, all before `polish` has run."""
  if config.review.rows not in ('chosen', 'all'):
    raise ValueError(
      f'review.rows is {config.review.rows!r}; there are chosen and all'
    )
  found = rows.read(config.data)
  said = _said(workdir)
  if config.review.rows == 'all' or not said:
    return found
  return [row for row in found if said.get(row.id, {}).get('chosen')]


def _said(workdir: pathlib.Path) -> dict[str, journal.Row]:
  """Returns id -> what `polish` says of a row."""
  return {
    line['id']: line for _, line in journal.Journal(workdir / REASONS).rows
  }


def _filled(workdir: pathlib.Path, found: Sequence[rows.Row]) -> ledger.Ledger:
  """Returns the ledger with these rows in it."""
  book = ledger.Ledger(workdir / LEDGER)
  new = book.add(
    ledger.Entry(row.messages, {'source': row.task}) for row in found
  )
  if new:
    progress.tell('ledger', f'{new:,} new rows in {book.path}')
  return book


def _existing(workdir: pathlib.Path) -> ledger.Ledger:
  if not (workdir / LEDGER).exists():
    raise FileNotFoundError(
      f'there is no ledger in {workdir}; --export_review=FILE begins one'
    )
  return ledger.Ledger(workdir / LEDGER)


def _hints(
  workdir: pathlib.Path, waiting: Sequence[ledger_state.Row]
) -> dict[str, list[str]]:
  """Returns id -> what is known against a row."""
  found: dict[str, list[str]] = {}
  for key, line in _said(workdir).items():
    found[key] = [f'{one["check"]}: {one["reason"]}' for one in line['reasons']]
  for row in waiting:
    if row.provenance.get('generator') == 'step_back':
      found[row.id] = [f'rewrites {row.parent}: reject one of the two']
  for key, reasons in knowledge_run.read_reasons(workdir).items():
    found.setdefault(key, []).extend(reasons)
  return found


def _tell_conflicts(found: Sequence[ledger_state.Conflict]) -> None:
  for one in found:
    progress.tell(
      'conflict',
      f'{one.id}: {one.final.reviewer} says {one.final.verdict}, '
      f'{one.overruled.reviewer} said {one.overruled.verdict}; the later counts',
    )
