"""Which layers to say twice: a real model right after it was made deeper.

  launch/local.sh python -m yi_jax.data.raw --group=model,text
  launch/local.sh python experiments/benchmarks/depth_upscale.py \\
      --picture=layers.png

Measures the cosine between input and output of every layer, on 01.AI's own text
and on held-out documents, and draws it. Then makes the model a third deeper in
several ways, none of them trained, and reads other English and Chinese documents
with each: the block that turns its input least, Yi-9B's block and SOLAR's (layers
12 to 27 and 8 to 23 of 32, in proportion), inner layers drawn at random and said
twice in place (three draws), and copies stacked at either end (Yi report 7.3). The
last line is JSON: bits per byte of each, and `ratio`, the block that turns least
over the mean of the random ones, in English (below 1 is wanted).
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from yi_jax import compilation_cache, paths
from yi_jax.data import atomic, sources
from yi_jax.data import tokenizer as tokenizers
from yi_jax.evaluation import pictures
from yi_jax.extension import depth_upscale
from yi_jax.models import config as model_config
from yi_jax.models import transformer
from yi_jax.serving import opening
from yi_jax.training import cross_entropy

_MODEL = 'data/raw/SmolLM2-135M-Instruct.Q4_1.gguf'
_TEXT = 'Write a quiz about bits'  # 01.AI's (Yi-9B, notes of the release)
_DOCUMENTS = {'en': 'web_wiki', 'zh': 'zh_news'}
_RAW = pathlib.Path(paths.in_repository('data/raw'))
_LENGTH = 512
_DRAWS = 3


def main() -> None:
  """Measures, draws and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', default=paths.in_repository(_MODEL))
  parser.add_argument('--rows', type=int, default=8, help='of each language')
  parser.add_argument('--picture', default='layers.png')
  flags = parser.parse_args()
  compilation_cache.enable()
  checkpoint = opening.open_checkpoint(flags.checkpoint)
  words = checkpoint.tokenizer
  config, params = checkpoint.load()
  rows = {
    language: _rows(words, name, flags.rows, skip=flags.rows)
    for language, name in _DOCUMENTS.items()
  }
  means = {
    name: depth_upscale.layer_means(
      depth_upscale.cosines(config, params, tokens)
    )
    for name, tokens in (
      (_TEXT, np.array([words.encode(_TEXT)])),
      *(
        (f'{language} documents', _rows(words, name, flags.rows)[0])
        for language, name in _DOCUMENTS.items()
      ),
    )
  }
  depth = config.num_hidden_layers
  picture = pictures.lines(
    pathlib.Path(flags.checkpoint).name,
    {name: (range(depth), values) for name, values in means.items()},
    ('layer', 'cosine of input and output'),
  )
  atomic.write(pathlib.Path(flags.picture), picture)
  block = depth_upscale.choose(means['en documents'], depth // 3)
  figures = {}
  for name, order in _orders(depth, block).items():
    made = depth_upscale.take(config, params, order)
    figures[name] = {
      language: round(_bits_per_byte(*made, *found), 4)
      for language, found in rows.items()
    }
    print(f'{name}: {len(order)} layers, {figures[name]}', flush=True)
  random = np.mean(
    [figures[n]['en'] for n in figures if n.startswith('random')]
  )
  print(
    json.dumps(
      {
        'benchmark': 'depth_upscale',
        'bits_per_byte': figures,
        'least_turning_block': block,
        'mean_cosine': {
          name: round(depth_upscale.model_mean(values), 4)
          for name, values in means.items()
        },
        'ratio': round(figures['least turning block']['en'] / random, 3),
      },
      ensure_ascii=False,
    )
  )


def _orders(depth: int, block: tuple[int, int]) -> dict[str, tuple[int, ...]]:
  """Returns the ways to make the model a third deeper, and the model itself."""
  count = depth // 3
  every = tuple(range(depth))

  def twice(first: int) -> tuple[int, ...]:
    text = depth_upscale.duplicated(first, first + count, depth)
    return depth_upscale.parse(text, depth)

  # The middle of the published blocks, in proportion to the depth.
  yi, solar = (round(depth * middle / 32 - count / 2) for middle in (20, 16))
  draws = [
    1 + np.random.default_rng(seed).choice(depth - 2, count, replace=False)
    for seed in range(_DRAWS)
  ]
  return {
    'as it was': every,
    'least turning block': twice(block[0]),
    "Yi's block": twice(yi),
    "SOLAR's block": twice(solar),
    **{
      f'random {number}': tuple(sorted((*every, *map(int, drawn))))
      for number, drawn in enumerate(draws, 1)
    },
    'first layers': every[:count] + every,
    'last layers': every + every[-count:],
  }


def _rows(
  words: tokenizers.Tokenizer, name: str, count: int, skip: int = 0
) -> tuple[np.ndarray, int]:
  """Returns tokens int[count, T] of documents, and how many bytes they are."""
  ids, last = [], (skip + count) * _LENGTH
  for document in sources.read(name, _RAW):
    ids += words.encode(document['text'])
    if len(ids) >= last:
      break
  else:
    raise SystemExit(f'error: {name} has {len(ids):,} tokens, not {last:,}')
  ids = ids[skip * _LENGTH : last]
  text = words.decode(ids)
  return np.array(ids).reshape(count, _LENGTH), len(text.encode())


def _bits_per_byte(
  config: model_config.ModelConfig,
  params: dict,
  tokens: np.ndarray,
  size: int,
) -> float:
  """Returns what a model needs for rows, each read without what is before."""
  model = transformer.Transformer(config)

  def nll(params: dict, row: jax.Array) -> jax.Array:
    hidden = model.apply({'params': params}, row[None, :-1], logits=False)
    kernel = transformer.output_kernel(config, params)
    weights = np.ones((1, len(row) - 1), np.float32)
    return cross_entropy.cross_entropy(
      hidden.hidden, kernel, row[None, 1:], weights
    )[0]

  run = jax.jit(nll)
  total = sum(float(run(params, row)) for row in tokens)
  seen = (tokens.shape[1] - 1) / tokens.shape[1]  # the first is not predicted
  return float(total / np.log(2) / (size * seen))


if __name__ == '__main__':
  main()
