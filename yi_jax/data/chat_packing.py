"""Packs conversations into rows: each stays whole, and only answers are learned.

A conversation is one segment of one row; rows are filled best-fit, the longest
first, from a window of conversations at a time. A token of the input has weight
1 where the token after it was written by the assistant, end mark included.

  L = 8: the user says u v, the assistant a b; > begins an answer, . ends a turn
  tokens        u v . > a b . 0
  segment_ids   1 1 1 1 1 1 1 0
  loss_weights  0 0 0 1 1 1 0 0

A conversation that is longer than a row loses exchanges from its end, never a
part of a turn; if not even the first exchange fits it is left out.
"""

import bisect
import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from yi_jax.data import chatml, conversations, tokenizer

_WINDOW = 1 << 22  # tokens that are packed together

WEIGHTS = ('token', 'sample')


class Encoded(NamedTuple):
  """What of a conversation fits a row, as messages and as ids."""

  messages: conversations.Messages
  rendered: chatml.Rendered


def encode(
  template: chatml.Template,
  messages: conversations.Messages,
  words: tokenizer.Tokenizer,
  length: int,
  skipped: collections.Counter[str],
) -> Encoded | None:
  """Returns a conversation as ids that fit a row, or None.

  Args:
    template: the format.
    messages: a conversation without problems.
    words: the tokenizer.
    length: L, the most ids.
    skipped: counts 'shortened' and 'longer than a row'.
  """
  rendered = chatml.render(template, messages, words)
  if len(rendered.ids) <= length:
    return Encoded(messages, rendered)
  # The most exchanges that fit: those before `fits` do, from `long` on none.
  first = len(messages) % 2  # a system message or none
  fits, long, best = 0, (len(messages) - first) // 2, None
  while long - fits > 1:
    middle = (fits + long) // 2
    part = messages[: first + 2 * middle]
    rendered = chatml.render(template, part, words)
    if len(rendered.ids) <= length:
      fits, best = middle, Encoded(part, rendered)
    else:
      long = middle
  skipped['shortened' if best else 'longer than a row'] += 1
  return best


class Packer:
  """Fills rows with whole conversations.

  Rows are dicts of tokens int32[L + 1], segment_ids int32[L] (1..; 0 is
  padding) and loss_weights float32[L] (0 or 1).

  Attributes:
    used: tokens in the rows so far, without padding.
    packed: conversations in them.
  """

  def __init__(self, length: int) -> None:
    """Begins a set of rows of `length` tokens."""
    self._length = length
    self._waiting: list[chatml.Rendered] = []
    self._size = 0
    self.used = self.packed = 0

  def add(self, rendered: chatml.Rendered) -> Iterator[dict[str, np.ndarray]]:
    """Yields rows, many at a time or none, when a conversation is added."""
    self._waiting.append(rendered)
    self._size += len(rendered.ids)
    if self._size >= _WINDOW:
      yield from self.finish()

  def finish(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of the conversations that wait."""
    waiting, self._waiting = self._waiting, []
    self.used, self._size = self.used + self._size, 0
    self.packed += len(waiting)
    sizes = [len(rendered.ids) for rendered in waiting]
    for group in best_fit(sizes, self._length):
      yield _row([waiting[i] for i in group], self._length)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
  """Puts things into as few boxes as best-fit decreasing finds.

  Args:
    sizes: of the things, none above the capacity.
    capacity: of a box.

  Returns:
    Indices of the things in each box.
  """
  order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
  boxes: list[list[int]] = []
  rooms: list[tuple[int, int]] = []  # (room left, box), sorted
  for index in order:
    size = sizes[index]
    at = bisect.bisect_left(rooms, (size, -1))
    if at < len(rooms):
      room, box = rooms.pop(at)
      boxes[box].append(index)
    else:
      room, box = capacity, len(boxes)
      boxes.append([index])
    bisect.insort(rooms, (room - size, box))
  return boxes


def _row(
  group: Sequence[chatml.Rendered], length: int
) -> dict[str, np.ndarray]:
  row = {
    'tokens': np.zeros(length + 1, np.int32),
    'segment_ids': np.zeros(length, np.int32),
    'loss_weights': np.zeros(length, np.float32),
  }
  at = 0
  for number, rendered in enumerate(group, 1):
    end = at + len(rendered.ids)
    row['tokens'][at:end] = rendered.ids
    row['segment_ids'][at:end] = number
    # The last token has no target: what follows it is another conversation.
    row['loss_weights'][at : end - 1] = rendered.learned[1:]
    at = end
  return row


class Rows(Protocol):
  """What `PerSample` reads, such as rows.RowReader."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class PerSample:
  """Rows in which every conversation weighs 1, however long its answers are."""

  def __init__(self, rows: Rows) -> None:
    """Takes rows whose segments are whole conversations."""
    self._rows = rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    row = self._rows[index]
    segments, weights = row['segment_ids'], row['loss_weights']
    sums = np.bincount(segments, weights)
    # A segment without answers has the sum 0, and no weight to share.
    shares = weights / np.maximum(sums[segments], 1)
    return {**row, 'loss_weights': shares.astype(np.float32)}
