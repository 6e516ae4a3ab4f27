"""Tasks (one a source) and mixtures of them, as plain tables.

A task is named `{language}_{kind}_{source}`, as in en_books_plays; one of
conversations has the ability it teaches for a kind, as in zh_math_chalkbase.
`tasks.py` puts the same tasks and mixtures into seqio's registry; what only
needs names and rates reads them here, without TensorFlow.

A rate is a share of the rows that training reads, in tokens therefore, as rows
are full. Rates need not sum to one.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping

from yi_jax import paths, spelling
from yi_jax.data import chat_sources, files, sources

# Tokens of Yi's pretraining data by kind, in units of 0.1 B, read off the chart
# of its report (figure 2); the split between languages could not be read.
KINDS = {
  'web': 25_239,
  'code': 2_569,
  'papers': 1_526,
  'books': 949,
  'encyclopedia': 349,
  'other': 615,
}


@dataclasses.dataclass(frozen=True)
class Task:
  """One source of documents. One of source, tfds, pattern and chat is set.

  Attributes:
    name: language_kind_source.
    source: key of `sources.SOURCES`.
    tfds: versioned name of a TensorFlow data set with a `text` feature.
    split: of that data set.
    pattern: glob of files, see `files`.
    column: field of those files that holds the text.
    chat: key of `chat_sources.SOURCES`, or glob of files of conversations.
    megabytes: of text, about; what tasks of one kind and language share by.
  """

  name: str
  source: str = ''
  tfds: str = ''
  split: str = 'train'
  pattern: str = ''
  column: str = 'text'
  chat: str = ''
  megabytes: float = 1.0

  @property
  def language(self) -> str:
    """'en', 'zh', 'code' or another."""
    return self.name.split('_')[0]

  @property
  def kind(self) -> str:
    """One of KINDS, or of chat_sources.ABILITIES."""
    return self.name.split('_')[1]

  def identity(self) -> str:
    """Returns a string that changes when the documents of this task do."""
    if self.source:
      return sources.identity(self.source)
    if self.chat in chat_sources.SOURCES:
      return chat_sources.identity(self.chat)
    if self.chat:
      return files.identity(self.chat, 'conversations')
    if self.tfds:
      return f'tfds {self.tfds} {self.split}'
    return files.identity(self.pattern, self.column)


_FILE = '.json'  # of a mixture that is a path

# Source -> last part of its task's name.
_LOCAL = {
  'zh_law': 'law',
  'zh_news': 'news',
  'zh_reviews': 'reviews',
  'zh_dict': 'dictionary',
  'zh_novel': 'novel',
  'zh_docs_paddlex': 'paddlex',
  'zh_en_dict': 'cedict',
  'zh_math': 'mathematics',
  'en_news': 'news',
  'en_parliament': 'parliament',
  'en_tweets': 'tweets',
  'en_docs_django': 'django',
  'en_docs_paddlex': 'paddlex',
  'en_plays': 'plays',
  'en_bible': 'bible',
  'en_chat': 'chat',
  'web_c4': 'c4sample',
  'web_wiki': 'wikisample',
  'code_py': 'python',
}


def _local_tasks() -> Iterable[Task]:
  for key, name in _LOCAL.items():
    source = sources.SOURCES[key]
    yield Task(
      f'{source.language}_{source.kind}_{name}',
      source=key,
      megabytes=source.megabytes,
    )


# Large sets of TFDS that a pod would read; nothing here downloads them. Sizes
# are rounded and only matter against other tasks of their kind and language.
_LARGE = (
  Task('en_web_c4', tfds='c4/en:3.1.0', megabytes=800_000),
  Task(
    'zh_web_mc4', tfds='c4/multilingual:3.1.0', split='zh', megabytes=200_000
  ),
  Task(
    'en_encyclopedia_wikipedia',
    tfds='wikipedia/20230601.en:1.0.0',
    megabytes=20_000,
  ),
  Task(
    'zh_encyclopedia_wikipedia',
    tfds='wikipedia/20230601.zh:1.0.0',
    megabytes=2_500,
  ),
)


def _chat_tasks() -> Iterable[Task]:
  for key, source in chat_sources.SOURCES.items():
    yield Task(
      f'{source.language}_{source.ability}_{key.partition("_")[2]}',
      chat=key,
      megabytes=source.megabytes,
    )


TASKS = {task.name: task for task in (*_local_tasks(), *_LARGE, *_chat_tasks())}


def get(name: str) -> Task:
  """Returns a task by name; ValueError names the nearest."""
  if name not in TASKS:
    raise ValueError(f'no task {name!r}{spelling.nearest(name, TASKS)}')
  return TASKS[name]


def register_files(name: str, pattern: str, column: str = 'text') -> Task:
  """Adds a task that reads files of your own; call it in a config file.

  Example: register_files('en_papers_mine', '/disk/papers/*.jsonl.gz')

  Args:
    name: language_kind_source, kind being one of KINDS.
    pattern: glob of .jsonl, .json, .parquet or text files; JSON and text may
      be .gz. A relative one starts at the repository.
    column: field or column that holds the text.

  Raises:
    ValueError: if the name has another form, or is taken by another task.
  """
  check_name(name)
  return _add(Task(name, pattern=pattern, column=column))


def register_chats(name: str, pattern: str) -> Task:
  """Adds a task of your own conversations; call it in a config file.

  Example: register_chats('en_writing_mine', '/disk/polished/*.jsonl')

  Args:
    name: language_ability_source, see chat_sources.ABILITIES.
    pattern: glob of files in one of the layouts of `conversations`. A relative
      one starts at the repository.

  Raises:
    ValueError: if the name has another form, or is taken by another task.
  """
  check_name(name, chat_sources.ABILITIES)
  if pattern in chat_sources.SOURCES:
    raise ValueError(f'{pattern!r} is a source, and no glob of files')
  return _add(Task(name, chat=pattern))


def _add(task: Task) -> Task:
  if TASKS.setdefault(task.name, task) != task:
    raise ValueError(
      f'task {task.name!r} is there already and reads other data'
    )
  return task


def register_curated(folder: str) -> dict[str, float]:
  """Adds the tasks of what `curate` has written, and the mixture `curated`.

  Call it in a config file. A task is named as the one it stands in for, with
  `_curated` behind: en_web_news_curated.

  Args:
    folder: WORKDIR/curated; a relative one starts at the repository.

  Returns:
    The mixture: task name -> rate.

  Raises:
    FileNotFoundError: if nothing was written there.
  """
  path = pathlib.Path(paths.in_repository(folder))
  manifest = path / 'manifest.json'
  if not manifest.is_file():
    raise FileNotFoundError(
      f'no curated data in {path}; make it with\n'
      '  python -m yi_jax.curate --config=experiments/curate.py:quickstart'
    )
  rates = {}
  for name, facts in json.loads(manifest.read_text())['tasks'].items():
    task = Task(f'{name}_curated', pattern=str(path / facts['files']))
    # It may have been written anew since the last call.
    TASKS[task.name] = task
    rates[task.name] = facts['rate']
  MIXTURES['curated'] = rates
  return dict(rates)


def check_name(name: str, kinds: Iterable[str] = tuple(KINDS)) -> None:
  """Raises ValueError unless a name is language_kind_source."""
  parts = name.split('_', 2)
  if len(parts) != 3 or parts[1] not in kinds:
    raise ValueError(
      f'a task is named language_kind_source, kind being one of {list(kinds)}, '
      f'not {name!r}'
    )


def by_kind(
  names: Iterable[str], languages: Mapping[str, float] | None = None
) -> dict[str, float]:
  """Shares rates as Yi's report does by kind, over the tasks that are there.

  Kinds without a task drop out. Ours, as the report does not tell: a kind is
  split between its languages by `languages`, and what one language has of it
  between its tasks by their size.

  Args:
    names: of tasks.
    languages: language -> weight; None weighs all the same.

  Returns:
    Task name -> rate; they sum to one.
  """
  rates = {}
  tasks = [get(name) for name in names]
  for kind, share in KINDS.items():
    groups = {}
    for task in tasks:
      if task.kind == kind:
        groups.setdefault(task.language, []).append(task)
    weights = {k: 1.0 if languages is None else languages[k] for k in groups}
    for language, group in groups.items():
      size = sum(task.megabytes for task in group)
      part = share * weights[language] / sum(weights.values())
      rates.update({t.name: part * t.megabytes / size for t in group})
  total = sum(rates.values())
  return {name: rate / total for name, rate in rates.items()}


MIXTURES = {
  # What the smallest group of raw files holds. Ours: both languages the same,
  # inside a language about by size.
  'quickstart': {
    'en_books_plays': 0.16,
    'en_books_bible': 0.13,
    'en_other_django': 0.21,
    'zh_other_law': 0.22,
    'zh_encyclopedia_cedict': 0.22,
    'zh_other_mathematics': 0.06,
  },
  # Yi's kinds over everything small.
  'yi_text': by_kind(task.name for task in _local_tasks()),
  # Yi's kinds over the large sets: web pages and encyclopaedias. No open set of
  # TFDS has code, papers or books of that size: add files of your own with
  # register_files, and share all of them with by_kind.
  'yi_pretrain': by_kind(task.name for task in _LARGE),
  # Conversations. Ours: both languages about the same, the abilities that have
  # longer answers more often.
  'chat': {
    'en_instruction_alpaca': 0.25,
    'zh_instruction_alpaca': 0.25,
    'zh_math_chalkbase': 0.15,
    'zh_translation_cedict': 0.05,
    'en_knowledge_chatterbot': 0.05,
    'zh_knowledge_chatterbot': 0.05,
    'en_dialogue_chitchat': 0.1,
    'en_tools_glaive': 0.05,
    'zh_tools_glaive': 0.05,
  },
  # What a model of the quickstart's size can learn of them.
  'chat_tiny': {
    'zh_translation_cedict': 0.3,
    'zh_math_chalkbase': 0.3,
    'en_knowledge_chatterbot': 0.3,
    'zh_knowledge_chatterbot': 0.1,
  },
}


def read(mixture: str) -> dict[str, dict[str, float]]:
  """Returns what is known of a mixture: its `rates`, and `samples`.

  A mixture in a file is JSON, as launch/mixture_search.py writes it: {"rates":
  {task: rate, ...}, "samples": {task: most conversations, ...}}; its other keys
  are for people.

  Args:
    mixture: key of MIXTURES, or path of a .json; a relative one starts at the
      repository.

  Raises:
    ValueError: for an unknown name, or a file that holds no mixture.
    FileNotFoundError: if there is no such file.
  """
  if not mixture.endswith(_FILE):
    if mixture not in MIXTURES:
      raise ValueError(
        f'no mixture {mixture!r}{spelling.nearest(mixture, MIXTURES)}'
      )
    return {'rates': dict(MIXTURES[mixture]), 'samples': {}}
  path = pathlib.Path(paths.in_repository(mixture))
  if not path.is_file():
    raise FileNotFoundError(
      f'no mixture in {path}; launch/mixture_search.py writes one'
    )
  try:
    content = json.loads(path.read_bytes())
  except ValueError as error:  # UnicodeDecodeError is one
    raise ValueError(f'{path} is no mixture, or cut off: {error}') from error
  if not isinstance(content, dict) or 'rates' not in content:
    raise ValueError(f'{path} is no mixture: it has no "rates"')
  found = {'rates': content['rates'], 'samples': content.get('samples', {})}
  for key, value in found.items():
    if not isinstance(value, dict):
      raise ValueError(f'{path} is no mixture: its "{key}" is no object')
  return found


def samples(
  mixture: str, override: Mapping[str, int] | None = None
) -> dict[str, int]:
  """Returns how many conversations of a task are read, where not all.

  Args:
    mixture: see `rates`.
    override: counts beside or instead of the mixture's own; None is none.

  Raises:
    ValueError: for a task that is none of conversations, or a count below 1.
  """
  given = {k: v for k, v in (override or {}).items() if v is not None}
  found = read(mixture)['samples'] | given
  for name, count in found.items():
    if not get(name).chat:
      raise ValueError(
        f'data.samples limits conversations; {name} is text, which has rates'
      )
    if not isinstance(count, int) or count < 1:
      raise ValueError(
        f'data.samples.{name} is a number of conversations, 1 or more, not '
        f'{count!r}; leave it unset for all'
      )
  return found


def rates(
  mixture: str, override: Mapping[str, float] | None = None
) -> dict[str, float]:
  """Returns the rates of a run, by task name.

  Args:
    mixture: key of MIXTURES, or path of a file, see `read`.
    override: rates instead of the mixture's own, unless empty; None is no
      rate. A rate of 0 keeps a task's held-out text in the evaluation.

  Raises:
    ValueError: for unknown names, a rate that is negative or no number, rates
      that are all 0, or rates beside those of a file.
    FileNotFoundError: if there is no such file.
  """
  given = {k: v for k, v in (override or {}).items() if v is not None}
  if given and mixture.endswith(_FILE):
    raise ValueError(
      f'data.mixture is {mixture} and data.rates names {min(given)} as well: '
      'take the rates of one of both'
    )
  own = read(mixture)['rates']
  found = given or own
  for name, rate in found.items():
    get(name)
    if not isinstance(rate, int | float):
      raise ValueError(f'the rate of {name} is no number: {rate!r}')
    if rate < 0:
      raise ValueError(f'the rate of {name} is negative: {rate}')
    if not math.isfinite(rate):
      raise ValueError(f'the rate of {name} is not finite: {rate}')
  if not any(found.values()):
    raise ValueError('all rates are 0: there is nothing to read')
  return found
