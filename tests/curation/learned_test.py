"""Models of stages: trained where they are missing, refused where they differ."""

import json
import sys

import ml_collections
import numpy as np
import pytest

from yi_jax import app, curate
from yi_jax.curation import learned, training

_STAGE = """
import numpy as np
from yi_jax.curation import learned, stage

def defaults():
  return {'model': 'x', 'training': {'seed': 0, 'words': ('a', 'b')}}

class Mine(learned.Learned, stage.GlobalStage):
  name = 'mine'

  def fit(self, root, folder):
    if (root / 'stop').exists():
      raise FileNotFoundError('no sources')
    np.save(folder / 'weights.npy', np.arange(self.training['seed'] + 3))
    return {
      'what': 'Counts.',
      'data': [{'source': 'a|b', 'documents': 3000}],
      'metrics': {'AUC': 0.98765, 'by source': [{'source': 's', 'AUC': 0.5}]},
      'limits': ['It counts.'],
    }
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
  """A run with one stage that has a model."""
  (tmp_path / 'a_learned_stage.py').write_text(_STAGE)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, 'a_learned_stage', raising=False)
  section = {'model': str(tmp_path / 'filters/mine')}
  return ml_collections.ConfigDict(
    {
      'root': str(tmp_path),
      'stages': ('exact', 'a_learned_stage:Mine'),
      'mine': {**section, 'training': {'seed': 0, 'words': ('a', 'b')}},
    }
  )


def _stage(config):
  return training._stages(config)['mine']


def test_a_missing_model_is_trained_once(config, tmp_path, capsys):
  assert not _stage(config).trained()
  training.train_missing(config)
  assert 'mine' in capsys.readouterr().out
  assert _stage(config).trained()
  training.train_missing(config)
  assert not capsys.readouterr().out
  assert len(np.load(tmp_path / 'filters/mine/weights.npy')) == 3


def test_the_card_tells_what_the_model_is(config, tmp_path):
  (card,) = training.train(config, ['mine'])
  assert card == _stage(config).card()
  assert card['files'] == {'weights.npy': 128 + 3 * 8}
  page = (tmp_path / 'filters/mine/card.md').read_text()
  for line in (
    '# The model of the stage `mine`',
    '| a\\|b | 3,000 |',
    '* AUC: 0.9877',
    'by source:',
    '| s | 0.5 |',
    '* It counts.',
  ):
    assert line in page.split('\n')


def test_the_same_training_gives_the_same_files(config):
  training.train(config, ['mine'])
  folder = _stage(config).folder
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  identity = _stage(config).identity()
  training.train(config, ['mine'])
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
  assert _stage(config).identity() == identity
  (folder / 'weights.npy').write_bytes(b'others')
  assert _stage(config).identity() != identity


def test_a_model_of_another_config_is_refused_until_it_is_asked_for(config):
  training.train_missing(config)
  config.mine.training.seed = 5
  with pytest.raises(ValueError, match='--train=mine'):
    training.train_missing(config)
  with pytest.raises(ValueError, match='mine.model to another folder'):
    _stage(config).identity()
  training.train(config, ['mine'])
  assert len(np.load(_stage(config).folder / 'weights.npy')) == 8


def test_training_that_fails_leaves_the_model_that_was_there(config, tmp_path):
  training.train_missing(config)
  (tmp_path / 'stop').touch()
  with pytest.raises(FileNotFoundError, match='no sources'):
    training.train(config, ['mine'])
  assert _stage(config).trained()
  names = {p.name for p in (tmp_path / 'filters').iterdir()}
  assert names == {'mine', '.mine.lock'}


def test_a_model_that_is_missing_names_the_command(config):
  with pytest.raises(
    FileNotFoundError, match='curate --config=.* --train=mine'
  ):
    _stage(config).identity()


def test_wrong_names_are_told(config):
  with pytest.raises(ValueError, match="did you mean 'mine'"):
    training.train(config, ['mime'])
  with pytest.raises(ValueError, match='there are mine'):
    training.train(config, ['exact'])
  section = json.loads(config.mine.to_json())
  kind = type(_stage(config))
  with pytest.raises(ValueError, match="mine has no key 'modle'"):
    kind({**section, 'modle': ''})
  with pytest.raises(ValueError, match="mine.training has no key 'seeds'"):
    kind({**section, 'training': {'seeds': 1}})
  with pytest.raises(ValueError, match="mine.act is 'x': one of 'a', 'b'"):
    learned.choices('mine.act', 'x', ('a', 'b'))


def test_the_verb_trains_and_shows_the_card(config, tmp_path, capsys):
  path = tmp_path / 'run.py'
  path.write_text(
    'import json, ml_collections\n'
    'def get_config():\n'
    f'  return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n'
  )
  arguments = [f'--config={path}', f'--workdir={tmp_path / "run"}']
  flags = curate.FLAGS

  def run(*more):
    return app.run(curate.main, flags, example='', argv=[*arguments, *more])

  assert run('--train=mine', '--config.mine.training.seed=2') == 0
  assert '* AUC: 0.9877' in capsys.readouterr().out
  assert len(np.load(tmp_path / 'filters/mine/weights.npy')) == 5
  assert not (tmp_path / 'run').exists()
  assert run('--train=mime') == app.BAD_INPUT
  assert "did you mean 'mine'" in capsys.readouterr().err
