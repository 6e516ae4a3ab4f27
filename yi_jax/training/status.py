"""Tells whoever started this process how far it has come.

A supervisor names a file in YI_STATUS_FILE and looks there: a run that ended
before its first step is not worth starting again, one that has saved something
new since the last start is. Its content, always whole:

  {"state": "running", "step": 120}

State is 'running' (step: the newest checkpoint), 'saved' (stopped on request,
step is saved), 'done' or 'diverged'. Without the variable nothing happens.
"""

import json
import os

RUNNING, SAVED, DONE, DIVERGED = 'running', 'saved', 'done', 'diverged'

_VARIABLE = 'YI_STATUS_FILE'


def tell(state: str, step: int) -> None:
  """Replaces what the file says.

  Args:
    state: one of those above.
    step: see above.
  """
  path = os.environ.get(_VARIABLE)
  if not path:
    return
  part = f'{path}.part'
  try:
    with open(part, 'w') as file:
      json.dump({'state': state, 'step': step}, file)
    os.replace(part, path)
  except OSError:  # a full disk; what stood there still holds
    pass
