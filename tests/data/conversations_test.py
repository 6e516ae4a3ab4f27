"""Conversations in files: every layout, and what is told about bad records."""

import collections
import gzip
import json

import pytest

from yi_jax.data import conversations

_TURNS = (
  {'role': 'user', 'content': '你好'},
  {'role': 'assistant', 'content': 'Hello.'},
)
_SYSTEM = ({'role': 'system', 'content': 'Be brief.'}, *_TURNS)


@pytest.mark.parametrize(
  ('row', 'want'),
  [
    ({'messages': list(_SYSTEM)}, _SYSTEM),
    (
      {
        'system': 'Be brief.',
        'conversations': [
          {'from': 'human', 'value': '你好'},
          {'from': 'gpt', 'value': 'Hello.'},
        ],
      },
      _SYSTEM,
    ),
    ({'instruction': '你好', 'input': '', 'output': 'Hello.'}, _TURNS),
    (
      {
        'instruction': 'Again',
        'input': 'please',
        'output': 'Yes.',
        'history': [['你好', 'Hello.']],
      },
      (
        *_TURNS,
        {'role': 'user', 'content': 'Again\nplease'},
        {'role': 'assistant', 'content': 'Yes.'},
      ),
    ),
  ],
)
def test_layouts_are_told_by_their_keys(row, want, tmp_path):
  lines = tmp_path / 'a.jsonl'
  lines.write_text(f'{json.dumps(row)}\n\n{json.dumps(row)}\n')
  array = tmp_path / 'b.json'
  array.write_text(json.dumps([row, row], indent=1, ensure_ascii=False))
  packed = tmp_path / 'c.jsonl.gz'
  packed.write_bytes(gzip.compress(lines.read_bytes()))
  for path in (lines, array, packed):
    assert list(conversations.read(str(path))) == [want, want]


def test_a_conversation_survives_as_text():
  assert conversations.from_text(conversations.to_text(_SYSTEM)) == _SYSTEM
  assert conversations.question(_SYSTEM) == '你好'
  assert conversations.answers(_SYSTEM) == 'Hello.'


def _row(*turns):
  roles = dict(s='system', u='user', a='assistant', t='tool')
  return json.dumps(
    {'messages': [{'role': roles[t[0]], 'content': t[1:]} for t in turns]}
  )


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    (_row('ua', 'ub', 'ac'), 'turns out of order: turn 2 is of the user'),
    (_row('aa', 'ub'), 'turns out of order: turn 1 is of the assistant'),
    (_row('ua', 'sb', 'ac'), 'turns out of order: turn 2 is of the system'),
    (_row('ua'), 'no answer at the end'),
    (_row('sa'), 'no answer at the end'),
    (_row('ua', 'a '), 'empty message: number 2'),
    (_row('ua', 'tb'), "unknown role: 'tool' of message 2"),
    ('{"messages": [{"content": "a"}]}', 'no role: message 1'),
    ('{"messages": [{"role": "user", "content": 3}]}', 'no text: message 1'),
    ('{"messages": [{"role": [], "content": "a"}]}', 'no role: message 1'),
    (
      '{"messages": [{"role": [1], "content": "a"}]}',
      'unknown role: [1] of message 1',
    ),
    (
      '{"instruction": "a", "output": "b", "history": 3}',
      'history is no list',
    ),
    ('{"messages": []}', 'no messages'),
    ('{"messages": ["hi"]}', 'a message is no object'),
    ('{"text": "hi"}', 'unknown layout'),
    ('{"messages": [', 'no JSON'),
    ('{"instruction": "a", "output": "\\ud800"}', 'invalid UTF-8: message 2'),
  ],
)
def test_bad_records_are_told_with_their_line(line, reason, tmp_path):
  path = tmp_path / 'chats.jsonl'
  good = _row('ua', 'ab')
  path.write_text(f'{good}\n{line}\n{good}\n')
  with pytest.raises(ValueError, match='chats.jsonl, line 2: ') as error:
    list(conversations.read(str(path)))
  assert reason in str(error.value)
  skipped = collections.Counter()
  found = conversations.read(str(path), skip_invalid=True, skipped=skipped)
  assert len(list(found)) == 2
  assert sum(skipped.values()) == 1


def test_bad_bytes_are_told_with_their_line(tmp_path):
  path = tmp_path / 'chats.jsonl'
  path.write_bytes(_row('ua', 'ab').encode() + b'\n"\xff"\n')
  with pytest.raises(ValueError, match='line 2: invalid UTF-8'):
    list(conversations.read(str(path)))


def test_records_of_an_array_are_told_with_their_line(tmp_path):
  path = tmp_path / 'chats.json'
  rows = [json.loads(_row('ua', 'ab')), json.loads(_row('ua'))]
  path.write_text(json.dumps(rows, indent=2))
  with pytest.raises(ValueError, match='line 14: no answer at the end'):
    list(conversations.read(str(path)))
  path.write_text('[{"messages": [}')
  with pytest.raises(ValueError, match='chats.json, line 1 is not JSON'):
    list(conversations.read(str(path)))


@pytest.mark.parametrize('layout', ['{0}\n{0}', '[{0},\n{0}]'])
def test_the_mark_of_an_editor_is_no_part_of_a_file(layout, tmp_path):
  path = tmp_path / 'chats.json'
  path.write_text(layout.format(_row('ua', 'ab')), 'utf-8-sig')
  assert len(list(conversations.read(str(path)))) == 2


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.jsonl', '{}'.encode('utf-16'), 'a.jsonl is UTF-16'),
    ('a.json', b'[]\n[]', 'line 1: more follows after the array'),
    ('a.json', b'[' * 100_000, 'line 1 is not JSON'),
    ('a.jsonl', b'{"a":' * 100_000, 'line 1: no JSON'),
    # A member whose first block is none.
    (
      'a.gz',
      gzip.compress(b'', mtime=0)[:10] + b'\xff' * 9,
      'a.gz is truncated',
    ),
  ],
)
def test_files_that_are_none_are_named(name, content, message, tmp_path):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(conversations.read(str(path)))


@pytest.mark.parametrize('content', [b'', b' \n', b'\xef\xbb\xbf'])
def test_an_empty_file_is_named(content, tmp_path):
  path = tmp_path / 'chats.jsonl'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='chats.jsonl is empty'):
    list(conversations.read(str(path)))


def test_many_bad_records_are_counted(tmp_path):
  path = tmp_path / 'chats.jsonl'
  path.write_text(f'{_row("ua")}\n' * 30)
  with pytest.raises(ValueError, match='30 records') as error:
    list(conversations.read(str(path)))
  assert 'and 20 more' in str(error.value)


def test_an_id_tells_of_turns_alone():
  asked = {'role': 'user', 'content': 'Hi'}
  told = {'role': 'assistant', 'content': '你好'}
  known = conversations.identity((asked, told))
  assert known == 'cb897c2c25a3efd5'
  alpaca = {'instruction': 'Hi', 'output': '你好'}
  assert conversations.identity(conversations.from_row(alpaca)) == known
  others = [(told, asked), (asked, {**told, 'content': '你好 '}), (asked,)]
  assert len({known, *map(conversations.identity, others)}) == 4
