"""Perplexity: what is like the training text is less surprising."""

import os
import sys

import numpy as np
import pytest

from yi_jax.curation import documents, ngrams, perplexity

_TRAINING = {
  'sources': {'en': ['calm_0', 'calm_1'], 'zh': ['zh_calm']},
  'web': {'en': ['calm_0', 'loud_0'], 'zh': ['zh_loud']},
  'pieces': 400,
  'trainer': 'own',
}


@pytest.fixture(scope='module')
def stage(made_up_sources, tmp_path_factory):
  """A trained stage."""
  folder = tmp_path_factory.mktemp('perplexity')
  one = _stage({'model': str(folder / 'model')})
  one.train(folder)
  return one


def _stage(settings):
  return perplexity.Perplexity(
    {'reader': 'own', 'training': _TRAINING, **settings}
  )


def _batch(texts, language='en'):
  return documents.Batch(
    ids=[str(n) for n in range(len(texts))],
    texts=list(texts),
    languages=[language] * len(texts),
  )


@pytest.mark.parametrize('chinese', [False, True])
def test_unlike_text_is_more_surprising(stage, chinese, subject):
  like = subject(0, 3, 77, chinese)
  mixed = [text[::-1] for text in like]
  batch = _batch([*like, *mixed], 'zh' if chinese else 'en')
  values = stage.process(batch).scores['perplexity']
  assert 1 < values[:3].max() < values[3:].min()


def test_documents_come_into_buckets(stage, subject):
  texts = subject(0, 2, 78)
  batch = stage.process(_batch(texts))
  low, high = sorted(batch.scores['perplexity'])
  middle = float(low + high) / 2
  bounds = {'en': (middle, middle * 2)}
  settings = {**stage.settings, 'bounds': bounds, 'drop': ('head',)}
  batch = _stage(settings).process(_batch(texts))
  found = [entry['perplexity'] for entry in batch.metadata]
  assert sorted(found) == ['head', 'middle']
  gone = batch.removed[found.index('head')]
  assert gone == 'perplexity.head'
  assert sorted(batch.removed) == ['', gone]


def test_what_is_far_above_the_median_goes(stage):
  noise = ' '.join('qzxj'[n % 4] * (n % 5 + 1) for n in range(200))
  assert stage.process(_batch([noise])).removed == ['perplexity.far']
  lenient = _stage({**stage.settings, 'far': 0})
  assert lenient.process(_batch([noise])).removed == ['']


def test_nothing_to_read_and_other_languages_have_no_score(stage):
  batch = stage.process(_batch(['', ' \n '], 'zh'))
  assert np.isnan(batch.scores['perplexity']).all()
  batch = stage.process(_batch(['Bonjour'], 'fr'))
  assert np.isnan(batch.scores['perplexity']).all()
  assert batch.removed == ['']


def test_a_perplexity_does_not_depend_on_the_batch(stage, subject):
  texts = [*subject(1, 3, 5), 'ab\n\ncd', '']
  together = stage.process(_batch(texts)).scores['perplexity']
  alone = [stage.process(_batch([t])).scores['perplexity'][0] for t in texts]
  np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_it_is_ten_to_the_mean_log_of_a_token(stage):
  scorer = perplexity.Scorer(stage.folder, 'zh', 'own')
  lines = ['一丁七', '七丁']
  (value,) = scorer.perplexities(['\n\n'.join(lines)])
  total = 0.0
  for line in lines:
    tokens = np.array([1, *(scorer._model.names.index(c) for c in line), 2])
    total += scorer._model.logs(tokens)[1:].sum()
  assert value == pytest.approx(10 ** (-total / 7), rel=1e-5)


def test_lines_are_folded_as_the_models_read_them():
  assert perplexity.fold(['It  is 12.\n\nYes', '', 'x'], False) == (
    ['it is 00.', 'yes', 'x'],
    [0, 0, 2],
  )
  assert perplexity.fold(['看 书１2'], True) == (['看书00'], [0])


def test_kenlm_asks_the_same_model(stage, peer, subject):
  scorer = perplexity.Scorer(stage.folder, 'en', 'own')
  text = subject(0, 1, 4)[0] + '\nQz!'
  lines, _ = perplexity.fold([text], False)
  corpus, owner = scorer._tokens.encode(lines)
  names = np.array(scorer._tokens.names, object)
  asked = [' '.join(names[corpus[owner == n][1:-1]]) for n in range(len(lines))]
  theirs = peer(
    'kenlm.py',
    arpa=np.array(str(stage.folder / 'en.arpa')),
    lines=np.array(asked),
  )['logs']
  tokens = np.count_nonzero(corpus != 1)
  (mine,) = scorer.perplexities([text])
  assert np.log10(mine) == pytest.approx(-theirs.sum() / tokens, abs=1e-4)


def test_wrong_configs_are_told():
  for settings, message in (
    ({'drop': ('tial',)}, "perplexity.drop is 'tial': one of 'head'"),
    ({'reader': 'srilm'}, "one of 'auto', 'kenlm', 'own'"),
    ({'bounds': {'en': (5, 2)}}, r'bounds.en is \(5, 2\)'),
    ({'far': 0.5}, 'far is 0.5'),
  ):
    with pytest.raises(ValueError, match=message):
      perplexity.Perplexity(settings)


def test_a_reader_or_trainer_that_is_missing_is_told(
  stage, monkeypatch, tmp_path
):
  monkeypatch.setitem(perplexity.importlib.sys.modules, 'kenlm', None)
  with pytest.raises(ValueError, match='pip install'):
    perplexity.Scorer(stage.folder, 'en', 'kenlm')
  monkeypatch.setattr(perplexity.shutil, 'which', lambda name: None)
  training = {**_TRAINING, 'trainer': 'lmplz'}
  one = _stage({'model': str(tmp_path / 'x'), 'training': training})
  with pytest.raises(ValueError, match='not on the PATH'):
    one.train(tmp_path)


class _KenLM:
  """In the place of the package: asks an ARPA file as KenLM does."""

  class Model:  # noqa: D106
    def __init__(self, path):
      self._model = ngrams.read_arpa(path)

    def score(self, line):
      ids = [self._model.names.index(token) for token in line.split(' ')]
      return self._model.logs(np.array([1, *ids, 2]))[1:].sum()


def test_kenlm_answers_where_it_is_installed(stage, subject, monkeypatch):
  monkeypatch.setitem(sys.modules, 'kenlm', _KenLM)
  texts = ['', *subject(0, 2, 8), 'qzx Bela']
  for language, asked in (('en', texts), ('zh', ['一丁\n七', ''])):
    for reader in ('kenlm', 'auto'):
      theirs = perplexity.Scorer(stage.folder, language, reader)
      assert theirs._kenlm
      mine = perplexity.Scorer(stage.folder, language, 'own')
      np.testing.assert_allclose(
        theirs.perplexities(asked), mine.perplexities(asked), rtol=1e-4
      )


def test_lmplz_trains_where_it_is_installed(
  made_up_sources, stage, subject, tmp_path, monkeypatch
):
  # A program that knows the files it is to write, and keeps what it was given.
  program = tmp_path / 'lmplz'
  program.write_text(
    '#!/bin/sh\n'
    f'echo "$@" >> {tmp_path}/arguments\n'
    'arpa=$9\n'
    f'cat > {tmp_path}/$(basename $arpa).text\n'
    f'cp {stage.folder}/$(basename $arpa) $arpa\n'
  )
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  training = {**_TRAINING, 'trainer': 'lmplz', 'prune': (0, 0, 1)}
  one = _stage({'model': str(tmp_path / 'model'), 'training': training})
  one.train(tmp_path)
  given = (tmp_path / 'arguments').read_text().splitlines()
  assert given[0].startswith('-o 3 --discount_fallback --prune 0 0 1 --arpa ')
  lines = (tmp_path / 'zh.arpa.text').read_text().split('\n')
  assert all(len(token) == 1 for line in lines for token in line.split(' '))
  texts = subject(0, 1, 3)
  np.testing.assert_allclose(
    perplexity.Scorer(one.folder, 'en', 'own').perplexities(texts),
    perplexity.Scorer(stage.folder, 'en', 'own').perplexities(texts),
    rtol=1e-4,
  )
