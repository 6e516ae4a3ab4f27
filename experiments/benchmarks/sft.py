"""Tuning with adapters against transformers + PEFT, in turns, on this machine.

  launch/local.sh peer true       # builds .venv-peer once
  launch/local.sh python -m yi_jax.data.raw --group=model --group=tuning
  launch/local.sh python -m yi_jax.prepare --config=experiments/sft.py:smollm2
  launch/local.sh python experiments/benchmarks/sft.py
  launch/local.sh python experiments/benchmarks/sft.py --peers=grouped

The run of experiments/sft.py:smollm2: LoRA of rank 16 on every matrix of the
layers, float32, Alpaca's demos in English and Chinese. A unit of work is one
update on the next conversations, the same ones for everybody: here packed into
two rows, there a batch padded to its longest ('padded', what PEFT's examples
do; 13 GB of memory), or two at a time sorted by length, gradients added up
('grouped'). What counts are tokens of answers. The last line is JSON: those a second of everybody,
`ratio` against 'padded', `ratios` against each peer, and what share of the
tokens computed is padding.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pairs

_HERE = pathlib.Path(__file__).resolve().parent
_REPOSITORY = _HERE.parents[1]
_PEERS = {'padded': 0, 'grouped': 2}  # conversations computed at a time; 0: all
_WARM_UP = 1


def _config():
  """Returns the run's config."""
  import importlib.util

  path = _REPOSITORY / 'experiments/sft.py'
  spec = importlib.util.spec_from_file_location('sft', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config('smollm2')


def _batches(config, count: int) -> list[dict[str, np.ndarray]]:
  """Returns the first batches of the run."""
  from yi_jax.data import loader, prepared

  texts = prepared.open_prepared(config.data, 'train')
  rows = config.data.batch_tokens // config.data.length
  with loader.Loader(
    texts.readers, texts.stages, batch_size=rows, seed=config.seed
  ) as batches:
    return [next(batches) for _ in range(count)]


def _conversations(batch) -> list[dict[str, list[int]]]:
  """Returns ids and labels (-100 where nothing is learned) of a batch's.

  Labels stand beside their ids, as transformers has them.
  """
  found = []
  for row, segments in enumerate(batch['segment_ids']):
    for number in range(1, segments.max() + 1):
      at = np.flatnonzero(segments == number)
      ids = batch['tokens'][row, at]
      learned = np.concatenate([[0], batch['loss_weights'][row, at[:-1]]])
      labels = np.where(learned > 0, ids, -100)
      found.append({'ids': ids.tolist(), 'labels': labels.tolist()})
  return found


def build(config):
  """Returns the compiled step, and the state with the model's weights."""
  from yi_jax import paths
  from yi_jax.sharding import mesh as mesh_lib
  from yi_jax.training import run_config, train_step, weights
  from yi_jax.training import state as train_state

  run = run_config.resolve(config)
  mesh = mesh_lib.make_mesh(dict(fsdp=-1))
  step = train_step.make(run, mesh)
  source = paths.in_repository(config.init_from)
  params = weights.load_into(source, run.model, mesh)
  return step, train_state.fresh(run, mesh, config.seed, params)


def _worker(count: int) -> None:
  from yi_jax.training import train_step

  config = _config()
  step, state = build(config)
  update = step.lower().compile()
  batches = iter(_batches(config, count))

  def work():
    nonlocal state
    batch = train_step.put_batch(next(batches), step.batch)
    state, values = update(state, batch)
    jax.block_until_ready((state, values))
    print(f'loss {float(values["loss"]):.4f}', file=sys.stderr, flush=True)

  pairs.serve(work, _WARM_UP)


def _compare(rounds: int, peers: list[str]) -> None:
  from yi_jax.checkpoints import gguf, hf

  python = _REPOSITORY / '.venv-peer/bin/python'
  if not python.exists():
    sys.exit('error: no .venv-peer; build it with: launch/local.sh peer true')
  config = _config()
  count = _WARM_UP + rounds
  batches = _batches(config, count)
  with tempfile.TemporaryDirectory() as folder:
    model, params = gguf.load_gguf(_REPOSITORY / config.init_from, 'float32')
    hf.save_pretrained(model, params, f'{folder}/model')
    del params
    work = [_conversations(batch) for batch in batches]
    pathlib.Path(folder, 'work.json').write_text(json.dumps(work))
    commands = {
      'yi_jax': [sys.executable, __file__, '--worker', f'--rounds={rounds}']
    }
    settings = [
      f'--rank={config.lora.rank}',
      f'--alpha={config.lora.alpha}',
      f'--rate={config.optimizer.learning_rate}',
      f'--neftune={config.optimizer.neftune_alpha}',
    ]
    for name in peers:
      commands[name] = [
        *(str(python), str(_HERE / 'sft_peer.py'), f'--folder={folder}'),
        *(*settings, f'--at_once={_PEERS[name]}'),
      ]
    seconds = pairs.measure(commands, rounds)
  answers = [
    sum(label != -100 for chat in batch for label in chat['labels'])
    for batch in work[_WARM_UP:]
  ]
  rates = {name: sum(answers) / sum(took) for name, took in seconds.items()}
  ratios = {n: round(rates['yi_jax'] / rates[n], 2) for n in peers}
  result = {
    'benchmark': 'sft',
    'answer_tokens_per_second': {n: round(r, 1) for n, r in rates.items()},
    'ratio': ratios[peers[0]],
    'ratios': ratios,
    'answer_tokens': sum(answers),
    'padding': {
      'yi_jax': round(_packed_padding(batches[_WARM_UP:]), 3),
      **{n: round(_padding(work[_WARM_UP:], _PEERS[n]), 3) for n in peers},
    },
  }
  print(json.dumps(result))


def _packed_padding(batches) -> float:
  segments = np.concatenate([batch['segment_ids'] for batch in batches])
  return float(np.mean(segments == 0))


def _padding(work, at_once: int) -> float:
  """Returns the share of padding where chats are computed so many at a time."""
  used = computed = 0
  for chats in work:
    sizes = sorted(len(chat['ids']) for chat in chats)
    pieces = at_once or len(sizes)
    for first in range(0, len(sizes), pieces):
      piece = sizes[first : first + pieces]
      used += sum(piece)
      computed += max(piece) * len(piece)
  return 1 - used / computed


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=6)
  parser.add_argument(
    '--peers', default='padded', help='padded, grouped or both, split by ,'
  )
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--profile', action='store_true')
  args = parser.parse_args()
  if args.worker:
    _worker(_WARM_UP + args.rounds)
  elif args.profile:
    import profile_step

    from yi_jax.training import train_step

    config = _config()
    step, state = build(config)
    batch = train_step.put_batch(_batches(config, 1)[0], step.batch)
    profile_step.report(step.lower().compile(), state, batch)
  else:
    _compare(args.rounds, args.peers.split(','))


if __name__ == '__main__':
  main()
