"""The rows that are polished: conversations, and what is known of each.

They come from tasks of `mixtures`, whose names tell language and ability, or
from files of your own. A row is known by the hash of its turns
(`conversations.identity`), so the same row has the same id in every run; a
conversation that comes twice is one row, with its copies counted.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from yi_jax import paths
from yi_jax.data import chat_sources, conversations, mixtures, progress

# (question or what came back of a tool, answer)
Exchange = tuple[str, str]


@dataclasses.dataclass
class Row:
  """A conversation.

  Attributes:
    id: see `conversations.identity`.
    task: name of the task, or of the files, that it came with.
    language: 'en', 'zh' or another.
    ability: one of chat_sources.ABILITIES.
    messages: what was said.
    copies: how often it was read.
  """

  id: str
  task: str
  language: str
  ability: str
  messages: conversations.Messages
  copies: int = 1

  @property
  def group(self) -> tuple[str, str]:
    """Language and ability: what a row is compared with."""
    return self.language, self.ability

  @functools.cached_property
  def system(self) -> str:
    """The system message, or ''."""
    first = self.messages[0]
    return first['content'] if first['role'] == 'system' else ''

  @functools.cached_property
  def exchanges(self) -> list[Exchange]:
    """Questions with their answers, in order."""
    texts = [m['content'] for m in self.messages if m['role'] != 'system']
    return list(zip(texts[::2], texts[1::2], strict=True))

  @functools.cached_property
  def questions(self) -> str:
    """What the user says, a turn a paragraph."""
    return '\n'.join(question for question, _ in self.exchanges)

  @functools.cached_property
  def answers(self) -> str:
    """What the assistant says, a turn a paragraph."""
    return conversations.answers(self.messages)


def defaults() -> dict[str, Any]:
  """Returns the section `data` of a config."""
  return {
    'root': 'data',  # raw packages are in root/raw
    # Tasks of conversations; see `mixtures.register_chats`.
    'tasks': tuple(mixtures.MIXTURES['chat']),
    # Or files of your own instead of the tasks: a glob, '' for none.
    'files': '',
    'language': 'en',  # of those files
    'ability': 'instruction',
    'chat': {
      'skip_invalid': False,  # leave out what is no conversation
    },
  }


def read(config: Any) -> list[Row]:
  """Returns the rows, each once, in reading order.

  Args:
    config: the section `data`.

  Raises:
    FileNotFoundError: if files or packages are missing, naming them.
    ValueError: for what is no conversation (with file and line), a task that
      has none, or nothing at all to read.
  """
  if config.files:
    name = f'{config.language}_{config.ability}_files'
    mixtures.check_name(name, chat_sources.ABILITIES)
    tasks = [mixtures.Task(name, chat=config.files)]
  else:
    tasks = [mixtures.get(name) for name in config.tasks]
  found = of_tasks(
    tasks, root(config) / 'raw', skip_invalid=config.chat.skip_invalid
  )
  if not found:
    raise ValueError('there are no conversations to read; see data.tasks')
  return found


def root(config: Any) -> pathlib.Path:
  """Returns the data root of the section `data`."""
  return pathlib.Path(paths.in_repository(config.root))


def of_tasks(
  tasks: Iterable[mixtures.Task],
  raw: pathlib.Path,
  *,
  skip_invalid: bool = False,
) -> list[Row]:
  """Returns the rows of tasks, each once; see `read`.

  Args:
    tasks: of conversations.
    raw: folder of raw packages.
    skip_invalid: leave out what is no conversation.
  """
  found: dict[str, Row] = {}
  for task in tasks:
    if not task.chat:
      raise ValueError(f'data.tasks: {task.name} has no conversations')
    skipped: collections.Counter[str] = collections.Counter()
    seen = 0
    for messages in chat_sources.chats(
      task.chat, raw, skip_invalid=skip_invalid, skipped=skipped
    ):
      seen += 1
      row = Row(
        conversations.identity(messages),
        task.name,
        task.language,
        task.kind,
        messages,
      )
      if row.id in found:
        found[row.id].copies += 1
      else:
        found[row.id] = row
    progress.tell(
      'read', f'{task.name}: {seen:,} rows{progress.skipped(skipped)}'
    )
  return list(found.values())
