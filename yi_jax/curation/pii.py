"""The stage that takes people's data out: addresses and numbers of persons.

E-mail addresses, phone numbers, numbers of identity cards and of bank cards,
and IP addresses, in English and Chinese formats, become placeholders by type.
What has a check digit must pass it; what could be a version, a date or an order
number is left alone. Yi names the step (arXiv:2403.04652, 2.1), no formats.

Every pattern is of bounded length and begins where another character ended, so
that time grows with the text, whatever is in it.
"""

import bisect
import collections
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from yi_jax.curation import checksums, documents, stage

# Start, end, kind.
Span = tuple[int, int, str]

_FULL_WIDTH = {point: point - 0xFEE0 for point in range(0xFF01, 0xFF5F)}
_HAS_FULL_WIDTH = re.compile('[０-９＠]')
_HAS_NUMBER = re.compile(r'\d[\d ().:-]{5,}\d|[23][0-9A-Fa-f]{3}:')
_URL = re.compile(r'(?:https?|ftp)://[^\s<>"一-鿿]{1,2000}')

# --- E-mail ------------------------------------------------------------------

_SIGN = re.compile(
  r'@|[\[({<] ?(?:at|AT|@) ?[\])}>] ?|#(?=(?:qq|163|126|gmail)\.com)'
)
_LOCAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?$")
_HOST = re.compile(
  r'(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}(?:\.| ?[\[({] ?(?:dot|DOT) ?[\])}] ?))'
  r'{1,5}(?P<top>[A-Za-z]{2,18})(?![A-Za-z0-9])'
)
_NOBODY = re.compile(r'(?i:(?:^|\.)example\.(?:com|org|net)$)')  # RFC 2606
# What follows a name such as icon@2x or a package with its version.
_FILE = re.compile(
  r'(?i:png|jpe?g|gif|svg|webp|css|js|ts|py|java|jar|zip|gz|tgz|tar|md|txt|html|'
  r'json|xml|ya?ml|so|dll|exe|whl|local|internal)'
)

# --- Numbers -----------------------------------------------------------------

# No letter, digit or decimal point before; letters of Chinese may touch.
_B = r'(?<![0-9A-Za-z_])(?<![0-9][.,:/\-–])'
_E = r'(?![0-9A-Za-z_])(?![.,:\-–][0-9])'

_ID_18 = re.compile(rf'{_B}\d{{6}}([ -]?)(?:19|20)\d{{6}}\1\d{{3}}[\dXx]{_E}')
_ID_15 = re.compile(rf'{_B}\d{{15}}{_E}')
_SSN = re.compile(
  rf'{_B}(?!000|666|9)\d{{3}}([- ])(?!00)\d\d\1(?!0000)\d{{4}}{_E}'
)
_PASSPORT = re.compile(rf'{_B}(?:[EeGgDdSsPp][A-Za-z]?\d{{7,8}}|\d{{9}}){_E}')
_CARD = re.compile(
  rf'{_B}(?:\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{1,3}})?'
  rf'|\d{{4}}([ -])\d{{6}}\2\d{{4,5}}|\d{{13,19}}){_E}'
)
_IP_4 = re.compile(r'(?<![0-9A-Za-z_.])\d{1,3}(?:\.\d{1,3}){3}'
                   r'(?![0-9A-Za-z_]|\.\d)')  # fmt: skip
_IP_6 = re.compile(
  r'(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}'
  r'(?![0-9A-Za-z_:])'
)

_PHONES = tuple(
  re.compile(pattern)
  for pattern in (
    # Chinese mobile
    rf'(?<![0-9A-Za-z_+])(?<![0-9][.,:/\-–])(?:(?:\((?:\+|00)?86\)|(?:\+|00)?86)[- ]?)?'
    rf'1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])'
    rf'([- ]?)\d{{4}}\1\d{{4}}{_E}',
    # Chinese land line, with an extension
    rf'{_B}(?:\(0(?:10|2\d|[3-9]\d\d)\)[ -]?|0(?:10|2\d|[3-9]\d\d)[- ])'
    rf'[2-8]\d{{2,3}}[- ]?\d{{4}}(?:-\d{{1,5}}|转\d{{1,5}})?{_E}',
    rf'{_B}[48]00([- ])\d{{3}}\1\d{{4}}{_E}',
    rf'{_B}[48]00[- ]\d{{4}}[- ]\d{{3}}{_E}',
    # North America
    rf'(?<![0-9A-Za-z_])(?<![0-9][.,:/\-–])(?<!\d )'
    rf'(?:\+?1[-. ]?)?(?:\((?!.11)[2-9]\d\d\)[ -]?|(?!.11)[2-9]\d\d[-. ])'
    rf'[2-9]\d\d[-. ]\d{{4}}(?: ?(?:x|ext\.?) ?\d{{1,5}})?{_E}(?! \d)',
    # United Kingdom
    rf'{_B}(?:(?:\(020\)|020) ?\d{{4}} \d{{4}}|07\d{{3}} ?\d{{3}} ?\d{{3}}'
    rf'|01\d\d ?\d{{3}} \d{{4}}|01\d{{3}} \d{{6}}){_E}',
  )
)
# Any country: + and a run that `_international` looks into.
_PLUS = re.compile(r'(?<![0-9A-Za-z_+])\+[1-9]\d{0,2}[\d ().\-–]{6,22}')
_COUNTRY = re.compile(
  r'1|7|2[07]|3[0-4]|36|39|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]'
  r'|21[1-8]|2[2-6]\d|29[0178]|35[0-9]|37\d|38[0-9]|42[013]|50\d|59\d'
  r'|67[0-9]|68\d|69[012]|85[02356]|88[06]|96\d|97[1-7]|99[2-68]'
)
# A number that only its label makes a phone number.
_LABELLED = re.compile(
  r'(?i:电话|手机|热线|座机|传真|联系方式|微信|\btel\b|\btelephone\b|\bphone\b|'
  r'\bmobile\b|\bcell\b|\bfax\b|\bcall\b|\bwhatsapp\b|\btext me\b)'
  r'(?i:号码|号|是|为| number| us| me| at| on| is)?[:：. ]{0,3}'
  rf'(\(?\d[\d ().-]{{5,14}}\d){_E}'
)
# A year to a year, or a day, is no number to call.
_DATES = re.compile(
  r'(?:19|20)\d\d[ .-]\d\d?[ .-]\d\d?|(?:19|20)\d\d ?- ?(?:19|20)\d\d'
)
# Right before a number: what says that it is none of a person.
_NO_PERSON = re.compile(
  r'(?i:order|invoice|tracking|serial|part|item|sku|isbn|issn|model|ref|doi|'
  r'ticket|case|batch|patent|catalog|version|ver|rev|release|section|'
  r'订单|单号|编号|型号|货号|流水|批号|序列|专利|版本|快递|票号|书号|学号|工号|'
  r'邮编|基金|股票|代码|文号|档案)'
  r'(?i:号码|号|是|为| no| number| id| code)?\.?[:：# ]{0,3}#?$'
)
_VERSION = re.compile(
  r'(?i:\bv|\bver|version|release|firmware|build|section|chapter|clause|§|'
  r'版本|固件|章节|第)[号.:： ]{0,3}$|[A-Za-z]/$|[A-Za-z]-$|==$'
)
_IDENTITY = re.compile(r'身份证|证件号|公民身份')
_PASSPORT_NEAR = re.compile(r'(?i:passport|护照)')
_BEFORE = 18  # characters before a number that are read for its label


def defaults() -> dict[str, Any]:
  """Returns the config: what replaces each kind; '' leaves the kind alone."""
  return {
    'email': '[EMAIL]',
    'phone': '[PHONE]',
    'id': '[ID]',  # identity cards, passports, US social security
    'card': '[CARD]',  # bank cards
    'ip': '[IP]',
    'private_ips': False,  # 10.0.0.1 and the like are nobody's
  }


class Anonymise(stage.Stage):
  """Replaces what identifies a person by placeholders."""

  name = 'pii'

  def __init__(self, config: Any) -> None:
    """Checks the keys."""
    super().__init__(config)
    stage.check_keys('pii', config, defaults())
    settings = {**defaults(), **config}
    self._private_ips = settings.pop('private_ips')
    for kind, placeholder in settings.items():
      if not isinstance(placeholder, str):
        raise ValueError(
          f"pii.{kind} is {placeholder!r}: a text that replaces it, or ''"
        )
    self._placeholders = settings

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Replaces, and counts on the trail what was replaced."""
    for i in batch.alive():
      text = batch.texts[i]
      spans = [
        span
        for span in find(text, self._private_ips)
        if self._placeholders[span[2]]
      ]
      if spans:
        times = collections.Counter(kind for _, _, kind in spans)
        what = ', '.join(f'{times[kind]} {kind}' for kind in sorted(times))
        batch.change(i, self.name, self._replace(text, spans), what)
    return batch

  def _replace(self, text: str, spans: list[Span]) -> str:
    """Returns a text with placeholders where the spans are."""
    parts, end = [], 0
    for start, stop, kind in spans:
      parts += [text[end:start], self._placeholders[kind]]
      end = stop
    return ''.join([*parts, text[end:]])


def find(text: str, private_ips: bool = False) -> list[Span]:
  """Returns where personal data stands, in order, without overlaps.

  Example: find('mail a@b.com') == [(5, 12, 'email')]

  Args:
    text: of any language.
    private_ips: whether addresses that the internet does not route count.
  """
  given = text
  if _HAS_FULL_WIDTH.search(text):
    text = text.translate(_FULL_WIDTH)  # as many characters
  taken = _joined([], _emails(text))
  if not _HAS_NUMBER.search(text):
    return taken
  addresses = [m.span() for m in _URL.finditer(text)] if '://' in text else []
  # In full width, numbers with dots are the columns of a table.
  taken = _joined(taken, _ips(given, private_ips))
  for numbers in (_ids, _cards, _international, _phones, _labelled):
    taken = _joined(taken, _outside(numbers(text), addresses))
  return taken


def _joined(taken: list[Span], found: Iterator[Span]) -> list[Span]:
  """Returns spans in order: those there are, and the found that are free."""
  free, end = [], 0
  for span in sorted(found):
    at = bisect.bisect(taken, span)
    if (
      span[0] >= end
      and (not at or taken[at - 1][1] <= span[0])
      and (at == len(taken) or span[1] <= taken[at][0])
    ):
      free.append(span)
      end = span[1]
  return sorted(taken + free) if free else taken


def _outside(
  found: Iterator[Span], addresses: list[tuple[int, int]]
) -> Iterator[Span]:
  """Yields the spans that are no part of a URL."""
  for span in found:
    at = bisect.bisect(addresses, (span[0], span[1]))
    if not at or addresses[at - 1][1] <= span[0]:
      yield span


def _emails(text: str) -> Iterator[Span]:
  for sign in _SIGN.finditer(text):
    low, end = max(0, sign.start() - 64), sign.start()
    if len(sign[0]) > 1 and text[end - 1 : end] == ' ':
      end -= 1
    local = _LOCAL.search(text[low:end])
    host = _HOST.match(text, sign.end(), sign.end() + 255)
    if not local or not host or _FILE.fullmatch(host['top']):
      continue
    if _NOBODY.search(host[0]):
      continue
    start = low + local.start()
    before, after = text[max(0, start - 1) : start], text[host.end() :][:2]
    # user@host of a URL, a handle of the fediverse, git@host:path.
    if before in ('/', '@') or (after[:1] == ':' and after[1:].isalnum()):
      continue
    yield start, host.end(), 'email'


def _ips(text: str, private: bool) -> Iterator[Span]:
  for match in _IP_4.finditer(text):
    parts = match[0].split('.')
    if any(len(part) > 1 and part[0] == '0' for part in parts):
      continue
    # One digit each is numbering, or a server that everybody knows.
    if all(len(part) == 1 for part in parts):
      continue
    before = text[max(0, match.start() - _BEFORE) : match.start()]
    if _VERSION.search(before) and not before.endswith('//'):
      continue
    if max(map(int, parts)) < 256 and (
      private or ipaddress.IPv4Address(match[0]).is_global
    ):
      yield *match.span(), 'ip'
  for match in _IP_6.finditer(text) if ':' in text else ():
    try:
      address = ipaddress.IPv6Address(match[0])
    except ValueError:
      continue
    if private or address.is_global:
      yield *match.span(), 'ip'


def _ids(text: str) -> Iterator[Span]:
  for match in _ID_18.finditer(text):
    if checksums.chinese_id(re.sub('[ -]', '', match[0])):
      yield *match.span(), 'id'
  near: tuple[tuple[re.Pattern, re.Pattern, Callable], ...] = (
    (_ID_15, _IDENTITY, checksums.chinese_id_15),
    (_PASSPORT, _PASSPORT_NEAR, bool),
  )
  for pattern, label, check in near:
    if label.search(text):
      for match in pattern.finditer(text):
        before = text[max(0, match.start() - _BEFORE) : match.start()]
        if label.search(before) and check(match[0]):
          yield *match.span(), 'id'
  for match in _SSN.finditer(text):
    if not _labelled_otherwise(text, match.start()):
      yield *match.span(), 'id'


def _cards(text: str) -> Iterator[Span]:
  for match in _CARD.finditer(text):
    digits = re.sub('[ -]', '', match[0])
    if checksums.bank_card(digits) and not (
      len(digits) == len(match[0]) and _labelled_otherwise(text, match.start())
    ):
      yield *match.span(), 'card'


def _phones(text: str) -> Iterator[Span]:
  for pattern in _PHONES:
    for match in pattern.finditer(text):
      if not _labelled_otherwise(text, match.start()):
        yield *match.span(), 'phone'


def _labelled(text: str) -> Iterator[Span]:
  for match in _LABELLED.finditer(text):
    digits = sum(map(str.isdigit, match[1]))
    if 7 <= digits <= 15 and not _DATES.fullmatch(match[1]):
      yield *match.span(1), 'phone'


def _international(text: str) -> Iterator[Span]:
  for match in _PLUS.finditer(text):
    end = _phone_end(match[0])
    if end:
      yield match.start(), match.start() + end, 'phone'


def _phone_end(run: str) -> int:
  """Returns how much of a run after + is a phone number, 0 if nothing is."""
  end = len(re.split(r'  |[^\d+]{3}', run)[0])
  while end:
    part = run[:end].rstrip(' ().-–')
    digits = re.sub(r'\D', '', part.replace('(0)', ''))
    if len(digits) <= 15:
      break
    end = max(part.rfind(' '), part.rfind('-'), part.rfind('.'), 0)
  else:
    return 0
  country = _COUNTRY.match(digits)
  least = {'1': 11, '7': 11}.get(country[0], 10) if country else 99
  if len(digits) < least or (digits[0] in '17' and len(digits) > 11):
    return 0
  return len(part)


def _labelled_otherwise(text: str, start: int) -> bool:
  """Returns whether what stands before a number says it is another thing."""
  before = text[max(0, start - _BEFORE) : start]
  return bool(_NO_PERSON.search(before))
