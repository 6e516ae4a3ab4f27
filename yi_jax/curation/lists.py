"""The stage of block lists: domains, addresses and words that are not wanted.

Yi names the lists and publishes none (arXiv:2403.04652, 2.1). The ones here are
short and neutral, about advertising, gambling and pornography for sale; give
your own by config. A list is a text file: an entry a line, # begins a comment.

* domains: `example.com` blocks that host and all below it;
* addresses: parts of a URL; letters around an entry protect it (`bet` is not
  in `alphabet`);
* words: of the text, by language; English ones between non-letters.
"""

import collections
import functools
import hashlib
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from yi_jax import paths
from yi_jax.curation import characters, documents, stage

_FOLDER = 'yi_jax/curation/block_lists'
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_PREFIX = 6  # characters of a word that are looked up
_BITS = 20  # of the table they are looked up in
_PART = re.compile(r'[a-z]+')


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'domains': (f'{_FOLDER}/domains.txt',),
    'addresses': (f'{_FOLDER}/addresses.txt',),
    'words': {  # language -> files
      'en': (f'{_FOLDER}/words_en.txt',),
      'zh': (f'{_FOLDER}/words_zh.txt',),
    },
    # Blocked words for each 1,000 characters (a shorter document counts as
    # 1,000), above which it goes; ours. One mention is no reason.
    'words_per_thousand': 2.0,
  }


class Lists(stage.Stage):
  """Removes documents whose address or words are on a block list."""

  name = 'lists'

  def __init__(self, config: Any) -> None:
    """Checks the keys; the files are read by `setup`."""
    super().__init__(config)
    stage.check_keys('lists', config, defaults())
    self._settings = {**defaults(), **config}
    self._words = dict(self._settings['words'])
    limit = self._settings['words_per_thousand']
    if not limit > 0:
      raise ValueError(f'lists.words_per_thousand is {limit}: above 0')

  def _files(self) -> list[str]:
    """Returns the files of all lists."""
    files = [*self._settings['domains'], *self._settings['addresses']]
    for language in sorted(self._words):
      files += self._words[language]
    return files

  def identity(self) -> str:
    """Returns a hash of what the lists hold."""
    content = b'\0'.join(_path(name).read_bytes() for name in self._files())
    return hashlib.sha256(content).hexdigest()

  @functools.cached_property
  def _lists(self) -> tuple[frozenset, frozenset, dict[str, 'Words']]:
    settings = self._settings
    return (
      frozenset(entries(settings['domains'])),
      frozenset(entries(settings['addresses'])),
      {
        language: Words(entries(files), language != 'zh')
        for language, files in self._words.items()
      },
    )

  def setup(self) -> None:
    """Reads the lists."""
    _ = self._lists

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Judges each document's address, then its words."""
    domains, addresses, words = self._lists
    limit = self._settings['words_per_thousand']
    for i in batch.alive():
      if batch.urls[i]:
        rule, entry = _address(batch.urls[i], domains, addresses)
        if rule:
          batch.remove(i, self.name, rule, entry)
          continue
      blocked = words.get(batch.languages[i])
      if blocked is None:
        continue
      found = blocked.count(batch.texts[i])
      rate = found.total() / max(1, len(batch.texts[i]) / 1000)
      if rate > limit:
        most = ', '.join(f'{word} {n}' for word, n in found.most_common(3))
        batch.remove(
          i, self.name, 'words', f'{rate:.3g} > {limit:g} in 1,000: {most}'
        )
    return batch


def entries(files: Iterable[str]) -> list[str]:
  """Returns the entries of list files, in lower case, each once.

  Raises:
    FileNotFoundError: naming the file.
    ValueError: if a file is not UTF-8.
  """
  found = {}
  for name in files:
    try:
      text = _path(name).read_text(encoding='utf-8')
    except UnicodeDecodeError:
      raise ValueError(f'block list {name} is not UTF-8') from None
    for line in text.splitlines():
      entry = line.partition('#')[0].strip().lower()
      if entry:
        found[entry] = None
  return list(found)


def _path(name: str) -> pathlib.Path:
  path = pathlib.Path(paths.in_repository(name))
  if not path.is_file():
    raise FileNotFoundError(
      f'block list {path} is not there; set it in the lists section of the '
      'config, () for none'
    )
  return path


def _address(
  url: str, domains: frozenset[str], addresses: frozenset[str]
) -> tuple[str, str]:
  """Returns the rule that blocks a URL and the entry, '' if none does."""
  url = url.lower()
  try:
    host = urllib.parse.urlsplit(url if '//' in url else f'//{url}').hostname
  except ValueError:
    host = None
  labels = (host or '').rstrip('.').split('.')
  for start in range(len(labels)):
    domain = '.'.join(labels[start:])
    if domain in domains:
      return 'domain', domain
  for part in _PART.findall(url):
    if part in addresses:
      return 'address', part
  return '', ''


class Words:
  """Counts the words of a list in texts, however long the list is.

  Hashes of all the text's stretches of a few characters are looked up at once
  in a table of how the words begin; only what is found is compared.
  """

  def __init__(self, words: Iterable[str], whole: bool) -> None:
    """Takes a list.

    Args:
      words: in lower case.
      whole: whether letters around a word make it another.
    """
    self._whole = whole
    self._words: dict[str, list[str]] = collections.defaultdict(list)
    self._tables: dict[int, np.ndarray] = {}
    for word in sorted(set(words)):
      start = word[:_PREFIX]
      self._words[start].append(word)
      if len(start) not in self._tables:
        self._tables[len(start)] = np.zeros(1 << _BITS, bool)
      points = characters.codes(start).astype(np.uint64)
      hashed = list(_hashes(points, len(start)))[-1][0]
      self._tables[len(start)][hashed >> np.uint64(64 - _BITS)] = True

  def count(self, text: str) -> collections.Counter[str]:
    """Returns how often each word of the list occurs."""
    text = text.lower()
    found: collections.Counter[str] = collections.Counter()
    points = characters.codes(text).astype(np.uint64)
    longest = min(max(self._tables, default=0), len(text))
    for length, hashes in enumerate(_hashes(points, longest), 1):
      if length in self._tables:
        hit = self._tables[length][hashes >> np.uint64(64 - _BITS)]
        for start in np.flatnonzero(hit).tolist():
          for word in self._words.get(text[start : start + length], ()):
            if self._stands(text, start, word):
              found[word] += 1
    return found

  def _stands(self, text: str, start: int, word: str) -> bool:
    """Returns whether a word is at a place, by itself if it must be."""
    if not text.startswith(word, start):
      return False
    end = start + len(word)
    around = text[max(0, start - 1) : start], text[end : end + 1]
    return not (self._whole and any(map(str.isalnum, around)))


def _hashes(points: np.ndarray, longest: int) -> Iterator[np.ndarray]:
  """Yields hashes of every stretch of 1, 2, ... characters, uint64."""
  hashes = np.zeros(len(points), np.uint64)
  for length in range(1, longest + 1):
    count = len(points) - length + 1
    hashes = hashes[:count] * _FACTOR + points[length - 1 :] + _FACTOR
    yield hashes
