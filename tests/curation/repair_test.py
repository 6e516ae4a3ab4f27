"""Repair: what is mended, and what is left as it was."""

import pytest

from yi_jax.curation import documents, repair

_CHINESE = '他们在这里说的是：“你好，世界！”（真的）——而且，100％不变。'

# UTF-8 as GBK has it, an even number of bytes to each stretch.
_MISREAD = ('他们是在这里' * 4).encode().decode('gb18030')


def _mended(text, language='en', **config):
  batch = documents.Batch(ids=['a'], texts=[text], languages=[language])
  repair.Repair(config).process(batch)
  return batch.texts[0], batch.trails[0]


@pytest.mark.parametrize(
  ('text', 'mended', 'how'),
  [
    ('itâ€™s fine', 'it’s fine', 'encoding'),
    ('schÃ¶n', 'schön', 'encoding'),
    ('rÃ©sumÃ© and naÃ¯ve', 'résumé and naïve', 'encoding'),
    ('å¥½çš„ä¸œè¥¿', '好的东西', 'encoding'),
    ('itвЂ™s', 'it’s', 'encoding'),
    ('a &lt; b &amp; c', 'a < b & c', 'entities'),
    ('a\r\nb\rc\u2028d', 'a\nb\nc\nd', 'line ends'),
    ('a\x00b\x07c\ufeff', 'abc', 'control characters'),
    ('a\ud800b', 'ab', 'control characters'),
    ('e\u0301', 'é', 'NFC'),
    (_MISREAD, '他们是在这里' * 4, 'GBK'),
  ],
)
def test_faults_are_mended_and_named(text, mended, how):
  result, trail = _mended(text)
  assert trail == [('repair', how)]
  assert result == mended


def test_chinese_read_as_gbk_comes_back():
  text = '这本书的内容很好，他们是在北京写的' * 4
  misread = text.encode().decode('gb18030', 'replace')
  assert repair.misread_gbk(misread).count('书的内容') == 4
  # Characters as they are, rare ones too, stay.
  assert repair.misread_gbk('鐨是一个字，鍦也是，鏄亦然' + text) != ''
  for right in (text, '鐨', '銆', 'plain'):
    assert repair.misread_gbk(right) == right


@pytest.mark.parametrize(
  'text',
  [
    _CHINESE,
    'Ｆｕｌｌ　ｗｉｄｔｈ',
    'café naïve Âge São Paulo',
    '“quotes” ‘and’ ﬁgures',
    'if a<b: print("&lt;")',
    'пример текста',
    'AT&T; R&D',
    '\ttabs\n\nand lines',
  ],
)
def test_good_text_stays(text):
  assert _mended(text) == (text, [])


def test_each_step_can_be_off():
  broken = 'itâ€™s &lt;'
  assert _mended(broken, encodings=False)[0] == 'itâ€™s <'
  assert _mended(broken, entities=False)[0] == 'it’s &lt;'
  assert _mended('e\u0301', normalization='')[0] == 'e\u0301'
  assert _mended('schÃ¶n', longest=5)[0] == 'schÃ¶n'


def test_chinese_is_converted_by_config():
  traditional = '漢語，書籍，學習'
  assert _mended(traditional, 'zh') == (traditional, [])
  simple = _mended(traditional, 'zh', chinese_script='simplified')
  assert simple == ('汉语，书籍，学习', [('repair', 'simplified')])
  assert _mended(simple[0], 'zh', chinese_script='traditional')[0] == (
    traditional
  )
  # Japanese has some of the same characters.
  assert _mended('漢語', 'ja', chinese_script='simplified')[0] == '漢語'


def test_half_width_marks_between_han_characters_become_full():
  text = '你好,世界!价格是1,000元:便宜; see a,b'
  assert _mended(text, 'zh', full_width=True)[0] == (
    '你好，世界！价格是1,000元：便宜； see a,b'
  )
  assert _mended(text, 'zh')[0] == text


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'encoding': True}, "no key 'encoding'; did you mean 'encodings'"),
    ({'chinese_script': 'hans'}, "repair.chinese_script is 'hans': take one"),
    ({'normalization': 'NFX'}, "repair.normalization is 'NFX': take"),
  ],
)
def test_a_wrong_config_names_the_key(config, message):
  with pytest.raises(ValueError, match='repair') as error:
    repair.Repair(config)
  assert message in str(error.value)
