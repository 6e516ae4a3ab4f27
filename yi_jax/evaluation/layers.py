"""How little each layer turns its input, and which layers to say twice.

Source: 01.AI's notes on Yi-9B and the Yi report, section 7.3: the cosine between
what enters a layer and what leaves it tells which layers of a finished model may
be repeated in a deeper one. What is found here is what `convert --layers` takes;
see extension/depth_upscale.py.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from yi_jax.data import atomic, progress
from yi_jax.evaluation import documents, options, pictures, record
from yi_jax.evaluation import subject as subjects
from yi_jax.extension import depth_upscale


@dataclasses.dataclass(frozen=True)
class Options(documents.Options):
  """What `--task=layers` can be told."""

  length: int = options.option(512, 'tokens of a row')
  samples: int = options.option(8, 'rows a language, read at once')
  repeat: int = options.option(
    0, 'layers that the deeper model has twice; 0 takes half of them, as Yi-9B'
  )

  def __post_init__(self) -> None:
    """Raises ValueError for options that make no sense for any model."""
    if self.length < 2:
      raise ValueError(f'--length must be at least 2, not {self.length}')
    if self.samples < 1:
      raise ValueError(f'--samples must be at least 1, not {self.samples}')
    super().__post_init__()


def run(
  subject: subjects.Subject, wanted: Options, folder: pathlib.Path
) -> dict[str, Any]:
  """Measures languages that have no result yet, and reports.

  Args:
    subject: the model.
    wanted: the options.
    folder: gets journal.jsonl, report.json, table.txt and layers.png.

  Returns:
    What report.json holds.

  Raises:
    OSError: if documents cannot be read.
    ValueError: for options or documents that do not fit.
  """
  subject.check_length(wanted.length)
  depth_upscale.check_block(
    subject.config.num_hidden_layers, *_repeat(subject, wanted), '--repeat'
  )
  rows = {
    language: documents.rows(
      wanted.texts(language),
      subject.words,
      wanted.length - len(subject.start),
      wanted.samples,
    )
    for language in wanted.languages
  }
  identity = {
    'task': 'layers',
    **subject.identity,
    'rows': [wanted.samples, wanted.length],
    **wanted.identity(),
  }
  book = record.Record(folder / 'journal.jsonl', identity)
  for language, found in rows.items():
    if language in book.done:
      continue
    progress.tell('layers', f'{language}: {len(found)} rows')
    start = np.asarray(subject.start, np.int32)
    tokens = np.stack([np.concatenate([start, row]) for row in found])
    values = depth_upscale.cosines(subject.config, subject.params, tokens)
    means = depth_upscale.layer_means(values).tolist()
    book.add(language, {'cosines': means})
  means = {
    language: np.array(book.done[language]['cosines']) for language in rows
  }
  return _report(subject, means, wanted, folder)


def _repeat(subject: subjects.Subject, wanted: Options) -> tuple[int, int]:
  """Returns how many layers to say twice, and of how many a repeat consists."""
  width = len(subject.config.layer_pattern)
  half = subject.config.num_hidden_layers // 2
  return wanted.repeat or half // width * width, width


def _report(
  subject: subjects.Subject,
  means: dict[str, np.ndarray],
  wanted: Options,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Writes report.json, table.txt and layers.png, and shows the table."""
  depth = subject.config.num_hidden_layers
  repeat, width = _repeat(subject, wanted)
  mean = np.mean(list(means.values()), axis=0)
  first, end = depth_upscale.choose(mean, repeat, width)
  order = depth_upscale.duplicated(first, end, depth)
  facts = {
    'task': 'layers',
    'checkpoint': subject.name,
    **subject.identity,
    'languages': {
      language: {
        'cosines': values.tolist(),
        'mean_of_inner_layers': depth_upscale.model_mean(values),
      }
      for language, values in means.items()
    },
    'samples': wanted.samples,
    'length': wanted.length,
    'block': [first, end],
    'layers': order,
  }
  lines = [
    f'cosine between input and output of each layer, {subject.name}',
    'layer' + ''.join(f'{language:>9}' for language in means),
  ]
  for layer in range(depth):
    numbers = ''.join(f'{values[layer]:>9.4f}' for values in means.values())
    mark = '  twice' if first <= layer < end else ''
    lines.append(f'{layer:>5}{numbers}{mark}')
  lines.append(
    f'{repeat} layers from {first} on turn their input least; with them twice '
    f'it has {depth + repeat}:\n  convert --layers={order}'
  )
  picture = pictures.lines(
    subject.name,
    {name: (range(depth), values) for name, values in means.items()},
    ('layer', 'cosine of input and output'),
  )
  atomic.write(folder / 'layers.png', picture)
  text = '\n'.join(lines) + '\n'
  atomic.write(folder / 'table.txt', text.encode())
  atomic.write(
    folder / 'report.json', f'{json.dumps(facts, indent=1)}\n'.encode()
  )
  print(text)
  progress.tell('layers', str(folder / 'report.json'))
  return facts
