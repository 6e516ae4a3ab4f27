"""The nearest known name, for every message about an unknown one."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str:
  """Returns what to add to `no such thing 'x'`.

  Example: nearest('yi_6bb', ['yi_6b', 'yi_9b']) == "; did you mean 'yi_6b'?"

  Args:
    name: what was given.
    known: the names there are; all are listed if none is close.
  """
  known = list(known)
  close = difflib.get_close_matches(str(name), known, n=1)
  if close:
    return f'; did you mean {close[0]!r}?'
  return f'; there are: {", ".join(known)}'
