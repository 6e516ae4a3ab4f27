"""Measures a model: needles in long texts, bits by position, its layers.

Takes a checkpoint of any kind. Results go to WORKDIR/TASK: report.json, a table
and pictures. They are kept one by one, so the same command goes on where it was
stopped.
"""

import dataclasses
import pathlib
import sys

from absl import flags

from yi_jax import app, compilation_cache, paths
from yi_jax.data import atomic, chatml
from yi_jax.evaluation import options, subject, tasks

FLAGS = flags.FlagValues()
_TASK = flags.DEFINE_string(
  'task',
  None,
  '; '.join(f'{name}: {task.about}' for name, task in tasks.TASKS.items()),
  flag_values=FLAGS,
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'workdir of a training run (its newest checkpoint is used), folder of Hugging '
  'Face, or .gguf file',
  flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'gets a folder with the results', flag_values=FLAGS
)
_ADAPTER = flags.DEFINE_string(
  'adapter',
  None,
  'folder of a LoRA adapter in the format of PEFT, put onto the checkpoint',
  flag_values=FLAGS,
)
_CHAT = flags.DEFINE_bool(
  'chat',
  None,
  'ask as one asks a model that was taught to answer; default: if the '
  'checkpoint has a chat template',
  flag_values=FLAGS,
)
_TEMPLATE = flags.DEFINE_enum(
  'template',
  None,
  list(chatml.TEMPLATES),
  "layout of a chat; default: the checkpoint's own",
  flag_values=FLAGS,
)
_ROPE_THETA = flags.DEFINE_float(
  'rope_theta',
  None,
  "base of the positions; default: the checkpoint's",
  flag_values=FLAGS,
)
_MAX_POSITION_EMBEDDINGS = flags.DEFINE_integer(
  'max_position_embeddings',
  None,
  "tokens a row may have; default: the checkpoint's",
  flag_values=FLAGS,
)
# Options that name files, where the user stands.
_PATHS = ('documents', 'needles_file')


def _define() -> None:
  """Makes a flag of every option of every task."""
  helps = {}
  for name, task in tasks.TASKS.items():
    for field in dataclasses.fields(task.options):
      default = field.default
      if isinstance(default, tuple):
        default = ','.join(map(str, default))
      text = field.metadata['help']
      text += '' if default in ('', None) else f' (default: {default})'
      helps.setdefault(field.name, {}).setdefault(text, []).append(name)
  for field, texts in helps.items():
    said = [f'({", ".join(names)}) {text}' for text, names in texts.items()]
    flags.DEFINE_string(field, None, '; '.join(said), flag_values=FLAGS)


_define()


def main() -> None:
  """Opens the model and runs the task."""
  task = tasks.get(_TASK.value)
  wanted = _options(task)
  for flag, text in (
    (_CHECKPOINT, 'the workdir of a run, a folder of Hugging Face or a .gguf'),
    (_WORKDIR, 'a folder for the results'),
  ):
    if not flag.value:
      raise ValueError(f'--{flag.name} is missing: {text}')
  if '://' in _WORKDIR.value:
    raise ValueError(
      f'--workdir={_WORKDIR.value} is a URL: results go to a folder of this '
      'machine'
    )
  compilation_cache.enable()
  model = subject.open_subject(
    paths.in_caller(_CHECKPOINT.value),
    adapter=_ADAPTER.value and paths.in_caller(_ADAPTER.value),
    chat=_CHAT.value,
    template=_TEMPLATE.value,
    rope_theta=_ROPE_THETA.value,
    max_position_embeddings=_MAX_POSITION_EMBEDDINGS.value,
  )
  folder = pathlib.Path(_WORKDIR.value) / _TASK.value
  with atomic.locked(folder / '.lock'):
    task.run(model, wanted, folder)


def _options(task: tasks.Task) -> object:
  """Returns the options of a task from the flags.

  Raises:
    ValueError: for a flag of another task, or a value that is none.
  """
  mine = {field.name for field in dataclasses.fields(task.options)}
  texts = {}
  for other in tasks.TASKS.values():
    for field in dataclasses.fields(other.options):
      text = FLAGS[field.name].value
      if text is None:
        continue
      if field.name not in mine:
        raise ValueError(
          f'--{field.name} is no option of --task={_TASK.value}, which takes: '
          f'{", ".join(sorted(mine))}'
        )
      texts[field.name] = text
  found = options.parse(task.options, texts)
  for name in set(_PATHS) & texts.keys():
    value = getattr(found, name)
    if isinstance(value, tuple):
      value = tuple(map(paths.in_caller, value))
    elif value:
      value = paths.in_caller(value)
    found = dataclasses.replace(found, **{name: value})
  return found


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example='--task=needle --checkpoint=runs/quickstart '
      '--workdir=runs/needle --lengths=256,512',
      needs_config=False,
    )
  )
