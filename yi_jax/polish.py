"""Polishes conversations: what is wrong with which, and which to tune on.

Reads the conversations of tasks or files, checks each row alone and against the
others, tags it, and picks rows that balance tags and difficulty. WORKDIR has
report.html to look at, reasons.jsonl (why, for every row) and reviewed.jsonl
(the chosen rows).
"""

import pathlib
import sys
from typing import Any

from absl import flags

from yi_jax import app
from yi_jax.alignment import report
from yi_jax.data import atomic, progress

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; runs/NAME of the config if not given.',
  flag_values=FLAGS,
)


def polish(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
  """Checks, tags and samples, and writes the report.

  Args:
    config: see experiments/polish.py.
    workdir: folder of the run, absolute.

  Returns:
    The facts of report.json.

  Raises:
    ValueError: if the config or a conversation is wrong.
    OSError: if a file is missing, or the disk full.
  """
  with (
    atomic.locked(workdir / '.lock'),
    progress.explain_full_disk(workdir),
  ):
    facts = report.run(config, workdir)
  print('\n'.join(report.describe(facts)))
  progress.tell('report', str(workdir / 'report.html'))
  return facts


def main(config: Any) -> None:
  """Does what the flags ask for; without one, polishes."""
  polish(config, pathlib.Path(FLAGS.workdir))


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--config=experiments/polish.py'))
