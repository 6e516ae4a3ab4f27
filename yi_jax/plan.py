"""Says what a run needs on a machine, before one pays for it.

The real training and decoding steps are compiled for a TPU slice by the TPU's
own compiler, without a TPU; for GPUs XLA:CPU stands in and the result is an
estimate. Shown are memory, what the devices send each other, a roofline of the
time, and what to change when it does not fit.
"""

import json
import os
import pathlib
import sys

from absl import flags

from yi_jax import app, paths

FLAGS = flags.FlagValues()
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'CHIP:SHAPE, e.g. v5p:4x4x8 (chips along each dimension), or h100:8x8 (nodes '
  'x GPUs)',
  flag_values=FLAGS,
)
_SEARCH = flags.DEFINE_bool(
  'search',
  False,
  'try meshes, remats and microbatches instead of those of the run, and rank '
  'them',
  flag_values=FLAGS,
)
_COMPILES = flags.DEFINE_integer(
  'compiles',
  4,
  'programs that --search compiles, of those that look best by formula',
  lower_bound=1,
  flag_values=FLAGS,
)
_DECODE = flags.DEFINE_bool(
  'decode', True, 'plan the step of decoding too', flag_values=FLAGS
)
_ROWS = flags.DEFINE_integer(
  'rows',
  0,
  'rows that decode together; default: one for each part of the batch',
  flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool(
  'json', False, 'print one JSON line instead of tables', flag_values=FLAGS
)
_FITS = flags.DEFINE_string(
  'fits',
  None,
  'write the page of what fits where, docs/fits.md; takes no --config',
  flag_values=FLAGS,
)


def main(config: object = None) -> int:
  """Plans what the flags name; exit code 1 if it does not fit."""
  from yi_jax.planning import compiling, fits, report, search, topologies
  from yi_jax.training import phases, run_config

  def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

  if _FITS.value:
    fits.write(pathlib.Path(paths.in_caller(_FITS.value)), tell)
    return 0
  if not _TOPOLOGY.value:
    raise ValueError(f'give --topology; there are:\n{topologies.known()}')
  topology = topologies.parse(_TOPOLOGY.value)
  # Of several lengths (`data.lengths`) the longest needs the most memory.
  runs = phases.runs(run_config.resolve(config))
  run = max(runs, key=lambda run: run.length)
  if _SEARCH.value:
    found = search.search(run, topology, _COMPILES.value, tell)
    print(
      json.dumps(report.ranking(found))
      if _JSON.value
      else report.ranking_table(found)
    )
    return 0 if found[0].fits else 1
  sizes = report.mesh_sizes(config, topology)
  layout = search.Layout(run, topology, sizes)
  tell(f'compiling the training step for {topology.name}')
  measured = compiling.compile_job(layout.job)
  plans = [report.train(layout, measured)]
  if _DECODE.value:
    tell(f'compiling the decoding step for {topology.name}')
    rows = _ROWS.value or sizes['data'] * sizes['fsdp']
    job = compiling.Job('decode', run, topology.name, sizes, rows)
    plans.append(report.decode(job, compiling.compile_job(job)))
  print(
    json.dumps(report.as_json(plans)) if _JSON.value else report.as_text(plans)
  )
  return 0 if search.fits(measured, topology) else 1


if __name__ == '__main__':
  # Before JAX is imported: an accelerator of this machine plays no part.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  sys.exit(
    app.run(
      main,
      FLAGS,
      example='--config=experiments/pretrain.py:yi_34b --topology=v5p:4x4x8',
      needs_config=not any('-fits' in argument for argument in sys.argv),
    )
  )
