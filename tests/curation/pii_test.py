"""Personal data: what is replaced, what is left, and how long it may take."""

import importlib.util
import ipaddress
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yi_jax.curation import checksums, documents, pii

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def _found(text, **options):
  return [
    (text[start:end], kind) for start, end, kind in pii.find(text, **options)
  ]


def _set():
  """Imports the benchmark that makes labelled texts."""
  path = _REPOSITORY / 'experiments' / 'benchmarks' / 'personal_data.py'
  spec = importlib.util.spec_from_file_location('personal_data', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  ('text', 'value', 'kind'),
  [
    ('mail a@b.com.', 'a@b.com', 'email'),
    ('邮箱abc_123@qq.com谢谢', 'abc_123@qq.com', 'email'),
    ('john [at] site [dot] org', 'john [at] site [dot] org', 'email'),
    ('我的扣扣邮箱12345#qq.com', '12345#qq.com', 'email'),
    (
      'ＡＢＣ２１９＠ＳＯＨＵ．ＣＯＭ',
      'ＡＢＣ２１９＠ＳＯＨＵ．ＣＯＭ',
      'email',
    ),
    ('电话13800138000。', '13800138000', 'phone'),
    ('+86 138 0013 8000', '+86 138 0013 8000', 'phone'),
    ('手机１３８００１３８０００', '１３８００１３８０００', 'phone'),
    ('请拨010-65529988转123', '010-65529988转123', 'phone'),
    ('热线4008106666', '4008106666', 'phone'),
    ('(415) 555-2671', '(415) 555-2671', 'phone'),
    ('call 4155552671 now', '4155552671', 'phone'),
    ('+44 (0)20 7946 0958 2019', '+44 (0)20 7946 0958', 'phone'),
    ('身份证11010519491231002X', '11010519491231002X', 'id'),
    ('身份证号110105491231002', '110105491231002', 'id'),
    ('护照号E12345678', 'E12345678', 'id'),
    ('SSN: 123-45-6789', '123-45-6789', 'id'),
    ('卡号6222021234567890128', '6222021234567890128', 'card'),
    ('4111-1111-1111-1111', '4111-1111-1111-1111', 'card'),
    ('3782 822463 10005', '3782 822463 10005', 'card'),
    ('from 66.249.66.1', '66.249.66.1', 'ip'),
    ('http://66.249.66.1/x', '66.249.66.1', 'ip'),
    ('at 2a00:1450:4001::200e', '2a00:1450:4001::200e', 'ip'),
  ],
)
def test_each_format_is_found(text, value, kind):
  assert _found(text) == [(value, kind)]


@pytest.mark.parametrize(
  'text',
  [
    'icon@2x.png git@github.com:a/b @user@mastodon.social',
    'you@example.com',
    'https://medium.com/@someone/p-13800138000',
    '11010519491231002X'.replace('X', '1'),
    '4111 1111 1111 1112',
    '2023-10-11, 1998-2004, 12:34:56, 978-7-04-012345-6',
    'version 1.12.130.4, Chrome/91.0.44.124, section 4.12.3.1',
    '10.0.0.1 192.168.1.1 127.0.0.1 2001:db8::1 8.8.8.8 256.1.1.300',
    '１．５１．０１．３',
    '订单号13800138000 快递单号：1234567890123',
    '1700000000000 3.14159265358979 1,234,567',
    'dead::beef std::vector 12:34:56:78:9a:bc',
    'phone from 1998-2004',
    'in 2015 2016 2017',
  ],
)
def test_what_looks_like_it_is_left(text):
  assert _found(text) == []


def test_private_addresses_count_when_asked():
  assert _found('10.0.0.1', private_ips=True) == [('10.0.0.1', 'ip')]


def test_recall_and_precision_on_the_generated_set():
  rows = _set().measure(4_000, seed=11)
  assert set(rows) == {'email', 'phone', 'id', 'card', 'ip', 'all', 'wrong'}
  for kind in set(rows) - {'wrong'}:
    assert rows[kind]['recall'] >= 0.98, rows['wrong'][:5]
    assert rows[kind]['precision'] >= 0.98, rows['wrong'][:5]


def test_the_set_is_labelled_by_what_the_standards_say():
  hard = 0
  for text, truth in _set().generate(500, seed=3):
    hard += not truth
    for start, end, kind in truth:
      value = text[start:end]
      if kind == 'ip':
        assert ipaddress.ip_address(value).is_global
      elif kind == 'card':
        assert checksums.luhn(re.sub('[ -]', '', value))
  assert hard == 250


def test_a_document_gets_placeholders_and_a_trail():
  batch = documents.Batch(
    ids=['a', 'b'], texts=['a@b.com, c@d.org: 13800138000', 'nothing']
  )
  pii.Anonymise({'phone': '<电话>'}).process(batch)
  assert batch.texts == ['[EMAIL], [EMAIL]: <电话>', 'nothing']
  assert batch.trails == [[('pii', '2 email, 1 phone')], []]
  again = batch.select([0])
  pii.Anonymise({}).process(again)
  assert again.texts == batch.texts[:1]
  one = documents.Batch(ids=['a'], texts=['a@b.com 13800138000'])
  pii.Anonymise({'email': ''}).process(one)
  assert one.texts == ['a@b.com [PHONE]']


@settings(max_examples=200)
@given(
  st.text(
    st.sampled_from('0123456789 -+().@abX电:/１＠[]\n\ud800'), max_size=80
  )
)
def test_spans_are_in_order_inside_the_text_and_apart(text):
  end = 0
  for start, stop, kind in pii.find(text):
    assert end <= start < stop <= len(text)
    assert kind in pii.defaults()
    end = stop


@pytest.mark.parametrize(
  'piece',
  ['a', '1', '1 ', '@', 'a@', '+1', '+1 23 ', '1.', '2001:', '138-', '1@1.'],
)
def test_any_pattern_gives_up_soon(piece):
  # Were one quadratic, this many characters would take hours.
  assert len(pii.find(piece * (300_000 // len(piece)))) >= 0


def test_check_digits():
  assert checksums.luhn('79927398713')
  assert not checksums.luhn('79927398710')
  assert checksums.bank_card('4111111111111111')
  assert not checksums.bank_card('9111111111111116')
  assert checksums.chinese_id_check('11010519491231002') == 'X'
  assert checksums.chinese_id('11010519491231002x')
  assert not checksums.chinese_id('11010519490231002X')
  assert not checksums.chinese_id('99010519491231002X')
  assert checksums.chinese_id_15('110105491231002')
  assert not checksums.chinese_id_15('110105491331002')


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'mail': 'x'}, "pii has no key 'mail'; did you mean 'email'"),
    ({'email': None}, 'pii.email is None: a text that replaces it'),
  ],
)
def test_a_wrong_config_names_the_key(config, message):
  with pytest.raises(ValueError, match='pii') as error:
    pii.Anonymise(config)
  assert message in str(error.value)
