"""Which answers a model does not support: the figures, and looking them up."""

import jax
import ml_collections
import numpy as np
import pytest

from yi_jax.alignment import rows
from yi_jax.alignment.knowledge import knowledge, knowledge_run
from yi_jax.checkpoints import hf
from yi_jax.data import chatml, conversations, journal, vocabulary
from yi_jax.models import config as model_config
from yi_jax.models import transformer
from yi_jax.serving import generation, opening

_ASKED = 'What is the capital of France?'
_TEXTS = (
  f'{_ASKED} The capital of France is Paris. Question: Answer: 问题：回答：'
  '法国的首都是巴黎。 user assistant',
) * 50


def _chat(question, answer):
  return (
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A small checkpoint of Hugging Face's kind, without a chat template."""
  path = tmp_path_factory.mktemp('knowledge')
  words = vocabulary.train(_TEXTS, 340, path / 'words')
  config = model_config.ModelConfig(
    vocab_size=words.size,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    initializer_range=0.4,
    scan_layers=False,
  )
  params = transformer.init_params(config, jax.random.key(0))
  hf.save_pretrained(config, params, path / 'model', words)
  return path / 'model'


@pytest.fixture(scope='module')
def checkpoint(folder):
  return opening.open_checkpoint(str(folder))


@pytest.fixture(scope='module')
def generator(checkpoint):
  config, params = checkpoint.load()
  return generation.Generator(
    config, params, max_length=256, vocabulary_size=checkpoint.tokenizer.size
  )


# --------------------------------------------------------------------- figures


def test_support_is_of_the_words_that_matter():
  own = ['The capital of France is Paris.', 'It is Paris, on the Seine.']
  assert knowledge.support(_ASKED, 'It is Paris.', own) == 1
  assert knowledge.support(_ASKED, 'The capital of France is Lyon.', own) == 0
  half = knowledge.support(_ASKED, 'Paris, on the Seine', own)
  assert half == pytest.approx((1 / 2 + 1) / 2)
  # An answer of nothing but the question's words is judged by those.
  assert knowledge.support('Is France a capital?', 'France', own) == 0.5
  assert knowledge.support('法国的首都是哪里？', '是巴黎。', ['巴黎']) == 1
  assert knowledge.support(_ASKED, '!', own) == 0


def test_agreement_is_that_of_the_models_answers():
  assert knowledge.agreement(_ASKED, ['Paris.', 'It is Paris.']) == 1
  assert knowledge.agreement(_ASKED, ['Paris.', 'Lyon.', 'Lyon']) == (
    pytest.approx(1 / 3)
  )


def test_an_answer_goes_only_if_both_figures_are_low():
  def why(gap, support, agreement=0.9):
    figures = knowledge.Figures(5, -3, -3 - gap, gap, support, agreement, [])
    return knowledge.why(figures, -1.0, 0.3)

  assert why(-0.9, 0.0) == ''
  assert why(-5.0, 0.3) == ''
  assert 'says otherwise: gap -1.50 < -1, support 0.00' in why(-1.5, 0.0)
  assert 'does not know' in why(-1.5, 0.0, 0.1)


class _Model:
  """Says what it is told to, each token as likely as its id says."""

  def __init__(self, tokenizer, answers):
    self.tokenizer, self.answers, self.asked = tokenizer, answers, []

  def generate(self, prompts, max_new_tokens, *, seed, **settings):
    self.asked += zip(map(tuple, prompts), seed, strict=True)
    assert settings['temperature'] == 0.7
    return [self.tokenizer.encode(self.answers[s]) for s in seed]

  def score(self, rows):
    return [-np.array(row[1:], np.float32) for row in rows]


def test_figures_are_those_of_the_answer_alone(checkpoint):
  layout = knowledge.Layout(checkpoint)
  words = checkpoint.tokenizer
  answers = {7: ' Paris', 8: ' Paris.\n\nQuestion: Is', 9: ' Lyon'}
  model = _Model(words, answers)
  items = [
    *layout.items('a', _chat(_ASKED, 'The capital of France is Paris.')),
    *layout.items('b', _chat(_ASKED, 'Lyon.')),
  ]
  found = knowledge.examine(
    layout,
    model,
    items,
    samples=3,
    temperature=0.7,
    max_new_tokens=9,
    seed=7,
  )
  # Asked once, as both answer the same question.
  prompt = tuple(words.encode(f'Question: {_ASKED}\nAnswer:'))
  assert model.asked == [(prompt, 7), (prompt, 8), (prompt, 9)]

  def mean(text):
    ids = words.encode(f' {text}')
    return len(ids), -sum(ids) / len(ids)

  own = np.mean([mean(text)[1] for text in ('Paris', 'Paris.', 'Lyon')])
  for one, answer, support in zip(
    found, [item.answer for item in items], (2 / 3, 1 / 3), strict=True
  ):
    tokens, value = mean(answer)
    assert one.samples == ['Paris', 'Paris.', 'Lyon']
    assert one.tokens == tokens
    assert one.log_probability == pytest.approx(value)
    assert one.own_log_probability == pytest.approx(own)
    assert one.gap == pytest.approx(value - own)
    assert one.support == pytest.approx(support)
    assert one.agreement == pytest.approx(1 / 3)


def test_a_chat_model_is_asked_in_its_own_template(checkpoint):
  class Chatting:
    """A tokenizer with a chat template."""

    chat_template = chatml.get('chatml').jinja

    def __getattr__(self, name):
      return getattr(checkpoint.tokenizer, name)

  layout = knowledge.Layout(checkpoint._replace(tokenizer=Chatting()))
  assert layout.template == knowledge.Layout(checkpoint, 'chatml').template
  messages = (*_chat('Hi', 'Yes'), *_chat(_ASKED, 'Paris'))
  items = layout.items('a', messages)
  assert [(item.turn, item.answer) for item in items] == [
    (1, 'Yes'),
    (3, 'Paris'),
  ]
  template = chatml.get('chatml')
  whole = chatml.render(template, messages, checkpoint.tokenizer)
  last = [*items[1].prompt, *layout.answer(_ASKED, 'Paris')]
  assert whole.ids[: len(last)] == last
  # The learned part of a conversation is its answers and their ends.
  assert sum(whole.learned) == sum(
    len(layout.answer(item.question, item.answer)) + 1 for item in items
  )


def test_a_base_model_is_asked_in_the_language_of_the_question(checkpoint):
  layout = knowledge.Layout(checkpoint)
  words = checkpoint.tokenizer
  asked = '法国的首都是哪里？'
  assert layout.prompt(_chat(asked, '')[:1]) == words.encode(
    f'问题：{asked}\n回答：'
  )
  assert layout.answer(asked, '巴黎') == words.encode('巴黎')


def test_a_batch_changes_no_figures(checkpoint, generator):
  layout = knowledge.Layout(checkpoint)
  items = [
    layout.items(str(i), _chat(question, answer))[0]
    for i, (question, answer) in enumerate(
      [(_ASKED, 'Paris.'), ('Is the capital Paris?', 'It is France.')]
    )
  ]
  settings = dict(samples=2, temperature=1.0, max_new_tokens=8, seed=0)
  together = knowledge.examine(layout, generator, items, **settings)
  for item, expected in zip(items, together, strict=True):
    [alone] = knowledge.examine(layout, generator, [item], **settings)
    assert alone.samples == expected.samples
    np.testing.assert_allclose(alone[:6], expected[:6], rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match='samples must be at least 2'):
    knowledge.examine(layout, generator, items, **{**settings, 'samples': 1})


# ------------------------------------------------------------------------ runs


def _rows():
  found = []
  for question, answer in (
    (_ASKED, 'Paris.'),
    (_ASKED, 'Lyon.'),
    ('Is it?', 'It is.'),
    ('Long?', 'Paris ' * 400),
  ):
    messages = _chat(question, answer)
    key = conversations.identity(messages)
    found.append(rows.Row(key, 'en_test', 'en', 'knowledge', messages))
  return found


def _config(folder, **changes):
  values = {
    **knowledge_run.defaults(),
    'checkpoint': str(folder),
    'samples': 2,
    'max_new_tokens': 8,
    'batch_size': 1,
    'longest': 100,
    **changes,
  }
  return ml_collections.ConfigDict(values)


def test_a_killed_run_goes_on(folder, tmp_path, monkeypatch, generator):
  # One for all runs, as its programs take longest.
  monkeypatch.setattr(
    knowledge_run.generation, 'Generator', lambda *unused, **kwargs: generator
  )
  config = _config(folder)
  facts = knowledge_run.run(config, _rows(), tmp_path / 'whole')
  assert (facts['answers'], facts['too_long']) == (3, 1)
  expected = (tmp_path / 'whole' / knowledge_run.FILE).read_bytes()
  examine, calls = knowledge.examine, []

  def dies(layout, generator, items, **settings):
    calls.append(items[0].id)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return examine(layout, generator, items, **settings)

  monkeypatch.setattr(knowledge, 'examine', dies)
  with pytest.raises(KeyboardInterrupt):
    knowledge_run.run(config, _rows(), tmp_path / 'cut')
  assert not (tmp_path / 'cut' / knowledge_run.FILE).exists()
  knowledge_run.run(config, _rows(), tmp_path / 'cut')
  assert (tmp_path / 'cut' / knowledge_run.FILE).read_bytes() == expected
  ids = [row.id for row in _rows()]
  assert calls == [ids[0], ids[1], ids[1], ids[2]]
  # Other thresholds ask nobody; other settings ask again.
  changed = _config(folder, gap=100.0, support=1.1)
  facts = knowledge_run.run(changed, _rows(), tmp_path / 'cut')
  assert (facts['flagged'], facts['rows_flagged'], len(calls)) == (3, 3, 4)
  reasons = knowledge_run.read_reasons(tmp_path / 'cut')
  assert list(reasons) == ids[:3]
  assert 'answer 2: the model' in reasons[ids[0]][0]
  knowledge_run.run(_config(folder, seed=1), _rows(), tmp_path / 'cut')
  assert len(calls) == 7
  lines = journal.Journal(tmp_path / 'cut' / knowledge_run.FILE).rows
  assert [line['id'] for _, line in lines] == ids[:3]


def test_bad_settings_are_told(folder, tmp_path):
  with pytest.raises(ValueError, match='checkpoint is missing'):
    knowledge_run.run(_config(''), _rows(), tmp_path)
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    knowledge_run.run(_config('none'), _rows(), tmp_path)
  with pytest.raises(ValueError, match='batch_size'):
    knowledge_run.run(_config(folder, batch_size=0), _rows(), tmp_path)
