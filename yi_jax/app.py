"""How every verb starts: flags, config file, and one line for bad input.

A verb declares its own flags on its own `FlagValues` (so that two verbs may be
imported by one test) and hands them over:

  FLAGS = flags.FlagValues()
  _WORKDIR = flags.DEFINE_string('workdir', None, '...', flag_values=FLAGS)

  def main(config: ml_collections.ConfigDict) -> None: ...

  if __name__ == '__main__':
    sys.exit(app.run(main, FLAGS, example='--config=experiments/x.py'))

Verbs without a run config pass `needs_config=False` and a main() without
arguments. ValueError and OSError mean that the input was bad: their message
alone is shown, `error: ...`, with exit code 2; `--traceback` shows the rest,
and WORKDIR/error.txt, where there is a workdir, keeps it: hours into a run the
same errors may have come from anywhere.
Keys of the config are changed with `--config.section.key=value`. A flag named
`workdir` comes out absolute, and as runs/NAME of the config when not given.
"""

import glob
import importlib.util
import os
import re
import sys
import textwrap
import time
import traceback
import types
from collections.abc import Callable

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from yi_jax import paths, spelling

BAD_INPUT = 2  # exit code
INTERRUPTED = 130  # exit code, as shells have it for Ctrl-C
# Where Linux shows TPUs (of two generations), then GPUs of NVIDIA, AMD and WSL.
_ACCELERATORS = (
  *('/dev/accel*', '/dev/vfio/*'),
  *('/dev/nvidia*', '/dev/kfd', '/dev/dxg'),
)


def load_config(spec: str) -> ml_collections.ConfigDict:
  """Returns what `get_config` of an experiment file builds.

  Args:
    spec: `FILE.py` or `FILE.py:arg`; a relative file starts at the repository.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file has no get_config, or get_config refuses `arg`.
  """
  name, *arg = spec.split(':', 1)
  path = paths.in_repository(name)
  if not os.path.isfile(path):
    folder = paths.REPOSITORY / 'experiments'
    known = [f'experiments/{p.name}' for p in sorted(folder.glob('*.py'))]
    raise FileNotFoundError(
      f'no config file {path}{spelling.nearest(name, known)}'
    )
  module_spec = importlib.util.spec_from_file_location('run_config_file', path)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ValueError(f'{path} has no get_config(), so it is no config file')
  return module.get_config(*arg)


def override(
  config: ml_collections.ConfigDict, assignments: list[str]
) -> ml_collections.ConfigDict:
  """Changes keys of a config in place and returns it.

  Args:
    config: what an experiment file built.
    assignments: `section.key=value`, value in Python's or plain notation.

  Raises:
    ValueError: for a key that is not there, with the nearest name.
    flags.Error: for a value of another type.
  """
  for assignment in assignments:
    key, equals, _ = assignment.partition('=')
    _check_key(config, key)
    if not equals:
      raise ValueError(f'--config.{key} needs a value: --config.{key}=...')
  argv = [f'--config.{assignment}' for assignment in assignments]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=values, sys_argv=argv
  )
  values(['', *argv])
  return config


def run(
  main: Callable[..., int | None],
  flag_values: flags.FlagValues,
  *,
  example: str,
  needs_config: bool = True,
  argv: list[str] | None = None,
) -> int:
  """Parses the command line, calls `main`, and returns the exit code.

  Args:
    main: takes the config (or nothing, see `needs_config`); may return an exit
      code, None means 0.
    flag_values: the verb's own flags; --config and --traceback are added.
    example: arguments of a command that works, shown by --help and in errors.
    needs_config: whether the verb takes --config.
    argv: command line without the program's name; None means the process's.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  module = sys.modules[main.__module__]
  spec = getattr(module, '__spec__', None)
  # A script of launch/ has no module name.
  verb = f'python {f"-m {spec.name}" if spec else os.path.relpath(sys.argv[0])}'
  logging.set_verbosity(logging.WARNING)  # Orbax tells every step otherwise
  _look_for_no_tpu()
  if {'--help', '-h', '-help'} & set(argv):
    print(_help(module, flag_values, f'{verb} {example}', needs_config))
    return 0
  show_traceback, workdir = '--traceback' in argv, None
  try:
    config_spec, assignments, rest = split(argv)
    arguments = ()
    if needs_config:
      if not config_spec:
        raise ValueError(
          f'--config is missing; for example\n  {verb} {example}'
        )
      arguments = (override(load_config(config_spec), assignments),)
    elif config_spec or assignments:
      raise ValueError('this verb takes no --config')
    flag_values.unparse_flags()
    unknown = flag_values([verb, *rest])[1:]
    if unknown:
      raise ValueError(f'{unknown[0]!r} is no flag; see --help')
    if 'workdir' in flag_values:
      workdir = _workdir(flag_values['workdir'].value, config_spec)
      flag_values['workdir'].value = workdir
    flags.FLAGS.mark_as_parsed()  # libraries ask for flags of their own
    return main(*arguments) or 0
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return INTERRUPTED
  except (ValueError, OSError, flags.Error) as error:
    if show_traceback:
      traceback.print_exc()
    print(f'error: {error}{_keep_traceback(workdir)}', file=sys.stderr)
    return BAD_INPUT


def _look_for_no_tpu() -> None:
  """Keeps JAX to the CPU of a machine with libtpu and no accelerator at all.

  `plan` compiles with libtpu; where it is installed JAX looks for a TPU at every
  start, for seconds and with warnings. Whoever sets JAX_PLATFORMS is obeyed.
  """
  if 'JAX_PLATFORMS' in os.environ or not importlib.util.find_spec('libtpu'):
    return
  if any(glob.glob(pattern) for pattern in _ACCELERATORS):
    return
  os.environ['JAX_PLATFORMS'] = 'cpu'  # for processes that this one starts
  if 'jax' in sys.modules:  # it has read the variable already
    sys.modules['jax'].config.update('jax_platforms', 'cpu')


def _keep_traceback(workdir: str | None) -> str:
  """Adds the traceback to WORKDIR/error.txt, if there is one, and says so."""
  if not workdir or not os.path.isdir(workdir):
    return ''
  path = os.path.join(workdir, 'error.txt')
  try:
    with open(path, 'a') as file:
      file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")}\n')
      file.write(f'{traceback.format_exc()}\n')
  except OSError:  # a full disk may be the very error
    return ''
  return f' (traceback: {path})'


def _check_key(config: ml_collections.ConfigDict, key: str) -> None:
  """Raises ValueError, with the nearest name, unless `a.b.c` is in config."""
  node, path = config, 'config'
  for part in key.split('.'):
    if not isinstance(node, ml_collections.ConfigDict):
      raise ValueError(f'{path} is a single value: there is no config.{key}')
    if part not in node:
      hint = spelling.nearest(part, sorted(node))
      raise ValueError(f'{path} has no key {part!r}{hint}')
    node, path = node[part], f'{path}.{part}'


def split(argv: list[str]) -> tuple[str, list[str], list[str]]:
  """Returns the --config file, the `key=value` of --config.*, and the rest."""
  spec, assignments, rest = '', [], []
  arguments = iter(argv)
  for argument in arguments:
    name, equals, value = argument.partition('=')
    name = name.lstrip('-') if name.startswith('-') else ''
    if name == 'config':
      spec = value if equals else next(arguments, '')
    elif name.startswith('config.'):
      assignments.append(argument.lstrip('-').removeprefix('config.'))
    elif name != 'traceback':
      rest.append(argument)
  return spec, assignments, rest


def _workdir(given: str | None, config_spec: str) -> str | None:
  """Returns --workdir as an absolute path, runs/NAME[_arg] if not given."""
  if given:
    return paths.in_caller(given)
  if not config_spec:
    return None
  name, _, arg = config_spec.partition(':')
  name = os.path.splitext(os.path.basename(name))[0]
  arg = re.sub(r'\W+', '_', f'_{arg}') if arg else ''
  return paths.in_repository(f'runs/{name}{arg}')


def _help(
  module: types.ModuleType,
  flag_values: flags.FlagValues,
  example: str,
  needs_config: bool,
) -> str:
  """Returns the help: what the verb is for, an example, and its flags."""
  entries = []
  for name in flag_values:
    default = flag_values[name].default
    shown = '' if default in (None, '', []) else f' (default: {default})'
    entries.append((f'--{name}', f'{flag_values[name].help}{shown}'))
  if needs_config:
    entries.insert(0, ('--config', 'FILE.py[:arg], a run of experiments/'))
    entries.insert(1, ('--config.KEY=VALUE', 'changes one key of that run'))
  entries.append(('--traceback', 'show where an error came from'))
  lines = [(module.__doc__ or '').strip(), '', 'Example:', f'  {example}', '']
  lines.append('Flags:')
  for name, text in entries:
    lines += textwrap.wrap(
      f'{name}  {text}', 78, initial_indent='  ', subsequent_indent='      '
    )
  return '\n'.join(lines)
