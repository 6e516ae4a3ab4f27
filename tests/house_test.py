"""The rules of the house: what imports what, and what each file may grow to."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / 'yi_jax'
_CODE = sorted(
  path
  for folder in ('yi_jax', 'experiments', 'launch', 'tests')
  for path in (_ROOT / folder).rglob('*')
  if path.suffix in ('.py', '.sh')
)

# What a part of yi_jax may import of the others (docs/architecture.md). Verbs
# stand on all of it; nothing imports a verb.
_MAY_IMPORT = {
  'spelling': set(),
  'paths': set(),
  'app': {'paths'},
  'compilation_cache': set(),
  'models': set(),
  'sharding': {'models'},
  'data': {'app', 'paths'},
  'checkpoints': {'models', 'data', 'paths'},
  'extension': {'models'},
  'training': {'models', 'sharding', 'data', 'checkpoints', 'paths'},
  'sweeping': {'app', 'paths', 'data', 'training'},
  'curation': {'app', 'paths', 'data', 'sharding'},
  'serving': {
    *('models', 'sharding', 'data', 'checkpoints', 'training', 'paths')
  },
  'planning': {'models', 'sharding', 'data', 'training', 'paths'},
  'evaluation': {
    *('models', 'sharding', 'data', 'checkpoints', 'training', 'serving'),
    *('extension', 'paths'),
  },
  'alignment': {
    *('app', 'models', 'sharding', 'data', 'checkpoints', 'training', 'paths'),
    *('serving', 'curation', 'sweeping'),
  },
}
_FOR_ALL = {'spelling'}
# Heavy or foreign packages: the only parts of yi_jax that may import them.
_ONLY_IN = {
  'tensorflow': {'data'},
  'tensorflow_text': {'data'},
  'tensorflow_datasets': {'data'},
  'seqio': {'data'},
  'apache_beam': {'data', 'curation'},
  'torch': set(),
  'transformers': set(),
}


def _part(path: pathlib.Path) -> str:
  """Returns the folder of yi_jax that holds a file, or a top file's name."""
  return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imports(path):
  """Yields the dotted name of every import, those inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _modules(*folders):
  """Returns the module names of these folders of yi_jax."""
  return [
    '.'.join(path.relative_to(_ROOT).with_suffix('').parts)
    for folder in folders
    for path in sorted((_PACKAGE / folder).glob('*.py'))
    if path.stem != '__init__'
  ]


def _runnable():
  return [
    '.'.join(path.relative_to(_ROOT).with_suffix('').parts)
    for path in sorted(_PACKAGE.rglob('*.py'))
    if '\nif __name__ == ' in path.read_text()
  ]


def _code_lines(text, function):
  """Returns the lines of a function that are no docstring or comment."""
  skipped = range(0)
  if ast.get_docstring(function):
    docstring = function.body[0]
    skipped = range(docstring.lineno, docstring.end_lineno + 1)
  numbers = range(function.lineno, function.end_lineno + 1)
  lines = text.split('\n')
  kept = [lines[n - 1].strip() for n in numbers if n not in skipped]
  return sum(bool(line) and not line.startswith('#') for line in kept)


def _python(*arguments):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    env=environment,
  )


def _loaded_by(modules, packages):
  """Returns which packages a fresh Python has loaded after these imports."""
  code = (
    'import importlib, sys\n'
    f'for name in {modules!r}: importlib.import_module(name)\n'
    f'print(*sorted(set({packages!r}) & set(sys.modules)))'
  )
  result = _python('-c', code)
  assert result.returncode == 0, result.stderr
  return result.stdout.split()


@pytest.mark.parametrize(
  'path',
  [path for path in _CODE if path.is_relative_to(_PACKAGE)],
  ids=lambda path: str(path.relative_to(_PACKAGE)),
)
def test_imports_point_one_way(path):
  part = _part(path)
  is_verb = path.parent == _PACKAGE and part not in _MAY_IMPORT
  known = is_verb or part in _MAY_IMPORT or part == '__init__'
  assert known, f'say here and in docs/architecture.md what {part}/ stands on'
  if is_verb:
    allowed = set(_MAY_IMPORT)
  else:
    allowed = _MAY_IMPORT.get(part, set()) | {part} | _FOR_ALL
  for name in _imports(path):
    package, _, rest = name.partition('.')
    if package == 'yi_jax':
      assert rest.partition('.')[0] in allowed, f'{part} imports {name}'
    homes = _ONLY_IN.get(package, {part})
    assert part in homes, f'{name} belongs in {homes or "tests"}'


def test_importing_the_package_loads_nothing_heavy():
  heavy = ['jax', 'flax', 'numpy', 'tensorflow', 'seqio', 'ml_collections']
  assert _loaded_by(['yi_jax'], heavy) == []


def test_the_training_step_needs_only_jax_flax_optax_and_numpy():
  # So that models and benchmarks run on any accelerator image as it is.
  step = ['yi_jax.training.train_step', 'yi_jax.training.cross_entropy']
  modules = [*_modules('models', 'sharding'), *step]
  foreign = ['tensorflow', 'seqio', 'grain', 'ml_collections', 'absl', 'orbax']
  brought = _loaded_by(['jax', 'flax.linen', 'optax', 'numpy'], foreign)
  assert _loaded_by(modules, foreign) == brought


def test_reading_prepared_data_needs_no_tensorflow():
  builders = {
    f'yi_jax.data.{name}' for name in ('tfds_builder', 'tfds_files', 'tasks')
  }
  modules = [name for name in _modules('data') if name not in builders]
  assert modules
  heavy = ['tensorflow', 'seqio', 'tensorflow_datasets', 'apache_beam']
  assert _loaded_by(modules, heavy) == []


@pytest.mark.parametrize('module', _runnable())
def test_help_shows_an_example(module):
  result = _python('-m', module, '--help')
  assert result.returncode == 0, result.stderr
  assert re.search(rf'python -m {re.escape(module)} -', result.stdout)


@pytest.mark.parametrize(
  'verb', [name for name in _runnable() if name.count('.') == 1]
)
def test_every_verb_has_its_page(verb):
  name = verb.removeprefix('yi_jax.')
  page = (_ROOT / 'docs' / f'{name}.md').read_text()
  assert f'python -m {verb} -' in page


@pytest.mark.parametrize(
  'path', _CODE, ids=lambda path: str(path.relative_to(_ROOT))
)
def test_files_and_functions_stay_readable(path):
  text = path.read_text()
  assert text.count('\n') <= 600, 'split it: one reason to change a file'
  if path.suffix == '.py' and path != _PACKAGE / 'train.py':  # reads down
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        lines = _code_lines(text, node)
        assert lines <= 80, f'{node.name} has {lines} lines of code'


@pytest.mark.parametrize(
  'path', sorted(_ROOT.glob('requirements*.txt')), ids=lambda path: path.name
)
def test_requirements_are_pinned(path):
  text = re.sub(r'\\\n', ' ', path.read_text())
  lines = [re.sub(r'(^|\s)#.*', '', line).strip() for line in text.split('\n')]
  pin = r'[\w.-]+(\[[\w,]+\])?==[\w.]+'
  hashed = path.name == 'requirements-data.txt'
  if hashed:
    pin += r'(\s+--hash=sha256:[0-9a-f]{64})+'
  for line in filter(None, lines):
    option = line.startswith('--no-binary' if hashed else '-r ')
    assert option or re.fullmatch(pin, line), f'not pinned: {line}'


@pytest.mark.parametrize(
  'page',
  sorted([*_ROOT.glob('*.md'), *_ROOT.glob('docs/*.md')]),
  ids=lambda path: str(path.relative_to(_ROOT)),
)
def test_links_of_the_pages_lead_to_files(page):
  for target in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
    if '://' not in target:
      assert (page.parent / target).exists(), f'{page.name}: {target}'


def test_scripts_can_be_started():
  for path in [*(_ROOT / 'launch').glob('*.sh'), _ROOT / '.ci/run']:
    assert os.access(path, os.X_OK), path
    subprocess.run(['bash', '-n', path], check=True)
