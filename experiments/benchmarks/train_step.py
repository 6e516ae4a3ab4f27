"""Our training step against transformers + PyTorch, in turns, on this machine.

  launch/local.sh peer true       # builds .venv-peer once
  launch/local.sh python experiments/benchmarks/train_step.py

Same sizes (`tiny`), batch and optimizer. Peers: float32 and bfloat16 autocast,
each eager and with torch.compile, as PyTorch comes; and float32 with the memory
allocator's settings of launch/local.sh, which help it too ('our malloc'). The
last line is JSON: tokens/s of everybody, `ratio` against float32 eager,
`ratios` against each peer, the model's FLOPs a step and the rate they are done
at. `--profile` prints where our step's time goes instead.
"""

import argparse
import json
import os
import pathlib
import sys

import jax
import numpy as np
import pairs

from yi_jax.models import config as config_lib
from yi_jax.sharding import mesh as mesh_lib
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

_HERE = pathlib.Path(__file__).resolve().parent
_PEERS = {
  'float32 eager': [],
  'float32 compile': ['--compile'],
  'float32 eager, our malloc': [],
  'float32 compile, our malloc': ['--compile'],
  'bf16 autocast': ['--bf16'],
  'bf16 autocast compile': ['--bf16', '--compile'],
}


def build(rows: int, length: int, preset: str = 'tiny', **overrides):
  """Returns the compiled step, a fresh state and a batch.

  Args:
    rows: of a step, over all devices.
    length: tokens of each.
    preset: the model.
    **overrides: fields of it.
  """
  config = run_config.defaults()
  config['model'] = dict(preset=preset, overrides=overrides)
  config['data'] |= dict(length=length, batch_tokens=rows * length)
  run = run_config.resolve(config)
  mesh = mesh_lib.make_mesh(dict(fsdp=-1))
  step = train_step.make(run, mesh)
  update = step.lower().compile()
  size = run.model.vocab_size
  tokens = np.random.default_rng(0).integers(0, size, (rows, length + 1))
  batch = train_step.put_batch(
    dict(
      tokens=tokens[:, :-1],
      targets=tokens[:, 1:],
      segment_ids=np.ones((rows, length)),
      positions=np.tile(np.arange(length), (rows, 1)),
      loss_weights=np.ones((rows, length)),
    ),
    step.batch,
  )
  return update, train_state.fresh(run, mesh, 0), batch


def _worker(rows: int, length: int) -> None:
  update, state, batch = build(rows, length)

  def work():
    nonlocal state
    state, values = update(state, batch)
    jax.block_until_ready((state, values))

  pairs.serve(work)


def _compare(rows: int, length: int, rounds: int, peers: list[str]) -> None:
  python = _HERE.parents[1] / '.venv-peer/bin/python'
  if not python.exists():
    sys.exit('error: no .venv-peer; build it with: launch/local.sh peer true')
  model = config_lib.get_preset('tiny')
  names = (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'max_position_embeddings',
  )
  sizes = ','.join(f'{name}={getattr(model, name)}' for name in names)
  shape = [f'--rows={rows}', f'--length={length}']
  peer = [str(python), str(_HERE / 'train_step_peer.py'), *shape]
  commands = {'yi_jax': [sys.executable, __file__, '--worker', *shape]}
  settings = [name for name in os.environ if name.startswith('MALLOC_')]
  unset = [f'-u{name}' for name in (*settings, 'GLIBC_TUNABLES')]
  for name in peers:
    plain = [] if 'our malloc' in name else ['env', *unset]
    commands[name] = [*plain, *peer, f'--model={sizes}', *_PEERS[name]]
  seconds = pairs.medians(pairs.measure(commands, rounds))
  tokens = rows * length
  flops = config_lib.flops_per_token(model, length) * tokens
  ratios = {n: seconds[n] / seconds['yi_jax'] for n in peers}
  result = {
    'benchmark': 'train_step',
    'rows': rows,
    'length': length,
    'tokens_per_second': {n: round(tokens / s) for n, s in seconds.items()},
    'ratio': round(ratios[peers[0]], 2),
    'ratios': {n: round(r, 2) for n, r in ratios.items()},
    'model_tflop_a_step': round(flops / 1e12, 3),
    'gflop_per_second': round(flops / seconds['yi_jax'] / 1e9),
  }
  print(json.dumps(result))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument(
    '--peers', default=';'.join(_PEERS), help='some of them, split by ;'
  )
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--profile', action='store_true')
  args = parser.parse_args()
  if args.worker:
    _worker(args.rows, args.length)
  elif args.profile:
    import profile_step

    profile_step.report(*build(args.rows, args.length))
  else:
    _compare(args.rows, args.length, args.rounds, args.peers.split(';'))


if __name__ == '__main__':
  main()
