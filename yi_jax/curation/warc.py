"""Pages of web archives: WARC (ISO 28500) and WET, which holds their text.

Yi's cascade starts where CCNet does, from WET. Pages of WARC itself are HTML;
what is taken from them is the text of their blocks, without scripts, styles
and forms, and no judgement about menus: the rules see to that.
"""

import gzip
import html.parser
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from yi_jax.curation import streams

_HEADER_LINE = 1 << 16  # bytes, more is no header

_SKIPPED = {'script', 'style', 'noscript', 'template', 'svg', 'form', 'head'}
_BLOCKS = {
  *('address', 'article', 'aside', 'blockquote', 'body', 'br', 'dd', 'div'),
  *('dl', 'dt', 'figcaption', 'figure', 'footer', 'h1', 'h2', 'h3', 'h4'),
  *('h5', 'h6', 'header', 'hr', 'li', 'main', 'nav', 'ol', 'p', 'pre'),
  *('section', 'table', 'td', 'th', 'tr', 'ul'),
}
_CHARSET = re.compile(rb'charset=["\']?([\w-]+)', re.IGNORECASE)


class Page(NamedTuple):
  """A page: its record's id, address, text, and language if it was told."""

  identifier: str
  url: str
  text: str
  language: str


def pages(
  reader: streams.Reader, limit: int
) -> Iterator[Page | streams.Damage]:
  """Yields the pages of a WARC or WET file, and Damage between them.

  Args:
    reader: of the file.
    limit: bytes of a record, beyond which it is passed over.
  """
  lost = False  # looking for the next record, which was said already
  while True:
    try:
      line = reader.line(_HEADER_LINE)
      if not line:
        return
      if not line.startswith(b'WARC/'):
        if line.strip() and not lost:
          lost = True
          yield streams.Damage('broken record', 'bytes between records')
        continue
      lost = False
      headers = _headers(reader)
      page = _page(reader, headers, limit)
    except streams.Damage as damage:
      lost = True
      yield damage
      continue
    if page:
      yield page


def _headers(reader: streams.Reader) -> dict[str, str]:
  """Returns header fields, names in lower case, up to the empty line."""
  found = {}
  while line := reader.line(_HEADER_LINE).strip():
    name, _, value = line.decode('utf-8', 'replace').partition(':')
    found[name.strip().lower()] = value.strip()
  return found


def _page(
  reader: streams.Reader, headers: dict[str, str], limit: int
) -> Page | None:
  """Reads the rest of a record; None if it holds no page."""
  length = headers.get('content-length', '')
  if not length.isdigit():
    raise streams.Damage('broken record', f'of length {length!r}')
  kind = headers.get('warc-type', '')
  wanted = kind in ('conversion', 'response') and int(length) <= limit
  body = reader.block(int(length), keep=wanted)
  if kind not in ('conversion', 'response'):
    return None
  if not wanted:
    raise streams.Damage('too long', f'{int(length):,} bytes > {limit:,}')
  if kind == 'conversion':
    try:
      text = body.decode('utf-8')
    except UnicodeDecodeError as error:
      raise streams.Damage('invalid UTF-8') from error
  else:
    text = _response(body, limit)
    if text is None:
      return None
  return Page(
    headers.get('warc-record-id', '').strip('<>').removeprefix('urn:uuid:'),
    headers.get('warc-target-uri', ''),
    text,
    headers.get('warc-identified-content-language', ''),
  )


def _response(body: bytes, limit: int) -> str | None:
  """Returns the text of an HTTP response, None unless it is a page."""
  head, _, content = body.partition(b'\r\n\r\n')
  status = head.split(b' ', 2)
  lower = head.lower()
  if len(status) < 2 or status[1] != b'200' or b'text/html' not in lower:
    return None
  if b'content-encoding: gzip' in lower and content.startswith(b'\x1f\x8b'):
    try:
      content = zlib.decompressobj(31).decompress(content, limit)
    except (zlib.error, gzip.BadGzipFile) as error:
      raise streams.Damage('broken page', str(error)) from error
  named = _CHARSET.search(head) or _CHARSET.search(content[:2048])
  charset = named[1].decode() if named else 'utf-8'
  # What GB pages call themselves is often a subset of what they hold.
  charset = 'gb18030' if charset.lower().startswith('gb') else charset
  try:
    text = content.decode(charset)
  except LookupError as error:
    raise streams.Damage('unknown charset', charset) from error
  except UnicodeDecodeError as error:
    raise streams.Damage(f'invalid {charset.upper()}') from error
  return html_text(text)


class _Text(html.parser.HTMLParser):
  """Collects the text of the blocks of a page."""

  def __init__(self) -> None:
    super().__init__(convert_charrefs=True)
    self.parts: list[str] = []
    self._hidden: list[str] = []

  def handle_starttag(self, tag: str, attrs: object) -> None:
    if tag in _SKIPPED:
      self._hidden.append(tag)
    if tag == 'body':
      self._hidden.clear()  # a head that was never closed
    if tag in _BLOCKS:
      self.parts.append('\n')

  def handle_endtag(self, tag: str) -> None:
    if tag in self._hidden:
      del self._hidden[self._hidden.index(tag) :]
    if tag in _BLOCKS:
      self.parts.append('\n')

  def handle_data(self, data: str) -> None:
    if not self._hidden:
      self.parts.append(re.sub(r'\s+', ' ', data))


def html_text(page: str) -> str:
  """Returns the text of a page, a block a line.

  Example: '<p>One<br>two <b>three</b></p>' -> 'One\\ntwo three'
  """
  parser = _Text()
  parser.feed(page)
  parser.close()
  lines = (line.strip() for line in ''.join(parser.parts).split('\n'))
  return '\n'.join(line for line in lines if line)
