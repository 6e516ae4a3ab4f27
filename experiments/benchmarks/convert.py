"""How fast checkpoints are converted, and in how much memory.

  launch/local.sh python experiments/benchmarks/convert.py \\
      --preset=yi_6b --folder=/tmp/convert

Makes a checkpoint of Hugging Face's kind in bfloat16 with random weights,
converts it to a workdir and that back, each in a process of its own, and
compares every tensor of the last with the first, byte by byte. It takes three
times the size of the model on the disk of --folder (36 GB for yi_6b), which is
removed at the end.

The last line is JSON. `ratio` is the seconds of a plain copy of the same files
(both flushed to the disk) over those of the slower conversion; `peak_gb` is the
resident memory of each way at its highest, `cpu_seconds` what it computed,
which other work on the machine does not lengthen as much.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
from absl import flags

from yi_jax import app
from yi_jax.checkpoints import hf, lazy, naming
from yi_jax.models import config as model_config

FLAGS = flags.FlagValues()
_PRESET = flags.DEFINE_string(
  'preset', 'yi_6b', 'Size of the model.', flag_values=FLAGS
)
_LAYERS = flags.DEFINE_integer(
  'layers', 0, 'Layers, if not as many as the preset has.', flag_values=FLAGS
)
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where to work; it may not be there.', flag_values=FLAGS
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the weights.', flag_values=FLAGS)


def main() -> None:
  """Measures and prints."""
  config = model_config.get_preset(_PRESET.value, dtype='bfloat16')
  if _LAYERS.value:
    config = config.replace(num_hidden_layers=_LAYERS.value)
  size = 2 * model_config.num_params(config)
  if not _FOLDER.value:
    raise ValueError('give --folder, a place for three times the model')
  folder = pathlib.Path(_FOLDER.value).absolute()
  folder.mkdir(parents=True)  # refuses one that is there
  try:
    if shutil.disk_usage(folder).free < 3.1 * size:
      raise OSError(f'{folder} needs {3.1 * size / 1e9:.0f} GB of disk')
    print(json.dumps(measure(config, folder, size)))
  finally:
    shutil.rmtree(folder)


def measure(
  config: model_config.ModelConfig, folder: pathlib.Path, size: int
) -> dict[str, object]:
  """Converts both ways and returns the figures."""
  first, work, last = folder / 'first', folder / 'work', folder / 'last'
  started = time.perf_counter()
  hf.save_pretrained(config, _weights(config), first)
  print(f'made {size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s')
  copies = [_copy(first, folder / 'copy')]
  there = _convert(first, work)
  back = _convert(work, last)
  copies.append(_copy(first, folder / 'copy'))
  tensors = _compare(first, last)
  copy = min(copies)
  return {
    'benchmark': 'convert',
    'preset': _PRESET.value,
    'layers': config.num_hidden_layers,
    'gb': round(size / 1e9, 2),
    'copy_seconds': [round(x, 1) for x in copies],
    'copy_mb_per_second': round(size / 1e6 / copy),
    'seconds': [round(there[0], 1), round(back[0], 1)],
    'mb_per_second': [round(size / 1e6 / x[0]) for x in (there, back)],
    'peak_gb': [round(there[1], 2), round(back[1], 2)],
    'cpu_seconds': [round(there[2], 1), round(back[2], 1)],
    'equal_tensors': tensors,
    'ratio': round(copy / max(there[0], back[0]), 2),
  }


def _weights(config: model_config.ModelConfig) -> lazy.LazyTree:
  """Returns random weights, made when they are read."""
  leaves = {}
  for i, entry in enumerate(naming.entries(config)):

    def numbers(i=i, shape=entry.shape):
      # Random signs and mantissas, and exponents as weights have them.
      random = np.random.default_rng([_SEED.value, i])
      bits = random.integers(0, 2**16, shape, np.uint16)
      return ((bits & 0x80FF) | 0x3C00).view(ml_dtypes.bfloat16)

    dtype = np.dtype(ml_dtypes.bfloat16)
    leaves[entry.name] = lazy.Leaf(entry.name, entry.shape, dtype, numbers)
  return naming.to_params(config, leaves)


def _convert(source, target):
  """Returns seconds, peak resident gigabytes and CPU seconds."""
  command = [sys.executable, '-m', 'yi_jax.convert']
  command += [f'--source={source}', f'--target={target}']
  started = time.perf_counter()
  process = subprocess.Popen(command)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  seconds = time.perf_counter() - started
  if process.returncode:
    raise OSError(f'convert has failed with exit code {process.returncode}')
  peak = usage.ru_maxrss * 1024 / 1e9  # Linux counts in KiB
  print(f'{source.name} -> {target.name}: {seconds:.1f} s, peak {peak:.2f} GB')
  return seconds, peak, usage.ru_utime + usage.ru_stime


def _copy(source, target):
  """Returns the seconds of a plain copy that reaches the disk."""
  target.mkdir()
  started = time.perf_counter()
  for file in sorted(source.iterdir()):
    shutil.copyfile(file, target / file.name)
    descriptor = os.open(target / file.name, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
  seconds = time.perf_counter() - started
  print(f'a plain copy: {seconds:.1f} s')
  shutil.rmtree(target)
  return seconds


def _compare(first, last):
  """Returns how many tensors are equal, which must be all."""
  trees = [
    hf.open_checkpoint(path, scan_layers=False)[1] for path in (first, last)
  ]
  left, right = (dict(lazy.leaves(tree)) for tree in trees)
  for name, leaf in left.items():
    numbers = [x.read().view(np.uint16) for x in (leaf, right[name])]
    if not np.array_equal(*numbers):
      raise ValueError(f'{name} is not what it was')
  assert left.keys() == right.keys()
  return len(left)


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example='--preset=yi_6b --folder=/tmp/convert',
      needs_config=False,
    )
  )
