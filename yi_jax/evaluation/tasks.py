"""The evaluations there are. A new one is a module and a line here."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from yi_jax import spelling
from yi_jax.evaluation import layers, needle, perplexity
from yi_jax.evaluation import subject as subjects


@dataclasses.dataclass(frozen=True)
class Task:
  """An evaluation.

  Attributes:
    about: what it measures.
    options: frozen dataclass; its fields are the flags of the task, see
      evaluation/options.py.
    run: takes the model, the options and a folder of its own, which it fills;
      called again after a kill, it goes on. Returns its report.
  """

  about: str
  options: type
  run: Callable[[subjects.Subject, Any, pathlib.Path], dict[str, Any]]


TASKS = {
  'needle': Task(
    'one sentence hidden in a long text', needle.Options, needle.run
  ),
  'ruler_multikey': Task(
    'the number of one key among many, in a long text',
    needle.KeyOptions,
    needle.run_keys,
  ),
  'perplexity': Task(
    'how well each position of long texts is predicted',
    perplexity.Options,
    perplexity.run,
  ),
  'layers': Task(
    'how little each layer turns its input, and which to repeat',
    layers.Options,
    layers.run,
  ),
}


def get(name: str | None) -> Task:
  """Returns a task by name.

  Raises:
    ValueError: for none, or one there is not.
  """
  if not name:
    raise ValueError(f'--task is missing; there are: {", ".join(TASKS)}')
  if name not in TASKS:
    raise ValueError(f'no task {name!r}{spelling.nearest(name, TASKS)}')
  return TASKS[name]
