"""What each way of spreading a step costs a device, on 1, 2 and 4 of them.

  launch/local.sh python experiments/benchmarks/scaling.py

Virtual CPU devices stand for real ones, and two processes on loopback for two
hosts: what is measured is memory, what is sent, and that the numbers agree, not
speed. The model is `tiny` with stacked layers. For each layout, a line: how far
its loss is from one device's after some updates; the bytes of parameters and
moments a device holds, predicted by division and as its arrays are; the
arguments and temporaries of the compiled step (XLA:CPU's, which gathers more
than a TPU's); and what a device sends in a step, by kind and mesh axis.

The last line is JSON: all that, `ratio` (the measured memory furthest from its
prediction, over it) and `loss_difference` (the largest). It exits with 1 if
memory is more than 10 % off or a loss more than 1e-5.
"""

import argparse
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys

import jax
import numpy as np

from yi_jax.sharding import collectives, ring, start
from yi_jax.sharding import mesh as meshes
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

_MEMORY_OFF, _LOSS_OFF = 0.1, 1e-5
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class _Layout:
  """One way to spread the step.

  Attributes:
    strategy: see `mesh.strategy`.
    sizes: of the mesh axes.
    params: into how many pieces parameters are cut, norms left out.
    moments: the same of the optimizer's moments.
    processes: how many share the devices.
  """

  strategy: str
  sizes: dict[str, int]
  params: int
  moments: int
  processes: int = 1

  @property
  def devices(self) -> int:
    return math.prod(self.sizes.values())

  @property
  def name(self) -> str:
    axes = ' x '.join(f'{axis} {size}' for axis, size in self.sizes.items())
    more = f', {self.processes} processes' if self.processes > 1 else ''
    return f'{self.strategy}: {axes}{more}'


_LAYOUTS = (
  _Layout('fsdp', dict(fsdp=1), 1, 1),
  _Layout('zero1', dict(data=2), 1, 2),
  _Layout('zero1', dict(data=4), 1, 4),
  _Layout('fsdp', dict(fsdp=2), 2, 2),
  _Layout('fsdp', dict(fsdp=4), 4, 4),
  _Layout('fsdp_tensor', dict(fsdp=2, tensor=2), 4, 4),
  _Layout('fsdp_tensor', dict(tensor=4), 4, 4),
  _Layout('context', dict(context=4), 1, 1),
  _Layout('context', dict(fsdp=2, context=2), 2, 2),
  _Layout('fsdp', dict(fsdp=4), 4, 4, processes=2),
  # Each process holds a half of every row.
  _Layout('context', dict(context=4), 1, 1, processes=2),
)


def _run(layout: _Layout, rows: int, length: int) -> run_config.Run:
  config = run_config.defaults()
  config['model']['overrides'] |= dict(scan_layers=True)
  config['data'] |= dict(length=length, batch_tokens=rows * length)
  config['optimizer'] |= dict(warmup_steps=0)
  config['mesh']['strategy'] = layout.strategy
  return run_config.resolve(config)


def _batch(run: run_config.Run, mesh: jax.sharding.Mesh) -> dict:
  """Returns this process's share of packed rows of random tokens."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, run.model.vocab_size, (run.rows, run.length + 1))
  place = np.arange(run.length)
  border = rng.integers(1, run.length, (run.rows, 1))
  second = place >= border
  rows = dict(
    tokens=tokens[:, :-1],
    targets=tokens[:, 1:],
    segment_ids=1 + second,
    positions=place - border * second,
    loss_weights=np.ones(second.shape),
  )
  group, groups = train_step.row_group(run, mesh)
  share = slice(*(i * run.rows // groups for i in (group, group + 1)))
  return {name: x[share] for name, x in rows.items()}


def _measure(layout: _Layout, rows: int, length: int, steps: int) -> dict:
  """Runs some updates in a layout and returns all there is to tell."""
  run = _run(layout, rows, length)
  mesh = meshes.make_mesh(
    {**layout.sizes, 'strategy': layout.strategy},
    jax.devices()[: layout.devices],
  )
  step = train_step.make(run, mesh)
  update = step.lower().compile()
  state = train_state.fresh(run, mesh, 0)
  held = [
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
  ]
  params, norms = 0, 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(step.state.params):
    params += leaf.size * 4
    norms += leaf.size * 4 * (path[-1].key == 'scale')
  batch = train_step.put_batch(_batch(run, mesh), step.batch)
  for _ in range(steps):
    state, metrics = update(state, batch)
  memory = update.memory_analysis()
  predicted = _predicted(layout, params, norms)
  tokens = rows * ring.padded(length, mesh.shape['context']) * 5 * 4
  cut = math.prod(mesh.shape[a] for a in ('data', 'fsdp', 'context'))
  return {
    'layout': layout.name,
    'devices': layout.devices,
    'loss': float(metrics['loss']),
    'state_bytes': sum(held),
    'state_predicted': predicted,
    'argument_bytes': memory.argument_size_in_bytes,
    'argument_predicted': predicted + tokens // cut,
    'temporary_bytes': memory.temp_size_in_bytes,
    'sent': [
      dataclasses.asdict(one)
      for one in collectives.collectives(update.as_text(), mesh)
    ],
  }


def _predicted(layout: _Layout, params: int, norms: int) -> int:
  """Returns the bytes of parameters and both moments on a device."""
  large = params - norms
  one = large // layout.params + norms
  return one + 2 * (large // layout.moments + norms)


def _worker(processes: int, *sizes: int) -> None:
  start.start()
  for layout in _LAYOUTS:
    if layout.processes == processes:
      print(layout.name, file=sys.stderr)
      measured = _measure(layout, *sizes)
      if jax.process_index() == 0:
        print(json.dumps(measured), flush=True)


def _start(processes: int, args: argparse.Namespace) -> list[dict]:
  """Starts the workers of so many processes and returns what they measure."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_CPU_ENABLE_ASYNC_DISPATCH': '0',  # or virtual devices wait for ever
    # Nothing is timed: compile quickly.
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={4 // processes} '
    '--xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true',
  }
  if processes > 1:
    environment |= {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(processes),
    }
  sizes = [f'--{k}={getattr(args, k)}' for k in ('rows', 'length', 'steps')]
  workers = []
  for index in range(processes):
    if processes > 1:
      environment['JAX_PROCESS_ID'] = str(index)
    workers.append(
      subprocess.Popen(
        [sys.executable, __file__, f'--worker={processes}', *sizes],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(environment),
      )
    )
  said = [worker.communicate()[0] for worker in workers]
  if any(worker.returncode for worker in workers):
    sys.exit(f'error: a worker of {processes} failed; see above')
  # Gloo speaks on stdout too.
  lines = [line for line in said[0].splitlines() if line.startswith('{')]
  return [json.loads(line) for line in lines]


def _tell(one: dict) -> None:
  print(
    f'{one["layout"]}: loss {one["loss_difference"]:.1e} off; '
    f'state {one["state_bytes"] / _MIB:.1f} MiB '
    f'(predicted {one["state_predicted"] / _MIB:.1f}), arguments '
    f'{one["argument_bytes"] / _MIB:.1f}, '
    f'temporaries {one["temporary_bytes"] / _MIB:.1f}'
  )
  for sent in one['sent']:
    print(
      f'    {sent["kind"]} over {", ".join(sent["axes"])}: '
      f'{sent["count"]} times, {sent["bytes"] / _MIB:.2f} MiB'
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--length', type=int, default=128)
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--worker', type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    _worker(args.worker, args.rows, args.length, args.steps)
    return
  measured = _start(1, args) + _start(2, args)
  ratios = []
  for one in measured:
    one['loss_difference'] = abs(one['loss'] - measured[0]['loss'])
    for what in ('state', 'argument'):
      ratios.append(one[f'{what}_bytes'] / one[f'{what}_predicted'])
    _tell(one)
  result = {
    'benchmark': 'scaling',
    'rows': args.rows,
    'length': args.length,
    'steps': args.steps,
    'ratio': round(max(ratios, key=lambda r: abs(r - 1)), 4),
    'loss_difference': max(one['loss_difference'] for one in measured),
    'layouts': measured,
  }
  print(json.dumps(result))
  if (
    abs(result['ratio'] - 1) > _MEMORY_OFF
    or result['loss_difference'] > _LOSS_OFF
  ):
    sys.exit(1)


if __name__ == '__main__':
  main()
