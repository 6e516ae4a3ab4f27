"""Which length rows have in the course of a run: the key `data.lengths`.

A run is a walk through its tokens. At token t, rows of length L go on with row
t / L of their own order (the loader's f(seed, n)), so a change of length needs
no memory but the tokens read, as a change of rates or of the batch does.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any

Schedule = tuple[tuple[int, int], ...]


def schedule(length: int, later: Sequence[Any]) -> Schedule:
  """Returns the lengths of a run and from which of its tokens on.

  Example: schedule(512, ((1e6, 2048),)) is ((0, 512), (1000000, 2048)).

  Args:
    length: tokens a row at the beginning.
    later: pairs (first token, tokens a row), see `run_config.defaults`.

  Raises:
    ValueError: if that is not what is there.
  """
  found = [(0, length)]
  for pair in later:
    try:
      first, tokens = pair
      first = math.ceil(first)
      whole = int(tokens) == tokens and tokens > 0
    except (TypeError, ValueError, OverflowError):
      first, whole = 0, False
    if first <= found[-1][0] or not whole:
      raise ValueError(
        'data.lengths is ((first token, tokens a row), ...), with first tokens '
        'that rise from above 0 (a run begins with data.length); '
        f'{pair!r} cannot follow token {found[-1][0]:,}'
      )
    found.append((first, int(tokens)))
  return tuple(found)


def at(lengths: Schedule, tokens: int) -> int:
  """Returns the length of the rows that a run reads after so many tokens."""
  return lengths[bisect.bisect_right(lengths, (tokens, math.inf)) - 1][1]
