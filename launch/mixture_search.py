"""Finds the mixture of abilities to tune on, by runs of `train`.

Two phases: each ability alone on a few to a few hundred conversations; then all
of them fused, at several shares and hyperparameters. Runs are judged by the
held-out loss of every ability. The same command again skips what is finished,
however the one before has ended. At the end: mixture.json, which
--config.data.mixture takes, results.md, results.csv, single.png and fused.png
in WORKDIR.
"""

import functools
import sys

import jax
import ml_collections
from absl import flags

from yi_jax import app
from yi_jax.alignment.mixture import mixture_search as searching
from yi_jax.alignment.mixture import mixture_search_report as report
from yi_jax.alignment.mixture import mixture_search_runs as runs
from yi_jax.alignment.mixture import mixture_search_space as spaces
from yi_jax.data import progress
from yi_jax.sweeping import place_flags, points

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'folder of the search, with a sweep for each phase',
  flag_values=FLAGS,
)
_ABILITY = flags.DEFINE_list(
  'ability',
  [],
  'abilities to search, as in zh_math; all of the mixture if not given, and '
  'those that are not named keep their rates',
  flag_values=FLAGS,
)
_SAMPLES = flags.DEFINE_list(
  'samples',
  list(map(str, spaces.COUNTS)),
  'conversations of an ability alone; empty leaves that phase out',
  flag_values=FLAGS,
)
_SHARE = flags.DEFINE_list(
  'share',
  list(map(str, spaces.SHARES)),
  "factors of an ability's rate",
  flag_values=FLAGS,
)
_GRID = flags.DEFINE_multi_string(
  'grid',
  [],
  'KEY=VALUE,VALUE,... of the config, the first value being the start',
  flag_values=FLAGS,
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  1,
  'times to go through all hyperparameters and abilities, at most',
  lower_bound=1,
  flag_values=FLAGS,
)
_PLACE = place_flags.PlaceFlags(FLAGS)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run',
  False,
  'check, show the commands as if nothing were better than the start, and end',
  flag_values=FLAGS,
)

_FAILED = 1  # exit code


def main(config: ml_collections.ConfigDict) -> int:
  """Runs a search; returns the exit code.

  Args:
    config: what all runs share.

  Raises:
    ValueError: if something of it is not as it must be.
    OSError: if data are missing or a cluster cannot be asked.
  """
  # The devices are for the runs: this process only checks and waits.
  jax.config.update('jax_platforms', 'cpu')
  spec, assignments, _ = app.split(sys.argv[1:])
  _PLACE.check()
  space = spaces.make_space(
    config,
    abilities=_ABILITY.value,
    counts=_SAMPLES.value,
    shares=_SHARE.value,
    grid=points.parse_grid(_GRID.value),
  )
  if _PLACE.local:
    spaces.check_rows(config, space)
  arguments = (
    *(_WORKDIR.value, spec, assignments),
    *(_PLACE.place, _PLACE.at_once),
  )
  if _DRY_RUN.value:
    searching.search(space, runs.Rehearsal(space.tasks, *arguments))
    return 0
  sweeps = runs.Sweeps(*arguments)
  tell = functools.partial(progress.tell, 'search')
  outcome = searching.search(space, sweeps, _ROUNDS.value, tell)
  report.write(_WORKDIR.value, outcome, sweeps.flags())
  print(f'\n{report.markdown(_WORKDIR.value, outcome, sweeps.flags())}')
  print(f'{report.MIXTURE}, tables and pictures are in {_WORKDIR.value}')
  for name, why in sweeps.failed.items():
    print(f'error: {name} did not finish: {why}', file=sys.stderr)
  return _FAILED if sweeps.failed else 0


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example=(
        '--config=experiments/sft.py:tiny --workdir=runs/mixture '
        '--samples=16,64,256 --grid optimizer.learning_rate=3e-4,1e-3'
      ),
    )
  )
