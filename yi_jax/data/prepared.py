"""What `prepare` has made for a run, found again without TensorFlow.

Below the data root (`data/` unless config.data.root says otherwise):

  raw/                                packages, see `raw`
  tfds/                               data sets of TFDS
  vocabularies/NAME/                  tokenizer.model, manifest.json
  rows/TASK/survey-KEY.npz            hash and size of each document
  rows/TASK/KEY/00000-of-00001/       the rows of one shard: train/, heldout/
  rows/heldout/KEY/LANGUAGE.txt       the held-out text, as other tools read it
  rows/index-KEY.json                 what belongs together, and its figures

A KEY is a hash of everything that decides the content, so another vocabulary,
length, split or raw file has other rows, and what is there is never stale.
"""

import copy
import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from yi_jax import paths
from yi_jax.data import (
  chat_packing,
  chat_samples,
  chatml,
  lengths,
  long_documents,
  mixtures,
  rows,
  tokenizer,
)

SPLITS = ('train', 'heldout')
_FORMAT = 1  # of the rows and their key


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The rows of one split of a run.

  Attributes:
    readers: task -> rows; all tasks of the mixture that have any.
    stages: first row of the run, and the rates from there on, see `stages`.
    vocabulary_hash: of the vocabulary that made the rows.
    languages: task -> 'en', 'zh', 'code' or another.
    abilities: task of conversations -> language_ability, as in zh_math.
    bytes: task -> UTF-8 bytes of exactly the documents in these rows.
    xz: language -> bits per byte of `xz -9e` on the held-out text.
    keys: task -> hash of all that made its rows, and how many conversations
      of it are read, if not all.
  """

  readers: dict[str, chat_packing.Rows]
  stages: list[tuple[int, dict[str, float]]]
  vocabulary_hash: str
  languages: dict[str, str]
  abilities: dict[str, str]
  bytes: dict[str, int]
  xz: dict[str, float]
  keys: dict[str, str]


def open_prepared(data: Any, split: str) -> Prepared:
  """Opens what `prepare` has made.

  Args:
    data: the data section of a run's config.
    split: 'train' or 'heldout'.

  Raises:
    FileNotFoundError: if it is not there, with the command that makes it.
    ValueError: if a part of it is damaged or made with another vocabulary.
  """
  if split not in SPLITS:
    raise ValueError(f'no split {split!r}: there are {SPLITS}')
  index = read_index(data)
  if index is None:
    raise FileNotFoundError(
      f'the rows of mixture {data.mixture!r} with vocabulary '
      f'{data.vocabulary!r} at length {data.length} are not in {root(data)}; '
      'make them with\n  python -m yi_jax.prepare --config=... (the same '
      'config and --config.data flags)'
    )
  if open_vocabulary(data).hash != index['vocabulary_hash']:
    raise ValueError(
      f'{vocabulary_folder(data)} has changed since the rows were made; run '
      'yi_jax.prepare again'
    )
  samples = mixtures.samples(data.mixture, dict(data.samples))
  for name in samples.keys() - index['tasks'].keys():
    raise ValueError(f'data.samples names {name}, which the run does not read')
  readers, sizes = {}, {}
  for name, entry in index['tasks'].items():
    shards = finished_shards(rows_folder(data, name) / entry['key'])
    if not shards:
      raise FileNotFoundError(
        f'rows of {name} are gone from {rows_folder(data, name)}; run '
        'yi_jax.prepare again'
      )
    reader = rows.RowReader([shard / split for shard in shards])
    if split == 'train' and name in samples:
      reader = chat_samples.take(reader, samples[name], name)
    per_sample = split == 'train' and data.chat.weigh == 'sample'
    if per_sample and mixtures.get(name).chat:
      reader = chat_packing.PerSample(reader)
    if len(reader):
      readers[name] = reader
    sizes[name] = entry[split]['bytes']
  return Prepared(
    readers=readers,
    stages=stages(data),
    vocabulary_hash=index['vocabulary_hash'],
    languages={name: mixtures.get(name).language for name in index['tasks']},
    abilities={
      name: f'{task.language}_{task.kind}'
      for name, task in tasks(data).items()
      if task.chat
    },
    bytes=sizes,
    xz=index['xz'],
    keys={
      name: (f'{samples[name]} of ' if name in samples else '') + entry['key']
      for name, entry in index['tasks'].items()
    },
  )


def stages(data: Any) -> list[tuple[int, dict[str, float]]]:
  """Returns what a run reads from which of its rows on.

  Example: with rates {'a': 1}, length 100 and stages ((1000, {'b': 1}),)
  it is [(0, {'a': 1, 'b': 0}), (10, {'a': 0, 'b': 1})].

  Args:
    data: the data section of a run's config.

  Returns:
    (first row, task -> share of the rows) of each stage, the first at row 0;
    the tasks are the same in all, and a share may be 0.

  Raises:
    ValueError: for an unknown task, or rates or stages that make no sense.
  """
  found = [(0, mixtures.rates(data.mixture, dict(data.rates)))]
  for stage in data.stages:
    try:
      first_token, rates = stage
      row, rates = math.ceil(first_token / data.length), dict(rates)
    except (TypeError, ValueError, OverflowError):
      row, rates = 0, {}
    if row <= found[-1][0] or not rates:
      raise ValueError(
        'data.stages is ((first token, {task: rate, ...}), ...), with first '
        f'tokens that rise from above 0; {stage!r} cannot follow row '
        f'{found[-1][0]:,}'
      )
    found.append((row, mixtures.rates(data.mixture, rates)))
  tasks = {task: 0.0 for _, rates in found for task in rates}
  return [(row, {**tasks, **rates}) for row, rates in found]


def at_length(data: Any, length: int) -> Any:
  """Returns the data section of a config with rows of another length."""
  changed = copy.deepcopy(data)
  changed.length, changed.lengths = length, ()
  return changed


def of_each_length(data: Any) -> dict[int, Any]:
  """Returns the data section for each length of a run, see `data.lengths`."""
  found = lengths.schedule(data.length, data.lengths)
  return {length: at_length(data, length) for _, length in found}


def refuse_other_text(data: Any) -> None:
  """Refuses rows of several lengths that were made of different text.

  What one length holds out, another would learn.

  Raises:
    ValueError: naming the task, and the cure.
  """
  index = read_index(data)
  for length, one in of_each_length(data).items():
    for name, entry in read_index(one)['tasks'].items():
      if entry['identity'] != index['tasks'][name]['identity']:
        raise ValueError(
          f'the text of {name} has changed between its rows of {data.length:,} '
          f'and those of {length:,} tokens; run yi_jax.prepare again'
        )


def tasks(data: Any) -> dict[str, mixtures.Task]:
  """Returns the tasks of a run's config, by name."""
  return {name: mixtures.get(name) for name in stages(data)[0][1]}


def root(data: Any) -> pathlib.Path:
  """Returns the data root of a config."""
  return pathlib.Path(paths.in_repository(data.root))


def vocabulary_folder(data: Any) -> pathlib.Path:
  """Returns where the vocabulary of a config is or will be."""
  if is_imported(data):
    return pathlib.Path(paths.in_repository(data.vocabulary))
  return root(data) / 'vocabularies' / data.vocabulary


def is_imported(data: Any) -> bool:
  """Returns whether the vocabulary is that of a checkpoint, named by path."""
  return '/' in data.vocabulary or data.vocabulary.endswith('.gguf')


def open_vocabulary(data: Any) -> tokenizer.Tokenizer:
  """Returns the vocabulary of a config; see `tokenizer.open_tokenizer`."""
  return tokenizer.open_tokenizer(vocabulary_folder(data))


def rows_folder(data: Any, task: str) -> pathlib.Path:
  """Returns the folder of a task's rows, of all keys."""
  return root(data) / 'rows' / task


def index_path(data: Any) -> pathlib.Path:
  """Returns the file that tells which rows a config means."""
  return root(data) / 'rows' / f'index-{_key(wanted(data))}.json'


def wanted(data: Any) -> dict[str, Any]:
  """Returns what a config says about its rows.

  It is known where the raw files are not, as on a pod that only trains; their
  identities are inside the index, and `prepare` compares them.
  """
  found = tasks(data)
  chats = {name: task.chat for name, task in found.items() if task.chat}
  long = {
    name: settings.facts()
    for name, settings in long_documents.settings(data, found).items()
  }
  return {
    'format': _FORMAT,
    **({'chats': chats, **chat_facts(data)} if chats else {}),
    **({'long': long} if long else {}),
    'reads': {
      name: (task.source, task.tfds, task.split, task.pattern, task.column)
      for name, task in found.items()
    },
    'vocabulary': data.vocabulary,
    'vocabulary_size': data.vocabulary_size,
    'length': data.length,
    'heldout_fraction': data.heldout_fraction,
    'heldout_bytes': data.heldout_bytes,
  }


def read_index(data: Any) -> dict[str, Any] | None:
  """Returns the index of a config, or None if it was never prepared."""
  path = index_path(data)
  return json.loads(path.read_text()) if path.is_file() else None


def survey_path(data: Any, task: str, identity: str) -> pathlib.Path:
  """Returns where the hashes and sizes of a task's documents are kept."""
  return rows_folder(data, task) / f'survey-{_key(identity)}.npz'


def chat_facts(data: Any) -> dict[str, Any]:
  """Returns what decides the rows of conversations beside their text.

  Raises:
    ValueError: for a template or a weight that there is not.
  """
  if data.chat.weigh not in chat_packing.WEIGHTS:
    raise ValueError(
      f'data.chat.weigh is one of {", ".join(chat_packing.WEIGHTS)}, not '
      f'{data.chat.weigh!r}'
    )
  chatml.get(data.chat.template)
  return {
    'template': data.chat.template,
    'skip_invalid': data.chat.skip_invalid,
  }


def rows_key(
  data: Any, task: mixtures.Task, vocabulary_hash: str, heldout_limit: int
) -> str:
  """Returns the key of a task's rows."""
  facts = [
    _FORMAT,
    task.identity(),
    vocabulary_hash,
    data.length,
    heldout_limit,
  ]
  if task.chat:
    facts.append(chat_facts(data))
  if task.name in data.long.tasks:
    found = long_documents.settings(data, tasks(data))
    facts.append({'long': found[task.name].facts()})
  return _key(facts)


def heldout_folder(data: Any, keys: Mapping[str, str]) -> pathlib.Path:
  """Returns where the held-out text of some rows (task -> key) is."""
  return root(data) / 'rows' / 'heldout' / _key(dict(keys))


def shard_name(index: int, count: int) -> str:
  """Returns the folder name of the i-th of n shards."""
  return f'{index:05}-of-{count:05}'


def finished_shards(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the shard folders of a key, in order, if they are complete.

  Rows may have been made with several numbers of shards; the smallest complete
  one is taken.
  """
  counts = {
    int(path.name[-5:])
    for path in folder.glob('*-of-*')
    if re.fullmatch(r'\d{5}-of-\d{5}', path.name)
  }
  for count in sorted(counts):
    shards = [folder / shard_name(index, count) for index in range(count)]
    if all(shard.is_dir() for shard in shards):
      return shards
  return []


def _key(facts: Any) -> str:
  """Returns a short hash of JSON."""
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
