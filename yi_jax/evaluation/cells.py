"""The cells of a grid: rows of exact length with a needle at a depth.

  head | document up to the needle | needle | rest of the document | question

A row and the room for its answer have exactly the length of the cell. Rows of
all lengths read the same documents from the beginning, so a shorter one is the
beginning of a longer one up to its needle or its question; in the order of
`in_order` neighbours share as much as any order allows, and a Reader computes
each shared piece once for the whole grid.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from yi_jax.data import tokenizer as tokenizers
from yi_jax.evaluation import documents, needles
from yi_jax.evaluation import subject as subjects

# Of the document: a cell takes the place of a longer one's needle this near, so
# that both read the same text up to the end of the shorter one.
_SAME_PLACE = 0.01
# Of the document, and in tokens: how far off the end of a sentence may be.
_OFF, _OFF_TOKENS = 0.05, 120
_SPARE = 4  # tokens of an answer beyond the value


@dataclasses.dataclass(frozen=True)
class Cell:
  """A row of a grid.

  Attributes:
    needle: what is hidden and asked.
    length: tokens of the row and the room for its answer.
    depth: of the needle, asked for, in percent of the document.
    room: tokens of the answer at most.
    document: tokens of the documents in it, what is hidden left out.
    place: how many of them stand before the needle.
    hidden: (place, ids) of all that is hidden, rising.
    head: ids before the document.
    tail: ids after it.
    stream: the documents.
  """

  needle: needles.Needle
  length: int
  depth: float
  room: int
  document: int
  place: int
  hidden: tuple[tuple[int, tuple[int, ...]], ...]
  head: tuple[int, ...]
  tail: tuple[int, ...]
  stream: documents.Stream

  @property
  def name(self) -> str:
    """Tells the cell from others of a run."""
    return f'{self.needle.name} {self.length} {self.depth:g}'

  def row(self) -> np.ndarray:
    """int32[length - room]: the ids up to where the value follows."""
    parts, done = [self.head], 0
    for place, ids in self.hidden:
      parts += [self.stream.ids[done:place], ids]
      done = place
    parts += [self.stream.ids[done : self.document], self.tail]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])

  def answers(
    self, words: tokenizers.Tokenizer
  ) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the ids of the right values, and of the wrong ones."""
    gap = needles.WORDINGS[self.needle.language].gap
    return tuple(
      [words.encode(gap + value) for value in values]
      for values in (self.needle.right, self.needle.wrong)
    )


def in_order(cells: Sequence[Cell]) -> list[Cell]:
  """Returns cells so that each shares the most with the one before.

  That is a depth-first walk through the tree of what rows have in common, the
  plain documents being its trunk, from their beginning to their end.
  """

  def key(cell: Cell) -> tuple:
    return cell.head, *cell.hidden, (cell.document, cell.tail)

  return sorted(cells, key=key)


def plan(
  subject: subjects.Subject,
  found: Sequence[needles.Needle],
  stream: documents.Stream,
  lengths: Sequence[int],
  depths: Sequence[float],
) -> list[Cell]:
  """Returns the cells of all needles of one language.

  Args:
    subject: the model.
    found: the needles.
    stream: the documents, at least as long as the longest length.
    lengths: in tokens.
    depths: in percent.

  Raises:
    ValueError: if a length has no room, a needle is in the documents already,
      or no sentence ends near a depth.
  """
  longest = max(lengths)
  used = subject.words.decode(stream.ids[:longest].tolist())
  used = ' '.join(used.casefold().split())
  cells = []
  for needle in found:
    for trace in needle.traces():
      if ' '.join(trace.casefold().split()) in used:
        raise ValueError(
          f'the documents have what needle {needle.name} hides: {trace!r}; '
          'take another needle, or other --documents'
        )
    builder = _Builder(subject, needle, stream)
    taken: list[int] = []
    for length in sorted(lengths, reverse=True):
      made = [builder.cell(length, depth, taken) for depth in depths]
      cells += made
      taken += [cell.place for cell in made]
  return cells


class _Builder:
  """Builds the cells of one needle."""

  def __init__(
    self,
    subject: subjects.Subject,
    needle: needles.Needle,
    stream: documents.Stream,
  ) -> None:
    wording = needles.WORDINGS[needle.language]
    words = subject.words
    self._needle, self._stream = needle, stream
    asked = (
      text.replace('{question}', needle.question)
      for text in (wording.chat, wording.base)
    )
    head, tail = subject.frame(wording.before, *asked, needle.opening)
    self._head, self._tail = tuple(head), tuple(tail)
    # A sentence follows another, or begins the document.
    self._ids = tuple(words.encode(wording.gap + needle.sentence))
    self._first_ids = tuple(words.encode(f'{needle.sentence}\n'))
    self._others = [
      (share, tuple(words.encode(wording.gap + text)))
      for share, text in needle.others
    ]
    sizes = [
      len(words.encode(wording.gap + value))
      for value in (*needle.right, *needle.wrong)
    ]
    several = len(needle.right)
    self._room = (max(sizes) + _SPARE) * several

  def cell(self, length: int, depth: float, taken: Sequence[int]) -> Cell:
    """Returns one cell.

    Args:
      length: see Cell.
      depth: see Cell.
      taken: places of longer cells of this needle.
    """
    around = len(self._head) + len(self._tail) + self._room
    extra = sum(len(ids) for _, ids in self._others)
    document = length - around - extra - len(self._ids)
    if document < len(self._ids):
      raise ValueError(
        f'a length of {length:,} is too short: question, needles and answer '
        f'take {length - document:,} tokens; ask for longer rows with --lengths'
      )
    place = self._place(document, depth, taken)
    ids = self._ids
    if place == 0:
      ids = self._first_ids
      document = length - around - extra - len(ids)
    hidden = [(place, ids)]
    for share, other in self._others:
      # Its sentence follows another one.
      end = self._end(document, 100 * share) or int(self._stream.ends[:2][-1])
      hidden.append((min(end, document), other))
    return Cell(
      needle=self._needle,
      length=length,
      depth=depth,
      room=self._room,
      document=document,
      place=place,
      hidden=tuple(sorted(hidden)),
      head=self._head,
      tail=self._tail,
      stream=self._stream,
    )

  def _place(self, document: int, depth: float, taken: Sequence[int]) -> int:
    target = depth / 100 * document
    near = [
      place
      for place in taken
      if abs(place - target) <= _SAME_PLACE * document and place <= document
    ]
    if near:
      return min(near, key=lambda place: abs(place - target))
    return self._end(document, depth)

  def _end(self, document: int, depth: float) -> int:
    """Returns the end of a sentence nearest to a depth, in percent."""
    target = depth / 100 * document
    place = documents.nearest_end(self._stream, target, document)
    if abs(place - target) > max(_OFF * document, _OFF_TOKENS):
      raise ValueError(
        f'no sentence of the documents ends near depth {depth:g} % of '
        f'{document:,} tokens: the nearest end is at {place:,}, so a needle '
        'would cut a sentence; take other --documents'
      )
    return place
