"""What makes a run the one that it is: what a continuation may not change."""

import json
from typing import Any

from yi_jax.training import run_config

# What may differ between a run and its continuation: how far, how often and
# where. Another train.steps moves the end of the schedule, and so the rate of
# what remains; every change is printed. Prefixes of 'section.key' names.
FREE_KEYS = (
  'train.',
  'checkpoint.',
  'sample.',
  'mesh.',
  'data.root',
  # The order of rows does not depend on the batch, so a batch may grow.
  'data.batch_tokens',
  'data.batch_growth',
  'optimizer.accumulate_steps',
  'model.remat',
)
# What may differ where it begins after all that a run has read: pairs of which
# the first is a token.
_BY_TOKENS = ('data.stages', 'data.lengths')


def identity(config: Any, run: run_config.Run) -> dict[str, Any]:
  """Returns what a checkpoint records of its run: 'section.key' -> value.

  The model is spelled out field by field, so that a preset and the overrides
  that lead to the same model are the same run. JSON types only.
  """
  flat = {}
  for name, section in run_config.to_dict(config).items():
    if name == 'model':
      section = run.model.to_dict()
    if isinstance(section, dict):
      flat.update({f'{name}.{key}': value for key, value in section.items()})
    else:
      flat[name] = section
  return json.loads(json.dumps(flat))


def refuse_other_run(
  saved: dict[str, Any], now: dict[str, Any], tokens: int
) -> list[str]:
  """Compares a checkpoint's `identity` with this run's.

  Args:
    saved: from the checkpoint; a key that only one of both has is not compared.
    now: of this run.
    tokens: what the checkpoint's run has read; stages that begin later may
      change.

  Returns:
    One line for each free key that has changed.

  Raises:
    ValueError: naming the first key that makes this another run.
  """
  changed = []
  for key in sorted(saved.keys() & now.keys()):
    if _without_none(saved[key]) == _without_none(now[key]):
      continue
    if key in _BY_TOKENS:
      begun = [[s for s in run[key] if s[0] < tokens] for run in (saved, now)]
      free = begun[0] == begun[1]
    else:
      free = key.startswith(FREE_KEYS)
    if not free:
      raise ValueError(
        f'the workdir holds another run, with {key} = {saved[key]!r}; here it '
        f'is {now[key]!r}. Set it back, or take another --workdir'
      )
    changed.append(f'{key} changed: {saved[key]!r} -> {now[key]!r}')
    schedule = now['optimizer.schedule']
    if key == 'train.steps' and schedule != 'constant':
      changed[-1] += (
        f'. The {schedule} schedule ends there now: what remains has another '
        'learning rate than it would have had'
      )
  return changed


def _without_none(value: Any) -> Any:
  """Returns what is set: tasks that were added since are named with None."""
  if not isinstance(value, dict):
    return value
  return {k: v for k, v in value.items() if v is not None}
