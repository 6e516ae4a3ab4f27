"""Real documents that models of stages are trained on and measured with.

A document is for measuring if the hash of its id says so; sections of one book
go the same way together, so that no book is on both sides.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from yi_jax.curation import documents
from yi_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Sample:
  """One document.

  Attributes:
    source: key of yi_jax.data.sources.
    id: in the source.
    text: at most as long as was asked for.
    heldout: whether it is for measuring only.
  """

  source: str
  id: str
  text: str
  heldout: bool


def read(
  root: pathlib.Path,
  names: Iterable[str],
  *,
  most: int,
  characters: int,
  seed: int,
  heldout: float,
) -> list[Sample]:
  """Returns documents of sources, in reading order.

  Args:
    root: data root; raw packages are in root/raw.
    names: of sources.
    most: characters of a source, about; documents are chosen by hash.
    characters: at which a text is cut.
    seed: of both choices.
    heldout: share of the documents that are for measuring.

  Raises:
    FileNotFoundError: if a source was not fetched, naming the command.
    ValueError: for a source that is not there.
  """
  found = []
  for name in names:
    texts = [
      (document['id'], document['text'][:characters])
      for document in sources.read(name, root / 'raw')
    ]
    share = most / max(1, sum(len(text) for _, text in texts))
    for key, text in texts:
      if documents.draw(seed, f'{name}/{key}') < share:
        book = key.partition('#')[0]
        aside = documents.draw(seed + 1, f'{name}/{book}') < heldout
        found.append(Sample(name, key, text, aside))
  return found


def passages(
  found: Sequence[Sample], *, shortest: int, longest: int, seed: int
) -> list[Sample]:
  """Returns samples of the same sources whose lengths tell nothing.

  Long texts are cut, short neighbours joined by line ends, until each has a
  length that is drawn anew, all orders of magnitude alike. So a model cannot
  learn that tweets are short and books long.

  Args:
    found: samples; joined ones are of one source, and of one side.
    shortest: characters.
    longest: characters.
    seed: of the lengths.
  """
  joined: list[Sample] = []
  # (source, heldout) -> texts that wait, and the length they wait for.
  waiting: dict[tuple[str, bool], tuple[list[str], int]] = {}
  for one in found:
    key = (one.source, one.heldout)
    texts, wanted = waiting.get(key) or ([], 0)
    if not texts:
      draw = documents.draw(seed + 2, f'{one.source}/{one.id}')
      wanted = round(shortest * (longest / shortest) ** draw)
    texts = [*texts, one.text]
    if sum(map(len, texts)) < wanted:
      waiting[key] = texts, wanted
    else:
      waiting[key] = [], 0
      text = '\n'.join(texts)[:wanted]
      joined.append(dataclasses.replace(one, text=text))
  return joined


def table(found: Sequence[Sample], **columns: dict[str, str]) -> list[dict]:
  """Returns the rows of a card: source, its identity, what was taken of it.

  Args:
    found: samples.
    **columns: name of a column -> source -> what stands there.
  """
  rows = []
  for name in dict.fromkeys(one.source for one in found):
    mine = [one for one in found if one.source == name]
    rows.append(
      {
        'source': name,
        **{title: by_source[name] for title, by_source in columns.items()},
        'documents': len(mine),
        'held out': sum(one.heldout for one in mine),
        'characters': sum(len(one.text) for one in mine),
        'from': sources.identity(name).split(' sha256')[0],
      }
    )
  return rows
