"""The verb, on conversations of a few topics with known faults among them."""

import json
import random

import numpy as np
import pytest

from yi_jax import app, polish
from yi_jax.alignment import rows
from yi_jax.alignment.tags import tag_seeds, tags
from yi_jax.curation import language
from yi_jax.data import conversations, mixtures

# What a question asks for -> words of its answers, so that there is something
# to learn besides the seed.
_TOPICS = {
  'Write a poem about the {}.': 'moon silver night soft rhyme heart',
  'Calculate {} times seven.': 'product digits carry total units result',
  'Translate {} for my aunt.': 'means phrase tongue abroad dictionary native',
}
_NOUNS = [
  f'{a}{b}' for a in 'bcdfglmnprst' for b in ('ale', 'ind', 'ook', 'ume')
]
_SCRIPT = '<script>alert("x")</script>'


class _Identifier:
  """Stands in for fastText's model: Han characters are Chinese."""

  def predict(self, text, k):
    han = sum('\u4e00' <= character <= '\u9fff' for character in text)
    label = 'zh' if 2 * han > len(text) else 'en'
    return (f'__label__{label}',), (0.99,)


def _line(question, answer):
  return json.dumps({'instruction': question, 'output': answer})


def _lines():
  draw = random.Random(0)
  lines = []
  for ask, words in _TOPICS.items():
    for noun in _NOUNS:
      said = ' '.join(draw.choices(words.split(), k=8))
      lines.append(_line(ask.format(noun), f'{said.capitalize()} {noun}.'))
  return lines


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  monkeypatch.setattr(language, 'load', lambda path: _Identifier())
  learn = tmp_path / 'learn.jsonl'
  learn.write_text('\n'.join(_lines()))
  mixtures.register_chats('en_instruction_learn', str(learn))
  config = app.load_config('experiments/polish.py')
  config.data.files = str(tmp_path / 'mine.jsonl')
  config.tags.model = str(tmp_path / 'tags')
  config.tags.training.tasks = ('en_instruction_learn',)
  config.tags.training.bits = 12
  config.sample.rows = 30
  return config


def _faulty():
  return [
    *_lines(),
    _line(f'Say {_SCRIPT} to me.', f'Well then {_SCRIPT}.'),
    _line('Show a loop, please.', 'Here:\n```\nfor x'),
    _line('Is a whale a fish?', 'Yes, it is a fish.'),
    _line('is the whale a fish', 'No, it is a mammal.'),
    _line('Is a whale a fish?', 'Yes, it is a fish.'),  # once more
  ]


def _read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_reasons_a_set_and_a_page(config, tmp_path):
  (tmp_path / 'mine.jsonl').write_text('\n'.join(_faulty()))
  workdir = tmp_path / 'run'
  facts = polish.polish(config, workdir)
  count = len(_lines()) + 4
  assert (facts['rows'], facts['distinct']) == (count + 1, count)
  reasons = {row['id']: row for row in _read(workdir / 'reasons.jsonl')}
  assert len(reasons) == count
  by_question = {
    row.exchanges[0][0]: reasons[row.id] for row in rows.read(config.data)
  }
  for question, check, other in (
    ('Show a loop, please.', 'stop', None),
    ('Is a whale a fish?', 'contradictions', 'is the whale a fish'),
    ('is the whale a fish', 'contradictions', 'Is a whale a fish?'),
  ):
    entry = by_question[question]
    assert (entry['status'], entry['chosen']) == ('flagged', False)
    found = {one['check']: one for one in entry['reasons']}
    assert check in found
    if other:
      assert found[check]['others'] == [by_question[other]['id']]
  assert by_question['Is a whale a fish?']['copies'] == 2
  chosen = _read(workdir / 'reviewed.jsonl')
  assert len(chosen) == 30
  assert {row['id'] for row in chosen} == {
    key for key, entry in reasons.items() if entry['chosen']
  }
  for row, record in zip(
    chosen, conversations.records(workdir / 'reviewed.jsonl'), strict=True
  ):
    assert not record.problem
    assert conversations.identity(record.messages) == row['id']
    assert row['tags'] == reasons[row['id']]['tags']
    assert row['difficulty']['level'] == reasons[row['id']]['difficulty']
  assert json.loads((workdir / 'report.json').read_text()) == json.loads(
    json.dumps(facts)
  )
  page = (workdir / 'report.html').read_text()
  assert _SCRIPT not in page
  assert page.count('<script>') == 1
  assert '&lt;script&gt;alert' in page
  assert 'src="data:image/png' in page
  assert 'http' not in page.replace('http-equiv', '')  # it needs nothing else
  assert {path.name for path in workdir.iterdir()} >= {
    *('report.json', 'report.html', 'reviewed.jsonl', 'reasons.jsonl')
  }

  # The same input, the same files; the model of the tags is there by now.
  polish.polish(config, tmp_path / 'again')
  for name in ('reviewed.jsonl', 'reasons.jsonl'):
    again = (tmp_path / 'again' / name).read_bytes()
    assert again == (workdir / name).read_bytes()


def test_tags_are_told_without_the_words_they_are_labelled_by(config, tmp_path):
  model = tags.Tags(config.tags.to_dict())
  model.load(tmp_path)
  metrics = model.card()['metrics']
  by_tag = {row['tag']: row for row in metrics['By tag']}
  assert {'verse', 'calculate', 'translate'} <= set(by_tag)
  for name in ('verse', 'calculate', 'translate'):
    assert by_tag[name]['F1'] > 0.9
    assert by_tag[name]['F1 without seeds'] > 0.9
  # No seed in it: the answer tells.
  row = rows.Row(
    'x',
    'x',
    'en',
    'instruction',
    (
      {'role': 'user', 'content': 'Something on mume.'},
      {'role': 'assistant', 'content': 'Moon silver night soft rhyme mume.'},
    ),
  )
  assert not tags.seeded(row.questions)
  assert 'verse' in model.tag([row])[0]


def test_a_model_of_another_config_is_not_used(config, tmp_path):
  tags.Tags(config.tags.to_dict()).load(tmp_path)
  config.tags.training.seed = 1
  with pytest.raises(ValueError, match='--train=tags'):
    tags.Tags(config.tags.to_dict()).load(tmp_path)


def test_blank_takes_out_every_seed():
  question = 'Explain the poem, 请翻译这首诗'
  assert {'explain', 'verse', 'translate'} <= set(tags.seeded(question))
  assert not tags.seeded(tags.blank(question))


def test_seeds_are_patterns_of_two_languages():
  for tag, seeds in tag_seeds.SEEDS.items():
    assert len(seeds) == 2, tag
    assert all(seeds)
  assert set(tag_seeds.INTENTIONS) <= set(tag_seeds.SEEDS)


def test_f1_is_the_harmonic_mean():
  said, labels = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool)
  precision, recall = 1 / 2, 1 / 3
  wanted = 2 * precision * recall / (precision + recall)
  assert tags.f1(said, labels) == pytest.approx(wanted)


@pytest.mark.parametrize(
  ('line', 'says'),
  [
    ('{"messages": [', 'mine.jsonl, line 2: no JSON'),
    (
      '{"messages": [{"role": "user", "content": "a"}, '
      '{"role": "user", "content": "b"}]}',
      'mine.jsonl, line 2: turns out of order',
    ),
    ('{"question": "a"}', 'mine.jsonl, line 2: unknown layout'),
  ],
)
def test_what_is_no_conversation_is_told_with_file_and_line(
  config, tmp_path, line, says
):
  (tmp_path / 'mine.jsonl').write_text(f'{_lines()[0]}\n{line}\n')
  with pytest.raises(ValueError, match=says):
    polish.polish(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'report.json').exists()
  config.data.chat.skip_invalid = True
  assert len(rows.read(config.data)) == 1


def test_wrong_settings_are_told_before_any_work(config, tmp_path):
  config.sample.exclude = ('stopp',)
  with pytest.raises(ValueError, match="no check 'stopp'"):
    polish.polish(config, tmp_path / 'run')
  config.sample.exclude = ()
  config.sample.rows = 0
  with pytest.raises(ValueError, match='sample.rows is 0'):
    polish.polish(config, tmp_path / 'run')


def test_tasks_without_conversations_are_refused(config):
  config.data.files = ''
  config.data.tasks = ('en_books_plays',)
  with pytest.raises(ValueError, match='en_books_plays has no conversations'):
    rows.read(config.data)
