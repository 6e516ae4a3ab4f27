"""Languages: a model in fastText's place, and what the scripts decide."""

import pytest

from yi_jax.curation import documents, language


class _Model:
  """Says what a table says of the first word it knows."""

  said = {
    'hello': [('en', 0.9), ('de', 0.05)],
    'bonjour': [('fr', 0.8), ('en', 0.1)],
    'unsure': [('en', 0.4), ('fr', 0.3)],
    '漢字': [('ja', 0.5), ('zh', 0.3), ('wuu', 0.1), ('en', 0.1)],
    '日本': [('ja', 0.7), ('zh', 0.2)],
  }

  def __init__(self):
    self.asked = []

  def predict(self, text, k):
    text.encode()
    assert '\n' not in text, 'fastText reads one line'
    assert '\x00' not in text
    self.asked.append(text)
    pairs = next((v for w, v in self.said.items() if w in text), [('en', 0.1)])
    labels = tuple(f'__label__{label}' for label, _ in pairs)
    return labels[:k], tuple(score for _, score in pairs)[:k]


@pytest.fixture
def model(monkeypatch):
  """Puts the table in the place of the model's file."""
  model = _Model()
  monkeypatch.setattr(language, 'load', lambda path: model)
  return model


def _batch(*texts, languages=None):
  ids = [str(number) for number in range(len(texts))]
  return documents.Batch(
    ids=ids, texts=list(texts), languages=languages or [''] * len(texts)
  )


def test_others_are_dropped_with_what_they_are(model):
  batch = _batch('hello\nyou', 'bonjour', 'unsure', '漢字', '')
  language.Language({}).process(batch)
  assert batch.languages == ['en', 'fr', 'en', 'zh', '']
  assert batch.removed == [
    '', 'language.other', 'language.score', '', 'language.score'
  ]  # fmt: skip
  assert batch.trails[1] == [('language', 'removed by other: fr 0.800')]
  assert batch.trails[2] == [('language', 'removed by score: en 0.400 < 0.5')]
  assert batch.scores['language_score'][0] == pytest.approx(0.9)


def test_others_can_be_routed_and_thresholds_moved(model):
  batch = _batch('bonjour', 'unsure')
  language.Language({'others': 'route', 'threshold': 0.3}).process(batch)
  assert batch.removed == ['', '']
  assert batch.languages == ['fr', 'en']
  assert batch.trails[0] == [('language', 'routed as fr 0.800')]


def test_han_characters_without_kana_are_chinese(model):
  assert language.identify(model, '漢字' * 9) == ('zh', 1.0)
  label, score = language.identify(model, '漢字 with many letters in Latin')
  assert (label, score) == ('ja', 0.5)
  assert language.identify(model, '日本の文字はひらがなである')[0] == 'ja'


def test_code_that_comes_as_code_is_believed(model):
  batch = _batch('bonjour', 'bonjour', languages=['code', 'en'])
  language.Language({}).process(batch)
  assert batch.removed == ['', 'language.other']
  assert batch.languages == ['code', 'fr']


def test_addresses_are_not_read(model):
  language.identify(model, 'see https://bonjour.fr/a?b @bonjour #bonjour x')
  assert model.asked == ['see x']
  language.identify(model, 'see https://bonjour.fr', strip_addresses=False)
  assert model.asked[1] == 'see https://bonjour.fr'


def test_numbers_and_nothing_have_no_language(model):
  for text in ('', '123 456', ' \n ', '\x00', '!?'):
    assert language.identify(model, text) == ('', 0.0)


def test_lone_surrogates_and_line_ends_are_read_over(model):
  assert language.identify(model, 'hello\ud800\x00\nyou') == ('en', 0.9)


def test_windows_lie_over_the_whole_text(model):
  text = ''.join(chr(0x100 + n) for n in range(10_000))
  sample = language.windows(text, 400)
  assert len(sample) == 400 + 3
  assert sample.startswith(text[:100])
  assert sample.endswith(text[-100:])
  assert language.windows(text, 10_000) == text
  language.identify(model, 'a' * 1_000_000, size=2_000)
  assert len(model.asked[0]) < 2_100


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'lang': 1}, "language has no key 'lang'; did you mean 'languages'"),
    ({'others': 'keep'}, "language.others is 'keep': 'drop' or 'route'"),
    ({'threshold': 50}, 'language.threshold is 50: a probability'),
  ],
)
def test_a_wrong_config_names_the_key(config, message):
  with pytest.raises(ValueError, match='language') as error:
    language.Language(config)
  assert message in str(error.value)


def test_a_model_that_is_missing_names_the_command(tmp_path):
  stage = language.Language({'model': str(tmp_path / 'lid.ftz')})
  for use in (stage.identity, stage.setup):
    with pytest.raises(FileNotFoundError, match='yi_jax.data.raw --group=text'):
      use()


def test_another_model_is_another_identity(tmp_path):
  path = tmp_path / 'lid.ftz'
  stage = language.Language({'model': str(path)})
  path.write_bytes(b'one')
  first = stage.identity()
  path.write_bytes(b'two')
  assert stage.identity() != first
