"""The stage that mends texts before rules judge them.

Bytes read in the wrong encoding (ftfy; and UTF-8 read as GBK, which ftfy does
not know), HTML entities, control characters, line ends. What ftfy would also do
is off: it folds full-width punctuation and straightens quotes, both of which
are right as they are in Chinese.

Chinese can be converted to simplified or traditional characters (OpenCC) and
half-width punctuation between Han characters to full width.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from yi_jax.curation import documents, stage

# A letter that begins a character of UTF-8 when its bytes are read as Latin-1,
# Windows-1251 or -1252, MacRoman or code page 437, before what is no ASCII.
_SUSPECT = re.compile('[\xc2-\xf4\u0393‚вРСГ√][^\x00-\x7f]')
_ENTITY = re.compile(r'&(?:#\d{2,7}|#x[0-9a-fA-F]{2,6}|[a-zA-Z]{2,8});')
# Neither text nor line end; of these, form feed and the like end lines.
_CONTROL = re.compile(
  '[\x00-\x08\x0e-\x1f\x7f\ufeff\ufff9-\ufffb\ud800-\udfff\u206a-\u206f]'
)
_LINE_END = re.compile('\r\n|[\r\x0b\x0c\x85\u2028\u2029]')
# The most frequent characters and marks of Chinese, UTF-8 read as GBK.
_MISREAD = re.compile('[鐨鍦鏄銆锛涓鍙浠杩鎴绗鐢鍜鏈]')
_MISREAD_SHARE = 0.03  # of these among all characters; ordinary text: 0.0005

_HAN = '\u3400-\u9fff'
_HALF = re.compile(f'(?<=[{_HAN}])[,!?:;](?=[{_HAN}\\s]|$)')
_FULL = str.maketrans(',!?:;', '，！？：；')
_SCRIPTS = {'': '', 'simplified': 't2s', 'traditional': 's2t'}


def defaults() -> dict[str, Any]:
  """Returns the config of the stage."""
  return {
    'encodings': True,  # mend what was read in the wrong encoding
    'entities': True,  # &lt; -> <, in lines that have no < of their own
    'normalization': 'NFC',  # Unicode's form, '' leaves the text's
    'longest': 2_000_000,  # characters; longer documents are left alone
    'chinese_script': '',  # '', 'simplified' or 'traditional'
    'full_width': False,  # , between Han characters -> ，
  }


class Repair(stage.Stage):
  """Mends encodings, entities and control characters; converts Chinese."""

  name = 'repair'

  def __init__(self, config: Any) -> None:
    """Checks the keys and their values."""
    super().__init__(config)
    stage.check_keys('repair', config, defaults())
    self._settings = {**defaults(), **config}
    script = self._settings['chinese_script']
    if script not in _SCRIPTS:
      raise ValueError(
        f'repair.chinese_script is {script!r}: take one of {list(_SCRIPTS)}'
      )
    form = self._settings['normalization']
    if form not in ('', 'NFC', 'NFKC', 'NFD', 'NFKD'):
      raise ValueError(
        f"repair.normalization is {form!r}: take 'NFC', 'NFKC', 'NFD', 'NFKD' "
        "or ''"
      )

  @functools.cached_property
  def _convert(self) -> Callable[[str], str] | None:
    """OpenCC, if Chinese is to be converted."""
    script = _SCRIPTS[self._settings['chinese_script']]
    if not script:
      return None
    import opencc

    return opencc.OpenCC(script).convert

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Mends what can be mended, and says so on the trail."""
    for i in batch.alive():
      text = batch.texts[i]
      if len(text) > self._settings['longest']:
        continue
      mended, what = self._mend(text, batch.languages[i])
      if mended != text:
        batch.change(i, self.name, mended, ', '.join(what))
    return batch

  def _mend(self, text: str, language: str) -> tuple[str, list[str]]:
    """Returns the mended text and what was done."""
    settings, done = self._settings, []

    def became(name: str, new: str) -> str:
      if new != text:
        done.append(name)
      return new

    text = became('line ends', _LINE_END.sub('\n', text))
    if settings['encodings']:
      if not text.isascii():
        text = became('GBK', misread_gbk(text))
      if _SUSPECT.search(text):
        text = became('encoding', _ftfy(text, False))
    if settings['entities'] and _ENTITY.search(text):
      text = became('entities', _ftfy(text, 'auto'))
    text = became('control characters', _CONTROL.sub('', text))
    form = settings['normalization']
    if form and not unicodedata.is_normalized(form, text):
      text = became(form, unicodedata.normalize(form, text))
    if language == 'zh':
      if self._convert:
        text = became(settings['chinese_script'], self._convert(text))
      if settings['full_width']:
        text = became('full width', full_width(text))
    return text, done


@functools.cache
def _config(entities: bool | str) -> Any:
  """Returns ftfy's settings: encodings, and entities if wanted; no more."""
  import ftfy

  return ftfy.TextFixerConfig(
    unescape_html=entities,
    fix_encoding=not entities,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization=None,
    explain=False,
  )


def _ftfy(text: str, entities: bool | str) -> str:
  import ftfy

  return ftfy.fix_text(text, _config(entities))


def misread_gbk(text: str) -> str:
  """Returns Chinese text whose UTF-8 bytes had been read as GBK.

  Example: '浣犲ソ锛屼笘鐣�' -> '你好，世�'; other text comes back as it is.
  """
  if len(_MISREAD.findall(text)) < max(2, _MISREAD_SHARE * len(text)):
    return text
  mended = text.encode('gb18030', 'ignore').decode('utf-8', 'replace')
  lost = mended.count('\ufffd')
  return mended if lost * 5 < len(mended) else text


def full_width(text: str) -> str:
  """Returns text with full-width marks between Han characters.

  Example: full_width('你好,世界 1,000') == '你好，世界 1,000'
  """
  return _HALF.sub(lambda mark: mark[0].translate(_FULL), text)
