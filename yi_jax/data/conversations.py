"""Conversations: the layouts they come in, and what is wrong with them.

A conversation is a tuple of messages {'role', 'content'}: a system message or
none, then user and assistant in turn, an answer last. Files are JSON lines or
one JSON array, plain or .gz, in a layout that each record shows by its keys:

  messages       OpenAI's: {"messages": [{"role": "user", "content": "Hi"}, ...]}
  conversations  ShareGPT's: {"conversations": [{"from": "human", "value": "Hi"}]}
  instruction    Alpaca's: {"instruction", "input", "output", "system", "history"}

What is no conversation is told with file and line. Between the stages of
`prepare` one travels as text, JSON of its messages (`to_text`, `from_text`), so
that surveys, data sets and the choice of what is held out see documents.
"""

import codecs
import collections
import gzip
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from yi_jax.data import chatml, files, sources

Messages = tuple[dict[str, str], ...]

# Names that roles have in files -> chatml.ROLES.
_ROLES = {
  'system': 'system',
  'user': 'user',
  'human': 'user',
  'assistant': 'assistant',
  'gpt': 'assistant',
}
_SHOWN = 10  # problems that an error lists


class Record(NamedTuple):
  """One record of a file.

  Attributes:
    place: file and line, for messages.
    messages: the conversation; empty if it is none.
    problem: why it is none, or ''.
  """

  place: str
  messages: Messages
  problem: str


def read(
  pattern: str,
  *,
  skip_invalid: bool = False,
  skipped: collections.Counter[str] | None = None,
) -> Iterator[Messages]:
  """Yields the conversations of the files of a glob.

  Args:
    pattern: glob; a relative one starts at the repository.
    skip_invalid: leave out what is no conversation instead of stopping.
    skipped: counts what was left out, by reason.

  Raises:
    FileNotFoundError: if no file matches.
    ValueError: after the last file, if records were no conversations: with
      line and reason of the first ones.
  """
  skipped = collections.Counter() if skipped is None else skipped
  problems = []
  for path in files.matches(pattern):
    for record in records(path):
      if not record.problem:
        yield record.messages
      elif skip_invalid:
        skipped[record.problem.partition(':')[0]] += 1
      else:
        problems.append(f'{record.place}: {record.problem}')
  if problems:
    rest = len(problems) - _SHOWN
    raise ValueError(
      f'{len(problems):,} records of {pattern} are no conversations; mend them, '
      'or leave them out with data.chat.skip_invalid:\n  '
      + '\n  '.join(problems[:_SHOWN])
      + (f'\n  and {rest:,} more' if rest > 0 else '')
    )


def records(path: pathlib.Path) -> Iterator[Record]:
  """Yields all records of a file, good and bad.

  Raises:
    ValueError: if the file is damaged as a whole.
  """
  try:
    with gzip.open(path) if path.suffix == '.gz' else open(path, 'rb') as file:
      content = file.read()
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f'{path} is truncated or no gzip file: {error}') from error
  if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise ValueError(f'{path} is UTF-16: save it as UTF-8')
  # With the mark some editors begin UTF-8 with, line 1 would be no JSON.
  content = content.removeprefix(codecs.BOM_UTF8)
  if not content.strip():
    raise ValueError(f'{path} is empty')
  if content.lstrip()[:1] == b'[':
    yield from _array(path, content)
    return
  for number, line in enumerate(content.split(b'\n'), 1):
    if line.strip():
      place = f'{path.name}, line {number}'
      text = sources.decode(line)
      if text is None:
        yield Record(place, (), 'invalid UTF-8')
        continue
      try:
        row = json.loads(text)
      except (ValueError, RecursionError) as error:
        yield Record(place, (), f'no JSON: {error}')
        continue
      yield _record(place, row)


def _array(path: pathlib.Path, content: bytes) -> Iterator[Record]:
  """Yields the records of a JSON array with the lines they begin in."""
  text = sources.decode(content)
  if text is None:
    raise ValueError(f'{path} is not valid UTF-8')
  decoder, at, line, counted = json.JSONDecoder(), text.index('[') + 1, 1, 0
  while True:
    while at < len(text) and text[at] in ' \t\r\n,':
      at += 1
    line += text.count('\n', counted, at)
    counted = at
    if at < len(text) and text[at] == ']':
      if text[at + 1 :].strip():
        raise ValueError(f'{path}, line {line}: more follows after the array')
      return
    try:
      row, at = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      raise ValueError(f'{path}, line {line} is not JSON: {error}') from error
    yield _record(f'{path.name}, line {line}', row)


def _record(place: str, row: Any) -> Record:
  try:
    messages = from_row(row)
  except ValueError as error:
    return Record(place, (), str(error))
  found = problem(messages)
  return Record(place, () if found else messages, found)


def from_row(row: Any) -> Messages:
  """Returns the messages of a record, of whichever layout; not checked yet.

  Raises:
    ValueError: if it is of none of them.
  """
  if isinstance(row, Mapping):
    for key, role, content in (
      ('messages', 'role', 'content'),
      ('conversations', 'from', 'value'),
    ):
      if isinstance(row.get(key), Sequence) and not isinstance(row[key], str):
        turns = [turn for turn in row[key] if isinstance(turn, Mapping)]
        if len(turns) < len(row[key]):
          raise ValueError('a message is no object')
        found = [
          {'role': turn.get(role), 'content': turn.get(content)}
          for turn in turns
        ]
        return _with_system(row.get('system'), found)
    if 'instruction' in row and 'output' in row:
      return _alpaca(row)
  raise ValueError(
    'unknown layout: a record has messages, conversations, or instruction and '
    'output'
  )


def _alpaca(row: Mapping[str, Any]) -> Messages:
  parts = [row['instruction'], row.get('input')]
  history = row.get('history') or []
  if not isinstance(history, list) or any(
    not isinstance(turn, list) or len(turn) != 2 for turn in history
  ):
    raise ValueError('history is no list of [question, answer]')
  turns = [*history, ('\n'.join(str(x) for x in parts if x), row['output'])]
  found = []
  for question, answer in turns:
    found.append({'role': 'user', 'content': question})
    found.append({'role': 'assistant', 'content': answer})
  return _with_system(row.get('system'), found)


def _with_system(system: Any, messages: list[dict[str, Any]]) -> Messages:
  """Returns messages with the roles' names of here."""
  if system:
    messages = [{'role': 'system', 'content': system}, *messages]
  return tuple(
    {**m, 'role': _ROLES.get(str(m['role']), m['role'])} for m in messages
  )


def problem(messages: Sequence[Mapping[str, Any]]) -> str:
  """Returns why messages are no conversation to learn from, '' if they are.

  Texts that spell special tokens are fine: `chatml.render` keeps them text.
  """
  if not messages:
    return 'no messages'
  for number, message in enumerate(messages, 1):
    role, content = message.get('role'), message.get('content')
    if not role:
      return f'no role: message {number}'
    if role not in chatml.ROLES:
      return f'unknown role: {role!r} of message {number}'
    if not isinstance(content, str):
      return f'no text: message {number}'
    if sources.decode(content) is None:
      return f'invalid UTF-8: message {number}'
    if not content.strip():
      return f'empty message: number {number}, of the {role}'
  if messages[0]['role'] == 'system':
    messages = messages[1:]
  wanted = 'user'
  for number, message in enumerate(messages, 1):
    if message['role'] != wanted:
      return (
        f'turns out of order: turn {number} is of the {message["role"]}, and '
        f'the {wanted} was to follow'
      )
    wanted = 'assistant' if wanted == 'user' else 'user'
  if wanted == 'assistant' or not messages:
    return 'no answer at the end'
  return ''


def to_text(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns a conversation as a document."""
  pairs = [[m['role'], m['content']] for m in messages]
  return json.dumps(pairs, ensure_ascii=False)


def from_text(text: str) -> Messages:
  """Undoes `to_text`."""
  return tuple({'role': r, 'content': c} for r, c in json.loads(text))


def identity(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the id of a conversation: 16 hex digits, a hash of its turns.

  Roles and contents decide it, nothing else: it is the same in every file and
  layout, and another as soon as a character changes.
  """
  text = to_text(messages).encode('utf-8', 'surrogatepass')
  return hashlib.sha256(text).hexdigest()[:16]


def question(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the first words of the user.

  Held-out conversations are chosen by it, so that those that begin alike are
  on one side.
  """
  return next(m['content'] for m in messages if m['role'] == 'user')


def answers(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns what the assistant says, a turn a paragraph."""
  return '\n'.join(m['content'] for m in messages if m['role'] == 'assistant')


def words(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns what everybody says, a turn a paragraph."""
  return '\n'.join(m['content'] for m in messages)
