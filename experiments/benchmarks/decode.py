"""Our generation against transformers' on a real model, in turns, on this machine.

  launch/local.sh peer true       # builds .venv-peer once
  launch/local.sh python -m yi_jax.data.raw --group=model
  launch/local.sh python experiments/benchmarks/decode.py

SmolLM2-135M-Instruct with float32 weights on both sides, greedy, a prompt of
512 tokens and 128 new ones, batches of 1 and 8. A unit of work is either the
prompt and one token (prefill), or the prompt and all tokens (generate); decoding
is the difference. The last line is JSON: tokens/s of both sides, `ratio` of
decoding at batch 1, `ratios` of everything, and the fraction of the measured
read bandwidth that decoding reaches at batch 1, where every weight is read once
a token.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pairs

_HERE = pathlib.Path(__file__).resolve().parent
_REPOSITORY = _HERE.parents[1]
_MODEL = _REPOSITORY / 'data/raw/SmolLM2-135M-Instruct.Q4_1.gguf'


def _worker(folder: str, batches: list[int], length: int, new: int) -> None:
  """Serves 'prefill B' and 'generate B' with our Generator."""
  from yi_jax.checkpoints import hf
  from yi_jax.serving import generation

  config, params = hf.load_pretrained(folder, dtype='float32')
  generator = generation.Generator(config, params, max_length=length + new)
  del params

  def unit(batch: int, tokens: int):
    prompts = _prompts(config.vocab_size, batch, length).tolist()

    def work() -> None:
      made = generator.generate(prompts, tokens, stop_ids=())
      assert all(len(row) == tokens for row in made)

    return work

  units = {}
  for batch in batches:
    units[f'prefill {batch}'] = unit(batch, 1)
    units[f'generate {batch}'] = unit(batch, new)
  pairs.serve(units, warm_up=1)


def _prompts(vocabulary: int, batch: int, length: int) -> np.ndarray:
  """Returns token ids [B, T]; which ones they are does not change the time."""
  return np.random.default_rng(0).integers(100, vocabulary, (batch, length))


def _read_bandwidth(num_bytes: int) -> float:
  """Bytes/s at which separate float32 matrices are read, once each."""
  matrix = 4096 * 2048
  keys = jax.random.split(jax.random.key(0), -(-num_bytes // (4 * matrix)))
  arrays = [jax.random.uniform(key, (4096, 2048)) for key in keys]
  vector = jnp.ones(2048)
  read = jax.jit(lambda arrays, vector: [array @ vector for array in arrays])
  best = []
  for _ in range(6):
    start = time.perf_counter()
    jax.block_until_ready(read(arrays, vector))
    best.append(time.perf_counter() - start)
  return 4 * matrix * len(arrays) / min(best)


def _compare(batches: list[int], length: int, new: int, rounds: int) -> None:
  from yi_jax.checkpoints import gguf, hf
  from yi_jax.models import config as config_lib

  python = _REPOSITORY / '.venv-peer/bin/python'
  if not python.exists():
    sys.exit('error: no .venv-peer; build it with: launch/local.sh peer true')
  if not _MODEL.exists():
    sys.exit(
      f'error: no {_MODEL}; fetch it with: '
      'launch/local.sh python -m yi_jax.data.raw --group=model'
    )
  config, params = gguf.load_gguf(_MODEL, dtype='float32')
  with tempfile.TemporaryDirectory() as parent:
    folder = f'{parent}/model'
    hf.save_pretrained(config, params, folder)
    del params
    shape = [
      f'--folder={folder}',
      f'--batches={",".join(map(str, batches))}',
      f'--length={length}',
      f'--new={new}',
    ]
    seconds = pairs.measure(
      {
        'yi_jax': [sys.executable, __file__, '--worker', *shape],
        'transformers': [str(python), str(_HERE / 'decode_peer.py'), *shape],
      },
      rounds,
      [f'{kind} {batch}' for batch in batches for kind in _KINDS],
    )
  rates = {}
  for batch in batches:
    for side in ('yi_jax', 'transformers'):
      prefill, whole = (seconds[f'{side} {kind} {batch}'] for kind in _KINDS)
      decode = [w - p for w, p in zip(whole, prefill, strict=True)]
      rates[f'{side} prefill {batch}'] = (
        batch * length / statistics.median(prefill)
      )
      rates[f'{side} decode {batch}'] = (
        batch * (new - 1) / statistics.median(decode)
      )
  ratios = {
    name.removeprefix('yi_jax '): round(
      rate / rates[name.replace('yi_jax', 'transformers')], 2
    )
    for name, rate in rates.items()
    if name.startswith('yi_jax')
  }
  num_bytes = 4 * config_lib.num_params(config)
  bandwidth = _read_bandwidth(num_bytes)
  first = batches[0]
  read = rates[f'yi_jax decode {first}'] / first * num_bytes
  result = {
    'benchmark': 'decode',
    'tokens_per_second': {name: round(r, 1) for name, r in rates.items()},
    'ratio': ratios[f'decode {first}'],
    'ratios': ratios,
    'megabytes_a_token': round(num_bytes / 1e6),
    'read_gigabytes_per_second': round(bandwidth / 1e9, 1),
    'fraction_of_bandwidth': round(read / bandwidth, 2),
  }
  print(json.dumps(result))


_KINDS = ('prefill', 'generate')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--new', type=int, default=128)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--folder', help=argparse.SUPPRESS)
  args = parser.parse_args()
  batches = [int(batch) for batch in args.batches.split(',')]
  if args.worker:
    _worker(args.folder, batches, args.length, args.new)
  else:
    _compare(batches, args.length, args.new, args.rounds)


if __name__ == '__main__':
  main()
