"""What may be wrong with rows, one check after the other."""

from typing import Any


def defaults() -> dict[str, Any]:
  """Returns the section `checks` of a config."""
  return {}
