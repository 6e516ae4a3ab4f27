"""What a check says of a row."""

from typing import NamedTuple


class Finding(NamedTuple):
  """One reason to look at a row.

  Attributes:
    row: its index.
    check: name of the check.
    reason: a short sentence.
    others: ids of the rows it was compared with.
  """

  row: int
  check: str
  reason: str
  others: tuple[str, ...] = ()
