"""Coherence: seams of glued documents are found, and what comes of them."""

import json

import ml_collections
import numpy as np
import pytest

from yi_jax.curation import coherence, documents, engine, explain

_TRAINING = {
  'sources': {'en': ['calm_0', 'calm_1', 'calm_2'], 'zh': ['zh_calm']},
  'dimensions': 8,
}


@pytest.fixture(scope='module')
def stage(made_up_sources, tmp_path_factory):
  """A trained stage."""
  folder = tmp_path_factory.mktemp('coherence')
  one = coherence.Coherence(
    {'model': str(folder / 'model'), 'training': _TRAINING, 'threshold': 0.5}
  )
  one.train(folder)
  return one


@pytest.fixture
def glued(subject):
  """A whole document, one of two subjects, and a short one."""
  first, second = subject(0, 2, 41)
  other = subject(1, 1, 42)[0]
  texts = [first + '\n' + second, first + '\n' + other, 'Short.']
  return documents.Batch(
    ids=['a', 'b', 'c'],
    texts=texts,
    languages=['en'] * 3,
    trails=[[('language', 'en')], [('language', 'en')], []],
    metadata=[{}, {'k': 1}, {}],
  ), len(first) + 1


def _with(stage, **settings):
  return coherence.Coherence({**stage.settings, **settings})


def test_a_glued_document_goes_on_in_its_parts(stage, glued):
  batch, seam = glued
  first, second = batch.texts[1][:seam], batch.texts[1][seam:]
  done = stage.process(batch)
  assert done.ids == ['a', 'b', 'c', 'b~part1', 'b~part2']
  assert done.removed == ['', 'coherence.split', '', '', '']
  assert done.texts[3:] == [first.strip(), second.strip()]
  assert done.trails[3] == [
    ('language', 'en'),
    ('coherence', 'part of b'),
  ]
  assert done.metadata[3] == {'k': 1}
  assert done.metadata[3] is not done.metadata[4]
  values = done.scores['coherence']
  assert values[0] > 0.5 > values[1]
  assert np.isnan(values[2:]).all()  # too short, and the parts


def test_the_engine_takes_parts_as_documents(stage, glued, tmp_path):
  batch, _ = glued
  rows = zip(batch.ids, batch.texts, strict=True)
  path = tmp_path / 'x.jsonl'
  path.write_text(
    '\n'.join(json.dumps({'id': key, 'text': text}) for key, text in rows)
  )
  config = ml_collections.ConfigDict(
    {
      'root': str(tmp_path),
      'inputs': {'in': {'files': str(path), 'language': 'en'}},
      'read': {},
      'stages': ('coherence',),
      'fuse': True,
      'coherence': engine.plain(stage.settings),
    }
  )
  found = engine.run(config, str(tmp_path / 'run'), engine.Machine())
  kept = [entry['documents'] for entry in found[-1].manifest()['shards']]
  assert kept == [4]
  story = list(explain.story(found, 'in/b~part2'))
  assert '  coherence: part of in/b' in story
  assert 'kept' in story
  assert 'removed by coherence.split' in list(explain.story(found, 'in/b'))


@pytest.mark.parametrize('action', ['longest', 'drop', 'note'])
def test_other_actions_keep_the_number_of_documents(stage, glued, action):
  batch, seam = glued
  text = batch.texts[1]
  done = _with(stage, action=action).process(batch)
  assert len(done) == 3
  assert done.removed[1] == ('coherence.seams' if action == 'drop' else '')
  assert [done.removed[0], done.removed[2]] == ['', '']
  parts = text[:seam], text[seam:]
  wanted = max(parts, key=len) if action == 'longest' else text
  assert done.texts[1] == wanted
  assert 'seams' in done.trails[1][-1][1]


def test_seams_are_where_texts_were_glued(stage, glued):
  batch, seam = glued
  whole, two, short = stage._model.seams(batch.texts, 800, 300)
  assert two[0][two[1].argmax()] == seam
  assert whole[1].max() < two[1].max()
  assert len(short[0]) == 0
  # A text's seams do not depend on its neighbours.
  ((places, odds),) = stage._model.seams(batch.texts[1:2], 800, 300)
  np.testing.assert_array_equal(places, two[0])
  np.testing.assert_allclose(odds, two[1], rtol=1e-6)
  assert stage._model.seams(['', 'x'], 800, 300)[0][0].shape == (0,)


def test_cuts_are_a_part_apart():
  places = np.array([100, 200, 900, 1000, 2000])
  odds = np.array([0.6, 0.95, 0.8, 0.9, 0.2])
  assert coherence.chosen(places, odds, 0.5, 300) == [200, 1000]
  assert coherence.chosen(places, odds, 0.92, 300) == [200]
  assert coherence.chosen(places, odds, 0.5, 1) == [100, 200, 900, 1000]


def test_the_card_counts_seams_in_documents_it_has_not_seen(stage):
  metrics = stage.card()['metrics']
  assert metrics['glued documents held out'] > 5
  rows = metrics['By threshold']
  recalls = [row['seams: recall'] for row in rows]
  assert recalls == sorted(recalls, reverse=True)
  assert rows[4]['documents: precision'] > 0.8


def test_wrong_configs_are_told():
  for settings, message in (
    ({'action': 'cut'}, "coherence.action is 'cut': one of 'split'"),
    ({'threshold': 1}, 'threshold is 1: a probability'),
    ({'part': 5}, 'part is 5: at least'),
  ):
    with pytest.raises(ValueError, match=message):
      coherence.Coherence(settings)
