"""Conversations about many documents, for a model that reads long contexts.

Random documents are joined to a length in tokens, one or more passages of them
are chosen, and question and answer are made of those: the answer recites the
passage first (Yi report, section 7.1; Yu et al.). The report has a chat model
write both; here it is that (--endpoint) or rules that need none.

  python -m yi_jax.alignment.long_qa \\
      --config=experiments/long_context.py:smollm2 --count=200

reads the text that this run trains on, never what it holds out, and writes
data/long_qa/en.jsonl and zh.jsonl, conversations as OpenAI has them. A task of
`mixtures.register_chats` reads them. A run that was stopped goes on where it
was; the same settings give the same conversations.
"""

import collections
import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from yi_jax import app, paths
from yi_jax.alignment import long_questions
from yi_jax.alignment.making import endpoint, evolve
from yi_jax.data import (
  atomic,
  chatml,
  corpus,
  heldout,
  journal,
  long_documents,
  prepared,
  progress,
  sources,
  tokenizer,
)

FLAGS = flags.FlagValues()
_COUNT = flags.DEFINE_integer(
  'count', 200, 'Conversations of each language.', 1, flag_values=FLAGS
)
_LENGTHS = flags.DEFINE_list(
  'lengths',
  [],
  'Most tokens of a conversation, in turn; all lengths of rows of the config if '
  'not given.',
  flag_values=FLAGS,
)
_PASSAGES = flags.DEFINE_integer(
  'passages', 2, 'Most questions of a conversation.', 1, flag_values=FLAGS
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of all choices.', flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string(
  'output',
  'data/long_qa',
  'Folder of LANGUAGE.jsonl; a relative one starts at the repository.',
  flag_values=FLAGS,
)
_ENDPOINT = flags.DEFINE_string(
  'endpoint',
  '',
  'Address of a model that writes questions and answers, as in '
  'http://localhost:8000/v1; without it, rules do.',
  flag_values=FLAGS,
)
_MODEL = flags.DEFINE_string(
  'model', '', 'Name of the model there.', flag_values=FLAGS
)
_KEY_VARIABLE = flags.DEFINE_string(
  'key_variable',
  '',
  'Environment variable that holds its key.',
  flag_values=FLAGS,
)
_PARALLEL = flags.DEFINE_integer(
  'parallel', 4, 'Requests at a time.', 1, flag_values=FLAGS
)

# All ours.
# Characters of a document in a conversation: a thousand tokens, about.
_PIECE = {'en': 4_000, 'zh': 1_500}
_PASSAGE = {'en': 600, 'zh': 240}  # characters of a passage, at most
_LEAST = {'en': 80, 'zh': 30}  # and at least
_TASK_BYTES = 32_000_000  # of text that a task gives
_TRIES = 20  # other documents, until there is something to ask
_FULL = 0.9  # share of the length that documents have to fill
_MARGIN = 64  # tokens for words around documents
_LEAST_LENGTH = 512  # tokens of a conversation

Ask = Callable[[Sequence[Mapping[str, str]]], endpoint.Reply]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What conversations are made like.

  Attributes:
    lengths: most tokens, in the template of the run; conversations have them
      in turn.
    passages: most questions.
    seed: of all choices.
    template: see `chatml`.
  """

  lengths: tuple[int, ...]
  passages: int
  seed: int
  template: str

  def __post_init__(self) -> None:
    """Checks the lengths."""
    if not self.lengths or min(self.lengths) < _LEAST_LENGTH:
      raise ValueError(
        f'--lengths are {_LEAST_LENGTH} tokens or more each, not {self.lengths}'
      )


@dataclasses.dataclass
class Draft:
  """A conversation without its questions.

  Attributes:
    documents: in order.
    passages: of those, one a question.
    length: most tokens of the conversation.
  """

  length: int
  documents: list[str]
  passages: list[long_questions.Passage]

  def times(self, text: str) -> int:
    """Returns how often a text stands in the documents."""
    return sum(document.count(text) for document in self.documents)


class Builder:
  """Makes conversations of the documents of one language."""

  def __init__(
    self,
    documents: Iterable[str],
    language: str,
    settings: Settings,
    words: tokenizer.Tokenizer,
  ) -> None:
    """Cuts documents into pieces of a size that many fit.

    Args:
      documents: to choose from.
      language: one of long_questions.LANGUAGES.
      settings: see there.
      words: the tokenizer that lengths are counted with.

    Raises:
      ValueError: if there are no documents, or no questions in that language.
    """
    if language not in long_questions.LANGUAGES:
      raise ValueError(
        f'there are questions in {" and ".join(long_questions.LANGUAGES)}, none '
        f'in {language!r}'
      )
    self._pieces = [
      piece.strip('\n')
      for document in documents
      for piece in sources.cut(document, _PIECE[language])
      if piece.strip()
    ]
    if not self._pieces:
      raise ValueError(f'there are no documents in {language!r} to ask about')
    self._language, self._settings = language, settings
    self._words = words
    self._template = chatml.get(settings.template)
    self._size = functools.cache(self._count_piece)
    # Tokens around a document; numbers of three digits are the longest.
    empty = long_questions.layout([''] * 199, language)
    shorter = long_questions.layout([''] * 99, language)
    self._title = -(-(self._count(empty) - self._count(shorter)) // 100)

  def draft(self, length: int, draw: random.Random) -> Draft:
    """Returns documents and passages that leave room for the questions.

    Args:
      length: most tokens of the conversation.
      draw: makes all choices.

    Raises:
      ValueError: if the documents do not fill the length.
    """
    total = len(self._pieces)
    order = draw.sample(range(total), total)
    wanted = draw.randint(1, self._settings.passages)
    chosen, texts = [], []
    room = length - _MARGIN
    for number in order:
      passage = self._passage(self._pieces[number], draw)
      # Recited once, quoted once, and words around it.
      cost = self._count(passage) * 2 + _MARGIN + self._size(number)
      if passage and cost <= room:
        chosen.append(number)
        texts.append(passage)
        room -= cost
      if len(chosen) == wanted:
        break
    if not chosen:
      raise ValueError(
        f'no document with its question fits {length:,} tokens: raise --lengths'
      )
    documents = [(self._pieces[number], i) for i, number in enumerate(chosen)]
    for number in order:
      if number not in chosen and room > 0:
        piece = self._fitting(number, room)
        if piece:
          documents.append((piece, -1))
          room -= self._count_piece_text(piece)
        if room < length * (1 - _FULL) / 2 and piece != self._pieces[number]:
          break
    if room > length * (1 - _FULL):
      raise ValueError(
        f'all documents in {self._language!r} joined fill {length - room:,} of '
        f'the {length:,} tokens asked for: add tasks, or lower --lengths'
      )
    draw.shuffle(documents)
    places = {i: n for n, (_, i) in enumerate(documents, 1) if i >= 0}
    return Draft(
      length,
      [text for text, _ in documents],
      [long_questions.Passage(text, places[i]) for i, text in enumerate(texts)],
    )

  def finish(
    self, draft: Draft, asked: Sequence[long_questions.Asked]
  ) -> tuple[list[dict[str, str]], int]:
    """Returns a conversation that fits, and its tokens.

    What is too long loses ends of documents that no question is about.

    Args:
      draft: of the conversation.
      asked: a question for each passage.

    Raises:
      Eliminated: if it cannot be made to fit.
    """
    documents = list(draft.documents)
    used = {passage.document - 1 for passage in draft.passages}
    spare = [i for i in range(len(documents)) if i not in used]
    while True:
      found = long_questions.messages(
        documents, draft.passages, asked, self._language
      )
      tokens = len(chatml.render(self._template, found, self._words).ids)
      over = tokens - draft.length
      if over <= 0:
        return found, tokens
      if not spare:
        raise evolve.Eliminated('longer than the length asked for')
      # Documents keep their numbers, so one that is cut keeps its beginning.
      last = spare[-1]
      parts = sources.cut(documents[last], _PASSAGE[self._language])
      while over > 0 and len(parts) > 1:
        over -= max(1, self._count(parts.pop()))
      documents[last] = ''.join(parts).rstrip('\n')
      if len(parts) == 1:
        spare.pop()

  def _passage(self, piece: str, draw: random.Random) -> str:
    """Returns a part of a document, or ''."""
    parts = [
      part.strip() for part in sources.cut(piece, _PASSAGE[self._language])
    ]
    parts = [part for part in parts if len(part) >= _LEAST[self._language]]
    return draw.choice(parts) if parts else ''

  def _fitting(self, number: int, room: int) -> str:
    """Returns a document, or so much of its beginning as there is room for."""
    if self._size(number) <= room:
      return self._pieces[number]
    room -= self._title
    taken = []
    for part in sources.cut(self._pieces[number], _PASSAGE[self._language]):
      room -= self._count(part)
      if room < 0:
        break
      taken.append(part)
    return ''.join(taken).rstrip('\n')

  def _count_piece(self, number: int) -> int:
    return self._count_piece_text(self._pieces[number])

  def _count_piece_text(self, text: str) -> int:
    return self._count(text) + self._title

  def _count(self, text: str) -> int:
    return len(self._words.encode(text))


def ask_locally(
  builder: Builder, language: str, length: int, draw: random.Random
) -> tuple[Draft, list[long_questions.Asked]]:
  """Returns a draft with questions by rule.

  Raises:
    Eliminated: if a number of documents gave none.
  """
  for _ in range(_TRIES):
    draft = builder.draft(length, draw)
    asked = [
      long_questions.local(passage, language, draft.times, draw)
      for passage in draft.passages
    ]
    if all(asked):
      return draft, asked
  raise evolve.Eliminated('nothing to ask about')


def ask_model(
  builder: Builder, language: str, length: int, draw: random.Random, ask: Ask
) -> tuple[Draft, list[long_questions.Asked]]:
  """Returns a draft with questions that a model wrote.

  Args:
    builder: of drafts.
    language: to ask in.
    length: most tokens of the conversation.
    draw: makes all choices.
    ask: the model.

  Raises:
    Eliminated: if a reply is no question with its answer.
    RefusedError, EndpointError: see `endpoint`.
  """
  draft = builder.draft(length, draw)
  replies = [
    ask(long_questions.prompt(passage.text, language))
    for passage in draft.passages
  ]
  if any(reply.finish_reason == 'length' for reply in replies):
    raise evolve.Eliminated('cut off')
  return draft, [long_questions.parse(reply.text) for reply in replies]


def write(
  path: pathlib.Path,
  builder: Builder,
  language: str,
  settings: Settings,
  count: int,
  facts: Mapping[str, Any],
  asked: endpoint.Endpoint | None = None,
) -> collections.Counter[str]:
  """Writes conversations, those that are missing in a file.

  Args:
    path: JSON lines.
    builder: makes them.
    language: of the documents.
    settings: of the builder.
    count: of conversations in the end.
    facts: what else decides them, for provenance.
    asked: who writes the questions; None takes rules.

  Returns:
    Counts of 'there', 'made' and of reasons why one was left out.

  Raises:
    ValueError: if the file has conversations made otherwise.
    EndpointError: if the endpoint cannot be used; what was made is kept.
  """
  made_by = {
    'generator': asked.provenance() if asked else 'rules',
    **{**dataclasses.asdict(settings), 'lengths': list(settings.lengths)},
    **facts,
  }
  text = json.dumps(made_by, sort_keys=True)
  key = hashlib.sha256(text.encode()).hexdigest()[:16]
  journal.mend_if_cut(path)
  log = journal.Journal(path)
  there = _numbers(log, key)

  def make(number: int) -> dict[str, Any]:
    draw = random.Random(f'{settings.seed} {language} {number}')
    length = settings.lengths[number % len(settings.lengths)]
    if asked is None:
      draft, questions = ask_locally(builder, language, length, draw)
    else:
      draft, questions = ask_model(builder, language, length, draw, asked.ask)
    messages, tokens = builder.finish(draft, questions)
    return {
      'messages': messages,
      'provenance': {
        **made_by,
        'number': number,
        'tokens': tokens,
        'documents': len(draft.documents),
        'asked': [
          {'kind': one.kind, 'document': passage.document}
          for one, passage in zip(questions, draft.passages, strict=True)
        ],
      },
      'key': key,
    }

  missing = [number for number in range(count) if number not in there]
  found = collections.Counter(there=count - len(missing))
  # Rules take one core; a model is waited for.
  results = endpoint.in_order(make, missing, asked.parallel if asked else 1)
  for _, result in results:
    if isinstance(result, evolve.Eliminated | endpoint.RefusedError):
      found[str(result).partition(':')[0]] += 1
    elif isinstance(result, Exception):
      raise result
    else:
      log.append([result])
      found['made'] += 1
  return found


def _numbers(log: journal.Journal, key: str) -> set[int]:
  """Returns which conversations a file has; ValueError if they are others."""
  for line, row in log.rows:
    if row.get('key') != key:
      raise ValueError(
        f'{log.path}, line {line} was made with other settings or documents: '
        'take another --output, or delete it'
      )
  return {row['provenance']['number'] for _, row in log.rows}


def documents(data: Any) -> dict[str, Iterator[str]]:
  """Returns the texts that a run trains on, by language.

  Held-out documents of the run are left out: its conversations only add text,
  and the more text a language has the fewer hashes are held out.

  Args:
    data: the data section of a run's config; the tasks of `data.long.tasks`,
      or all text if there are none.

  Raises:
    ValueError: if the run reads no text, or not that of `data.long.tasks`.
  """
  long_documents.settings(data, prepared.tasks(data))
  data = copy.deepcopy(data)
  rates = {
    name: 1.0 for name, task in prepared.tasks(data).items() if not task.chat
  }
  if not rates:
    raise ValueError('the run reads conversations only: there is no document')
  with data.unlocked():
    data.rates, data.stages, data.samples = rates, (), {}
  texts = corpus.Corpus(data)
  surveys = {name: texts.survey(name) for name in rates}
  languages = {name: task.language for name, task in texts.tasks.items()}
  limits = heldout.limits(
    surveys, languages, data.heldout_fraction, data.heldout_bytes
  )

  def read(language: str) -> Iterator[str]:
    for name in data.long.tasks or rates:
      if languages[name] != language:
        continue
      left = _TASK_BYTES
      for text in texts.texts(name):
        if left <= 0:
          break
        if texts.hash(name, text) >= limits[language]:
          left -= len(text.encode())
          yield text

  asked = {languages[name] for name in data.long.tasks or rates}
  known = set(long_questions.LANGUAGES)
  return {language: read(language) for language in sorted(asked & known)}


def _texts_key(data: Any) -> str:
  """Returns what changes with the text of a run, and so with what it holds out."""
  found = {
    name: task.identity()
    for name, task in prepared.tasks(data).items()
    if not task.chat
  }
  text = json.dumps(found, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(config: Any) -> None:
  """Writes the conversations of each language."""
  data = config.data
  try:
    lengths = tuple(map(int, _LENGTHS.value))
  except ValueError as error:
    raise ValueError(f'--lengths are numbers, not {_LENGTHS.value}') from error
  settings = Settings(
    lengths or tuple(prepared.of_each_length(data)),
    _PASSAGES.value,
    _SEED.value,
    data.chat.template,
  )
  asked = None
  if _ENDPOINT.value:
    asked = endpoint.Endpoint(
      _ENDPOINT.value,
      _MODEL.value,
      key_variable=_KEY_VARIABLE.value,
      parallel=_PARALLEL.value,
      sampling={'max_tokens': 512},
    )
  elif _MODEL.value or _KEY_VARIABLE.value:
    raise ValueError('--model and --key_variable need --endpoint')
  folder = pathlib.Path(paths.in_repository(_OUTPUT.value))
  folder.mkdir(parents=True, exist_ok=True)
  found = documents(data)
  words = prepared.open_vocabulary(data)
  for language, texts in found.items():
    path = folder / f'{language}.jsonl'
    facts = {
      'language': language,
      'tokenizer': words.hash,
      'tasks': list(data.long.tasks),
      'texts': _texts_key(data),
      'heldout': [data.heldout_fraction, data.heldout_bytes],
    }
    with atomic.locked(folder / f'.{language}.lock'):
      builder = Builder(texts, language, settings, words)
      counts = write(
        path, builder, language, settings, _COUNT.value, facts, asked
      )
    told = ', '.join(f'{n:,} {what}' for what, n in counts.items() if n)
    progress.tell('long_qa', f'{path}: {told}')


if __name__ == '__main__':
  sys.exit(
    app.run(main, FLAGS, example='--config=experiments/long_context.py:smollm2')
  )
