"""Turns raw text into data to train on: filters, removes copies, reports.

The stages of Yi's cascade in their published order, over WARC, WET, JSON lines,
Parquet, text, data sets of TFDS or the project's own sources, on this machine
or on a runner of Apache Beam. A result appears when it is whole; a run that was
stopped goes on where it was, and a changed stage is done again with those after
it. WORKDIR/report.html tells what every rule did.
"""

import contextlib
import os
import pathlib
import sys
from typing import Any

from absl import flags

from yi_jax import app
from yi_jax.curation import (
  calibration,
  engine,
  explain,
  learned,
  report,
  running,
  shards,
  training,
  writing,
)
from yi_jax.data import atomic, progress

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; runs/NAME of the config if not given.',
  flag_values=FLAGS,
)
flags.DEFINE_string(
  'runner',
  running.LOCAL,
  'Where it runs: local is this machine; or a runner of Beam, such as '
  'DataflowRunner, FlinkRunner or SparkRunner.',
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  'workers',
  0,
  'Processes on this machine; 0 is one a core.',
  flag_values=FLAGS,
)
flags.DEFINE_string(
  'beam_flags',
  '',
  "Options of the runner, as in --beam_flags='--project=x --region=y'.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  'sample',
  0,
  'A dry run on about so many documents: a report, and no data.',
  flag_values=FLAGS,
)
flags.DEFINE_string(
  'explain',
  '',
  'Tells the story of the document with this id, and does nothing else.',
  flag_values=FLAGS,
)
flags.DEFINE_boolean(
  'calibrate',
  False,
  'Shows percentiles of the recorded scores, to choose thresholds from.',
  flag_values=FLAGS,
)
flags.DEFINE_list(
  'train',
  [],
  'Trains the models of these stages anew, shows their cards, and does nothing '
  'else: --train=quality,perplexity.',
  flag_values=FLAGS,
)


def curate(
  config: Any,
  workdir: str,
  machine: engine.Machine,
  sample: int = 0,
) -> list[engine.Pass]:
  """Runs the cascade and writes its report and, without `sample`, the data.

  Models of stages that are not there are trained first.

  Args:
    config: see experiments/curate.py.
    workdir: folder of the run, absolute.
    machine: where it runs.
    sample: documents of a dry run, 0 for all.

  Returns:
    The passes, all of them whole.

  Raises:
    ValueError: if the config, or too much of the input, is wrong.
    OSError: if a file is missing, or the disk full.
  """
  lock = contextlib.nullcontext()
  if '://' not in workdir:
    lock = atomic.locked(pathlib.Path(workdir) / '.lock')
  with lock, progress.explain_full_disk(pathlib.Path(workdir)):
    training.train_missing(config)
    found = engine.run(config, workdir, machine, sample)
    folder = workdir
    if sample:
      folder = os.path.join(workdir, f'sample-{sample}')
    else:
      writing.write(config, workdir, found[-1], machine)
    facts = report.write(config, folder, found, machine.workers)
  print('\n'.join(report.describe(facts)))
  progress.tell('report', os.path.join(folder, 'report.html'))
  return found


def main(config: Any) -> None:
  """Curates, trains the models of stages, or explains a document."""
  if FLAGS.sample < 0 or FLAGS.workers < 0:
    raise ValueError('--sample and --workers are not negative')
  if FLAGS.train:
    for card in training.train(config, FLAGS.train):
      print('\n'.join(learned.page(card)))
    return
  if FLAGS.explain:
    found, _ = engine.plan(config, FLAGS.workdir, FLAGS.sample)
    for line in explain.story(found, FLAGS.explain):
      print(line)
    return
  machine = engine.Machine(
    FLAGS.runner,
    FLAGS.workers or os.cpu_count() or 1,
    FLAGS.beam_flags,
  )
  found = curate(config, FLAGS.workdir, machine, FLAGS.sample)
  if FLAGS.calibrate:
    table = calibration.percentiles(found)
    path = found[0].folder.parent.parent / 'calibration.json'
    shards.write_json(path, table)
    print('\n'.join(calibration.lines(table)))
    progress.tell('calibrate', str(path))


if __name__ == '__main__':
  sys.exit(
    app.run(main, FLAGS, example='--config=experiments/curate.py:quickstart')
  )
