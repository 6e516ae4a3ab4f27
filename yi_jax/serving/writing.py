"""What a generator makes, as text: streamed, stopped, and counted."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from yi_jax.data import tokenizer as tokenizers
from yi_jax.serving import generation


class Writer:
  """Continues rows of token ids as text.

  Attributes:
    tokens: made so far.
    seconds: that took, compiling left out.
  """

  def __init__(
    self,
    generator: generation.Generator,
    tokenizer: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
  ) -> None:
    """Takes a model, its tokenizer and the settings of Generator.stream."""
    self._generator, self._tokenizer = generator, tokenizer
    self._settings = dict(settings)
    self.tokens, self.seconds = 0, 0.0

  def write(self, row: list[int], max_new_tokens: int) -> Iterator[str]:
    """Returns the continuation of a row, in whole characters.

    Args:
      row: token ids.
      max_new_tokens: to make at most.

    Raises:
      ValueError: for a setting out of range, at once.
    """
    return self._characters(self._chunks([row], max_new_tokens))

  def write_all(
    self, rows: list[list[int]], max_new_tokens: int, seeds: Sequence[int]
  ) -> list[str]:
    """Returns the continuation of each row, drawn with a seed of its own."""
    made = [[] for _ in rows]
    # Nobody looks on: more tokens a dispatch.
    for chunk in self._chunks(rows, max_new_tokens, seed=seeds, steps=16):
      for ids, new in zip(made, chunk, strict=True):
        ids.extend(new)
    return list(map(self._tokenizer.decode, made))

  def report(self) -> None:
    """Says on standard error how much was made, and how fast."""
    if self.tokens:
      rate = self.tokens / max(self.seconds, 1e-9)
      print(
        f'{self.tokens:,} tokens, {rate:,.1f} tokens/s; compiled in '
        f'{self._generator.compile_seconds:.1f} s',
        file=sys.stderr,
      )

  def _characters(self, chunks: Iterator[list[list[int]]]) -> Iterator[str]:
    stream = self._tokenizer.stream()
    for [ids] in chunks:
      yield from map(stream.feed, ids)
    yield stream.flush()

  def _chunks(
    self, rows: list[list[int]], max_new_tokens: int, **changes: Any
  ) -> Iterator[list[list[int]]]:
    """Returns what Generator.stream does, counted."""
    settings = {**self._settings, **changes}
    return self._counted(
      self._generator.stream(rows, max_new_tokens, **settings)
    )

  def _counted(
    self, chunks: Iterator[list[list[int]]]
  ) -> Iterator[list[list[int]]]:
    while True:  # compiling is left out of the time
      compiled = self._generator.compile_seconds
      started = time.perf_counter()
      chunk = next(chunks, None)
      self.seconds += time.perf_counter() - started
      self.seconds -= self._generator.compile_seconds - compiled
      if chunk is None:
        return
      self.tokens += sum(map(len, chunk))
      yield chunk


def until(texts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
  """Yields texts up to the first stop among them.

  What may be the beginning of a stop is held back until it is known.

  Args:
    texts: parts of one text, as they come.
    stops: texts that end it and are not shown.
  """
  held = ''
  for text in texts:
    held += text
    places = [place for stop in stops if (place := held.find(stop)) >= 0]
    if places:
      yield held[: min(places)]
      return
    longest = max(
      (
        size
        for stop in stops
        for size in range(1, len(stop))
        if held.endswith(stop[:size])
      ),
      default=0,
    )
    yield held[: len(held) - longest]
    held = held[len(held) - longest :]
  yield held
