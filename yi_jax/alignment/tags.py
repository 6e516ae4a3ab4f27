"""What rows are about, and how hard they are."""

from typing import Any


def defaults() -> dict[str, Any]:
  """Returns the section `tags` of a config."""
  return {}
