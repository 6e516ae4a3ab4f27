"""Rows to judge as a file that a person edits, and back.

FILE.jsonl is one object a row, for an editor; FILE.csv is for a spreadsheet,
with the whole conversation in one cell:

  [user]
  What is the capital of France?
  [assistant]
  Paris.

Whoever reviews fills in `verdict` (accept, reject or edit) and `reason`, and
changes the text of an edit in its place. A row without a verdict stays for the
next one.
"""

import csv
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from yi_jax.alignment.review import ledger, ledger_state
from yi_jax.data import atomic, chatml, conversations, journal

_COLUMNS = ('id', 'verdict', 'reason', 'hints', 'made_by', 'conversation')
_CELL = 32_767  # characters that a cell of a spreadsheet holds
# Ids of digits alone would become numbers in a spreadsheet, 12e4 too.
_MARK = 'id:'
_HEADER = re.compile(rf'\[({"|".join(chatml.ROLES)})\]')
_ESCAPED = re.compile(rf'(?m)^\\*\[({"|".join(chatml.ROLES)})\][ \t]*$')
_SHOWN = 10  # problems that an error lists


def write(
  path: pathlib.Path,
  rows: Sequence[ledger_state.Row],
  hints: Mapping[str, Sequence[str]],
) -> int:
  """Writes rows to judge; those too long for a cell are in no .csv.

  Args:
    path: .jsonl or .csv.
    rows: of the ledger.
    hints: id -> what was noticed about a row.

  Returns:
    How many were too long.

  Raises:
    ValueError: for another name.
    FileExistsError: if the file is there: it may hold verdicts.
  """
  kind, too_long = _kind(path), 0
  if path.exists():
    raise FileExistsError(
      f'{path} is there, maybe with verdicts: import it first '
      '(--import_review), or give another name'
    )
  entries = [
    {
      'id': row.id,
      'verdict': '',
      'reason': '',
      'hints': list(hints.get(row.id, ())),
      'made_by': _made_by(row),
      'messages': ledger.plain(row.messages),
    }
    for row in rows
  ]
  if kind == '.jsonl':
    content = b''.join(map(journal.to_line, entries))
  else:
    content, too_long = _to_csv(entries)
  atomic.write(path, content)
  return too_long


def read(path: pathlib.Path, state: ledger_state.State) -> list[ledger.Verdict]:
  """Returns the verdicts of a file; rows without one are left out.

  Args:
    path: what `write` has written, with verdicts.
    state: of the ledger, to tell which texts were changed.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: for what is none of it, with the lines.
  """
  kind, found, problems = _kind(path), [], []
  seen: dict[str, str] = {}
  reader = _from_jsonl if kind == '.jsonl' else _from_csv
  for place, entry in reader(path):
    try:
      verdict = _verdict(place, entry, state)
    except ValueError as error:
      problems.append(f'{place}: {error}')
      continue
    if verdict is None:
      continue
    if verdict.id in seen:
      problems.append(f'{place}: {verdict.id} stands in {seen[verdict.id]} too')
    seen[verdict.id] = place
    found.append(verdict)
  if problems:
    rest = len(problems) - _SHOWN
    raise ValueError(
      f'{len(problems):,} rows of {path} are not understood; none was '
      'imported:\n  '
      + '\n  '.join(problems[:_SHOWN])
      + (f'\n  and {rest:,} more' if rest > 0 else '')
    )
  return found


def to_text(messages: Iterable[Mapping[str, str]]) -> str:
  """Returns a conversation as a person edits it.

  A line of the content that looks like a header gets a backslash.
  """
  return '\n'.join(
    f'[{message["role"]}]\n' + _ESCAPED.sub(_escape, _lines(message['content']))
    for message in messages
  )


def from_text(text: str) -> conversations.Messages:
  """Undoes `to_text`.

  Raises:
    ValueError: if the text does not begin with a header.
  """
  messages: list[dict[str, Any]] = []
  for line in _lines(text).split('\n'):
    if header := _HEADER.fullmatch(line.rstrip(' \t')):
      messages.append({'role': header[1], 'content': []})
    elif messages:
      if _ESCAPED.fullmatch(line):
        line = line[1:]
      messages[-1]['content'].append(line)
    elif line.strip():
      raise ValueError(
        f'the conversation begins with {line[:40]!r} and not with a line '
        '[user] or [system]'
      )
  return tuple(
    {'role': m['role'], 'content': '\n'.join(m['content'])} for m in messages
  )


def _escape(match: re.Match[str]) -> str:
  return '\\' + match[0]


def _verdict(
  place: str, entry: Mapping[str, Any], state: ledger_state.State
) -> ledger.Verdict | None:
  """Returns the verdict of a row of a file, None if it has none yet."""
  key = str(entry.get('id') or '').strip().removeprefix(_MARK)
  if not key:
    raise ValueError('no id')
  row = state.row(key)
  verdict = str(entry.get('verdict') or '').strip().lower()
  messages = entry['messages']
  changed = _same_lines(messages) != _same_lines(row.messages)
  if not verdict:
    if changed:
      raise ValueError('the text was changed, and there is no verdict: edit?')
    return None
  if changed and verdict != 'edit':
    raise ValueError(
      f'the text was changed, and the verdict is {verdict}: say edit, or put '
      'the text back'
    )
  if not changed and verdict == 'edit':
    raise ValueError('the verdict is edit, and the text is as it was')
  return ledger.Verdict(
    row.id,
    verdict,
    str(entry.get('reason') or ''),
    messages if verdict == 'edit' else None,
    place,
  )


def _same_lines(
  messages: Sequence[Mapping[str, str]],
) -> list[tuple[Any, Any]]:
  """Returns messages as they compare: spreadsheets change ends of lines."""
  return [(m.get('role'), _lines(m.get('content'))) for m in messages]


def _lines(text: Any) -> Any:
  if not isinstance(text, str):
    return text
  return text.replace('\r\n', '\n').replace('\r', '\n').rstrip('\n')


def _made_by(row: ledger_state.Row) -> str:
  """Returns in a few words where a row comes from."""
  names = ('generator', 'model', 'source', 'file')
  known = [str(row.provenance[n]) for n in names if n in row.provenance]
  return ', '.join([*known, *([f'from {row.parent}'] if row.parent else [])])


def _to_csv(entries: Iterable[Mapping[str, Any]]) -> tuple[bytes, int]:
  """Returns the file, and how many rows no cell holds."""
  text, too_long = io.StringIO(), 0
  writer = csv.writer(text)
  writer.writerow(_COLUMNS)
  for entry in entries:
    shown = to_text(entry['messages'])
    if len(shown) > _CELL:
      too_long += 1
      continue
    cells = [entry['verdict'], entry['reason'], '; '.join(entry['hints'])]
    cells = [*map(_harmless, cells), _harmless(entry['made_by']), shown]
    writer.writerow([f'{_MARK}{entry["id"]}', *cells])
  # With the mark without which Excel takes UTF-8 for another encoding.
  return text.getvalue().encode('utf-8-sig'), too_long


def _harmless(cell: str) -> str:
  """Returns a cell that no spreadsheet takes for a formula."""
  return f"'{cell}" if cell.startswith(('=', '+', '-', '@')) else cell


def _from_csv(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    text = path.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path} is no UTF-8: save it as "CSV UTF-8" in the spreadsheet'
    ) from error
  head = text.partition('\n')[0]
  delimiter = max(',;\t', key=head.count)
  csv.field_size_limit(max(len(text), 131_072))
  rows = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter)
  missing = {'id', 'verdict', 'conversation'} - set(rows.fieldnames or ())
  if missing:
    raise ValueError(
      f'{path} has no column {", ".join(sorted(missing))}; keep those of '
      '--export_review'
    )
  while True:
    place = f'{path.name}, line {rows.line_num + 1}'
    try:
      row = next(rows, None)
      if row is None:
        return
      messages = from_text(row['conversation'] or '')
    except (ValueError, csv.Error) as error:
      raise ValueError(f'{place}: {error}') from error
    yield place, {**row, 'messages': messages}


def _from_jsonl(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
    if not line.strip():
      continue
    place = f'{path.name}, line {number}'
    try:
      row = json.loads(line)
      messages = conversations.from_row(row)
    except ValueError as error:
      raise ValueError(f'{place}: {error}') from error
    yield place, {**row, 'messages': messages}


def _kind(path: pathlib.Path) -> str:
  if path.suffix not in ('.jsonl', '.csv'):
    raise ValueError(f'{path}: rows to review are in a .jsonl or .csv file')
  return path.suffix
