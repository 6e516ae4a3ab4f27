"""The ledger: what was judged by whom, what is released, and what is refused."""

import concurrent.futures
import csv
import hashlib
import io
import json
import os

import pytest

from yi_jax.alignment.review import ledger, ledger_sheet, ledger_state
from yi_jax.data import conversations, journal


def _chat(question, answer='Yes.'):
  return (
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  )


def _id(question, answer='Yes.'):
  return conversations.identity(_chat(question, answer))


def _verdict(name, verdict, reason='seen', answer=None):
  messages = _chat(name, answer) if answer else None
  return ledger.Verdict(_id(name), verdict, reason, messages)


@pytest.fixture
def days(monkeypatch):
  """Sets the date of new lines: days[0] = '2026-11-22T08:00:00Z'."""
  found = ['2026-11-20T08:00:00Z']
  monkeypatch.setattr(ledger, 'now', lambda: found[0])
  return found


@pytest.fixture
def book(tmp_path, days):
  """A ledger of three rows, nothing judged."""
  found = ledger.Ledger(tmp_path / 'ledger.jsonl')
  source = {'source': 'en_test'}
  found.add(ledger.Entry(_chat(name), source) for name in 'abc')
  return found


def test_every_line_has_who_when_what_and_why(book, days):
  days[0] = '2026-11-21T09:00:00Z'
  book.review(
    [_verdict('a', 'accept', ''), _verdict('b', 'edit', 'wrong', 'No.')],
    'Ada',
    iteration=2,
    provenance={'file': 'rows.csv'},
  )
  lines = list(map(json.loads, book.path.read_text().splitlines()))
  assert lines[1] == {
    'id': _id('b'),
    'verdict': 'add',
    'reviewer': '',
    'date': '2026-11-20T08:00:00Z',
    'reason': '',
    'iteration': 1,
    'provenance': {'source': 'en_test'},
    'parent': '',
    'messages': list(_chat('b')),
  }
  assert lines[4] == {
    'id': _id('b'),
    'verdict': 'edit',
    'reviewer': 'Ada',
    'date': '2026-11-21T09:00:00Z',
    'reason': 'wrong',
    'iteration': 2,
    'provenance': {'file': 'rows.csv'},
    'new_id': _id('b', 'No.'),
    'messages': list(_chat('b', 'No.')),
  }
  child = book.state().row(_id('b', 'No.'))
  assert (child.parent, child.state) == (_id('b'), 'accepted')


def test_states_and_queries(book):
  book.review([_verdict('a', 'accept'), _verdict('b', 'reject')], 'Ada')
  book.review([_verdict('a', 'edit', 'shorter', 'Y.')], 'Bo', iteration=2)
  state = book.state()
  assert [row.id for row in state.unreviewed()] == [_id('c')]
  # The text of an edit was seen in the iteration of the edit.
  assert [row.id for row in state.unreviewed(2)] == [_id('c')]
  assert [row.id for row in state.unreviewed(3)] == [_id('c'), _id('a', 'Y.')]
  assert state.counts() == {
    'unreviewed': 1,
    'accepted': 1,
    'rejected': 1,
    'edited': 1,
    'overruled': 0,
  }
  assert state.reviewers() == {
    'Ada': {'accept': 1, 'reject': 1, 'rows': 2},
    'Bo': {'edit': 1, 'rows': 1},
  }
  told = [(e.reviewer, e.verdict) for e in state.history(_id('a', 'Y.')[:9])]
  assert told == [('Ada', 'accept'), ('Bo', 'edit')]
  assert state.iterations() == {2: 1}


def test_each_earlier_state_can_be_had(book, days):
  days[0] = '2026-11-21T09:00:00Z'
  book.review([_verdict('a', 'accept')], 'Ada')
  days[0] = '2026-11-22T09:00:00Z'
  book.review([_verdict('a', 'reject')], 'Ada', iteration=2)
  for as_of, expected in (
    ('2026-11-20', 'unreviewed'),
    ('2026-11-21', 'accepted'),
    ('2026-11-21T08:59:59Z', 'unreviewed'),
    ('4', 'accepted'),
    ('', 'rejected'),
  ):
    assert book.state(as_of).row(_id('a')).state == expected, as_of
  days[0] = '2026-11-19T09:00:00Z'  # a clock that was put back
  book.review([_verdict('b', 'accept')], 'Ada')
  assert book.state().row(_id('b')).events[0].date == '2026-11-22T09:00:00Z'
  with pytest.raises(ValueError, match='no date'):
    book.state('yesterday')
  with pytest.raises(ValueError, match='does not have 99 lines'):
    book.state('99')


def test_the_later_verdict_wins_and_the_conflict_is_listed(book):
  book.review([_verdict('a', 'accept')], 'Ada')
  book.review([_verdict('a', 'reject')], 'Ada')  # changed her mind
  assert not book.state().conflicts()
  book.review([_verdict('a', 'edit', 'so', 'Y.')], 'Bo')
  book.review([_verdict('a', 'accept')], 'Ada')
  state = book.state()
  assert state.row(_id('a')).state == 'accepted'
  assert state.row(_id('a', 'Y.')).state == 'overruled'
  assert [row.id for row in state.accepted()] == [_id('a')]
  assert [
    (c.id, c.overruled.reviewer, c.final.reviewer) for c in state.conflicts()
  ] == [(_id('a'), 'Ada', 'Bo'), (_id('a'), 'Bo', 'Ada')]
  # Another iteration is another look, and no conflict.
  book.review([_verdict('a', 'reject')], 'Bo', iteration=2)
  assert len(book.state().conflicts()) == 2


def test_an_edit_can_be_taken_back_by_an_edit(book):
  book.review([_verdict('a', 'edit', 'so', 'Y.')], 'Ada')
  child = ledger.Verdict(_id('a', 'Y.'), 'edit', 'no, so', _chat('a'))
  book.review([child], 'Ada')
  state = book.state()
  assert state.row(_id('a')).state == 'accepted'
  assert state.row(_id('a', 'Y.')).state == 'edited'


def test_an_edit_takes_the_place_of_its_row(book, tmp_path):
  verdicts = [
    _verdict('a', 'edit', 'so', 'Y.'),
    *(_verdict(name, 'accept') for name in 'bc'),
  ]
  book.review(verdicts, 'Ada')
  book.release(tmp_path / 'set.jsonl')
  found = list(conversations.read(str(tmp_path / 'set.jsonl')))
  assert found == [_chat('a', 'Y.'), _chat('b'), _chat('c')]


def test_release_refuses_what_nobody_has_seen(book, tmp_path):
  path = tmp_path / 'set.jsonl'
  book.add([ledger.Entry(_chat('new'), {'generator': 'deepen'}, _id('a'))])
  book.review([_verdict(name, 'accept') for name in 'ab'], 'Ada')
  with pytest.raises(ValueError, match='2 of 4 rows have no verdict'):
    book.release(path)
  assert not path.exists()
  told = book.release(path, leave_out_unreviewed=True)
  assert list(conversations.read(str(path))) == [_chat('a'), _chat('b')]
  assert told == json.loads((tmp_path / 'set.jsonl.manifest.json').read_text())
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert (told['sha256'], told['rows']) == (digest, 2)
  digest = hashlib.sha256(book.path.read_bytes()).hexdigest()
  assert (told['ledger_sha256'], told['ledger_lines']) == (digest, 6)
  assert told['set_sha256'] == ledger.set_hash([_id('b'), _id('a')])
  assert told['left_out_unreviewed'] == 2
  assert told['generated'] == 0
  # A second iteration asks for verdicts of its own.
  with pytest.raises(ValueError, match='4 of 4 rows .* of iteration 2'):
    book.release(path, iteration=2)
  with pytest.raises(ValueError, match='the ledger itself'):
    book.release(book.path, leave_out_unreviewed=True)
  sheet = tmp_path / 'rows.csv'
  sheet.write_text('verdicts')
  with pytest.raises(FileExistsError, match='rows.csv is there and is no rel'):
    book.release(sheet, leave_out_unreviewed=True)
  assert sheet.read_text() == 'verdicts'
  assert book.release(path, leave_out_unreviewed=True)['rows'] == 2


def test_what_was_rejected_does_not_come_back(book):
  book.review([_verdict('a', 'reject')], 'Ada')
  assert book.add([ledger.Entry(_chat('a'), {'source': 'again'})]) == 0
  assert book.state().row(_id('a')).state == 'rejected'


@pytest.mark.parametrize(
  ('verdict', 'message'),
  [
    (_verdict('a', 'acept'), "did you mean 'accept'"),
    (_verdict('a', 'reject', ' '), 'needs a reason'),
    (_verdict('a', 'edit'), 'without a text'),
    (_verdict('a', 'edit', 'so', 'Yes.'), 'changes nothing'),
    (_verdict('a', 'edit', 'so', ' '), 'empty message'),
    (_verdict('z', 'accept'), 'no conversation'),
  ],
)
def test_verdicts_that_cannot_be_write_nothing(book, verdict, message):
  size = book.path.stat().st_size
  with pytest.raises(ValueError, match=message):
    book.review([_verdict('b', 'accept'), verdict], 'Ada')
  with pytest.raises(ValueError, match='needs a reviewer'):
    book.review([_verdict('b', 'accept')], ' ')
  assert book.path.stat().st_size == size


def test_a_cut_line_is_told_and_mended(book, tmp_path):
  whole = book.path.read_bytes()
  for cut, message, rows in (
    (whole[:-20], 'line 3 was cut off; its', 2),
    (whole[:-1], 'line 3 is whole, only its end', 3),
  ):
    book.path.write_bytes(cut)
    with pytest.raises(ValueError, match=r'line 3 was cut off .* --mend='):
      ledger.Ledger(book.path)
    assert message in journal.mend(book.path)
    assert len(ledger.Ledger(book.path).state().rows) == rows
  assert (tmp_path / 'ledger.jsonl.cut').read_bytes()[:5] == whole[:5]
  assert 'is whole' in journal.mend(book.path)
  with pytest.raises(FileNotFoundError, match='no .*to mend'):
    journal.mend(tmp_path / 'none.jsonl')


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('"accept"', '"acept"', "line 4: unknown verdict 'acept'"),
    ('"Ada"', '""', 'line 4: a verdict without a reviewer'),
    ('"Yes."', '"No."', 'line 1: the text is not that of'),
    ('{"id"', '"id"', 'line 1 is not JSON'),
    ('"iteration": 1', '"iteration": "1"', 'line 1: no iteration'),
  ],
)
def test_bad_lines_are_told(book, old, new, message):
  book.review([_verdict('a', 'accept')], 'Ada')
  text = book.path.read_text()
  book.path.write_text(text.replace(old, new, 1))
  with pytest.raises(ValueError, match=message):
    ledger.Ledger(book.path)


def test_a_full_disk_leaves_no_half_line(book, monkeypatch):
  before = book.path.read_bytes()

  def full(handle):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    book.review([_verdict('a', 'accept')], 'Ada')
  assert book.path.read_bytes() == before


def test_several_people_review_at_once(book):
  def judge(number):
    mine = ledger.Ledger(book.path)
    for name in 'abc':
      mine.review([_verdict(name, 'accept', str(number))], f'{number}')

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(judge, range(4)))
  told = ledger.Ledger(book.path).state().reviewers()
  assert told == {str(i): {'accept': 3, 'rows': 3} for i in range(4)}
  assert book.state().version == 15


# ------------------------------------------------------------------- the sheet

_ODD = (
  {'role': 'system', 'content': '=SUM(A1)'},
  {'role': 'user', 'content': 'a, "b"; 你好\r\n[user]\n\\[assistant]\n\n'},
  # A wide space: that line is no header and needs no backslash.
  {'role': 'assistant', 'content': '  x\n[system] \n[user]\u3000\ny\n'},
)


def _sheet(path):
  """Returns the rows of an exported file."""
  if path.suffix == '.jsonl':
    return list(map(json.loads, path.read_text().splitlines()))
  text = path.read_bytes().decode('utf-8-sig')
  return list(csv.DictReader(io.StringIO(text, newline='')))


def _save(path, rows):
  if path.suffix == '.jsonl':
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, rows[0].keys(), delimiter=';')
    writer.writeheader()
    writer.writerows(rows)


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_a_person_fills_in_a_sheet(book, tmp_path, suffix):
  path = tmp_path / f'rows{suffix}'
  entry = ledger.Entry(_ODD, {'generator': 'deepen'}, _id('a'))
  book.add([entry])
  hints = {_id('a'): ['=copy', 'too short']}
  ledger_sheet.write(path, book.state().unreviewed(), hints)
  rows = _sheet(path)
  assert len(rows) == 4
  # Nothing that a spreadsheet would take for a formula or a number.
  if suffix == '.csv':
    assert rows[0]['id'] == f'id:{_id("a")}'
    assert rows[0]['hints'] == "'=copy; too short"
  assert rows[3]['made_by'] == f'deepen, from {_id("a")}'
  assert ledger_sheet.read(path, book.state()) == []
  rows[0].update(verdict='Accept')
  if suffix == '.csv':
    text = rows[1]['conversation'].replace('Yes.', 'No.\r\nNever.')
    rows[1]['conversation'] = text
  else:
    rows[1]['messages'][1]['content'] = 'No.\nNever.'
  rows[1].update(verdict='edit', reason='wrong')
  rows[3].update(verdict='reject', reason='odd')
  _save(path, rows)
  verdicts = ledger_sheet.read(path, book.state())
  assert [(v.id, v.verdict, v.reason) for v in verdicts] == [
    (_id('a'), 'accept', ''),
    (_id('b'), 'edit', 'wrong'),
    (conversations.identity(_ODD), 'reject', 'odd'),
  ]
  assert verdicts[1].messages == _chat('b', 'No.\nNever.')
  assert book.review(verdicts, 'Ada') == 3
  assert book.review(verdicts, 'Ada') == 0  # imported twice
  with pytest.raises(FileExistsError, match='import it first'):
    ledger_sheet.write(path, [], {})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'verdict': 'accept', 'text': 'No.'}, 'the verdict is accept: say edit'),
    ({'text': 'No.'}, 'there is no verdict: edit'),
    ({'verdict': 'edit'}, 'the text is as it was'),
    ({'verdict': 'accept', 'id': 'id:77'}, "no conversation '77'"),
    ({'conversation': 'Yes'}, "begins with 'Yes'"),
  ],
)
def test_sheets_that_are_not_understood(book, tmp_path, changes, message):
  path = tmp_path / 'rows.csv'
  ledger_sheet.write(path, book.state().unreviewed(), {})
  rows = _sheet(path)
  text = changes.pop('text', 'Yes.')
  rows[1]['conversation'] = rows[1]['conversation'].replace('Yes.', text)
  rows[1].update(changes)
  _save(path, rows)
  with pytest.raises(ValueError, match=rf'line 6: .*{message}'):
    ledger_sheet.read(path, book.state())


def test_files_that_are_no_sheets(book, tmp_path):
  state = book.state()
  path = tmp_path / 'rows.csv'
  path.write_bytes('id,verdict,conversation\n,,你'.encode('gbk'))
  with pytest.raises(ValueError, match='CSV UTF-8'):
    ledger_sheet.read(path, state)
  path.write_text('id,verdict\n')
  with pytest.raises(ValueError, match='no column conversation'):
    ledger_sheet.read(path, state)
  with pytest.raises(ValueError, match=r'\.jsonl or \.csv'):
    ledger_sheet.read(tmp_path / 'rows.xlsx', state)
  rows = [{'id': _id('a'), 'verdict': v, 'messages': _chat('a')} for v in 'xy']
  path = tmp_path / 'rows.jsonl'
  _save(path, [{**row, 'verdict': 'accept'} for row in rows])
  with pytest.raises(ValueError, match='line 2: .* stands in rows.jsonl, line'):
    ledger_sheet.read(path, state)
  long = ledger_state.Row('x', _chat('a' * 40_000), '', {}, 1, '')
  short = state.row(_id('a'))
  assert ledger_sheet.write(tmp_path / 'long.csv', [long, short], {}) == 1
  assert [row['id'] for row in _sheet(tmp_path / 'long.csv')] == [
    f'id:{_id("a")}'
  ]
