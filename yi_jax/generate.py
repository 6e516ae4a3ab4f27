"""Continues text with a trained model: one prompt, a file of them, or a dialogue.

Text goes to standard output as it is made, figures and warnings to standard
error. A prompt is taken as the beginning of a document, as in training.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from yi_jax import app, compilation_cache, paths
from yi_jax.data import vocabulary
from yi_jax.models import config as model_config
from yi_jax.serving import generation
from yi_jax.training import checkpointing

FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'workdir of a training run; its newest checkpoint is used',
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
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  'max_new_tokens', 128, 'tokens to add at most', flag_values=FLAGS
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
  list(map(str, generation.STOP_IDS)),
  'token ids that end a text; none: goes on to max_new_tokens',
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


def main() -> None:
  """Reads the prompts, loads the model, writes."""
  compilation_cache.enable()
  given = (
    _PROMPT.value is not None,
    _PROMPTS_FILE.value is not None,
    _INTERACTIVE.value,
  )
  if sum(given) != 1:
    raise ValueError('give one of --prompt, --prompts_file and --interactive')
  if _BATCH_SIZE.value < 1:
    raise ValueError(f'batch_size must be at least 1, not {_BATCH_SIZE.value}')
  if not _CHECKPOINT.value:
    raise ValueError(
      '--checkpoint is missing: the workdir of a training run, for example '
      '--checkpoint=runs/quickstart'
    )
  texts = []
  if _PROMPT.value is not None:
    texts = [_PROMPT.value]
  elif _PROMPTS_FILE.value is not None:
    texts = read_prompts(paths.in_caller(_PROMPTS_FILE.value))
  config, params, words = open_checkpoint(paths.in_caller(_CHECKPOINT.value))
  rows = [_encode(words, text) for text in texts]
  generator = generation.Generator(
    config, params, max_length=_ANY_LENGTH, vocabulary_size=words.size
  )
  del params  # the generator has its own layout of them
  writer = Writer(generator, words)
  try:
    if _INTERACTIVE.value:
      _talk(writer, words)
    elif _PROMPT.value is not None:
      text = writer.write(rows[0])
      _show(texts)
      _show(text)
    else:
      _continue_all(writer, texts, rows)
  finally:
    writer.report()


def open_checkpoint(
  path: str,
) -> tuple[model_config.ModelConfig, dict[str, Any], vocabulary.Vocabulary]:
  """Opens what a training run left, with the vocabulary it was trained on.

  Args:
    path: workdir of the run, absolute or a URL.

  Returns:
    (model config, nested dict of float32 arrays, vocabulary).

  Raises:
    FileNotFoundError: if there is no checkpoint, or no vocabulary.
    OSError: if no checkpoint can be read.
    ValueError: if the vocabulary is another one.
  """
  if '://' not in path and not os.path.isdir(path):
    raise FileNotFoundError(
      f'no checkpoint: there is no folder {path}; give the --workdir of a '
      'training run'
    )
  # The vocabulary first: it is small, and mistakes show at once.
  manifest = checkpointing.newest_manifest(path)
  run = manifest['run']
  folder = os.path.join(
    paths.in_repository(run['data.root']),
    'vocabularies',
    run['data.vocabulary'],
  )
  words = vocabulary.load(folder)
  if words.hash != manifest['vocabulary_hash']:
    raise ValueError(
      f'the vocabulary in {folder} is not the one that {path} was trained '
      'with: its token ids mean other text. Put the old tokenizer.model back'
    )
  config, params, _ = checkpointing.load_params(path)
  return config, params, words


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


class Writer:
  """Continues rows as the flags say, and keeps count."""

  def __init__(
    self, generator: generation.Generator, words: vocabulary.Vocabulary
  ) -> None:
    """Takes the model and its vocabulary."""
    self._generator, self._words = generator, words
    self._tokens, self._seconds = 0, 0.0

  def write(self, row: list[int]) -> Iterator[str]:
    """Returns the continuation of a row in whole characters, and a newline.

    Raises:
      ValueError: for a setting out of range, at once.
    """
    return self._characters(self._chunks([row]))

  def write_all(self, rows: list[list[int]], seeds: Sequence[int]) -> list[str]:
    """Returns the continuation of each row, drawn with a seed of its own."""
    made = [[] for _ in rows]
    # Nobody looks on: more tokens a dispatch.
    for chunk in self._chunks(rows, seed=seeds, steps=16):
      for ids, new in zip(made, chunk, strict=True):
        ids.extend(new)
    return list(map(self._words.decode, made))

  def report(self) -> None:
    """Says on standard error how much was made, and how fast."""
    if self._tokens:
      rate = self._tokens / max(self._seconds, 1e-9)
      print(
        f'{self._tokens:,} tokens, {rate:,.1f} tokens/s; compiled in '
        f'{self._generator.compile_seconds:.1f} s',
        file=sys.stderr,
      )

  def _characters(self, chunks: Iterator[list[list[int]]]) -> Iterator[str]:
    stream = self._words.stream()
    for [ids] in chunks:
      yield from map(stream.feed, ids)
    yield stream.flush() + '\n'

  def _chunks(
    self, rows: list[list[int]], **changes: Any
  ) -> Iterator[list[list[int]]]:
    """Returns what Generator.stream does, counted."""
    settings = dict(
      temperature=_TEMPERATURE.value,
      top_k=_TOP_K.value,
      top_p=_TOP_P.value,
      repetition_penalty=_REPETITION_PENALTY.value,
      stop_ids=_stop_ids(_STOP_IDS.value),
      seed=_SEED.value,
    )
    settings.update(changes)
    return self._counted(
      self._generator.stream(rows, _MAX_NEW_TOKENS.value, **settings)
    )

  def _counted(
    self, chunks: Iterator[list[list[int]]]
  ) -> Iterator[list[list[int]]]:
    while True:  # compiling is left out of the time
      compiled = self._generator.compile_seconds
      started = time.perf_counter()
      chunk = next(chunks, None)
      self._seconds += time.perf_counter() - started
      self._seconds -= self._generator.compile_seconds - compiled
      if chunk is None:
        return
      self._tokens += sum(map(len, chunk))
      yield chunk


def _encode(words: vocabulary.Vocabulary, text: str) -> list[int]:
  """Returns a prompt as training rows begin a document: after an end mark."""
  return [words.eos_id, *words.encode(text)]


def _stop_ids(texts: list[str]) -> list[int]:
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


def _continue_all(
  writer: Writer, texts: list[str], rows: list[list[int]]
) -> None:
  """Prints every prompt of the file with its continuation."""
  size = _BATCH_SIZE.value
  # A seed a row, so that the size of a batch changes nothing.
  seeds = range(_SEED.value, _SEED.value + len(rows))
  for first in range(0, len(rows), size):
    batch = slice(first, first + size)
    made = writer.write_all(rows[batch], seeds[batch])
    for i, text in enumerate(made, start=first):
      _show([f'==> {i + 1} of {len(rows)} <==\n{texts[i]}{text}\n\n'])


def _talk(writer: Writer, words: vocabulary.Vocabulary) -> None:
  """Continues one line after the other until the input ends."""
  for text in _lines():
    try:
      _show(writer.write(_encode(words, text)))
    except KeyboardInterrupt:  # enough of this one
      print()


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
