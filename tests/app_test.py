"""The launcher of the verbs: overrides, paths, and one line for bad input."""

import importlib.util
import os

import pytest
from absl import flags

from yi_jax import app, paths

_CONFIG = """
import ml_collections

def get_config(arg='small'):
  if arg not in ('small', 'large'):
    raise ValueError(f'no size {arg!r}')
  return ml_collections.ConfigDict(dict(
      size=arg, train=dict(steps=5, rate=0.1), prompts=('a',), rates={}))
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'run.py'
  path.write_text(_CONFIG)
  return str(path)


def _run(*argv, needs_config=True):
  """Returns the exit code and what main was called with."""
  calls = []
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'the folder', flag_values=values)

  def main(*arguments):
    calls.append((*arguments, values.workdir))

  code = app.run(
    main, values, example='--x', needs_config=needs_config, argv=list(argv)
  )
  return code, calls


def test_overrides_keep_the_type_of_the_key(config_file):
  code, [(config, workdir)] = _run(
    f'--config={config_file}:large',
    '--config.train.steps=7',
    '--config.train.rate=1e-3',
    "--config.prompts=('x', 'y')",
    "--config.rates={'en': 2.0}",
    '--workdir=here',
  )
  assert (code, config.size) == (0, 'large')
  assert workdir == os.path.abspath('here')
  assert (config.train.steps, config.train.rate) == (7, 1e-3)
  assert config.prompts == ('x', 'y')
  assert config.rates.to_dict() == {'en': 2.0}


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.train.stepz=7', "no key 'stepz'; did you mean 'steps'?"),
    ('--config.zzz=7', "no key 'zzz'; there are: prompts, rates, size, train"),
    ('--config.size.deep=7', 'config.size is a single value'),
    ('--config.train.steps=many', 'many'),
    ('--config.train.steps', '--config.train.steps needs a value'),
    ('--workdri=x', 'workdir'),
    ('stray', "'stray' is no flag"),
  ],
)
def test_a_bad_argument_gets_one_line(config_file, argument, message, capsys):
  code, calls = _run(f'--config={config_file}', argument)
  error = capsys.readouterr().err
  assert code == app.BAD_INPUT
  assert not calls
  assert error.startswith('error: ')
  assert message in error
  assert 'Traceback' not in error


def test_what_get_config_refuses_is_shown_as_it_is(config_file, capsys):
  assert _run(f'--config={config_file}:huge')[0] == app.BAD_INPUT
  assert capsys.readouterr().err == "error: no size 'huge'\n"


def test_a_missing_config_file_is_named(capsys):
  assert _run('--config=experiments/no_such.py')[0] == app.BAD_INPUT
  assert str(paths.REPOSITORY / 'experiments/no_such.py') in (
    capsys.readouterr().err
  )
  assert _run()[0] == app.BAD_INPUT
  assert '--config is missing; for example' in capsys.readouterr().err


def test_errors_of_the_program_are_not_hidden(config_file):
  def main(config):
    raise KeyError('a bug')

  with pytest.raises(KeyError):
    app.run(
      main,
      flags.FlagValues(),
      example='',
      argv=[f'--config={config_file}'],
    )


def test_the_workdir_keeps_where_an_error_came_from(tmp_path, capsys):
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'the folder', flag_values=values)
  example = '--workdir=runs/x'
  errors = iter([ValueError('the first'), OSError('the second')])

  def main():
    raise next(errors)

  def run(workdir):
    argv = [f'--workdir={workdir}']
    code = app.run(main, values, example=example, needs_config=False, argv=argv)
    assert code == app.BAD_INPUT
    return capsys.readouterr().err

  path = tmp_path / 'error.txt'
  assert run(tmp_path) == f'error: the first (traceback: {path})\n'
  assert run(tmp_path) == f'error: the second (traceback: {path})\n'
  kept = path.read_text()
  assert kept.count('raise next(errors)') == 2
  assert 'ValueError: the first' in kept
  assert 'OSError: the second' in kept
  # A workdir that is not there yet is not made for it.
  errors = iter([ValueError('the third')])
  assert run(tmp_path / 'new') == 'error: the third\n'
  assert not (tmp_path / 'new').exists()


def test_a_run_is_kept_below_runs_under_the_name_of_its_config(config_file):
  _, [(_, workdir)] = _run(f'--config={config_file}:large')
  assert workdir == str(paths.REPOSITORY / 'runs' / 'run_large')
  _, [(workdir,)] = _run(needs_config=False)
  assert workdir is None


def test_help_shows_the_example_and_the_flags(capsys):
  code, calls = _run('--help', needs_config=False)
  text = capsys.readouterr().out
  assert (code, calls) == (0, [])
  assert '--workdir' in text
  assert '--x' in text
  assert len(text.splitlines()) < 40


def test_relative_paths_start_at_the_repository(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert paths.in_repository('data') == str(paths.REPOSITORY / 'data')
  assert paths.in_repository('/a/b') == '/a/b'
  assert paths.in_repository('gs://b/c') == 'gs://b/c'
  assert paths.in_caller('runs') == os.path.join(os.getcwd(), 'runs')


@pytest.mark.parametrize(
  ('installed', 'device', 'wanted'),
  [
    (True, False, 'cpu'),
    (True, True, None),
    (False, False, None),
  ],
)
def test_jax_looks_for_no_tpu_where_only_its_compiler_is(
  installed, device, wanted, tmp_path, monkeypatch
):
  if installed:
    (tmp_path / 'libtpu.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
  else:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  if device:
    (tmp_path / 'accel0').touch()
  monkeypatch.setattr(app, '_ACCELERATORS', (f'{tmp_path}/accel*',))
  monkeypatch.delenv('JAX_PLATFORMS')
  _run(needs_config=False)
  assert os.environ.get('JAX_PLATFORMS') == wanted
