"""The search for a mixture: what it asks for, chooses, resumes and refuses."""

import csv
import fractions
import importlib.util
import itertools
import json
import math
import pathlib
import shlex
import sys

import ml_collections
import pytest

from yi_jax import app
from yi_jax.alignment.mixture import (
  mixture_search,
  mixture_search_report,
  mixture_search_runs,
  mixture_search_space,
)
from yi_jax.data import mixtures, prepared
from yi_jax.sweeping import place_flags, points, results
from yi_jax.training import run_config

_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch/mixture_search.py'
_RATES = {
  'en_knowledge_chatterbot': 0.2,
  'zh_math_chalkbase': 0.5,
  'zh_translation_cedict': 0.3,
}
_ABILITIES = ('en_knowledge', 'zh_math', 'zh_translation')
_BEFORE = dict(zip(_ABILITIES, (4.0, 2.0, 8.0), strict=True))
_CONFIG = """
import ml_collections
from yi_jax.training import run_config

def get_config():
  c = run_config.base()
  c.data.rates = ml_collections.ConfigDict({rates})
  c.optimizer.warmup_steps = 0
  c.train.steps = 30
  c.sample.prompts = ('Who?',)
  return c
"""


@pytest.fixture
def config(tmp_path):
  """Returns the path of a config of three abilities."""
  path = tmp_path / 'run.py'
  path.write_text(_CONFIG.replace('{rates}', repr(_RATES)))
  return str(path)


def _space(config, **changes):
  return mixture_search_space.make_space(app.load_config(config), **changes)


def _oracle(config):
  """Returns the held-out losses of a run that has this config.

  Each ability is best at its own part of the rows, at the learning rate 3e-3,
  and with any number of conversations from 16 on.
  """
  if config.optimizer.learning_rate == 0:
    assert config.train.steps == 1
    return dict(_BEFORE)
  if config.optimizer.learning_rate > 1:
    return None  # diverges
  data = config.data
  rates = {t.rsplit('_', 1)[0]: data.rates[t] for t in _RATES}
  samples = {t.rsplit('_', 1)[0]: data.samples[t] for t in _RATES}
  assert sum(rates.values()) == pytest.approx(1, abs=1e-5)
  ideal = dict(zip(_ABILITIES, (0.1, 0.7, 0.2), strict=True))
  poor = abs(math.log(config.optimizer.learning_rate / 3e-3))
  found = {}
  for ability, before in _BEFORE.items():
    part = rates[ability]
    if part == 1:  # alone
      few = max(0.0, math.log(16 / (samples[ability] or 999)))
      found[ability] = before * (0.5 + 0.05 * few)
    else:
      far = math.log(part / ideal[ability]) if part else 9
      found[ability] = before * (0.4 + 0.05 * far**2 + 0.1 * poor)
  return found


class _Killed(BaseException):
  """Ends everything at once, as kill -9 does."""


class _Place:
  """Runs that end at once with the oracle's losses."""

  stays, pause = False, 0.0

  def __init__(self, started, after=None):
    self._started, self._after = started, after

  def start(self, name, arguments):
    if self._after is not None and len(self._started) >= self._after:
      raise _Killed
    self._started.append(name)
    spec, changes, [where] = app.split(arguments)
    losses = _oracle(app.override(app.load_config(spec), changes))
    folder = pathlib.Path(where.removeprefix('--workdir='))
    (folder / 'checkpoints/30').mkdir(parents=True)
    if losses:
      report = {'steps': 30, 'seconds': 1.0, 'response_loss': losses}
      (folder / 'report.json').write_text(json.dumps(report))
    return ''

  def running(self):
    return set()

  def reason(self, name):
    return f'{name} diverged'

  def stop(self):
    pass


def _sweeps(workdir, config, started, after=None, assignments=()):
  return mixture_search_runs.Sweeps(
    *(str(workdir), config, assignments),
    *(lambda folder, lock: _Place(started, after), 1),
  )


def _best(space):
  """Returns the lowest score of the whole grid, and the score of a setting."""
  axes = space.axes()

  def score(setting):
    rates = space.mixed(setting)
    data = {
      'rates': {t: rates[t] for t in _RATES},
      'samples': dict.fromkeys(_RATES),
    }
    rate = float(setting['optimizer.learning_rate'])
    losses = _oracle(
      ml_collections.ConfigDict(
        {'data': data, 'optimizer': {'learning_rate': rate}}
      )
    )
    return sum(losses[a] / _BEFORE[a] for a in _ABILITIES) / 3

  settings = [
    dict(zip(axes, values, strict=True))
    for values in itertools.product(*axes.values())
  ]
  return min(map(score, settings)), score


_GRID = {'optimizer.learning_rate': ['1e-3', '3e-3']}


def test_it_finds_the_best_of_a_grid_with_fewer_runs(config, tmp_path):
  space = _space(config, grid=_GRID, counts=['4', '16', '64'])
  started = []
  sweeps = _sweeps(tmp_path / 'search', config, started)
  outcome = mixture_search.search(space, sweeps, rounds=4)
  lowest, score = _best(space)
  assert outcome.line.score == pytest.approx(score(outcome.best), abs=1e-4)
  assert outcome.line.score <= lowest * 1.01
  assert outcome.best['optimizer.learning_rate'] == '3e-3'
  # 7^3 * 2 settings; a turn asks for the best so far again, which is there.
  fused = [line for line in outcome.lines if line.phase == 'fused']
  turns = len(outcome.turns)
  assert len(fused) <= 2 + 6 * turns < 100
  assert len(started) == len(set(started)) == len(outcome.lines)
  assert min(line.score for line in fused) == outcome.line.score
  # 16 are enough: the oracle's curve is flat from there.
  assert outcome.samples == dict.fromkeys(_ABILITIES, 16)
  assert outcome.curves['zh_math'][4] == pytest.approx(
    2.0 * (0.5 + 0.05 * math.log(4))
  )
  # Weights are kept where somebody may want them.
  kept = [p.parent.name for p in (tmp_path / 'search').glob('*/*/checkpoints')]
  assert kept == [outcome.line.row.point.name]


def test_killed_at_any_run_it_goes_on_where_it_was(config, tmp_path):
  space = _space(config, grid=_GRID, counts=['4', '16'], shares=['1', '1/4'])
  whole = []
  workdir = tmp_path / 'whole'
  want = mixture_search.search(space, _sweeps(workdir, config, whole))
  started, kills = [], 0
  while True:
    sweeps = _sweeps(tmp_path / 'killed', config, started, len(started) + 3)
    try:
      found = mixture_search.search(space, sweeps)
      break
    except _Killed:
      kills += 1
  assert kills == (len(whole) - 1) // 3
  assert started == whole
  assert found.best == want.best
  assert found.turns == want.turns
  # Again, it starts nothing.
  again = _sweeps(tmp_path / 'killed', config, started, 0)
  assert mixture_search.search(space, again).turns == want.turns
  assert started == whole


def test_more_shares_extend_a_search(config, tmp_path):
  started = []
  few = _space(config, counts=[], shares=['1', '1/4'])
  mixture_search.search(few, _sweeps(tmp_path, config, started))
  before = list(started)
  more = _space(config, counts=[], shares=['1', '1/2', '1/4'])
  mixture_search.search(more, _sweeps(tmp_path, config, started))
  assert len(started) > len(before)
  assert len(set(started)) == len(started)
  other = _sweeps(tmp_path, config, started, assignments=['train.steps=31'])
  with pytest.raises(ValueError, match='holds a sweep with overrides'):
    mixture_search.search(more, other)


def test_a_run_that_fails_is_never_chosen_and_tried_once(config, tmp_path):
  # The second round asks for it again, as the first one has changed the rate.
  grid = {'optimizer.learning_rate': ['1e-3', '3e-3', '100.0']}
  space = _space(config, grid=grid, counts=[], shares=['1'])
  sweeps = _sweeps(tmp_path, config, started := [])
  outcome = mixture_search.search(space, sweeps, rounds=2)
  assert outcome.best['optimizer.learning_rate'] == '3e-3'
  [failed] = sweeps.failed
  assert failed.startswith('fused/learning_rate=100.0')
  assert sweeps.failed[failed].endswith('diverged')
  assert len(set(started)) == len(started)
  assert [t.scores.get('100.0') for t in outcome.turns[::4]] == [math.inf] * 2
  space = _space(config, grid={'optimizer.learning_rate': ['99.0', '100.0']})
  with pytest.raises(ValueError, match='no run with another .*learning_rate'):
    mixture_search.search(space, _sweeps(tmp_path / 'b', config, []))


def test_an_axis_at_a_time_finds_what_stands_alone():
  axes = {'a': (1, 2, 3), 'b': (1, 2, 3)}
  asked = []

  def scores(settings):
    asked.extend(settings)
    return [(s['a'] - 2) ** 2 + (s['b'] - 3) ** 2 for s in settings]

  best, turns = mixture_search.descend(axes, scores, rounds=5)
  assert best == {'a': 2, 'b': 3}
  assert [turn.number for turn in turns] == [1, 1, 2, 2]  # then nothing changes
  assert len(asked) == 12
  # Equally good values stay.
  best, _ = mixture_search.descend(axes, lambda s: [0.0] * len(s), rounds=1)
  assert best == {'a': 1, 'b': 1}


@pytest.mark.parametrize(
  ('curve', 'want'),
  [
    ({4: 3.0, 16: 2.1, 64: 2.0}, 16),  # 97 % of the fall
    ({4: 3.0, 16: 2.2, 64: 2.0}, None),  # 93 %: it still falls
    ({4: 4.99, 16: 4.98, 64: 4.97}, None),
    ({4: 2.0, 16: 2.5, 64: 3.0}, 4),
    ({4: 6.0, 16: 5.5, 64: 5.0}, None),  # worse than before tuning
    ({4: math.inf, 16: 2.0, 64: 2.5}, 16),
  ],
)
def test_the_fewest_samples_near_the_lowest_loss_are_enough(curve, want):
  assert mixture_search.enough(curve, 5.0) == want
  assert mixture_search.lifted('zh_math', curve, 5.0).startswith('zh_math: ')


def test_all_abilities_weigh_alike():
  def row(**losses):
    numbers = {f'response_loss.{k}': v for k, v in losses.items()}
    return results.Row(points.Point('x', {}), 1.0, numbers)

  before = {'a': 4.0, 'b': 0.1}
  assert mixture_search.score(row(a=2.0, b=0.1), before) == 0.75
  assert mixture_search.score(row(a=4.0, b=0.05), before) == 0.75
  assert mixture_search.score(row(a=4.0), before) == math.inf
  assert mixture_search.score(row(a=4.0, b=math.nan), before) == math.inf


def test_shares_are_factors_of_the_rates(config):
  space = _space(config, abilities=['zh_math'])
  setting = {'zh_math': fractions.Fraction(1, 5)}
  assert space.mixed(setting) == pytest.approx(
    dict(zip(_RATES, (1 / 3, 1 / 6, 1 / 2), strict=True))
  )
  trial = space.lone('zh_math', 16)
  assert trial.changes == {
    'data.rates.en_knowledge_chatterbot': '0.0',
    'data.rates.zh_math_chalkbase': '1.0',
    'data.rates.zh_translation_cedict': '0.0',
    'data.samples.zh_math_chalkbase': '16',
  }
  assert space.axes() == {'zh_math': mixture_search_space.SHARES}
  assert list(map(str, space.shares)) == [
    *('1', '1/2', '1/4', '1/8', '1/16', '1/32', '1/64')
  ]


def test_tasks_of_an_ability_share_its_samples():
  tasks = {'zh_math': ('a', 'b', 'c', 'd')}
  rates = {'a': 0.5, 'b': 0.01, 'c': 0.25, 'd': 0.0}
  space = mixture_search_space.Space(rates, tasks, ('zh_math',), (), (), {})
  for count in (3, 4, 16, 99):
    found = space.samples({'zh_math': count})
    assert sum(found.values()) == count
    assert list(found) == ['a', 'b', 'c']
    assert min(found.values()) >= 1
  assert found['a'] == pytest.approx(2 * found['c'], abs=2)


def test_what_was_found_is_written_and_read_by_train(config, tmp_path):
  space = _space(config, grid=_GRID, counts=['4', '16', '64'])
  workdir = tmp_path / 'search'
  sweeps = _sweeps(workdir, config, [])
  outcome = mixture_search.search(space, sweeps)
  mixture_search_report.write(str(workdir), outcome, sweeps.flags())

  path = str(workdir / 'mixture.json')
  mixture = json.loads((workdir / 'mixture.json').read_text())
  data = run_config.base().data
  data.mixture = path
  [(_, rates)] = prepared.stages(data)
  samples = mixtures.samples(path)
  best = app.load_config(config)
  app.override(
    best,
    [a.removeprefix('--config.') for a in outcome.line.row.point.arguments()],
  )
  assert rates == pytest.approx(dict(best.data.rates))
  assert samples == {t: n for t, n in best.data.samples.items() if n}
  assert samples == dict.fromkeys(_RATES, 16)
  assert mixture['changes'] == {'optimizer.learning_rate': '3e-3'}

  text = (workdir / 'results.md').read_text()
  assert f'--config={config}' in text
  assert 'zh_math: lowest loss' in text
  for turn in outcome.turns:
    assert mixture_search.turned(turn) in text
  with open(workdir / 'results.csv') as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == len(outcome.lines) == len({x['run'] for x in lines})
  [line] = [x for x in lines if x['run'] == mixture['run']]
  assert float(line['score']) == mixture['score']
  for name in ('single.png', 'fused.png'):
    assert (workdir / name).read_bytes().startswith(b'\x89PNG')


def test_the_pictures_show_the_numbers(config, tmp_path):
  space = _space(config, counts=['4', '16', '64'], shares=['1', '1/4'])
  sweeps = _sweeps(tmp_path / 'search', config, [])
  outcome = mixture_search.search(space, sweeps)
  axes = mixture_search_report.heat_map(outcome).axes[0]
  grid = axes.images[0].get_array()
  turns = {turn.axis: turn for turn in outcome.turns}
  for i, ability in enumerate(_ABILITIES):
    assert list(grid[i]) == list(turns[ability].scores.values())
  bold = [t.get_text() for t in axes.texts if t.get_weight() == 'bold']
  assert bold == [f'{turns[a].scores[turns[a].chosen]:.4g}' for a in _ABILITIES]
  axes = mixture_search_report.curves(outcome).axes[0]
  heights = list(axes.lines[0].get_ydata())
  assert heights == [
    1.0,
    *(x / 4.0 for x in outcome.curves[_ABILITIES[0]].values()),
  ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'abilities': ['zh_maths']}, "no ability 'zh_maths'.*mean 'zh_math'"),
    ({'shares': ['1', '0']}, "share has '0': .* above 0"),
    ({'shares': ['2']}, 'at most 1'),
    ({'shares': ['1/x']}, "'1/x'"),
    ({'shares': []}, 'names no share'),
    ({'counts': ['0']}, "samples has '0'"),
    ({'counts': ['4', 'all']}, "samples has 'all'"),
    ({'grid': {'data.rates.x': ['1']}}, 'sets it itself'),
  ],
)
def test_what_cannot_be_searched_is_refused(config, changes, message):
  with pytest.raises(ValueError, match=message):
    _space(config, **changes)


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('samples', {'zh_math_chalkbase': 3}, 'data.samples is what the search'),
    ('stages', ((9e9, {'zh_math_chalkbase': 1}),), 'leave it empty'),
    ('rates', {'zh_math_chalkbase': 1}, 'has 1 abilities'),
    ('rates', {'en_books_plays': 1}, 'has 0 abilities'),
  ],
)
def test_a_config_that_does_what_the_search_does_is_refused(
  config, key, value, message
):
  run = app.load_config(config)
  run.data[key] = value
  with pytest.raises(ValueError, match=message):
    mixture_search_space.make_space(run)


def _rows(monkeypatch, heldout, documents):
  index = {'tasks': {t: {'train': {'documents': documents}} for t in _RATES}}
  found = type('Prepared', (), {'readers': dict.fromkeys(heldout)})
  monkeypatch.setattr(prepared, 'open_prepared', lambda *unused: found)
  monkeypatch.setattr(prepared, 'read_index', lambda data: index)


def test_an_ability_that_nothing_judges_or_teaches_is_told(config, monkeypatch):
  run, space = app.load_config(config), _space(config, counts=['64'])
  _rows(monkeypatch, _RATES, 64)
  mixture_search_space.check_rows(run, space)
  _rows(monkeypatch, _RATES, 63)
  with pytest.raises(ValueError, match='64 conversations of en_kn.*has 63'):
    mixture_search_space.check_rows(run, space)
  _rows(monkeypatch, ['en_knowledge_chatterbot', 'zh_math_chalkbase'], 64)
  with pytest.raises(ValueError, match='of zh_translation is held out'):
    mixture_search_space.check_rows(run, space)


def _main(monkeypatch, *arguments):
  """Runs the command in this process and returns its exit code."""
  spec = importlib.util.spec_from_file_location('mixture_search', _SCRIPT)
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, 'mixture_search', module)
  spec.loader.exec_module(module)
  monkeypatch.setattr(sys, 'argv', [str(_SCRIPT), *arguments])
  return app.run(module.main, module.FLAGS, example='--config=x.py')


def test_the_command_searches_and_shows_its_runs(
  config, tmp_path, monkeypatch, capsys
):
  _rows(monkeypatch, _RATES, 999)
  started, workdir = [], tmp_path / 'search'
  monkeypatch.setattr(
    place_flags.PlaceFlags, 'place', lambda *unused: _Place(started)
  )
  common = (
    *(f'--config={config}', f'--workdir={workdir}', '--share=1,1/2'),
    *('--config.data.rates.zh_math_chalkbase=0.4', '--config.train.steps=30'),
    *('--samples=4,16', '--grid=optimizer.learning_rate=1e-3,100.0'),
  )
  assert _main(monkeypatch, *common, '--dry_run') == 0
  assert not workdir.exists()
  assert not started
  lines = capsys.readouterr().out.strip().split('\n')
  assert len(lines) == len(set(lines)) == 1 + 6 + 2 + 3
  assert all(line.startswith('python -m yi_jax.train ') for line in lines)
  spec, changes, _ = app.split(shlex.split(lines[0])[3:])
  run = app.override(app.load_config(spec), changes)
  assert (run.train.steps, run.optimizer.learning_rate) == (1, 0)
  assert run_config.resolve(run)
  # Samples would take longer than the steps.
  assert (run.sample.prompts, run.sample.heldout) == ((), 0)

  assert _main(monkeypatch, *common) == 1  # one has diverged
  said = capsys.readouterr()
  assert 'learning_rate stays 1e-3' in said.out
  assert 'fused/learning_rate=100.0' in said.err
  assert (workdir / 'mixture.json').exists()
  assert _main(monkeypatch, *common, '--ability=zh_mat') == app.BAD_INPUT
  assert "did you mean 'zh_math'" in capsys.readouterr().err
