"""Writes with a model: continues prompts, answers questions, or chats.

Text goes to standard output as it is made, figures and warnings to standard
error. Without --chat a prompt is the beginning of a text; with it, a question
to a model that was taught to answer.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator

from absl import flags

from yi_jax import app, compilation_cache, paths
from yi_jax.checkpoints import peft
from yi_jax.data import chatml
from yi_jax.data import tokenizer as tokenizers
from yi_jax.serving import chat, generation, opening, writing

FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'workdir of a training run (its newest checkpoint is used), folder of Hugging '
  'Face, or .gguf file',
  flag_values=FLAGS,
)
_ADAPTER = flags.DEFINE_string(
  'adapter',
  None,
  'folder of a LoRA adapter in the format of PEFT, put onto the checkpoint',
  flag_values=FLAGS,
)
_PROMPT = flags.DEFINE_string(
  'prompt', None, "text to continue; '' begins a new text", flag_values=FLAGS
)
_PROMPTS_FILE = flags.DEFINE_string(
  'prompts_file', None, 'UTF-8 file with a prompt a line', flag_values=FLAGS
)
_INTERACTIVE = flags.DEFINE_bool(
  'interactive', False, 'ask for prompts until end of input', flag_values=FLAGS
)
_CHAT = flags.DEFINE_bool(
  'chat',
  False,
  'prompts are questions; without any, talk in the terminal or ask what is on '
  'standard input',
  flag_values=FLAGS,
)
_SYSTEM = flags.DEFINE_string(
  'system',
  None,
  'how the model shall behave in a chat; default: what it was taught with',
  flag_values=FLAGS,
)
_TEMPLATE = flags.DEFINE_enum(
  'template',
  None,
  list(chatml.TEMPLATES),
  "layout of a chat; default: the checkpoint's own",
  flag_values=FLAGS,
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  'max_new_tokens',
  None,
  'tokens to add at most; default: 128, in a chat 1,024',
  flag_values=FLAGS,
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.7, '0 takes the best token, 1 samples', flag_values=FLAGS
)
_TOP_K = flags.DEFINE_integer(
  'top_k', 0, 'sample from the k best tokens; 0: all', flag_values=FLAGS
)
_TOP_P = flags.DEFINE_float(
  'top_p',
  0.9,
  'sample from the likeliest tokens that reach this probability',
  flag_values=FLAGS,
)
_REPETITION_PENALTY = flags.DEFINE_float(
  'repetition_penalty',
  1.0,
  'above 1: tokens that were there become less likely',
  flag_values=FLAGS,
)
_STOP_IDS = flags.DEFINE_list(
  'stop_ids',
  None,
  "token ids that end a text; default: the checkpoint's; none: goes on to "
  'max_new_tokens',
  flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'the same seed gives the same text', flag_values=FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8, 'prompts of the file continued at once', flag_values=FLAGS
)

# Of a row, in tokens. No closer limit: programs come in powers of two, and so
# those on disk fit the next prompt as well.
_ANY_LENGTH = 1 << 20
_CONTINUATION, _ANSWER = 128, 1024  # tokens at most, unless a flag says more


def main() -> None:
  """Reads the prompts, loads the model, writes."""
  compilation_cache.enable()
  texts = _texts()
  checkpoint = opening.open_checkpoint(paths.in_caller(_CHECKPOINT.value))
  words, template = checkpoint.tokenizer, None
  stop_ids = _stop_ids(words)
  if _CHAT.value:
    name = _TEMPLATE.value
    template = chatml.get(name) if name else chatml.of_checkpoint(words)
  most = _MAX_NEW_TOKENS.value
  if most is None:
    most = _ANSWER if _CHAT.value else _CONTINUATION
  config, params = checkpoint.load()
  if _ADAPTER.value:
    params = peft.merge_adapter(paths.in_caller(_ADAPTER.value), config, params)
  generator = generation.Generator(
    config, params, max_length=_ANY_LENGTH, vocabulary_size=words.size
  )
  del params  # the generator has its own
  writer = writing.Writer(
    generator,
    words,
    dict(
      temperature=_TEMPERATURE.value,
      top_k=_TOP_K.value,
      top_p=_TOP_P.value,
      repetition_penalty=_REPETITION_PENALTY.value,
      stop_ids=stop_ids,
      seed=_SEED.value,
    ),
  )
  try:
    if template:
      conversation = chat.Chat(
        writer,
        words,
        template,
        context=generator.config.max_position_embeddings,
        max_new_tokens=most,
        system=_SYSTEM.value,
      )
      _converse(conversation, writer, texts, most)
    else:
      _continue(checkpoint, writer, texts, most)
  finally:
    writer.report()


def _texts() -> list[str]:
  """Returns the prompts of the flags; none if they are typed later.

  Raises:
    OSError: if the file of prompts cannot be read.
    ValueError: for flags that do not go together.
  """
  given = (
    _PROMPT.value is not None,
    _PROMPTS_FILE.value is not None,
    _INTERACTIVE.value,
  )
  if sum(given) != 1 and not (_CHAT.value and not any(given)):
    raise ValueError(
      'give one of --prompt, --prompts_file, --interactive and --chat'
    )
  if _CHAT.value and _INTERACTIVE.value:
    raise ValueError('--chat is interactive by itself: leave --interactive out')
  for flag in (_SYSTEM, _TEMPLATE):
    if flag.value is not None and not _CHAT.value:
      raise ValueError(f'--{flag.name} belongs to --chat')
  if _BATCH_SIZE.value < 1:
    raise ValueError(f'batch_size must be at least 1, not {_BATCH_SIZE.value}')
  if not _CHECKPOINT.value:
    raise ValueError(
      '--checkpoint is missing: the workdir of a training run, a folder of '
      'Hugging Face or a .gguf file; for example --checkpoint=runs/quickstart'
    )
  if _PROMPT.value is not None:
    return [_PROMPT.value]
  if _PROMPTS_FILE.value is not None:
    return read_prompts(paths.in_caller(_PROMPTS_FILE.value))
  return []


def read_prompts(path: str) -> list[str]:
  """Returns the prompts of a file, a line each; blank lines are left out.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if a line is no UTF-8, or there is no prompt.
  """
  prompts = []
  with open(path, 'rb') as lines:
    for number, line in enumerate(lines, start=1):
      try:
        text = line.decode().rstrip('\r\n')
      except UnicodeDecodeError as error:
        raise ValueError(
          f'{path}, line {number}: no valid UTF-8 ({error.reason} at byte '
          f'{error.start})'
        ) from error
      if text.strip():
        prompts.append(text)
  if not prompts:
    raise ValueError(f'{path} has no prompts; write one a line')
  return prompts


def _stop_ids(words: tokenizers.Tokenizer) -> list[int]:
  """Returns the ids that end a text, of the flag or the checkpoint."""
  texts = _STOP_IDS.value
  if texts is None:
    return list(words.stop_ids)
  try:
    return [int(text) for text in texts]
  except ValueError as error:
    raise ValueError(
      f'--stop_ids takes token ids such as 2,7, not {",".join(texts)!r}'
    ) from error


def _show(texts: Iterable[str]) -> None:
  """Prints each text as soon as it is there, with nothing in between."""
  for text in texts:
    print(text, end='', flush=True)


def _converse(
  conversation: chat.Chat,
  writer: writing.Writer,
  texts: list[str],
  max_new_tokens: int,
) -> None:
  """Answers the questions of the flags, or talks."""
  if _PROMPTS_FILE.value is not None:
    rows = [
      conversation.row([{'role': 'user', 'content': text}]) for text in texts
    ]
    shown = [f'{text}\n' for text in texts]
    _write_all(writer, shown, rows, max_new_tokens, conversation.clean)
  elif texts:
    chat.answer(conversation, writer, texts[0])
  else:
    chat.talk(conversation, writer)


def _continue(
  checkpoint: opening.Checkpoint,
  writer: writing.Writer,
  texts: list[str],
  max_new_tokens: int,
) -> None:
  """Continues the prompts of the flags, or those that are typed."""
  words = checkpoint.tokenizer

  def begin(text: str) -> list[int]:
    return [*checkpoint.start, *words.encode(text)] or [words.eos_id]

  if _PROMPTS_FILE.value is not None:
    _write_all(writer, texts, list(map(begin, texts)), max_new_tokens)
    return
  if not _INTERACTIVE.value:
    made = writer.write(begin(texts[0]), max_new_tokens)
    _show(texts)
    _show(made)
    print()
    return
  for text in _lines():
    with contextlib.suppress(KeyboardInterrupt):  # enough of this one
      _show(writer.write(begin(text), max_new_tokens))
    print()


def _write_all(
  writer: writing.Writer,
  shown: list[str],
  rows: list[list[int]],
  max_new_tokens: int,
  clean: Callable[[str], str] = str,
) -> None:
  """Prints every prompt of the file with what the model writes."""
  size = _BATCH_SIZE.value
  # A seed a row, so that the size of a batch changes nothing.
  seeds = range(_SEED.value, _SEED.value + len(rows))
  for first in range(0, len(rows), size):
    batch = slice(first, first + size)
    made = writer.write_all(rows[batch], max_new_tokens, seeds[batch])
    for i, text in enumerate(made, start=first):
      title = f'==> {i + 1} of {len(rows)} <=='
      _show([f'{title}\n{shown[i]}{clean(text)}\n\n'])


def _lines() -> Iterator[str]:
  """Yields lines of standard input, asking for them if a person types."""
  question = ''
  if sys.stdin.isatty():
    import readline  # noqa: F401, gives input() its line editing

    question = '> '
    print('Ctrl-C stops a text, Ctrl-D ends.', file=sys.stderr)
  while True:
    try:
      yield input(question)
    except EOFError:
      return


if __name__ == '__main__':
  sys.exit(
    app.run(
      main,
      FLAGS,
      example="--checkpoint=runs/quickstart --prompt='The king said'",
      needs_config=False,
    )
  )
