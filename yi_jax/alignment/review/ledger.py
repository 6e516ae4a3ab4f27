"""The ledger of a set of conversations: who judged which row, when and why.

One JSON object a line, and lines are only ever added, so that each earlier
state of the set can be had again. A line either adds a conversation or says
what a person thinks of one:

  id          of the conversation, see `conversations.identity`
  verdict     'add', 'accept', 'reject' or 'edit'
  reviewer    who judged; '' where a row is added
  date        UTC, 2026-11-22T08:00:00Z
  reason      why
  iteration   which pass over the set, from 1
  provenance  where the row, or the verdict, comes from
  messages    the conversation that 'add' or 'edit' brings
  new_id      of an 'edit': id of its text; the row it is made of is its parent
  parent      of an 'add': id of the row it was made of, if any

An edit replaces its row; its text counts as accepted, as a person wrote it. Of
several verdicts on a row the last line wins; where two reviewers of one
iteration disagree, that is a conflict and listed. Yi tuned its chat models on
fewer than 10,000 dialogues, each one checked, over several iterations
(arXiv:2403.04652, 3.1): here that is something one can ask for.
"""

import datetime
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from yi_jax import spelling
from yi_jax.alignment.review import ledger_state
from yi_jax.data import atomic, conversations, journal

_SHOWN = 10  # problems that an error lists
_DATE = re.compile(r'\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?')


class Entry(NamedTuple):
  """A conversation to put into the set.

  Attributes:
    messages: the conversation.
    provenance: where it comes from.
    parent: id of the row it was made of, or ''.
  """

  messages: conversations.Messages
  provenance: Mapping[str, Any]
  parent: str = ''


class Verdict(NamedTuple):
  """What a person thinks of a row.

  Attributes:
    id: of the row.
    verdict: one of ledger_state.VERDICTS.
    reason: why; needed unless the row is accepted.
    messages: the new text of an edit, otherwise None.
    place: file and line, for messages.
  """

  id: str
  verdict: str
  reason: str = ''
  messages: conversations.Messages | None = None
  place: str = ''


class Ledger:
  """A ledger on disk, which several processes may write."""

  def __init__(self, path: pathlib.Path) -> None:
    """Reads a ledger; it begins with the first line that is added.

    Raises:
      ValueError: for a bad line, with its number.
    """
    self.path = path
    self._journal = journal.Journal(path, _check)

  def state(self, as_of: str = '') -> ledger_state.State:
    """Returns the set as it is, or was.

    Args:
      as_of: a date (the day is included), a date with time in UTC, or a number
        of lines; '' is now.

    Raises:
      ValueError: for anything else, or a bad line.
    """
    self._journal.refresh()
    lines = self._journal.rows
    if as_of.isdigit():
      if int(as_of) > max((number for number, _ in lines), default=0):
        raise ValueError(f'{self.path} does not have {as_of} lines')
      lines = [pair for pair in lines if pair[0] <= int(as_of)]
    elif as_of:
      if not _DATE.fullmatch(as_of):
        raise ValueError(
          f'{as_of!r} is no date (2026-11-22, 2026-11-22T08:00:00Z) and no '
          'number of lines'
        )
      # Lines are compared by their date, and a date alone means its whole day.
      limit = as_of if 'T' in as_of else f'{as_of}T24'
      lines = [pair for pair in lines if pair[1]['date'] <= limit]
    return ledger_state.State(lines)

  def add(self, entries: Iterable[Entry], *, iteration: int = 0) -> int:
    """Puts conversations into the set, unreviewed.

    Those that are in the ledger already stay as they are: what was rejected
    stays rejected.

    Args:
      entries: the conversations.
      iteration: of the pass; 0 is the ledger's own.

    Returns:
      How many are new.

    Raises:
      ValueError: for what is no conversation; then none is added.
    """
    entries = list(entries)
    for number, entry in enumerate(entries, 1):
      if found := conversations.problem(entry.messages):
        raise ValueError(f'conversation {number} to add is none: {found}')
    with self._journal.locked():
      self._journal.refresh_locked()
      state, lines = ledger_state.State(self._journal.rows), {}
      for entry in entries:
        key = conversations.identity(entry.messages)
        if key in state.rows or key in lines:
          continue
        lines[key] = {
          'id': key,
          'verdict': 'add',
          'reviewer': '',
          'date': self._date(),
          'reason': '',
          'iteration': iteration or state.iteration,
          'provenance': dict(entry.provenance),
          'parent': entry.parent,
          'messages': plain(entry.messages),
        }
      self._journal.append_locked(lines.values())
    return len(lines)

  def review(
    self,
    verdicts: Sequence[Verdict],
    reviewer: str,
    *,
    iteration: int = 0,
    provenance: Mapping[str, Any] | None = None,
  ) -> int:
    """Writes down what a person thinks of rows: all verdicts or none.

    A verdict that repeats what the same person said last of a row in the same
    iteration is left out, so that a file may be imported twice.

    Args:
      verdicts: what they think.
      reviewer: their name.
      iteration: of the pass; 0 is the ledger's own.
      provenance: where the verdicts come from.

    Returns:
      How many are new.

    Raises:
      ValueError: for verdicts that cannot be, with their places.
    """
    if not reviewer.strip():
      raise ValueError('a verdict needs a reviewer: give --reviewer=NAME')
    with self._journal.locked():
      self._journal.refresh_locked()
      state, lines, problems = ledger_state.State(self._journal.rows), [], []
      iteration = iteration or state.iteration
      for number, verdict in enumerate(verdicts, 1):
        place = verdict.place or f'verdict {number}'
        if found := _problem(verdict, state):
          problems.append(f'{place}: {found}')
          continue
        row = state.row(verdict.id)
        line = {
          'id': row.id,
          'verdict': verdict.verdict,
          'reviewer': reviewer.strip(),
          'date': self._date(),
          'reason': verdict.reason.strip(),
          'iteration': iteration,
          'provenance': dict(provenance or {}),
        }
        if verdict.messages is not None:
          line['new_id'] = conversations.identity(verdict.messages)
          line['messages'] = plain(verdict.messages)
        if not _repeats(row, line):
          lines.append(line)
      _refuse(problems)
      self._journal.append_locked(lines)
    return len(lines)

  def release(
    self,
    path: pathlib.Path,
    *,
    leave_out_unreviewed: bool = False,
    iteration: int | None = None,
  ) -> dict[str, Any]:
    """Writes the accepted rows to a file, and a manifest beside it.

    Args:
      path: JSON lines of {"messages", "id"}; PATH.manifest.json says what is
        in it, with the hashes of the set and of the ledger.
      leave_out_unreviewed: releases although rows wait for a verdict.
      iteration: asks for verdicts of that pass, see `State.unreviewed`.

    Returns:
      The manifest.

    Raises:
      ValueError: if rows wait and are not left out, or none is accepted.
      FileExistsError: if the file is there and no release.
    """
    about = path.with_name(f'{path.name}.manifest.json')
    if path.resolve() == self.path.resolve():
      raise ValueError(f'{path} is the ledger itself; release to another file')
    if path.exists() and not about.exists():
      raise FileExistsError(
        f'{path} is there and is no release, maybe a sheet with verdicts; give '
        'another name'
      )
    with self._journal.locked():
      self._journal.refresh_locked()
      state = ledger_state.State(self._journal.rows)
      waiting = state.unreviewed(iteration)
      if waiting and not leave_out_unreviewed:
        which = f' of iteration {iteration}' if iteration else ''
        raise ValueError(
          f'{len(waiting):,} of {len(state.rows):,} rows have no verdict{which}: '
          f'{ledger_state.some(row.id for row in waiting)}. Review them '
          '(--export_review), or leave them out (--leave_out_unreviewed)'
        )
      left_out = {row.id for row in waiting}
      rows = [row for row in state.accepted() if row.id not in left_out]
      if not rows:
        raise ValueError(f'no row of {self.path} is accepted yet')
      content = b''.join(
        journal.to_line({'messages': plain(row.messages), 'id': row.id})
        for row in rows
      )
      manifest = {
        'rows': len(rows),
        'sha256': hashlib.sha256(content).hexdigest(),
        'set_sha256': set_hash(row.id for row in rows),
        'ledger': self.path.name,
        'ledger_lines': state.version,
        'ledger_sha256': self._hash(),
        'date': now(),
        'iteration': iteration or state.iteration,
        'left_out_unreviewed': len(waiting),
        'states': state.counts(),
        'seen_in_iteration': {
          str(number): rows for number, rows in state.iterations().items()
        },
        'reviewers': state.reviewers(),
        'conflicts': [
          [c.id, c.overruled.line, c.final.line] for c in state.conflicts()
        ],
        'generated': sum('generator' in row.provenance for row in rows),
      }
      text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
      # First: a kill behind it leaves no file without one.
      atomic.write(about, text.encode())
      atomic.write(path, content)
    return manifest

  def _date(self) -> str:
    """Returns the date of a new line: not before that of the last one."""
    rows = self._journal.rows
    return max(now(), rows[-1][1]['date'] if rows else '')

  def _hash(self) -> str:
    with open(self.path, 'rb') as file:
      content = file.read(self._journal.size)
    return hashlib.sha256(content).hexdigest()


def set_hash(ids: Iterable[str]) -> str:
  """Returns a hash of a set of conversations, whatever their order."""
  return hashlib.sha256('\n'.join(sorted(ids)).encode()).hexdigest()


def now() -> str:
  """Returns the date of a line."""
  found = datetime.datetime.now(datetime.UTC)
  return found.strftime('%Y-%m-%dT%H:%M:%SZ')


def plain(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
  """Returns messages with role and content alone, as they are written."""
  return [{'role': m['role'], 'content': m['content']} for m in messages]


def _check(line: journal.Row) -> None:
  """Raises ValueError for what is no line of a ledger."""
  for key, kind in (
    *(('id', str), ('verdict', str), ('reviewer', str), ('date', str)),
    *(('reason', str), ('iteration', int), ('provenance', dict)),
  ):
    if not isinstance(line.get(key), kind):
      raise ValueError(f'no {key}, so it is no line of a ledger')
  verdict = line['verdict']
  if verdict not in ('add', *ledger_state.VERDICTS):
    hint = spelling.nearest(verdict, ('add', *ledger_state.VERDICTS))
    raise ValueError(f'unknown verdict {verdict!r}{hint}')
  if not _DATE.fullmatch(line['date']):
    raise ValueError(f'{line["date"]!r} is no date')
  if verdict != 'add' and not line['reviewer']:
    raise ValueError('a verdict without a reviewer')
  if verdict in ('add', 'edit'):
    messages = line.get('messages')
    if not isinstance(messages, list) or not all(
      isinstance(message, dict) for message in messages
    ):
      raise ValueError(f'{verdict} without messages')
    if found := conversations.problem(messages):
      raise ValueError(f'no conversation: {found}')
    key = line['id'] if verdict == 'add' else line.get('new_id')
    if conversations.identity(messages) != key:
      raise ValueError(f'the text is not that of {key}: it was changed')


def _problem(verdict: Verdict, state: ledger_state.State) -> str:
  """Returns why a verdict cannot be, '' if it can."""
  if verdict.verdict not in ledger_state.VERDICTS:
    hint = spelling.nearest(verdict.verdict, ledger_state.VERDICTS)
    return f'unknown verdict {verdict.verdict!r}{hint}'
  try:
    row = state.row(verdict.id)
  except ValueError as error:
    return str(error)
  if verdict.verdict != 'accept' and not verdict.reason.strip():
    return f'{verdict.verdict} needs a reason'
  if verdict.verdict != 'edit':
    return '' if verdict.messages is None else f'{verdict.verdict} with a text'
  if verdict.messages is None:
    return 'edit without a text'
  if found := conversations.problem(verdict.messages):
    return f'the new text is no conversation: {found}'
  if conversations.identity(verdict.messages) == row.id:
    return 'edit changes nothing; accept it, or change the text'
  return ''


def _repeats(row: ledger_state.Row, line: journal.Row) -> bool:
  """Returns whether a line says of a row what its last one says."""
  own = [event for event in row.events if event.id == row.id]
  keys = ('verdict', 'reviewer', 'reason', 'iteration')
  return bool(own) and all(
    [*(getattr(own[-1], key) == line[key] for key in keys)]
    + [own[-1].new_id == line.get('new_id', '')]
  )


def _refuse(problems: Sequence[str]) -> None:
  """Raises ValueError if there are problems, with the first ones."""
  if problems:
    rest = len(problems) - _SHOWN
    raise ValueError(
      f'{len(problems):,} verdicts cannot be; none was written:\n  '
      + '\n  '.join(problems[:_SHOWN])
      + (f'\n  and {rest:,} more' if rest > 0 else '')
    )
