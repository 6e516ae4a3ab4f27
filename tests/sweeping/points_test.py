"""Points of a sweep: what is swept, checked before anything starts."""

import json

import pytest

from yi_jax.sweeping import points

_CONFIG = """
from yi_jax.training import run_config

def get_config():
  return run_config.base()
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'run.py'
  path.write_text(_CONFIG)
  return str(path)


def _check(config, *grid, listed=(), assignments=()):
  combined = points.combine(points.parse_grid(grid), listed)
  return points.check(config, list(assignments), combined)


def test_a_grid_is_the_product_of_its_axes_with_typed_values(config):
  found = _check(
    config,
    'optimizer.learning_rate=1e-3,3e-3',
    'optimizer.betas=(0.9, 0.95),(0.9, 0.99)',
    'model.overrides.rope_theta=1e6',
  )
  assert [list(changes.values()) for changes in found] == [
    [0.001, [0.9, 0.95], 1e6],
    [0.001, [0.9, 0.99], 1e6],
    [0.003, [0.9, 0.95], 1e6],
    [0.003, [0.9, 0.99], 1e6],
  ]


def test_commas_in_brackets_and_quotes_divide_nothing():
  text = "data.stages=((5,{'a': 1, 'b': 2}),),()"
  assert points.parse_grid([text, "x='a,b',c"]) == {
    'data.stages': ["((5,{'a': 1, 'b': 2}),)", '()'],
    'x': ["'a,b'", 'c'],
  }


def test_a_list_is_read_and_joined_with_the_grid(config, tmp_path):
  file = tmp_path / 'points.jsonl'
  file.write_text(
    '{"optimizer.learning_rate": 1e-3, "train.profile": "2-3"}\n\n'
    '{"optimizer.betas": [0.8, 0.9]}\n'
  )
  found = _check(config, 'seed=1,2', listed=points.read_list(str(file)))
  assert found == [
    {'optimizer.learning_rate': 0.001, 'train.profile': '2-3', 'seed': 1},
    {'optimizer.learning_rate': 0.001, 'train.profile': '2-3', 'seed': 2},
    {'optimizer.betas': [0.8, 0.9], 'seed': 1},
    {'optimizer.betas': [0.8, 0.9], 'seed': 2},
  ]


def test_the_flags_of_a_point_lead_back_to_it(config):
  changes = {
    'optimizer.betas': [0.8, 0.9],
    'data.stages': [[64, {'en_books_plays': 1.0}]],
    'train.profile': '2-3',
    'optimizer.learning_rate': 1e-05,
    'seed': 3,
  }
  flags = points.Point('x', changes).arguments()
  texts = dict(flag.removeprefix('--config.').split('=', 1) for flag in flags)
  assert points.check(config, [], [texts]) == [changes]


@pytest.mark.parametrize(
  ('grid', 'message'),
  [
    (['optimizer.lerning_rate=1'], "did you mean 'learning_rate'"),
    (['seed=one'], 'the run with seed=one'),
    (['seed=0', 'seed=1'], 'names seed twice'),
    (['seed='], 'KEY=VALUE,VALUE'),
    (['optimizer.learning_rate=1e-3,0.001'], 'is the same run as'),
    (['data.length=512,4096'], 'data.length=4096: .*positions'),
    ([], 'needs --grid'),
  ],
)
def test_a_point_that_cannot_run_is_refused_by_name(config, grid, message):
  with pytest.raises(ValueError, match=message):
    _check(config, *grid)


def test_a_key_is_named_in_one_place(config):
  with pytest.raises(ValueError, match='seed is in the list and in --grid'):
    _check(config, 'seed=1', listed=[{'seed': '2'}])
  with pytest.raises(ValueError, match='seed is set for all runs'):
    _check(config, 'seed=1', assignments=['seed=2'])


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"seed": 1}\n{seed}', 'line 2 is no JSON'),
    ('[1]', 'line 1 is not like'),
    ('\n', 'has no points'),
  ],
)
def test_a_bad_list_is_refused_with_its_line(tmp_path, text, message):
  file = tmp_path / 'points.jsonl'
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    points.read_list(str(file))


def test_names_are_short_safe_and_different():
  changes = [
    {'model.overrides.rope_theta': 1e6, 'seed': 1},
    {'data.root': 'a/b c'},
    {'data.root': 'a/b_c'},
    {'sample.prompts': ['long'] * 40},
  ]
  found = points.names(changes)
  assert found[0] == 'rope_theta=1000000.0,seed=1'
  assert len(set(found)) == 4
  for name in found:
    assert len(name) < 100
    assert not set(name) & set('/ \'"()')
  assert points.names(changes[:1], taken=found)[0] not in found


def test_keys_that_end_alike_are_written_out():
  changes = [{'data.length': 1, 'x.length': 2}]
  assert points.names(changes) == ['data.length=1,x.length=2']


def test_identity_knows_no_order():
  one, other = {'a': 1, 'b': [2]}, {'b': [2], 'a': 1}
  assert points.identity(one) == points.identity(other)
  assert json.loads(points.identity(one)) == one
