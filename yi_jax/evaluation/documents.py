"""Long real documents as token ids, and where their sentences end."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from yi_jax import paths, spelling
from yi_jax.data import sources
from yi_jax.data import tokenizer as tokenizers
from yi_jax.evaluation import options

LANGUAGES = ('en', 'zh')
# Books and statutes: the long documents of the raw sources.
_SOURCES = {'en': ('en_plays', 'en_bible'), 'zh': ('zh_law', 'zh_novel')}
_BETWEEN = '\n\n'

# The point of a title ends no sentence.
_ENDS = re.compile(
  r'(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?]+["\'”’)\]]*(?=\s|$)'
  r'|[。！？]+[”’」』）]*'
)


@dataclasses.dataclass(frozen=True)
class Options:
  """Which documents a task reads."""

  languages: tuple[str, ...] = options.option(LANGUAGES, 'of the texts', str)
  documents: tuple[str, ...] = options.option(
    (), 'UTF-8 files to read; default: books and statutes of the raw data', str
  )
  data_root: str = options.option('data', 'holds raw/ with the documents')

  def __post_init__(self) -> None:
    """Raises ValueError for languages without documents, or none at all."""
    check_languages(self.languages, self.documents)

  def texts(self, language: str) -> Iterator[str]:
    """Yields documents of a language; see `texts`."""
    raw = pathlib.Path(paths.in_repository(self.data_root)) / 'raw'
    return texts(language, self.documents, raw)

  def identity(self) -> dict[str, str]:
    """Returns what changes when the documents do, for a record."""
    return {
      f'documents_{language}': identity(language, self.documents)
      for language in self.languages
    }


class Stream(NamedTuple):
  """Documents one after the other, as a model reads them.

  Attributes:
    ids: int32[n].
    ends: int32[m], how many ids stand before each place between two sentences,
      rising; the first is 0.
    text: what the ids say.
  """

  ids: np.ndarray
  ends: np.ndarray
  text: str


def texts(
  language: str, files: Iterable[str], raw: pathlib.Path
) -> Iterator[str]:
  """Yields documents of a language.

  Args:
    language: of LANGUAGES.
    files: UTF-8 files, a document each; none takes the raw sources.
    raw: folder of the raw packages.

  Raises:
    FileNotFoundError: if a file is not there, or a package was not fetched.
    ValueError: if a file is empty, or no UTF-8.
  """
  files = list(files)
  for path in files:
    text = read(path)
    if not text.strip():
      raise ValueError(f'{path} is empty')
    yield text
  if not files:
    for name in _SOURCES[language]:
      sections = sources.read(name, raw)
      for document in sources.whole(sections, sources.get(name).work):
        yield document['text']


def read(path: str) -> str:
  """Returns the text of a UTF-8 file.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no UTF-8.
  """
  try:
    return pathlib.Path(path).read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path}: no valid UTF-8 ({error.reason} at byte {error.start})'
    ) from error


def stream(
  documents: Iterable[str], words: tokenizers.Tokenizer, length: int
) -> Stream:
  """Joins documents until they have `length` ids.

  Args:
    documents: texts in order.
    words: the tokenizer.
    length: ids wanted.

  Raises:
    ValueError: if all the documents together are shorter.
  """
  ids: list[int] = []
  for text in documents:
    if ids:
      ids += words.encode(_BETWEEN)
    ids += words.encode(text.strip())
    if len(ids) >= length:
      break
  if len(ids) < length:
    raise ValueError(
      f'the documents have {len(ids):,} tokens together, and {length:,} are '
      'needed; name more or longer files with --documents, or ask for less'
    )
  return located(np.asarray(ids[:length], np.int32), words)


def located(ids: np.ndarray, words: tokenizers.Tokenizer) -> Stream:
  """Returns ids with the places where a sentence ends."""
  reader = words.stream()
  parts = [reader.feed(int(i)) for i in ids]
  counts = np.cumsum([len(part) for part in parts])
  text = ''.join(parts)
  ends = np.array([match.end() for match in _ENDS.finditer(text)], int)
  # Only where a token ends too; tokens may reach over the end of a sentence.
  places = np.searchsorted(counts, ends)
  known = places < len(counts)
  places, ends = places[known], ends[known]
  places = places[counts[places] == ends] + 1
  return Stream(ids, np.append(0, places).astype(np.int32), text)


def rows(
  documents: Iterable[str], words: tokenizers.Tokenizer, length: int, count: int
) -> list[np.ndarray]:
  """Returns rows of exactly `length` ids, from one document where it is long.

  Shorter documents are joined, in order, until they fill a row. A document
  gives one row, and more only if there are not enough documents.

  Args:
    documents: texts in order.
    words: the tokenizer.
    length: ids a row.
    count: rows wanted.

  Raises:
    ValueError: if the documents are not enough.
  """
  found, rests, pending, seen = [], [], [], 0
  between = words.encode(_BETWEEN)
  for text in documents:
    ids = words.encode(text.strip())
    seen += len(ids)
    if len(ids) < length:
      ids = pending = [*pending, *(between if pending else []), *ids]
    if len(ids) >= length:
      found.append(np.asarray(ids[:length], np.int32))
      rests.append(ids[length:])
      pending = [] if ids is pending else pending
    if len(found) == count:
      return found
  for rest in rests:
    for start in range(0, len(rest) - length + 1, length):
      found.append(np.asarray(rest[start : start + length], np.int32))
      if len(found) == count:
        return found
  raise ValueError(
    f'the documents have {seen:,} tokens together, which make {len(found)} '
    f'rows of {length:,}, and {count} are needed; name more files with '
    '--documents, or ask for less with --length or --samples'
  )


def nearest_end(stream: Stream, target: float, last: int) -> int:
  """Returns the end of a sentence nearest to a place, not beyond `last`."""
  ends = stream.ends[: np.searchsorted(stream.ends, last, side='right')]
  return int(ends[np.argmin(np.abs(ends - target))])


def identity(language: str, files: Iterable[str]) -> str:
  """Returns a string that changes when the documents of a language do."""
  files = list(files)
  if files:
    return ' '.join(map(hash_file, files))
  return '; '.join(map(sources.identity, _SOURCES[language]))


def hash_file(path: str) -> str:
  """Returns a short hash of a file."""
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


def check_languages(languages: Iterable[str], files: Iterable[str]) -> None:
  """Raises ValueError for languages without documents, or none at all."""
  languages = list(languages)
  if not languages:
    raise ValueError('--languages names no language')
  for language in languages:
    if language not in LANGUAGES:
      hint = spelling.nearest(language, LANGUAGES)
      raise ValueError(f'no language {language!r}{hint}')
  if len(languages) > 1 and list(files):
    raise ValueError(
      'say with --languages which one the --documents are in, for example '
      '--languages=en'
    )
