"""A model with random weights, its tokenizer, and documents of two languages."""

import random

import jax
import pytest

from yi_jax.data import vocabulary
from yi_jax.evaluation import needles, subject
from yi_jax.models import config as config_lib
from yi_jax.models import transformer

_ENGLISH = ('king', 'horse', 'crown', 'storm', 'sea', 'night', 'castle', 'road')
_CHINESE = '国家保护公民的合法权益任何组织和个人不得侵犯本法自公布之日起施行'


@pytest.fixture(scope='session')
def texts():
  """Language -> a text of many sentences, no two alike."""
  draw = random.Random(0)
  english = ' '.join(
    f'The {" ".join(draw.choices(_ENGLISH, k=6))} {n}.' for n in range(300)
  )
  chinese = ''.join(
    f'{"".join(draw.choices(_CHINESE, k=9))}。' for _ in range(300)
  )
  return {'en': english, 'zh': chinese}


@pytest.fixture(scope='session')
def words(texts, tmp_path_factory):
  learned = [
    text
    for language in texts
    for text in (
      texts[language],
      *needles.facts(language, 5, 0)[0].traces(),
      needles.WORDINGS[language].chat,
    )
  ]
  return vocabulary.train(learned, 600, tmp_path_factory.mktemp('x') / 'words')


@pytest.fixture(scope='session')
def model(words):
  config = config_lib.ModelConfig(
    vocab_size=words.size,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=1024,
    initializer_range=0.5,
  )
  return config, transformer.init_params(config, jax.random.key(0))


@pytest.fixture(scope='session')
def base(model, words):
  """The model as one that continues text."""
  return subject.Subject('tiny', *model, words, (2,), None, {'model': 'tiny'})


@pytest.fixture(scope='session')
def compiled(base):
  return base.reader(base.config.max_position_embeddings)


@pytest.fixture
def reader(compiled):
  """A reader with nothing in its cache; programs are compiled once."""
  compiled.read([])
  return compiled


@pytest.fixture
def one_reader(base, reader, monkeypatch):
  """Gives every run that reader."""
  monkeypatch.setattr(type(base), 'reader', lambda subject, length: reader)
  return reader


@pytest.fixture
def files(texts, tmp_path):
  """Language -> a file with its text."""
  for language, text in texts.items():
    (tmp_path / f'{language}.txt').write_text(text, encoding='utf-8')
  return {language: str(tmp_path / f'{language}.txt') for language in texts}
