"""How much memory one very long row takes, forward and backward, on a CPU.

  launch/local.sh python experiments/benchmarks/long_rows.py \\
      --lengths=25000,50000,100000,200000

A small model (2 layers of 128, one head of 128 as wide as Yi's, vocabulary
8,192; `--head_dim=32` makes four of it) makes one training step on one row of
each length, in a process of its own: attention in blocks with a double loop,
layers recomputed, logits in chunks. For each length a line of JSON: the
temporaries the compiler asks for, the largest array of the program, the most
memory the process had, and the seconds of the step. `--compile` leaves the step
itself out, which takes a quarter of an hour at 200,000 tokens on two cores.

The last line is JSON too: `ratio`, the temporaries a token of the longest row
over those of the shortest (1 is linear), and `peak_gib` of all. It exits with 1
if a process had more than 8 GiB, or if an array of the program has two axes as
long as the row.
"""

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from yi_jax.sharding import mesh as meshes
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

_VOCABULARY = 8192
_MIB = 2**20
_MOST_GIB = 8
_HIDDEN = 128


def run_of(length: int, head_dim: int = _HIDDEN) -> run_config.Run:
  """Returns the run with one row of a length a step."""
  config = run_config.defaults()
  config['model']['overrides'] |= dict(
    vocab_size=_VOCABULARY,
    hidden_size=_HIDDEN,
    intermediate_size=344,
    num_hidden_layers=2,
    num_attention_heads=_HIDDEN // head_dim,
    num_key_value_heads=max(1, _HIDDEN // head_dim // 2),
    head_dim=head_dim,
    max_position_embeddings=length,
    rope_theta=5e6,
    scan_layers=True,
    remat='full',
  )
  config['data'] |= dict(length=length, batch_tokens=length)
  return run_config.resolve(config)


def _row(length: int) -> dict[str, np.ndarray]:
  """Returns one document that fills the row."""
  tokens = np.random.default_rng(0).integers(0, _VOCABULARY, (1, length + 1))
  return dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=np.ones((1, length), int),
    positions=np.arange(length)[None],
    loss_weights=np.ones((1, length)),
  )


def largest_array(program: str, length: int) -> tuple[str, bool]:
  """Returns the largest array of a program, and whether any is square.

  Args:
    program: text of the compiled program.
    length: T; square is what has [T, T] numbers or more a head.
  """
  found = {}
  for name, dims in re.findall(r'\b(\w+)\[([\d,]+)\]', program):
    sizes = [int(size) for size in dims.split(',')]
    found[f'{name}[{dims}]'] = sizes
  largest = max(found, key=lambda name: math.prod(found[name]))
  square = any(
    math.prod(sizes) >= length**2 or sum(size >= length for size in sizes) > 1
    for sizes in found.values()
  )
  return largest, square


def _measure(length: int, head_dim: int, compile_only: bool) -> dict[str, Any]:
  """Compiles, and makes, one step on a row of a length."""
  run, mesh = run_of(length, head_dim), meshes.make_mesh({}, jax.devices()[:1])
  started = time.monotonic()
  step = train_step.make(run, mesh)
  update = step.lower().compile()
  largest, square = largest_array(update.as_text(), length)
  values = {
    'length': length,
    'compile_seconds': round(time.monotonic() - started, 1),
    'temporaries_mib': round(
      update.memory_analysis().temp_size_in_bytes / _MIB, 1
    ),
    'largest_array': largest,
    'square': square,
  }
  if not compile_only:
    state = train_state.fresh(run, mesh, 0)
    batch = train_step.put_batch(_row(length), step.batch)
    started = time.monotonic()
    _, metrics = update(state, batch)
    values['loss'] = round(float(metrics['loss']), 4)
    values['seconds'] = round(time.monotonic() - started, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    values['peak_mib'] = round(peak / _MIB, 1)
  return values


def main() -> int:
  """Measures every length; exit code 1 if one takes too much."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--lengths', default='25000,50000,100000,200000')
  parser.add_argument('--head_dim', type=int, default=_HIDDEN)
  parser.add_argument('--compile', action='store_true', help='compile only')
  parser.add_argument('--alone', action='store_true', help=argparse.SUPPRESS)
  flags = parser.parse_args()
  lengths = [int(text) for text in flags.lengths.split(',')]
  if flags.alone:
    print(json.dumps(_measure(lengths[0], flags.head_dim, flags.compile)))
    return 0
  found = []
  for length in lengths:
    command = [sys.executable, __file__, '--alone', f'--lengths={length}']
    command.append(f'--head_dim={flags.head_dim}')
    done = subprocess.run(
      [*command, *(['--compile'] if flags.compile else [])],
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    found.append(json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps(found[-1]), flush=True)
  a_token = [one['temporaries_mib'] / one['length'] for one in found]
  peak = max(one.get('peak_mib', 0.0) for one in found) / 1024
  print(
    json.dumps(
      {
        'benchmark': 'long_rows',
        'head_dim': flags.head_dim,
        'rows': found,
        'ratio': round(a_token[-1] / a_token[0], 3),
        'peak_gib': round(peak, 2) or None,
      }
    )
  )
  return int(peak > _MOST_GIB or any(one['square'] for one in found))


if __name__ == '__main__':
  sys.exit(main())
