"""A conversation with a model, and the terminal it is held in."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from yi_jax import spelling
from yi_jax.data import chatml
from yi_jax.data import tokenizer as tokenizers
from yi_jax.serving import writing

_HELP = """\
/reset         forgets the conversation
/system TEXT   tells the model how to behave; without TEXT, shows what it is told
/help          shows this
Ctrl-C stops an answer, Ctrl-D ends. A space in front of / makes it a message."""
_COMMANDS = ('reset', 'system', 'help')


class Chat:
  """A conversation: what was said, and how it goes on.

  Attributes:
    template: how it is laid out for the model.
    system: the system message; None takes the template's own, if it has one.
    turns: messages of user and assistant so far.
    remark: why the last answer is no whole one; '' if it is.
  """

  def __init__(
    self,
    writer: writing.Writer,
    tokenizer: tokenizers.Tokenizer,
    template: chatml.Template,
    *,
    context: int,
    max_new_tokens: int,
    system: str | None = None,
  ) -> None:
    """Begins a conversation.

    Args:
      writer: of the model.
      tokenizer: of the model.
      template: how the model was taught to chat.
      context: tokens a conversation may hold, the answer included.
      max_new_tokens: of an answer.
      system: see the class.
    """
    self._writer, self._tokenizer = writer, tokenizer
    self._context, self._max_new_tokens = context, max_new_tokens
    self.template, self.system = template, system
    self.turns: list[dict[str, str]] = []
    self.remark = ''

  def ask(self, text: str) -> Iterator[str]:
    """Asks, and yields the answer as it is made.

    Question and answer become part of the conversation, what was made of an
    answer that is interrupted too.

    Args:
      text: the question.

    Raises:
      ValueError: if the conversation would be too long, at once; it stays as
        it was.
    """
    turns = [*self.turns, {'role': 'user', 'content': text}]
    row = self.row(turns)
    room = self._context - len(row)
    if room < 1:
      raise ValueError(
        f'the conversation would have {len(row):,} tokens with this message, '
        f'and the model has room for {self._context:,} with its answer: /reset '
        'begins a new one, or say it shorter'
      )
    budget = min(room, self._max_new_tokens)
    made = self._writer.write(row, budget)
    return self._answer(turns, made, budget, budget == room)

  def row(self, turns: list[dict[str, str]]) -> list[int]:
    """Returns the ids of a conversation up to the answer that is due.

    Raises:
      ValueError: if the template or the tokenizer do not fit it.
    """
    system = []
    if self.system is not None:
      system = [{'role': 'system', 'content': self.system}]
    return chatml.render(
      self.template, [*system, *turns], self._tokenizer, generate=True
    ).ids

  def clean(self, text: str) -> str:
    """Returns an answer as people read it: without what the template adds."""
    shown = ''.join(writing.until([text], self.template.stop_texts))
    return shown.removeprefix(self.template.answer_prefix)

  def reset(self) -> None:
    """Forgets what was said, but not the system message."""
    self.turns = []

  def _answer(
    self,
    turns: list[dict[str, str]],
    made: Iterator[str],
    budget: int,
    is_full: bool,
  ) -> Iterator[str]:
    said, whole = '', False
    before, self.remark = self._writer.tokens, ''
    hidden = self.template.answer_prefix
    try:
      for text in writing.until(made, self.template.stop_texts):
        if hidden and text:
          text, hidden = text.removeprefix(hidden), ''
        said += text
        yield text
      whole = True
      if self._writer.tokens - before == budget:
        self.remark = (
          f'the context of {self._context:,} tokens is full: /reset begins a '
          'new conversation'
          if is_full
          else f'cut at {budget:,} tokens; --max_new_tokens allows more'
        )
    finally:
      # The mark of the end belongs to the template, space before it to nobody.
      content = said.rstrip() if self.template.stop_texts else said
      if said or whole:
        self.turns = [*turns, {'role': 'assistant', 'content': content}]


def talk(chat: Chat, writer: writing.Writer) -> None:
  """Holds a conversation on standard input and output until the input ends.

  Piped input is one question; its answer alone goes to standard output.
  """
  if not sys.stdin.isatty():
    text = sys.stdin.read().strip()
    if not text:
      raise ValueError('there is no question on standard input')
    answer(chat, writer, text)
    return
  import readline  # noqa: F401, gives input() its line editing

  _tell(f'Template {chat.template.name}. /help shows the commands.')
  while True:
    try:
      line = input('> ')
    except EOFError:
      print()
      return
    except KeyboardInterrupt:
      _tell('\nCtrl-D ends.')
      continue
    if line.startswith('/'):
      command(chat, line)
    elif line.strip():
      try:
        answer(chat, writer, line)
      except ValueError as error:  # too long
        _tell(str(error))


def command(chat: Chat, line: str) -> None:
  """Carries out a line that begins with a slash."""
  name, _, text = line[1:].partition(' ')
  if name not in _COMMANDS:
    hint = spelling.nearest(name, _COMMANDS)
    _tell(f'there is no /{name}{hint}; /help shows what there is')
  elif name == 'help':
    _tell(_HELP)
  elif name == 'reset':
    chat.reset()
    _tell('A new conversation.')
  elif text.strip():
    chat.system = text.strip()
    _tell('The system message is changed; /reset begins anew with it.')
  else:
    _tell(chat.system or chat.template.default_system or 'Nothing.')


def answer(chat: Chat, writer: writing.Writer, text: str) -> None:
  """Shows the answer to a question, and how fast it came.

  Args:
    chat: the conversation.
    writer: of its model.
    text: the question.

  Raises:
    ValueError: if the conversation would be too long.
  """
  tokens, seconds = writer.tokens, writer.seconds
  made = chat.ask(text)
  with contextlib.closing(made):
    try:
      _show(made)
      print()
    except KeyboardInterrupt:
      chat.remark = 'stopped'
      print()
  tokens, seconds = writer.tokens - tokens, writer.seconds - seconds
  remark = f'; {chat.remark}' if chat.remark else ''
  _tell(f'[{tokens:,} tokens, {tokens / max(seconds, 1e-9):,.1f}/s{remark}]')


def _show(texts: Iterable[str]) -> None:
  for text in texts:
    print(text, end='', flush=True)


def _tell(text: str) -> None:
  """Says something about the conversation, not in it."""
  print(text, file=sys.stderr, flush=True)
