"""Rows made by a model: from which prompts, what is eliminated, and resuming."""

import json

import pytest

from tests.alignment import conftest
from yi_jax.alignment.making import endpoint, evolve, evolve_run
from yi_jax.alignment.review import ledger
from yi_jax.data import conversations

_TASK = 'Name a river and say through which countries it flows.'
_ANSWER = 'The Danube flows through ten countries, from Germany to Romania.'


def _chat(question, answer=_ANSWER):
  return (
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  )


_OLD = _chat('Name a river.', 'The Danube.')


def _run(name, *replies, old=_OLD, finish='stop'):
  """Returns what a generator makes of replies, and what it asked."""
  asked, left = [], list(replies)

  def ask(messages):
    asked.append(messages[0]['content'])
    return endpoint.Reply(left.pop(0), finish, 0)

  return evolve.get(name).run(old, ask), asked


def test_an_evolved_task_is_answered_as_it_stands():
  old = ({'role': 'system', 'content': 'Be brief.'}, *_OLD)
  made, asked = _run('deepen', f'New task: "{_TASK}"', _ANSWER, old=old)
  assert made == (old[0], *_chat(_TASK))
  assert 'Name a river.' in asked[0]
  assert 'goes deeper' in asked[0]
  assert 'The Danube.' not in asked[0]  # the answer is the model's own
  assert asked[1] == _TASK


def test_chinese_is_asked_in_chinese_and_braces_stay():
  old = _chat('用一句话说明 {question} 是什么', '一个占位符。')
  task = '用一句话说明花括号里的 {answer} 在模板中起什么作用，并举一个例子'
  answer = '它是一个占位符，比如在模板中填入姓名。'
  made, asked = _run('constrain', f'新题目：{task}', answer, old=old)
  assert made == _chat(task, answer)
  assert '只写出新题目' in asked[0]
  assert '说明 {question} 是什么' in asked[0]


def test_all_generators_ask_in_both_languages():
  assert set(evolve.EVOLUTIONS) | {'step_back'} == set(evolve.GENERATORS)
  prompts = set()
  for generator in evolve.GENERATORS.values():
    for language in ('en', 'zh'):
      first = generator.prompts[language][0]
      prompts.add(first)
      filled = evolve.fill(first, {'question': 'Q?', 'answer': 'A.'})
      assert 'Q?' in filled
      assert '{' not in filled
  assert len(prompts) == 2 * len(evolve.GENERATORS)


def test_stepping_back_puts_the_principle_first():
  principle = 'Water runs downhill, so rivers begin in mountains and end low.'
  reasoning = 'The Black Forest is high and the Black Sea low: the Danube.'
  history = _chat('Hi', 'Hello, what may I do?')
  old = (*history, *_OLD)
  made, asked = _run('step_back', principle, reasoning, old=old)
  assert made[:3] == old[:3]
  assert made[3]['content'] == f'{principle}\n\n{reasoning}'
  assert '[assistant] Hello, what may I do?\n[user] Name a river.' in asked[0]
  assert principle in asked[1]
  assert 'The Danube.' in asked[1]


@pytest.mark.parametrize(
  ('replies', 'why'),
  [
    (['Please name a river.', _ANSWER], None),
    (['name a river', _ANSWER], 'task is a copy'),
    (['River?', _ANSWER], 'task too short'),
    (['Rewritten prompt >>> name two long rivers', _ANSWER], 'repeats the'),
    (["I'm unable to write such a task for you.", _ANSWER], 'is a refusal'),
    ([_TASK, 'A river.'], 'answer too short'),
    ([_TASK, "I'm sorry, but I do not know any river."], 'is a refusal'),
    ([_TASK, '很抱歉，我无法回答这个问题。'], 'is a refusal'),
    ([_TASK, 'I am sorry. ' + 'The Danube flows through it. ' * 20], None),
    ([_TASK, _TASK], 'answer repeats the task'),
    ([' '], 'empty reply'),
  ],
)
def test_failed_evolutions_are_eliminated(replies, why):
  if why is None:
    assert _run('breadth', *replies)[0]
    return
  with pytest.raises(evolve.Eliminated, match=why):
    _run('breadth', *replies)


def test_failed_rewritings_are_eliminated():
  text = 'Rivers flow from high places to low ones, to the sea.'
  for replies, why in (
    ([text, text], 'reasoning is the principle'),
    ([text, 'Sorry, I cannot say more about this river.'], 'is a refusal'),
    (['Name a river.', text], 'answer too short'),
  ):
    with pytest.raises(evolve.Eliminated, match=why):
      _run('step_back', *replies)
  with pytest.raises(evolve.Eliminated, match='cut off'):
    _run('step_back', text, text, finish='length')


def test_generators_are_pluggable(monkeypatch):
  monkeypatch.setattr(evolve, 'GENERATORS', dict(evolve.GENERATORS))
  shout = evolve.Generator(
    'shout',
    {'en': ('Say {question} loudly.',)},
    lambda old, replies: _chat(old[0]['content'], replies[0].text.upper()),
  )
  evolve.register(shout)
  made, asked = _run('shout', 'danube')
  assert (made, asked) == (
    _chat('Name a river.', 'DANUBE'),
    ['Say Name a river. loudly.'],
  )
  with pytest.raises(ValueError, match="'shout' already"):
    evolve.register(shout)
  with pytest.raises(ValueError, match="did you mean 'deepen'"):
    evolve.get('depen')


# ------------------------------------------------------------------------ runs

_NAMES = ('deepen', 'constrain')


@pytest.fixture
def parents():
  chats = [_chat(f'Name river number {i}.') for i in range(12)]
  return [
    evolve_run.Parent(conversations.identity(chat), chat) for chat in chats
  ]


def _model(messages):
  """Answers as a model would: a new task, or an answer to one."""
  text = messages[0]['content']
  if '<<<' in text:
    number = text.rpartition('number ')[2].partition('.')[0]
    if number == '3':
      return "I'm sorry, I cannot."
    return f'Tell what is known of the long history of river number {number}.'
  return f'{text} It begins in the mountains and ends in the sea.'


class _Setup:
  def __init__(self, server, folder, parents):
    self.server, self.folder, self.parents = server, folder, parents
    self.asked = endpoint.Endpoint(
      server.url,
      'yi',
      name='mine',
      parallel=3,
      tries=2,
      sampling={'temperature': 0.7},
      sleep=lambda seconds: None,
    )
    self.book = ledger.Ledger(folder / 'ledger.jsonl')

  def run(self, **changes):
    return evolve_run.run(
      self.parents,
      _NAMES,
      self.asked,
      self.folder / 'evolve.jsonl',
      self.book,
      **changes,
    )


@pytest.fixture
def setup(server, tmp_path, parents):
  server.answer = _model
  return _Setup(server, tmp_path, parents)


def test_rows_go_to_the_ledger_unreviewed_with_their_provenance(setup):
  made = setup.run()
  assert (made.rows, made.new, made.asked) == (11, 11, 12)
  assert made.eliminated == {'task is a refusal': 1}
  rows = list(setup.book.state().rows.values())
  assert len(setup.book.state().unreviewed()) == 11
  order = [parent.id for parent in setup.parents]
  del order[3]
  assert [row.parent for row in rows] == order
  told = dict(rows[0].provenance)
  generator = evolve.get(told['generator'])
  assert told.pop('date')[:2] == '20'
  assert told == {
    'generator': generator.name,
    'parent': order[0],
    'prompt_sha256': generator.hash(),
    'model': 'yi',
    'endpoint': 'mine',
    'sampling': {'temperature': 0.7},
    'round': 1,
  }
  assert {row.provenance['generator'] for row in rows} == set(_NAMES)
  with pytest.raises(ValueError, match='11 of 11 rows have no verdict'):
    setup.book.release(setup.folder / 'set.jsonl')


def test_rounds_go_on_with_what_was_made(setup):
  setup.server.answer = lambda messages: (
    f'Now {len(setup.server.requests)} things of this river are wanted here.'
    if '<<<' in messages[0]['content']
    else f'{_ANSWER} {len(setup.server.requests)}'
  )
  made = setup.run(rounds=2)
  rows = setup.book.state().rows
  assert made.rows == len(rows) == 24
  second = [row for row in rows.values() if row.provenance['round'] == 2]
  assert len(second) == 12
  assert all(rows[row.parent].provenance['round'] == 1 for row in second)


def test_a_killed_run_goes_on(setup, tmp_path, server):
  whole = setup.run()
  expected = list(setup.book.state().rows)
  again = _Setup(server, tmp_path / 'again', setup.parents)

  def dies(messages):
    if any(f'number {job}.' in messages[0]['content'] for job in range(6, 12)):
      return 401, {}, b''
    return _model(messages)

  server.requests.clear()
  server.answer = dies
  with pytest.raises(endpoint.EndpointError, match='401'):
    again.run()
  path = tmp_path / 'again' / 'evolve.jsonl'
  kept = path.read_bytes()
  done = kept.count(b'\n')
  assert 0 < done < 12
  assert not again.book.state().rows
  path.write_bytes(kept[:-9])  # and the last line was cut off
  server.requests.clear()
  server.answer = _model
  made = again.run()
  assert made.asked == 12 - (done - 1)
  assert (made.rows, made.eliminated) == (whole.rows, whole.eliminated)
  assert list(again.book.state().rows) == expected
  # Once more asks nobody, and adds nothing.
  server.requests.clear()
  made = again.run()
  assert (made.asked, made.new, server.requests) == (0, 0, [])
  # Other settings are other rows.
  object.__setattr__(again.asked, 'sampling', {'temperature': 0.1})
  assert again.run().asked == 12


def test_a_row_that_is_refused_is_left_out(setup):
  def answer(messages):
    if 'number 5.' in messages[0]['content']:
      return 400, {}, b'{"error": "too long"}'
    if 'number 7.' in messages[0]['content']:
      return 200, {}, conftest.completion('Half a', 'length')
    return _model(messages)

  setup.server.answer = answer
  made = setup.run()
  assert made.eliminated == {'refused': 1, 'cut off': 1, 'task is a refusal': 1}
  lines = (setup.folder / 'evolve.jsonl').read_text().splitlines()
  assert (
    json.loads(lines[5])['eliminated'] == 'refused: 400 Bad Request: too long'
  )


def test_refusals_in_a_row_stop_the_run(setup):
  setup.server.answer = lambda messages: (400, {}, b'unknown setting')
  with pytest.raises(endpoint.EndpointError, match='5 requests in a row'):
    setup.run()
  assert not (setup.folder / 'evolve.jsonl').exists()
