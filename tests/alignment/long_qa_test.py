"""Questions on many documents: verbatim passages, one answer, exact lengths."""

import dataclasses
import json
import random
import re

import pytest

from yi_jax import app
from yi_jax.alignment import long_qa, long_questions
from yi_jax.alignment.making import endpoint, evolve
from yi_jax.data import chatml, conversations, corpus, mixtures, vocabulary
from yi_jax.training import run_config

_SETTINGS = long_qa.Settings((3_000, 2_000), 2, 0, 'chatml')
_NAMES = [
  'Ada',
  'Boris',
  'Clara',
  'Diego',
  'Elena',
  'Farid',
  'Greta',
  'Hugo',
  'Irene',
  'Jonas',
]


def _english(number):
  """Returns a document whose sentences are all its own."""
  draw = random.Random(number)
  return '\n\n'.join(
    f'On day {number * 100 + day} the old sailor {draw.choice(_NAMES)} '
    f'{draw.choice(_NAMES)} wrote that {draw.randint(100, 999_999)} birds had '
    f'crossed the bay.\nThe harbour of number {number} kept a light for '
    f'{draw.randint(10, 99_999)} ships that night.'
    for day in range(draw.randint(6, 14))
  )


def _chinese(number):
  draw = random.Random(number)
  return '\n'.join(
    f'第{number * 100 + line}条　船舶进入第{draw.randint(10, 99_999)}号港口以前，'
    f'应当向《港口管理办法{number}》规定的机关报告。'
    for line in range(draw.randint(8, 20))
  )


_TEXTS = {
  'en': [_english(number) for number in range(30)],
  'zh': [_chinese(number) for number in range(30)],
}


_CONFIG = """
from yi_jax.data import mixtures
from yi_jax.training import run_config

def get_config():
  for language in ('en', 'zh'):
    mixtures.TASKS.pop(f'{{language}}_books_bay', None)
    mixtures.register_files(
      f'{{language}}_books_bay', f'{root}/{{language}}/*.txt'
    )
  c = run_config.base()
  for language in ('en', 'zh'):
    c.data.rates[f'{{language}}_books_bay'] = 0.5
  c.data.root, c.data.vocabulary = '{root}/data', '{root}/words'
  c.data.heldout_bytes = 0
  return c
"""


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A vocabulary of both languages, with the marks of a chat."""
  folder = tmp_path_factory.mktemp('words') / 'vocabulary'
  return vocabulary.train([*_TEXTS['en'], *_TEXTS['zh']], 600, folder)


@pytest.fixture(scope='module')
def builders(words):
  return {
    language: long_qa.Builder(texts, language, _SETTINGS, words)
    for language, texts in _TEXTS.items()
  }


def _write(path, builders, language, count, asked=None, **facts):
  return long_qa.write(
    path, builders[language], language, _SETTINGS, count, facts, asked
  )


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _split(row):
  """Returns the documents and the passages recited of a conversation."""
  question, answer = (message['content'] for message in row['messages'])
  title = r'\n\n(?:Document |文档)\d+[:：]\n'
  first, *rest = re.split(title, question)
  assert str(len(rest)) in first
  rest[-1] = rest[-1].rpartition('\n\n')[0]
  recited = re.findall(
    r'(?:Document |文档)(\d+)(?: says:|中写道：)\n“(.*?)”\n\n',
    answer,
    re.DOTALL,
  )
  return rest, [(int(number), text) for number, text in recited]


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_passages_are_verbatim_and_lengths_are_kept(
  builders, words, tmp_path, language
):
  path = tmp_path / f'{language}.jsonl'
  counts = _write(path, builders, language, 24)
  assert counts['made'] == len(_rows(path)) >= 22
  template = chatml.get('chatml')
  lengths, kinds, places = [], set(), set()
  for row in _rows(path):
    facts, messages = row['provenance'], tuple(row['messages'])
    assert not conversations.problem(messages)
    documents, recited = _split(row)
    assert facts['documents'] == len(documents) > 1
    assert len(recited) == len(facts['asked'])
    for (number, passage), one in zip(recited, facts['asked'], strict=True):
      assert number == one['document']
      assert passage in documents[number - 1]
      assert any(passage in text for text in _TEXTS[language])
      kinds.add(one['kind'])
      places.add(number)
    for document in documents:
      assert any(document in text for text in _TEXTS[language])
    tokens = len(chatml.render(template, messages, words).ids)
    limit = _SETTINGS.lengths[facts['number'] % 2]
    assert tokens == facts['tokens'] <= limit
    lengths.append(tokens / limit)
  assert sum(lengths) / len(lengths) > 0.75
  assert kinds == {'follows', 'gap', 'where'}
  assert len(places) > 2


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_an_answer_can_be_found_in_one_place_only(builders, tmp_path, language):
  path = tmp_path / 'all.jsonl'
  _write(path, builders, language, 16)
  for row in _rows(path):
    documents, recited = _split(row)
    question, answer = (message['content'] for message in row['messages'])
    asked = question.rpartition('\n\n')[2]
    joined = '\n\n'.join(documents)
    for one, (number, passage), quote, said in zip(
      row['provenance']['asked'],
      recited,
      re.findall('“(.*)”', asked),
      re.split(r'”\n\n', answer)[1:],
      strict=True,
    ):
      if one['kind'] == 'where':
        assert joined.count(quote) == 1
        assert str(number) in said
        continue
      told = said.partition('\n\n')[0]
      told = re.split(r'(?: are| by): |是：', told, maxsplit=1)[1]
      if one['kind'] == 'gap':
        whole = re.sub('____|（　　）', lambda _: told, quote, count=1)  # noqa: B023
      else:
        assert joined.count(quote) == 1
        space = ' ' if language == 'en' else ''
        whole = quote + space + told
      assert joined.count(whole) == 1
      assert whole in passage


def test_a_run_goes_on_where_it_was_and_comes_out_the_same(builders, tmp_path):
  whole, parts = tmp_path / 'whole.jsonl', tmp_path / 'parts.jsonl'
  _write(whole, builders, 'en', 6)
  _write(parts, builders, 'en', 2)
  with open(parts, 'a') as file:
    file.write('{"messages": [{"ro')  # killed
  counts = _write(parts, builders, 'en', 6)
  assert (counts['there'], counts['made']) == (2, 4)
  assert parts.read_text() == whole.read_text()
  with pytest.raises(ValueError, match='made with other settings'):
    _write(parts, builders, 'en', 6, tasks=['en_books_other'])


def test_tasks_read_what_was_written(builders, tmp_path, monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  path = tmp_path / 'en.jsonl'
  _write(path, builders, 'en', 3)
  task = mixtures.register_chats('en_knowledge_longqa', str(path))
  found = list(conversations.read(task.chat))
  assert [list(one) for one in found] == [
    row['messages'] for row in _rows(path)
  ]


def test_a_model_may_write_the_questions(builders, server, tmp_path):
  def answer(messages):
    text = messages[0]['content']
    if 'sailor Ada' in text:
      return 'Sure! Which sailor?'  # no JSON
    number = re.search(r'number (\d+)', text)[1]
    reply = {'question': f'What of harbour {number}?', 'answer': 'A light.'}
    return f'```json\n{json.dumps(reply)}\n```'

  server.answer = answer
  asked = endpoint.Endpoint(server.url, 'teacher', parallel=2)
  path = tmp_path / 'en.jsonl'
  counts = _write(path, builders, 'en', 10, asked)
  assert counts['made'] + counts['no question and answer'] == 10
  assert 1 <= counts['made'] <= 9
  for row in _rows(path):
    documents, recited = _split(row)
    assert row['provenance']['generator']['model'] == 'teacher'
    assert all(text in documents[n - 1] for n, text in recited)
    assert 'What of harbour' in row['messages'][0]['content']
    assert row['messages'][1]['content'].endswith('A light.')
    assert row['provenance']['tokens'] <= 3_000
  # What was left out is asked for again, and nothing else is.
  before = len(server.requests)
  server.answer = lambda messages: '{"question": "Who?", "answer": "He."}'
  again = _write(path, builders, 'en', 10, asked)
  assert again['made'] == 10 - counts['made']
  assert again['there'] == counts['made']
  assert len(server.requests) - before <= 2 * again['made']


@pytest.mark.parametrize(
  ('reply', 'problem'),
  [
    ('no idea', 'no question and answer'),
    ('{"question": "Who?"}', 'no question and answer'),
    ('{"question": 3, "answer": "He."}', 'no question and answer'),
    ('{"question": "Who?", "answer": " "}', 'empty'),
    (json.dumps({'question': 'Who? ' * 500, 'answer': 'He.'}), 'many words'),
  ],
)
def test_replies_that_are_none_are_left_out(reply, problem):
  with pytest.raises(evolve.Eliminated, match=problem):
    long_questions.parse(reply)


def test_too_little_text_is_told(words):
  few = long_qa.Builder(_TEXTS['en'][:1], 'en', _SETTINGS, words)
  with pytest.raises(ValueError, match=r"in 'en' joined fill .* of the 9,000"):
    few.draft(9_000, random.Random(0))
  with pytest.raises(ValueError, match="no documents in 'en'"):
    long_qa.Builder([' \n'], 'en', _SETTINGS, words)
  with pytest.raises(ValueError, match=r"en and zh, none in 'code'"):
    long_qa.Builder(['x = 1'], 'code', _SETTINGS, words)
  with pytest.raises(ValueError, match='512 tokens or more'):
    dataclasses.replace(_SETTINGS, lengths=(100,))


def test_held_out_documents_are_not_asked_about(tmp_path, monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  for language, texts in _TEXTS.items():
    path = tmp_path / f'{language}.jsonl'
    rows = (json.dumps({'text': text}) + '\n' for text in texts)
    path.write_text(''.join(rows))
    mixtures.register_files(f'{language}_books_harbour', str(path))
  mixtures.register_chats('en_knowledge_longqa', 'not/there/yet.jsonl')
  data = run_config.base().data
  with data.unlocked():
    data.rates = {
      'en_books_harbour': 0.5,
      'zh_books_harbour': 0.4,
      'en_knowledge_longqa': 0.1,
    }
  data.root, data.heldout_fraction = str(tmp_path / 'data'), 0.3
  data.heldout_bytes = 0
  data.long.tasks = ('en_books_harbour', 'zh_books_harbour')
  found = {k: list(v) for k, v in long_qa.documents(data).items()}
  for language, texts in _TEXTS.items():
    assert set(found[language]) < set(texts)
    assert 0.4 < len(found[language]) / len(texts) < 0.95
  data.long.tasks = ('en_books_plays',)
  with pytest.raises(ValueError, match='plays, which the run does not read'):
    long_qa.documents(data)
  with data.unlocked():
    data.rates, data.long.tasks = {'en_knowledge_longqa': 1.0}, ()
  with pytest.raises(ValueError, match='reads conversations only'):
    long_qa.documents(data)


def test_no_more_of_a_task_is_read_than_is_taken(tmp_path, monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  path = tmp_path / 'en.jsonl'
  rows = (json.dumps({'text': text}) + '\n' for text in _TEXTS['en'])
  path.write_text(''.join(rows))
  mixtures.register_files('en_books_harbour', str(path))
  data = run_config.base().data
  with data.unlocked():
    data.rates = {'en_books_harbour': 1.0}
  data.root, data.heldout_fraction = str(tmp_path / 'data'), 0.1
  data.heldout_bytes = 0
  monkeypatch.setattr(long_qa, '_TASK_BYTES', 1)
  found = long_qa.documents(data)['en']
  read, texts = [], corpus.Corpus.texts

  def count(*args):
    for text in texts(*args):
      read.append(text)
      yield text

  monkeypatch.setattr(corpus.Corpus, 'texts', count)
  assert len(list(found)) == 1
  assert len(read) < 10


def test_the_command_writes_a_file_a_language(
  words, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  words.save(tmp_path / 'words')
  for language, texts in _TEXTS.items():
    (tmp_path / language).mkdir()
    for number, text in enumerate(texts):
      (tmp_path / language / f'{number}.txt').write_text(text)
  file = tmp_path / 'run.py'
  file.write_text(_CONFIG.format(root=tmp_path))

  def run(*flags):
    output = f'--output={tmp_path / "made"}'
    return app.run(
      long_qa.main,
      long_qa.FLAGS,
      example='',
      argv=[f'--config={file}', output, '--count=3', *flags],
    )

  assert run('--lengths=1500,2000') == 0
  for language in ('en', 'zh'):
    rows = _rows(tmp_path / 'made' / f'{language}.jsonl')
    assert [row['provenance']['number'] for row in rows] == [0, 1, 2]
    assert max(row['provenance']['tokens'] for row in rows) <= 2_000
  for flag, problem in (
    ('--lengths=long', '--lengths are numbers'),
    ('--model=teacher', 'need --endpoint'),
    ('--lengths=1600', 'made with other settings'),
  ):
    assert run(flag) == app.BAD_INPUT
    assert problem in capsys.readouterr().err
  # Other text may be held out otherwise, too.
  (tmp_path / 'en/0.txt').write_text(_english(99))
  assert run('--lengths=1500,2000') == app.BAD_INPUT
  assert 'made with other settings or documents' in capsys.readouterr().err
