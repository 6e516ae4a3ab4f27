"""A conversation: what the model reads, and what happens at its edges."""

import io

import pytest

from yi_jax.data import chatml, vocabulary
from yi_jax.serving import chat, writing


class _Script:
  """In place of a Generator: says one answer after the other."""

  compile_seconds = 0.0

  def __init__(self, words, answers):
    self._answers = [words.encode(text) for text in answers]
    self.rows, self.budgets = [], []

  def stream(self, rows, max_new_tokens, **settings):
    self.rows += rows
    self.budgets.append(max_new_tokens)
    return ([[i]] for i in self._answers.pop(0)[:max_new_tokens])


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  folder = tmp_path_factory.mktemp('words') / 'small'
  return vocabulary.train(['the king user assistant:\n#'] * 50, 300, folder)


@pytest.fixture
def begin(words):
  """begin(answers, ...) -> (conversation, its script, its writer)."""

  def make(answers, template='chatml', context=999, most=99, system=None):
    script = _Script(words, answers)
    writer = writing.Writer(script, words, {})
    conversation = chat.Chat(
      writer,
      words,
      chatml.get(template),
      context=context,
      max_new_tokens=most,
      system=system,
    )
    return conversation, script, writer

  return make


def _turns(*texts):
  roles = ('user', 'assistant') * len(texts)
  return [
    {'role': role, 'content': text}
    for role, text in zip(roles, texts, strict=False)
  ]


def _ids(words, turns, template='chatml'):
  return chatml.render(chatml.get(template), turns, words, generate=True).ids


def test_the_model_reads_all_that_was_said(begin, words):
  conversation, script, _ = begin(['the king', 'a horse'])
  assert ''.join(conversation.ask('who?')) == 'the king'
  assert ''.join(conversation.ask('and?')) == 'a horse'
  assert conversation.turns == _turns('who?', 'the king', 'and?', 'a horse')
  assert script.rows == [
    _ids(words, _turns('who?')),
    _ids(words, _turns('who?', 'the king', 'and?')),
  ]
  assert conversation.remark == ''


def test_reset_forgets_and_the_system_message_stays(begin, words):
  conversation, script, _ = begin(['a', 'b'], system='Obey.')
  list(conversation.ask('one'))
  conversation.reset()
  list(conversation.ask('two'))
  system = {'role': 'system', 'content': 'Obey.'}
  assert script.rows[1] == _ids(words, [system, *_turns('two')])


def test_an_interrupted_answer_is_kept_as_far_as_it_came(begin):
  conversation, _, _ = begin(['the king', 'b'])
  answer = conversation.ask('who?')
  said = next(answer) + next(answer)
  answer.close()
  assert conversation.turns == _turns('who?', said)
  # One that had not begun leaves no question behind.
  conversation.ask('and?').close()
  assert conversation.turns == _turns('who?', said)


def test_a_full_context_is_told_and_nothing_is_lost(begin, words):
  size = len(_ids(words, _turns('who?')))
  conversation, script, _ = begin(['xyz xyz'], context=size + 3)
  answer = ''.join(conversation.ask('who?'))
  assert script.budgets == [3]
  assert f'the context of {size + 3} tokens is full' in conversation.remark
  assert answer == 'xyz'
  before = list(conversation.turns)
  with pytest.raises(
    ValueError, match=rf'room for {size + 3} .*: /reset begin'
  ):
    conversation.ask('and?')
  assert conversation.turns == before


def test_an_answer_that_is_cut_is_told(begin):
  conversation, _, _ = begin(['xyz', 'a'], most=2)
  list(conversation.ask('who?'))
  assert conversation.remark == 'cut at 2 tokens; --max_new_tokens allows more'
  list(conversation.ask('who?'))
  assert conversation.remark == ''


def test_what_the_template_adds_to_an_answer_is_hidden(begin, words):
  conversation, script, _ = begin([' the king\n### Human: x', 'b'], 'yi_vl')
  assert ''.join(conversation.ask('who?')) == 'the king\n'
  list(conversation.ask('and?'))
  turns = _turns('who?', 'the king', 'and?')
  assert script.rows[1] == _ids(words, turns, 'yi_vl')
  assert conversation.clean(' a\n### Human:') == 'a\n'


def _type(monkeypatch, lines):
  """Types lines into a terminal; an exception is raised by the prompt."""
  keys = iter(lines)

  def ask(prompt):
    line = next(keys, EOFError())
    if isinstance(line, BaseException):
      raise line
    return line

  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr('sys.stdin', terminal)
  monkeypatch.setattr('builtins.input', ask)


def test_a_terminal_shows_answers_and_how_fast_they_came(
  begin, capsys, monkeypatch
):
  conversation, script, writer = begin(['the king', 'a'])
  _type(monkeypatch, ['who?', '  ', ' /reset is text here'])
  chat.talk(conversation, writer)
  out, error = capsys.readouterr()
  assert out == 'the king\na\n\n'
  assert error.count(' tokens, ') == 2
  assert len(script.rows) == 2
  assert conversation.turns[2]['content'] == ' /reset is text here'


def test_commands_are_carried_out(begin, capsys, monkeypatch):
  conversation, _, writer = begin(['a', 'b'], 'smollm2')
  lines = ['/help', '/system', 'one', '/system  Be brief. ', '/system']
  _type(monkeypatch, [*lines, '/reset', '/resett', '/etc/passwd'])
  chat.talk(conversation, writer)
  error = capsys.readouterr().err
  for text in (
    '/reset         forgets the conversation',
    'named SmolLM',
    'The system message is changed',
    '\nBe brief.\n',
    'A new conversation.',
    "no /resett; did you mean 'reset'?",
    'there is no /etc/passwd; there are: reset, system, help; /help shows',
  ):
    assert text in error, text
  assert (conversation.turns, conversation.system) == ([], 'Be brief.')


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
  begin, capsys, monkeypatch
):
  conversation, script, writer = begin(['the king', 'a'])
  stream = script.stream

  def interrupted(*arguments, **settings):
    made = stream(*arguments, **settings)
    yield next(made)
    raise KeyboardInterrupt

  script.stream = interrupted
  _type(monkeypatch, [KeyboardInterrupt(), 'who?'])
  chat.talk(conversation, writer)
  out, error = capsys.readouterr()
  assert 'Ctrl-D ends.' in error
  assert '; stopped]' in error
  assert conversation.turns == _turns('who?', out.strip())


def test_a_question_stopped_before_its_answer_is_forgotten(begin):
  conversation, script, _ = begin([])

  def interrupted(*arguments, **settings):
    raise KeyboardInterrupt
    yield

  script.stream = interrupted
  with pytest.raises(KeyboardInterrupt):
    list(conversation.ask('who?'))
  assert conversation.turns == []


def test_a_message_that_is_too_long_does_not_end_a_terminal(
  begin, capsys, monkeypatch
):
  conversation, _, writer = begin(['a'], context=40)
  _type(monkeypatch, ['the king ' * 40, 'who?'])
  chat.talk(conversation, writer)
  out, error = capsys.readouterr()
  assert 'and the model has room for 40' in error
  assert out == 'a\n\n'


def test_piped_input_is_one_question(begin, capsys, monkeypatch):
  conversation, _, writer = begin(['the king'])
  monkeypatch.setattr('sys.stdin', io.StringIO('one\n/reset\n'))
  chat.talk(conversation, writer)
  assert capsys.readouterr().out == 'the king\n'
  assert conversation.turns == _turns('one\n/reset', 'the king')
  monkeypatch.setattr('sys.stdin', io.StringIO(' \n'))
  with pytest.raises(ValueError, match='no question on standard input'):
    chat.talk(conversation, writer)
