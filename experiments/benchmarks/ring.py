"""A packed row of 16,384 tokens on four devices, and the same row on one.

  launch/local.sh python experiments/benchmarks/ring.py
  launch/local.sh python experiments/benchmarks/ring.py --length=2048

A small model (2 layers of 64, 4 query and 2 key/value heads) reads one row of
random documents of 1 to 4,000 tokens with padding behind them: on one device
with `blockwise` attention, then cut along its length over four (virtual CPU)
devices with ring attention. What is compared is the loss and the gradient of
every parameter.

The last line is JSON: `loss_difference` and `gradient_difference` (the largest,
over the largest of the same parameter's), seconds of both, the temporaries of
both programs a device, and `ratio`, one device's over a device's of the four. It
exits with 1 if a difference is above 1e-5.
"""

import argparse
import json
import sys
import time
from typing import Any

import jax
import numpy as np

from yi_jax.models import transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import rules
from yi_jax.training import run_config, train_step

_OFF = 1e-5
_DEVICES = 4
_MIB = 2**20


def _run(length: int) -> run_config.Run:
  config = run_config.defaults()
  config['model']['overrides'] |= dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=length,
    scan_layers=True,
  )
  config['data'] |= dict(
    length=length, batch_tokens=length, vocabulary_size=512
  )
  return run_config.resolve(config)


def _row(length: int) -> tuple[dict[str, np.ndarray], int]:
  """Returns one row of uneven segments, and how many there are."""
  rng = np.random.default_rng(0)
  # Documents of all sizes, a few of them long.
  sizes = (4000 ** rng.random(length)).astype(int)
  used = length - length // 50  # the rest is padding
  ends = np.minimum(np.cumsum(sizes), used)
  ends = ends[: np.argmax(ends) + 1]
  place = np.arange(length)
  segments = np.searchsorted(ends, place, side='right') + 1
  starts = np.r_[0, ends][segments - 1]
  segments[place >= used] = 0
  tokens = rng.integers(0, 512, (1, length + 1))
  row = dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=segments[None],
    positions=(place - starts)[None],
    loss_weights=(rng.random(length) * (segments > 0))[None],
  )
  return row, len(ends)


def _measure(
  run: run_config.Run, row: dict[str, np.ndarray], devices: int
) -> dict[str, Any]:
  """Returns loss, gradients, seconds and temporaries on so many devices."""
  mesh = meshes.make_mesh(dict(context=devices), jax.devices()[:devices])
  table = rules.strategy('auto', mesh.shape).rules
  objective = train_step.next_token(run, mesh)
  params = transformer.init_params(run.model, jax.random.key(0))
  # Larger than fresh ones: attention that looks at something.
  params = jax.tree.map(lambda x: 3 * x, params)
  places = rules.shardings(
    mesh, transformer.param_axes(run.model), params, table
  )
  params = jax.device_put(params, places)
  batch = train_step.put_batch(row, train_step.abstract_batch(run, mesh))
  grad = jax.jit(
    jax.value_and_grad(objective, has_aux=True),
    out_shardings=(rules.replicated(mesh), places),
  )
  compiled = grad.lower(params, batch).compile()
  started = time.monotonic()
  (total, sums), grads = jax.block_until_ready(compiled(params, batch))
  return {
    'seconds': time.monotonic() - started,
    'temporaries': compiled.memory_analysis().temp_size_in_bytes,
    'loss': float(total / sums['weight']),
    'gradients': jax.device_get(grads),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--length', type=int, default=16_384)
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', _DEVICES)
  # Virtual devices with steps in a queue wait for each other for ever.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  run = _run(args.length)
  row, segments = _row(args.length)
  one, four = (_measure(run, row, devices) for devices in (1, _DEVICES))
  largest = max(
    float(np.abs(a - b).max() / np.abs(a).max())
    for a, b in zip(
      *(jax.tree.leaves(x['gradients']) for x in (one, four)), strict=True
    )
  )
  square = args.length**2 // _DEVICES
  result = {
    'benchmark': 'ring',
    'length': args.length,
    'segments': segments,
    'loss': one['loss'],
    'loss_difference': abs(one['loss'] - four['loss']),
    'gradient_difference': largest,
    'seconds_one': round(one['seconds'], 1),
    'seconds_four': round(four['seconds'], 1),
    'temporaries_one': one['temporaries'],
    'temporaries_four': four['temporaries'],
    'ratio': round(one['temporaries'] / four['temporaries'], 2),
  }
  print(
    f'{args.length:,} tokens in {segments} segments: loss '
    f'{result["loss_difference"]:.1e} off, gradients {largest:.1e}; '
    f'temporaries {one["temporaries"] / _MIB:.0f} MiB on one device, '
    f'{four["temporaries"] / _MIB:.0f} MiB on each of {_DEVICES} (a part of '
    f'[{args.length:,}, {args.length:,}] in bytes: {square / _MIB:.0f})'
  )
  print(json.dumps(result))
  if max(result['loss_difference'], largest) > _OFF:
    sys.exit(1)


if __name__ == '__main__':
  main()
