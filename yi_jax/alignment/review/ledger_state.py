"""What the lines of a ledger come to: rows, verdicts, and who disagrees."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from yi_jax import spelling
from yi_jax.data import conversations, journal

VERDICTS = ('accept', 'reject', 'edit')
# What a row is after its last verdict. An overruled text is one of an edit
# that a later verdict on its parent has set aside.
STATES = ('unreviewed', 'accepted', 'rejected', 'edited', 'overruled')
_AFTER = {'accept': 'accepted', 'reject': 'rejected', 'edit': 'edited'}
_SHOWN = 10  # ids that an error lists


class Event(NamedTuple):
  """A verdict as the ledger has it.

  Attributes:
    line: of the ledger.
    id: of the row it is about.
    verdict: one of VERDICTS.
    reviewer: who gave it.
    date: UTC.
    reason: why.
    iteration: of the pass.
    new_id: of an edit.
  """

  line: int
  id: str
  verdict: str
  reviewer: str
  date: str
  reason: str
  iteration: int
  new_id: str


@dataclasses.dataclass
class Row:
  """A conversation of the set.

  Attributes:
    id: see `conversations.identity`.
    messages: its turns.
    parent: id of the row it was made of, or ''.
    provenance: where it comes from.
    line: of the ledger, that brought it.
    date: of that line.
    events: verdicts on it, and the edit that made it, in order.
    state: one of STATES.
  """

  id: str
  messages: conversations.Messages
  parent: str
  provenance: Mapping[str, Any]
  line: int
  date: str
  events: list[Event] = dataclasses.field(default_factory=list)
  state: str = 'unreviewed'


class Conflict(NamedTuple):
  """Two reviewers of one iteration who disagree.

  Attributes:
    id: of the row.
    overruled: the earlier verdict.
    final: the later one, which counts.
  """

  id: str
  overruled: Event
  final: Event


class State:
  """The set as it was after a line of the ledger.

  Attributes:
    rows: id -> row, in the order they came in.
    version: lines of the ledger that made it.
    iteration: the highest so far, 1 without any.
  """

  def __init__(self, lines: Iterable[tuple[int, journal.Row]]) -> None:
    """Replays lines of a ledger."""
    self.rows: dict[str, Row] = {}
    self.version, self.iteration = 0, 1
    for number, line in lines:
      self.version = number
      self.iteration = max(self.iteration, line['iteration'])
      self._replay(number, line)
    for row in self.rows.values():
      row.state = self._state(row)

  def row(self, name: str) -> Row:
    """Returns a row by its id, or by the beginning of one.

    Raises:
      ValueError: if there is none, or more than one.
    """
    if name in self.rows:
      return self.rows[name]
    found = [key for key in self.rows if name and key.startswith(name)]
    if len(found) == 1:
      return self.rows[found[0]]
    if found:
      raise ValueError(f'{name!r} begins several ids: {some(found)}')
    close = spelling.nearest(name, self.rows) if self.rows else ''
    hint = close if 'did you mean' in close else ''
    raise ValueError(f'no conversation {name!r} in the ledger{hint}')

  def unreviewed(self, iteration: int | None = None) -> list[Row]:
    """Returns the rows that wait for a verdict.

    Args:
      iteration: asks for one of that pass: rows that are accepted and were not
        seen in it wait too. None asks for any verdict.
    """
    waiting = []
    for row in self.rows.values():
      seen = iteration is None or any(
        event.iteration == iteration for event in row.events
      )
      if row.state == 'unreviewed' or (row.state == 'accepted' and not seen):
        waiting.append(row)
    return waiting

  def accepted(self) -> list[Row]:
    """Returns the rows that are in the set; an edit takes its row's place."""
    found = [row for row in self.rows.values() if row.state == 'accepted']
    return sorted(found, key=lambda row: (self._origin(row), row.line))

  def history(self, name: str) -> list[Event]:
    """Returns all verdicts on a row, on those it was made of by edits, and on
    what was made of it, in order."""
    ids, pending = set(), [self.row(name).id]
    while pending:
      key = pending.pop()
      if key in ids or key not in self.rows:
        continue
      ids.add(key)
      for event in self.rows[key].events:
        pending += [event.id, event.new_id]
    events = {e for key in ids for e in self.rows[key].events}
    return sorted(events)

  def conflicts(self) -> list[Conflict]:
    """Returns where reviewers of one iteration disagree, in order."""
    found = []
    for row in self.rows.values():
      own = [event for event in row.events if event.id == row.id]
      for before, after in zip(own, own[1:], strict=False):
        if (
          before.reviewer != after.reviewer
          and before.iteration == after.iteration
          and (before.verdict, before.new_id) != (after.verdict, after.new_id)
        ):
          found.append(Conflict(row.id, before, after))
    return sorted(found, key=lambda conflict: conflict.final.line)

  def reviewers(self) -> dict[str, collections.Counter[str]]:
    """Returns reviewer -> how many verdicts of each kind they gave.

    'rows' counts the rows they have seen, each once.
    """
    seen: dict[str, set[str]] = {}
    counts: dict[str, collections.Counter[str]] = {}
    for event in sorted({e for row in self.rows.values() for e in row.events}):
      name = event.reviewer
      counts.setdefault(name, collections.Counter())[event.verdict] += 1
      seen.setdefault(name, set()).add(event.id)
    for name, ids in seen.items():
      counts[name]['rows'] = len(ids)
    return counts

  def counts(self) -> dict[str, int]:
    """Returns how many rows are in each of STATES."""
    found = collections.Counter(row.state for row in self.rows.values())
    return {state: found[state] for state in STATES}

  def iterations(self) -> dict[int, int]:
    """Returns iteration -> how many of the accepted rows it has seen."""
    found = collections.Counter(
      number
      for row in self.rows.values()
      if row.state == 'accepted'
      for number in {event.iteration for event in row.events}
    )
    return dict(sorted(found.items()))

  def _replay(self, number: int, line: journal.Row) -> None:
    key = line['id']
    if line['verdict'] == 'add':
      self._add(key, line, line.get('parent', ''), number)
      return
    event = Event(
      number,
      *(line[k] for k in ('id', 'verdict', 'reviewer', 'date', 'reason')),
      line['iteration'],
      line.get('new_id', ''),
    )
    if key not in self.rows:
      raise ValueError(f'line {number} of the ledger judges {key}, not in it')
    self.rows[key].events.append(event)
    if event.new_id:
      self._add(event.new_id, line, key, number)
      self.rows[event.new_id].events.append(event)

  def _add(self, key: str, line: journal.Row, parent: str, number: int) -> None:
    if key not in self.rows:
      messages = tuple(line['messages'])
      self.rows[key] = Row(
        key, messages, parent, line['provenance'], number, line['date']
      )

  def _state(self, row: Row) -> str:
    for event in reversed(row.events):
      if event.id == row.id:
        return _AFTER[event.verdict]
      # Made by an edit: it stands as long as that is the last word there.
      if self.rows[event.id].events[-1] == event:
        return 'accepted'
    return 'overruled' if _is_edit(row) else 'unreviewed'

  def _origin(self, row: Row) -> int:
    """Returns the line of the row that edits began with."""
    seen = set()
    while _is_edit(row) and row.id not in seen:
      seen.add(row.id)
      row = self.rows[row.events[0].id]
    return row.line


def _is_edit(row: Row) -> bool:
  """Returns whether an edit brought a row into the ledger."""
  return bool(row.events) and row.events[0].line == row.line


def some(ids: Iterable[str]) -> str:
  """Returns the first ids, and how many more there are."""
  ids = list(ids)
  rest = len(ids) - _SHOWN
  return ', '.join(ids[:_SHOWN]) + (f' and {rest:,} more' if rest > 0 else '')
