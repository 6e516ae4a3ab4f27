"""A needle grid with shared text read once, against transformers, in turns.

  launch/local.sh peer true       # builds .venv-peer once
  launch/local.sh python -m yi_jax.data.raw --group=model
  launch/local.sh python -m yi_jax.data.raw --group=quickstart
  launch/local.sh python experiments/benchmarks/needle.py

SmolLM2-135M-Instruct with float32 weights on both sides, the same rows of
English plays up to 8,192 tokens, its whole window, and the same work for every
cell: score the right value and four others, and write the answer with the
likeliest tokens. transformers reads every row in full, once (the values and the
answer go on from its cache); ours reads what rows share once for all cells. The
last line is JSON: seconds of both sides, `ratio`, how many tokens each read and how
many operations that takes, and whether the scores agree. `--count` runs neither
side and tells only how many operations reading the rows of a grid takes, which is
the most that sharing can gain.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import numpy as np
import pairs

from yi_jax import compilation_cache
from yi_jax.checkpoints import hf
from yi_jax.evaluation import cells, documents, needle, needles, subject
from yi_jax.serving import reading

_HERE = pathlib.Path(__file__).resolve().parent
_REPOSITORY = _HERE.parents[1]
_MODEL = _REPOSITORY / 'data/raw/SmolLM2-135M-Instruct.Q4_1.gguf'


def _plan(model, lengths: list[int], depths: list[float], count: int) -> list:
  """Returns the cells of the grid, in the order in which we read them."""
  texts = documents.texts('en', (), _REPOSITORY / 'data/raw')
  stream = documents.stream(texts, model.words, max(lengths))
  found = needles.facts('en', count, seed=0)
  return cells.in_order(cells.plan(model, found, stream, lengths, depths))


def _operations(config, planned: list) -> dict[str, float]:
  """Returns floating-point operations of reading all rows, values left out."""
  layer = config.hidden_size * config.head_dim
  layer *= 2 * (config.num_attention_heads + config.num_key_value_heads)
  layer += 3 * config.hidden_size * config.intermediate_size
  width = config.num_attention_heads * config.head_dim

  def read(begin: int, end: int) -> float:
    products = 2 * layer * (end - begin)
    attention = 2 * width * (end**2 - begin**2)  # half of all pairs
    return float(config.num_hidden_layers * (products + attention))

  held, ours, theirs = planned[0].row()[:0], 0.0, 0.0
  for cell in planned:
    row = cell.row()
    ours += read(reading.common_prefix(held, row), len(row))
    theirs += read(0, len(row))
    held = row
  return {'yi_jax': ours, 'transformers': theirs}


def _worker(folder: str, shape: tuple) -> None:
  """Serves the whole grid with our reader, the cache being empty at first."""
  compilation_cache.enable()
  model = subject.open_subject(str(_MODEL))
  planned = _plan(model, *shape)
  reader = model.reader(max(cell.length for cell in planned))

  def grid() -> None:
    reader.read([])
    before = reader.tokens_read
    found = {c.name: needle.score(c, reader, model) for c in planned}
    facts = {'read': reader.tokens_read - before, 'cells': found}
    pathlib.Path(folder, 'yi_jax.json').write_text(json.dumps(facts))

  # Compiles every program on the beginning of a row.
  reader.read(planned[0].row()[:700])
  reader.score(planned[0].row()[:1])
  needle.score(planned[0], reader, model)
  pairs.serve(grid, warm_up=0)


def _write_rows(folder: pathlib.Path, model, planned: list) -> None:
  """Writes the model and the grid in forms that the peer reads."""
  hf.save_pretrained(model.config, model.params, folder / 'model')
  rows = []
  for cell in planned:
    right, wrong = cell.answers(model.words)
    rows.append(
      {
        'name': cell.name,
        'row': cell.row().tolist(),
        'values': [*right, *wrong],
        'room': cell.room,
      }
    )
  # The peer has no tokenizer of ours: what each id says comes along.
  texts = {i: model.words.decode([i]) for i in range(model.words.size)}
  facts = {
    'stop_ids': list(model.words.stop_ids),
    'texts': texts,
    'cells': rows,
  }
  (folder / 'grid.json').write_text(json.dumps(facts))


def _compare(shape: tuple, rounds: int, arguments: list[str]) -> None:
  python = _REPOSITORY / '.venv-peer/bin/python'
  if not python.exists():
    sys.exit('error: no .venv-peer; build it with: launch/local.sh peer true')
  if not _MODEL.exists():
    sys.exit(
      f'error: no {_MODEL}; fetch it with: '
      'launch/local.sh python -m yi_jax.data.raw --group=model'
    )
  model = subject.open_subject(str(_MODEL))
  planned = _plan(model, *shape)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _write_rows(folder, model, planned)
    where = f'--folder={folder}'
    seconds = pairs.measure(
      {
        'yi_jax': [sys.executable, __file__, '--worker', where, *arguments],
        'transformers': [str(python), str(_HERE / 'needle_peer.py'), where],
      },
      rounds,
    )
    ours, theirs = (
      json.loads((folder / f'{side}.json').read_text())
      for side in ('yi_jax', 'transformers')
    )
  took = pairs.medians(seconds)
  differences = [
    np.abs(np.subtract(cell['logprobs'], theirs['cells'][name]['logprobs']))
    for name, cell in ours['cells'].items()
  ]
  result = {
    'benchmark': 'needle',
    'cells': len(ours['cells']),
    'seconds': {side: round(s, 1) for side, s in took.items()},
    'ratio': round(took['transformers'] / took['yi_jax'], 2),
    'tokens_read': {'yi_jax': ours['read'], 'transformers': theirs['read']},
    'operations': _operations(model.config, planned),
    'exact': round(
      statistics.mean(cell['exact'] for cell in ours['cells'].values()), 3
    ),
    'largest_difference_of_log_probabilities': round(
      float(np.max(differences)), 4
    ),
    'answers_that_differ': sum(
      cell['answer'].strip() != theirs['cells'][name]['answer'].strip()
      for name, cell in ours['cells'].items()
    ),
  }
  print(json.dumps(result))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  every = ','.join(str(1024 * step) for step in range(1, 9))
  parser.add_argument('--lengths', default=every)
  parser.add_argument('--depths', default='0,50,100')
  parser.add_argument('--needles', type=int, default=1)
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--count', action='store_true')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--folder', help=argparse.SUPPRESS)
  args = parser.parse_args()
  lengths = [int(length) for length in args.lengths.split(',')]
  depths = [float(depth) for depth in args.depths.split(',')]
  shape = lengths, depths, args.needles
  if args.count:
    model = subject.open_subject(str(_MODEL))
    found = _operations(model.config, _plan(model, *shape))
    ratio = found['transformers'] / found['yi_jax']
    print(json.dumps({'operations': found, 'ratio': round(ratio, 2)}))
  elif args.worker:
    _worker(args.folder, shape)
  else:
    arguments = [
      f'--lengths={args.lengths}',
      f'--depths={args.depths}',
      f'--needles={args.needles}',
    ]
    _compare(shape, args.rounds, arguments)


if __name__ == '__main__':
  main()
