"""The verb's flags about the ledger: from a file of rows to a released set."""

import csv
import json

import pytest

from yi_jax import app, polish
from yi_jax.data import conversations


def _chat(question, answer='It is so.'):
  return (
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  )


_ROWS = [_chat('Is it so?'), _chat('Is it not so?'), _chat('Why is it so?')]
_IDS = [conversations.identity(row) for row in _ROWS]


@pytest.fixture
def run(tmp_path, capsys):
  """Runs the verb on three rows; returns its exit code and what it said."""
  lines = [json.dumps({'messages': row}) + '\n' for row in _ROWS]
  (tmp_path / 'rows.jsonl').write_text(''.join(lines))

  def call(*arguments):
    code = app.run(
      polish.main,
      polish.FLAGS,
      example='',
      argv=[
        '--config=experiments/polish.py',
        f'--config.data.files={tmp_path}/rows.jsonl',
        f'--workdir={tmp_path}/run',
        *arguments,
      ],
    )
    said = capsys.readouterr()
    return code, said.out + said.err

  return call


def _judge(path, verdicts):
  """Fills in a sheet: id -> verdict."""
  with open(path, newline='', encoding='utf-8-sig') as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    row['verdict'] = verdicts[row['id'].removeprefix('id:')]
    row['reason'] = 'looked at it'
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  return rows


def test_from_rows_to_a_released_set(run, tmp_path):
  sheet, final = tmp_path / 'sheet.csv', tmp_path / 'set.jsonl'
  code, said = run('--status')
  assert code == app.BAD_INPUT
  assert '--export_review=FILE begins one' in said
  code, said = run(f'--export_review={sheet}')
  assert code == 0, said
  assert '3 rows to judge' in said
  assert run(f'--release={final}')[0] == app.BAD_INPUT
  _judge(sheet, dict(zip(_IDS, ['accept', 'reject', 'accept'], strict=True)))
  code, said = run(f'--import_review={sheet}')
  assert 'give --reviewer=NAME' in said
  code, said = run(f'--import_review={sheet}', '--reviewer=Ada')
  assert '3 verdicts' in said
  assert '3 new; 0 rows still wait' in said
  code, said = run(f'--release={final}')
  assert code == 0, said
  assert list(conversations.read(str(final))) == [_ROWS[0], _ROWS[2]]
  code, said = run('--status')
  assert 'Ada: 3 rows (2 accept, 1 reject)' in said
  code, said = run('--status', '--as_of=3')
  assert 'line 3: 3 unreviewed' in said
  code, said = run(f'--history={_IDS[1][:8]}')
  assert 'Is it not so?' in said
  assert 'by Ada' in said
  # Nothing waits, but for another pass.
  code, said = run(f'--export_review={tmp_path}/more.csv')
  assert '--iteration=2' in said
  code, said = run(
    f'--export_review={tmp_path}/more.csv',
    '--iteration=2',
    '--config.review.limit=1',
  )
  assert '1 rows to judge' in said
  assert 'of 2 that wait' in said


def test_what_polish_says_comes_as_hints(run, tmp_path):
  (tmp_path / 'run').mkdir()
  with open(tmp_path / 'run' / 'reasons.jsonl', 'w') as file:
    for number, key in enumerate(_IDS):
      said = [{'check': 'stop', 'reason': 'no end', 'others': []}]
      line = {'id': key, 'chosen': number < 2, 'reasons': said[:number]}
      file.write(json.dumps(line) + '\n')
  unsupported = {'id': _IDS[0], 'turn': 1, 'why': 'the model does not know'}
  (tmp_path / 'run' / 'knowledge.jsonl').write_text(
    json.dumps(unsupported) + '\n'
  )
  code, said = run(f'--export_review={tmp_path}/sheet.jsonl')
  assert code == 0, said
  lines = (tmp_path / 'sheet.jsonl').read_text().splitlines()
  assert [json.loads(line)['hints'] for line in lines] == [
    ['answer 2: the model does not know'],
    ['stop: no end'],
  ]
  code, said = run(
    f'--export_review={tmp_path}/all.jsonl', '--config.review.rows=all'
  )
  assert '3 rows to judge' in said


def test_a_model_makes_rows_that_wait(run, tmp_path, server):
  principle = 'What is so follows from what was so before, by its causes.'
  server.answer = lambda messages: (
    principle
    if 'Do not answer it yet' in messages[0]['content']
    else 'So it follows here that it is so, step by step.'
  )
  here = (
    f'--config.endpoint.url={server.url}',
    '--config.endpoint.model=yi',
    '--config.evolve.limit=2',
  )
  assert 'endpoint.url is missing' in run('--step_back')[1]
  code, said = run('--step_back', *here)
  assert code == 0, said
  assert '2 rows so far, 2 of them new in the ledger' in said
  code, said = run(f'--export_review={tmp_path}/sheet.jsonl')
  lines = list(
    map(json.loads, (tmp_path / 'sheet.jsonl').read_text().splitlines())
  )
  assert len(lines) == 5
  assert lines[3]['hints'] == [f'rewrites {_IDS[0]}: reject one of the two']
  assert lines[3]['made_by'] == f'step_back, yi, from {_IDS[0]}'
  assert lines[3]['messages'][1]['content'].startswith(principle)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--status', '--release=x.jsonl'), 'give one at a time'),
    (('--status', '--reviewer=Ada'), '--reviewer belongs to --import_review'),
    (('--as_of=3',), '--as_of belongs to --status'),
    (('--knowledge',), 'knowledge.checkpoint is missing'),
    (('--mend=none.jsonl',), 'none.jsonl to mend'),
  ],
)
def test_bad_flags_are_told(run, arguments, message):
  code, said = run(*arguments)
  assert code == app.BAD_INPUT
  assert message in said
