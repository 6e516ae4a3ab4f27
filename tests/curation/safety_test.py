"""Safety: classes come from lists; a score alone removes nothing."""

import pathlib

import pytest

from yi_jax.curation import documents, safety


@pytest.fixture(scope='module')
def stage(made_up_sources, tmp_path_factory, subject):
  """A trained stage; subject 0 is 'danger', by two of its words."""
  folder = tmp_path_factory.mktemp('safety')
  words = sorted(set(subject(0, 1, 1)[0].lower().replace('.', '').split()))
  path = folder / 'list.txt'
  path.write_text(
    '# Two classes.\n[danger]\n' + '\n'.join(words[:6]) + '\n[rare]\nnever\n'
  )
  one = _stage(folder, path)
  one.train(folder)
  return one


def _stage(folder, path, **settings):
  return safety.Safety(
    {
      'model': str(folder / 'model'),
      'drop': {'danger': 0.5},
      'record': True,
      'training': {
        'lists': {'en': str(path)},
        'sources': {'en': ['calm_0', 'calm_1', 'loud_2']},
        'bits': 12,
        'least': 5,
      },
      **settings,
    }
  )


def _again(stage, **settings):
  return safety.Safety({**stage.settings, **settings})


def _batch(texts, language='en'):
  return documents.Batch(
    ids=[str(n) for n in range(len(texts))],
    texts=list(texts),
    languages=[language] * len(texts),
  )


def test_a_subject_is_known_by_what_stands_around_the_words(stage, subject):
  (about,), (other,) = subject(0, 1, 50), subject(1, 1, 50)
  blanked = stage._terms['en'].blank(about) if stage._weights else about
  batch = stage.process(_batch([about, other, blanked]))
  values = batch.scores['safety.danger']
  assert values[0] > 0.5 > values[1]
  assert batch.scores['safety'][0] == values[0]
  (blanked,) = [stage._terms['en'].blank(about)]
  batch = stage.process(_batch([blanked]))
  assert batch.scores['safety'][0] > 0.5
  # None of the words stands there: the score alone removes nothing.
  assert batch.removed == ['']


def test_only_what_the_config_names_goes_and_the_rest_is_noted(stage, subject):
  (about,) = subject(0, 1, 51)
  batch = stage.process(_batch([about]))
  assert batch.removed == ['safety.danger']
  assert 'words' in batch.trails[0][0][1]
  batch = _again(stage, drop={}, note=0.5).process(_batch([about]))
  assert batch.removed == ['']
  assert batch.metadata[0]['safety'].keys() == {'danger'}
  assert not batch.trails[0]
  batch = _again(stage, drop={}, note=1.0, record=False).process(
    _batch([about])
  )
  assert batch.metadata == [{}]
  assert 'safety.danger' not in batch.scores


def test_a_class_with_too_few_texts_is_scored_by_its_list(stage):
  card = stage.card()
  assert card['classes'] == {'en': ['danger']}
  danger, rare = card['metrics']['By class']
  assert danger['AUC'] > 0.9
  assert rare['texts'] == 0
  assert rare['AUC'] == ''
  texts = ['never ' * 3 + 'x ' * 200, 'never ' * 20, 'nevermore']
  values = stage.process(_batch(texts)).scores['safety.rare']
  assert values.tolist() == pytest.approx([0.6, 1, 0])


def test_another_list_is_another_model(stage):
  path = pathlib.Path(stage.training['lists']['en'])
  before = path.read_text()
  path.write_text(before + 'ever\n')
  with pytest.raises(ValueError, match='trained by another config'):
    _again(stage).trained()
  path.write_text(before)
  assert _again(stage).trained()


def test_the_lists_of_the_package_have_yi_classes_in_both_languages():
  for file in safety.defaults()['training']['lists'].values():
    found = safety.read_list(file)
    assert tuple(found) == safety.CLASSES
    assert all(len(terms) >= 5 for terms in found.values())


def test_terms_are_counted_by_class_and_blanked():
  terms = safety.Terms({'a': ['cat', 'dog'], 'b': ['dog']}, bounds=True)
  assert terms.count('A Dog, a cat; a dog. Catalogue.') == {'a': 3, 'b': 2}
  assert terms.blank('The Dog sat') == 'the   sat'
  assert safety.Terms({'a': ['猫']}, bounds=False).count('黑猫') == {'a': 1}


def test_wrong_configs_are_told(tmp_path):
  with pytest.raises(ValueError, match="safety.drop is 'danger': one of"):
    safety.Safety({'drop': {'danger': 0.5}})
  with pytest.raises(ValueError, match='safety.drop.violence is 3'):
    safety.Safety({'drop': {'violence': 3}})
  (tmp_path / 'x.txt').write_text('word\n')
  with pytest.raises(ValueError, match='above the first'):
    safety.read_list(str(tmp_path / 'x.txt'))
  with pytest.raises(FileNotFoundError, match='y.txt'):
    safety.read_list(str(tmp_path / 'y.txt'))
