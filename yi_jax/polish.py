"""Polishes conversations: what is wrong with which, and which to tune on.

Reads the conversations of tasks or files, checks each row alone and against the
others, tags it, and picks rows that balance tags and difficulty. WORKDIR has
report.html to look at, reasons.jsonl (why, for every row) and reviewed.jsonl
(the chosen rows).

Flags of their own then have people review the rows, a model make new ones, and
the model to be tuned tell what it knows; each does one thing, see
docs/review.md.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from yi_jax import app, compilation_cache, paths
from yi_jax.alignment import report, rows
from yi_jax.alignment.review import reviewing
from yi_jax.alignment.tags import tags
from yi_jax.curation import learned
from yi_jax.data import atomic, journal, progress

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; runs/NAME of the config if not given.',
  flag_values=FLAGS,
)
_EXPORT_REVIEW = flags.DEFINE_string(
  'export_review',
  None,
  'File (.csv for a spreadsheet, .jsonl) for the rows that wait for a verdict.',
  flag_values=FLAGS,
)
_IMPORT_REVIEW = flags.DEFINE_string(
  'import_review',
  None,
  'That file with verdicts, to go into the ledger; needs --reviewer.',
  flag_values=FLAGS,
)
_REVIEWER = flags.DEFINE_string(
  'reviewer', '', 'Who gave the verdicts of the file.', flag_values=FLAGS
)
_ITERATION = flags.DEFINE_integer(
  'iteration',
  0,
  'Pass over the set, from 1, that a review or a release is about; 0: any.',
  flag_values=FLAGS,
)
_RELEASE = flags.DEFINE_string(
  'release',
  None,
  'File (.jsonl) for the accepted rows; refused while rows wait.',
  flag_values=FLAGS,
)
_LEAVE_OUT_UNREVIEWED = flags.DEFINE_bool(
  'leave_out_unreviewed',
  False,
  'Releases without the rows that wait.',
  flag_values=FLAGS,
)
_STATUS = flags.DEFINE_bool(
  'status', False, 'Tells how far the review is.', flag_values=FLAGS
)
_AS_OF = flags.DEFINE_string(
  'as_of',
  '',
  'Date, or number of lines of the ledger, that --status is about.',
  flag_values=FLAGS,
)
_HISTORY = flags.DEFINE_string(
  'history',
  None,
  'Id of a row (its first digits will do) to tell the verdicts on.',
  flag_values=FLAGS,
)
_EVOLVE = flags.DEFINE_bool(
  'evolve',
  False,
  'Has the model of config.endpoint make new tasks of the rows, with answers.',
  flag_values=FLAGS,
)
_STEP_BACK = flags.DEFINE_bool(
  'step_back',
  False,
  'Has it rewrite answers: first the principle, then the reasoning.',
  flag_values=FLAGS,
)
_KNOWLEDGE = flags.DEFINE_bool(
  'knowledge',
  False,
  'Tells which answers the model of config.knowledge does not support.',
  flag_values=FLAGS,
)
_MEND = flags.DEFINE_string(
  'mend',
  None,
  'Ledger whose last line was cut off, to be put right.',
  flag_values=FLAGS,
)
_TRAIN = flags.DEFINE_enum(
  'train',
  None,
  ('tags',),
  'Trains this model anew and shows its card.',
  flag_values=FLAGS,
)
_ACTIONS = (
  *(_EXPORT_REVIEW, _IMPORT_REVIEW, _RELEASE, _STATUS, _HISTORY),
  *(_EVOLVE, _STEP_BACK, _KNOWLEDGE, _MEND, _TRAIN),
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
  _check_flags()
  workdir, number = pathlib.Path(FLAGS.workdir), _ITERATION.value
  if _EXPORT_REVIEW.value:
    reviewing.export(config, workdir, _path(_EXPORT_REVIEW), number)
  elif _IMPORT_REVIEW.value:
    path = _path(_IMPORT_REVIEW)
    reviewing.take_in(workdir, path, _REVIEWER.value, number)
  elif _RELEASE.value:
    path = _path(_RELEASE)
    reviewing.release(workdir, path, number, _LEAVE_OUT_UNREVIEWED.value)
  elif _STATUS.value:
    reviewing.status(workdir, _AS_OF.value)
  elif _HISTORY.value:
    reviewing.history(workdir, _HISTORY.value)
  elif _EVOLVE.value:
    evolve = config.evolve
    reviewing.make(config, workdir, evolve.generators, evolve.rounds)
  elif _STEP_BACK.value:
    reviewing.make(config, workdir, ('step_back',), 1)
  elif _KNOWLEDGE.value:
    compilation_cache.enable()
    reviewing.look_up(config, workdir)
  elif _MEND.value:
    print(journal.mend(_path(_MEND)))
  elif _TRAIN.value:
    card = tags.Tags(config.tags.to_dict()).train(rows.root(config.data))
    print('\n'.join(learned.page(card)))
  else:
    polish(config, workdir)


def _check_flags() -> None:
  """Raises ValueError for flags that do not go together."""
  for flag in _ACTIONS:
    if flag.present and flag.value == '':
      raise ValueError(
        f'--{flag.name}= says nothing: leave it out, or say what'
      )
  given = [flag.name for flag in _ACTIONS if flag.value]
  if len(given) > 1:
    raise ValueError(f'give one at a time: --{", --".join(given)}')
  for flag, owners in (
    (_REVIEWER, (_IMPORT_REVIEW,)),
    (_ITERATION, (_EXPORT_REVIEW, _IMPORT_REVIEW, _RELEASE)),
    (_LEAVE_OUT_UNREVIEWED, (_RELEASE,)),
    (_AS_OF, (_STATUS,)),
  ):
    if flag.value and not any(owner.value for owner in owners):
      names = ' or '.join(f'--{owner.name}' for owner in owners)
      raise ValueError(f'--{flag.name} belongs to {names}')
  if _ITERATION.value < 0:
    raise ValueError(f'--iteration is from 1, not {_ITERATION.value}')


def _path(flag: flags.FlagHolder) -> pathlib.Path:
  return pathlib.Path(paths.in_caller(flag.value))


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--config=experiments/polish.py'))
