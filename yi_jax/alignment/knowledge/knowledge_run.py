"""Looks at all answers of a set with a model, a batch at a time.

WORKDIR/knowledge_journal.jsonl has the figures of each answer as soon as they
are known; a run that was killed goes on there. Other settings or another model
are other figures. WORKDIR/knowledge.jsonl, written at the end, has a line an
answer in the order of the set, `why` being set where it should go.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from yi_jax import paths
from yi_jax.alignment import rows
from yi_jax.alignment.knowledge import knowledge
from yi_jax.data import atomic, files, journal, progress
from yi_jax.serving import generation, opening
from yi_jax.training import checkpointing

FILE = 'knowledge.jsonl'
_JOURNAL = 'knowledge_journal.jsonl'


def defaults() -> dict[str, Any]:
  """Returns the section `knowledge` of a config; all numbers are ours."""
  return {
    # The model that is going to be tuned: a workdir, a folder of Hugging Face
    # or a .gguf file.
    'checkpoint': '',
    'template': '',  # of a chat model that does not say, see data/chatml.py
    'samples': 5,  # times that it is asked
    'temperature': 0.7,
    'max_new_tokens': 64,  # of its answers
    # An answer goes if both are below: nats a token, and a share of words.
    'gap': -1.0,
    'support': 0.3,
    'batch_size': 8,  # answers looked at together
    'longest': 2048,  # tokens of question and answer; longer ones are left out
    'seed': 0,
  }


def run(
  config: Any, found: Sequence[rows.Row], workdir: pathlib.Path
) -> dict[str, Any]:
  """Looks at the answers of rows.

  Args:
    config: the section `knowledge`.
    found: the rows.
    workdir: folder of the run.

  Returns:
    answers, flagged, too_long, rows_flagged, and the medians of the figures.

  Raises:
    ValueError: for a setting out of range.
    OSError: if there is no checkpoint.
  """
  if not config.checkpoint:
    raise ValueError(
      'knowledge.checkpoint is missing: the model that is going to be tuned, '
      'for example --config.knowledge.checkpoint=runs/quickstart'
    )
  if config.batch_size < 1:
    raise ValueError('knowledge.batch_size must be at least 1')
  path = paths.in_repository(config.checkpoint)
  checkpoint = opening.open_checkpoint(path)
  layout = knowledge.Layout(checkpoint, config.template)
  items, too_long = [], 0
  for row in found:
    for item in layout.items(row.id, row.messages):
      answer = layout.answer(item.question, item.answer)
      if len(item.prompt) + len(answer) > config.longest:
        too_long += 1
      elif answer:
        items.append(item)
  # Thresholds are no part of it: they may change without asking again.
  settings = {
    key: config[key]
    for key in ('samples', 'temperature', 'max_new_tokens', 'seed')
  }
  model = [identity(path), config.template]
  about = json.dumps([settings, model], sort_keys=True)
  keys = [
    hashlib.sha256(f'{about} {item.id} {item.turn}'.encode()).hexdigest()[:24]
    for item in items
  ]
  journal.mend_if_cut(workdir / _JOURNAL)
  log = journal.Journal(workdir / _JOURNAL)
  done = {line['key']: line for _, line in log.rows}
  missing = [i for i, key in enumerate(keys) if key not in done]
  if missing:
    _examine(
      checkpoint, layout, items, keys, missing, settings, config, log, done
    )
  figures = [_figures(done[key]) for key in keys]
  return _write(config, workdir, items, figures, too_long)


def _examine(
  checkpoint: opening.Checkpoint,
  layout: knowledge.Layout,
  items: Sequence[knowledge.Item],
  keys: Sequence[str],
  missing: Sequence[int],
  settings: Mapping[str, Any],
  config: Any,
  log: journal.Journal,
  done: dict[str, journal.Row],
) -> None:
  """Asks the model for what is not known yet."""
  model, params = checkpoint.load()
  generator = generation.Generator(
    model,
    params,
    max_length=config.longest + config.max_new_tokens + 1,
    vocabulary_size=checkpoint.tokenizer.size,
  )
  del params  # the generator has its own
  bar = progress.Progress('knowledge', 'answers')
  for first in range(0, len(missing), config.batch_size):
    batch = missing[first : first + config.batch_size]
    asked = [items[i] for i in batch]
    found = knowledge.examine(layout, generator, asked, **settings)
    lines = [
      {'key': keys[i], 'id': item.id, 'turn': item.turn, **one._asdict()}
      for i, item, one in zip(batch, asked, found, strict=True)
    ]
    log.append(lines)
    done.update({line['key']: line for line in lines})
    for item in asked:
      bar.add(len(item.answer.encode()))
  bar.end()


def _write(
  config: Any,
  workdir: pathlib.Path,
  items: Sequence[knowledge.Item],
  figures: Sequence[knowledge.Figures],
  too_long: int,
) -> dict[str, Any]:
  reasons = [knowledge.why(f, config.gap, config.support) for f in figures]
  lines = [
    {
      'id': item.id,
      'turn': item.turn,
      'question': item.question,
      'answer': item.answer,
      **one._asdict(),
      'why': reason,
    }
    for item, one, reason in zip(items, figures, reasons, strict=True)
  ]
  atomic.write(workdir / FILE, b''.join(map(journal.to_line, lines)))
  flagged = {item.id for item, why in zip(items, reasons, strict=True) if why}
  return {
    'answers': len(items),
    'flagged': sum(map(bool, reasons)),
    'rows_flagged': len(flagged),
    'too_long': too_long,
    **(knowledge.medians(figures) if figures else {}),
  }


def read_reasons(workdir: pathlib.Path) -> dict[str, list[str]]:
  """Returns id -> why its answers should go, of a run before; may be empty."""
  found: dict[str, list[str]] = {}
  if (workdir / FILE).exists():
    for _, line in journal.Journal(workdir / FILE).rows:
      if line['why']:
        found.setdefault(line['id'], []).append(
          f'answer {line["turn"] + 1}: {line["why"]}'
        )
  return found


def identity(path: str) -> str:
  """Returns a string that changes when a checkpoint does."""
  if '://' not in path and os.path.isfile(path):
    return files.identity(path, '')
  if '://' not in path and os.path.isfile(os.path.join(path, 'config.json')):
    return files.identity(os.path.join(path, '*'), '')
  step, manifest = checkpointing.newest(path)
  text = json.dumps(manifest, sort_keys=True, default=str)
  return f'step {step} {hashlib.sha256(text.encode()).hexdigest()}'


def _figures(line: journal.Row) -> knowledge.Figures:
  return knowledge.Figures(*(line[k] for k in knowledge.Figures._fields))
