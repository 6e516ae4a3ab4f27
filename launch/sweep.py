"""Runs `train` at many points of a config, and says which is best.

A grid of values, a list of points, or both; each point is a run of its own in
WORKDIR/NAME. The same command again skips what is finished and goes on with
what is not; more values extend the sweep. At the end: results.md, results.csv
and results.png in WORKDIR.
"""

import shlex
import sys

import jax
import ml_collections
from absl import flags

from yi_jax import app
from yi_jax.data import prepared
from yi_jax.sweeping import folder as sweep_folder
from yi_jax.sweeping import place_flags, points, results, running

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'folder of the sweep, with a folder for each run',
  flag_values=FLAGS,
)
_GRID = flags.DEFINE_multi_string(
  'grid',
  [],
  'KEY=VALUE,VALUE,... of the config; several make their product',
  flag_values=FLAGS,
)
_LIST = flags.DEFINE_string(
  'list',
  '',
  'file of points, one {"KEY": VALUE, ...} a line',
  flag_values=FLAGS,
)
_PLACE = place_flags.PlaceFlags(FLAGS)
_METRIC = flags.DEFINE_string(
  'metric',
  results.DEFAULT,
  'what is compared: loss, or a number or group of numbers in report.json',
  flag_values=FLAGS,
)
_HIGHEST = flags.DEFINE_bool(
  'highest', False, 'whether the highest result is best', flag_values=FLAGS
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'check, show the commands and end', flag_values=FLAGS
)

_FAILED = 1  # exit code


def main(config: ml_collections.ConfigDict) -> int:
  """Runs a sweep; returns the exit code.

  Args:
    config: what all runs share; here only to find their data.

  Raises:
    ValueError: if a run of it, or its folder, is not as it must be.
    OSError: if data are missing or a cluster cannot be asked.
  """
  # The devices are for the runs: this process only checks and waits.
  jax.config.update('jax_platforms', 'cpu')
  spec, assignments, _ = app.split(sys.argv[1:])
  _PLACE.check()
  listed = points.read_list(_LIST.value) if _LIST.value else []
  combined = points.combine(points.parse_grid(_GRID.value), listed)
  wanted = points.check(spec, assignments, combined)
  folder = sweep_folder.Folder(_WORKDIR.value)
  shared = [f'--config={spec}', *(f'--config.{a}' for a in assignments)]
  if _DRY_RUN.value:
    folder.agree(spec, assignments, wanted, write=False)
    for point in folder.points:
      where = f'--workdir={folder.workdir(point.name)}'
      command = [*shared, *point.arguments(), where]
      print(f'python -m yi_jax.train {shlex.join(command)}')
    return 0
  if _PLACE.local:
    prepared.open_prepared(config.data, 'train')  # once, not in every log
  with folder.locked() as lock:
    fresh, known = folder.agree(spec, assignments, wanted), len(wanted)
    if 0 < fresh < known:
      print(f'{fresh} of {known} points are new to this sweep')
    failed = running.run(
      folder, _PLACE.place(folder, lock), shared, at_once=_PLACE.at_once
    )
    return _conclude(folder, failed)


def _conclude(folder: sweep_folder.Folder, failed: dict[str, str]) -> int:
  """Writes and shows the results; returns the exit code."""
  metric, highest = _METRIC.value, _HIGHEST.value
  rows = results.collect(folder.path, folder.points, metric, failed)
  results.write(folder.path, rows, metric, highest)
  print(f'\n{results.markdown(rows, metric, highest)}')
  winner = results.best(rows, highest)
  if winner:
    print(f'best: {winner.point.name} with {metric} {winner.value:.4g}')
    print(f'      {folder.workdir(winner.point.name)}')
  print(f'results.md, results.csv and results.png are in {folder.path}')
  for name, why in failed.items():
    print(f'error: {name} did not finish: {why}', file=sys.stderr)
  return _FAILED if failed else 0


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example=(
        '--config=experiments/quickstart.py --workdir=runs/sweep '
        '--grid optimizer.learning_rate=1e-3,3e-3 '
        '--grid model.overrides.rope_theta=1e4,1e6'
      ),
    )
  )
