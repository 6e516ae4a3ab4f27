"""Chooses rows that balance tags and difficulty."""

from typing import Any


def defaults() -> dict[str, Any]:
  """Returns the section `sample` of a config."""
  return {}
