"""How well personal data is found: recall and precision on a generated set.

  launch/local.sh python experiments/benchmarks/personal_data.py --count=20000

Sentences of English and Chinese hold an address or a number of a person in one
of the usual spellings, or something that looks like one and is none: versions,
dates, order numbers, numbers whose check digit is wrong. A span counts as found
if its kind and both its ends are right. The last line is JSON.
"""

import argparse
import collections
import json
import random
import string
from collections.abc import Iterator

from yi_jax.curation import checksums, pii

_NAMES = ('anna', 'li.wei', 'j_smith', 'zhang88', 'o.k', 'bob+news', 't.w.chan')
_HOSTS = ('qq.com', '163.com', 'gmail.com', 'mail.site.co.uk', 'uni-bonn.de')

_ENGLISH = (
  'You can reach her at {} any time.',
  'Contact: {}',
  '{} is what he wrote on the form.',
  'The page says "{}", and nothing else (as of May).',
  'We got it from him ({}).',
  'Details: {}; see the list below.',
  'Write it down: {}.',
  'I think it was {}, but I am not sure.',
)
_CHINESE = (
  '请联系{}，谢谢。',
  '详情：{}',
  '他留下的是{}，请核对。',
  '（{}）是正确的',
  '资料显示{}已经登记。',
  '张先生{}',
  '“{}”写在纸上。',
  '如有疑问请找我{}或者到店咨询',
)


def generate(count: int, seed: int = 0) -> Iterator[tuple[str, list[pii.Span]]]:
  """Yields texts and the personal data in them.

  Args:
    count: number of texts; half of them hold none.
    seed: another seed is another set.
  """
  draw = random.Random(seed)
  makers = (_email, _phone, _chinese_phone, _identity, _card, _address)
  for number in range(count):
    chinese = draw.random() < 0.5
    template = draw.choice(_CHINESE if chinese else _ENGLISH)
    if number % 2:
      yield template.replace('{}', _negative(draw)), []
    else:
      value, kind = draw.choice(makers)(draw)
      start = template.index('{}')
      text = template.replace('{}', value)
      yield text, [(start, start + len(value), kind)]


def _digits(draw: random.Random, count: int) -> str:
  return ''.join(draw.choices(string.digits, k=count))


def _email(draw: random.Random) -> tuple[str, str]:
  name, host = draw.choice(_NAMES), draw.choice(_HOSTS)
  name += draw.choice(['', _digits(draw, 3)])
  form = draw.choice(['{}@{}'] * 6 + ['{} [at] {}', '{}(at){}'])
  return form.format(name, host), 'email'


def _phone(draw: random.Random) -> tuple[str, str]:
  area = f'{draw.randrange(2, 10)}{draw.choice("023456789")}{_digits(draw, 1)}'
  office = f'{draw.randrange(2, 10)}{_digits(draw, 2)}'
  line = _digits(draw, 4)
  forms = (
    f'({area}) {office}-{line}',
    f'{area}-{office}-{line}',
    f'{area}.{office}.{line}',
    f'+1 {area} {office} {line}',
    f'+1-{area}-{office}-{line}',
    f'1-{area}-{office}-{line}',
    f'{area}-{office}-{line} ext. {_digits(draw, 3)}',
    f'+44 20 {_digits(draw, 4)} {_digits(draw, 4)}',
    f'+44 (0)20 {_digits(draw, 4)} {_digits(draw, 4)}',
    f'020 {_digits(draw, 4)} {_digits(draw, 4)}',
    f'07{_digits(draw, 3)} {_digits(draw, 6)}',
    f'+49 30 {_digits(draw, 8)}',
    f'+33 1 {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)} '
    f'{_digits(draw, 2)}',
    f'+852 {_digits(draw, 4)} {_digits(draw, 4)}',
  )
  return draw.choice(forms), 'phone'


def _chinese_phone(draw: random.Random) -> tuple[str, str]:
  start = draw.choice(['138', '139', '150', '159', '177', '186', '199', '166'])
  a, b = _digits(draw, 4), _digits(draw, 4)
  local = f'{draw.randrange(2, 9)}{_digits(draw, 3)}'
  forms = (
    f'{start}{a}{b}',
    f'{start}-{a}-{b}',
    f'{start} {a} {b}',
    f'+86 {start} {a} {b}',
    f'+86-{start}{a}{b}',
    f'86{start}{a}{b}',
    ''.join(chr(ord(c) + 0xFEE0) for c in f'{start}{a}{b}'),
    f'010-{local}{b}',
    f'(021){local}{b}',
    f'0755-{local}{b}',
    f'0571-{local}{b}-{_digits(draw, 3)}',
    f'+86 10 {local} {b}',
    f'400-{_digits(draw, 3)}-{b}',
  )
  return draw.choice(forms), 'phone'


def _identity(draw: random.Random) -> tuple[str, str]:
  if draw.random() < 0.2:
    area = f'{draw.choice([*range(1, 666), *range(667, 900)]):03}'
    return f'{area}-{draw.randrange(1, 100):02}-{draw.randrange(1, 9999):04}', (
      'id'
    )
  province = draw.choice([11, 31, 33, 37, 44, 51, 65])
  day = f'{draw.randrange(1940, 2015)}{draw.randrange(1, 13):02}'
  day += f'{draw.randrange(1, 29):02}'
  number = f'{province}{_digits(draw, 4)}{day}{_digits(draw, 3)}'
  number += checksums.chinese_id_check(number)
  if draw.random() < 0.2:
    return f'{number[:6]} {number[6:14]} {number[14:]}', 'id'
  return draw.choice([number, number.lower()]), 'id'


def _card(draw: random.Random) -> tuple[str, str]:
  start, length = draw.choice(
    [('4', 16), ('53', 16), ('37', 15), ('62', 16), ('62', 19), ('6011', 16)]
  )
  body = start + _digits(draw, length - len(start) - 1)
  number = next(
    body + check for check in string.digits if checksums.luhn(body + check)
  )
  form = draw.choice(['', ' ', '-'])
  if length == 15:
    return form.join([number[:4], number[4:10], number[10:]]), 'card'
  groups = [number[i : i + 4] for i in range(0, length, 4)]
  return form.join(groups), 'card'


def _address(draw: random.Random) -> tuple[str, str]:
  if draw.random() < 0.3:
    groups = [f'{draw.randrange(1, 1 << 16):x}' for _ in range(3)]
    form = draw.choice(['2a01:{}:{}::{}', '2a02:{}:{}:0:0:0:1:{}'])
    return form.format(*groups), 'ip'
  first = draw.choice([23, 47, 66, 81, 114, 203, 220])
  if first == 203:
    return f'203.{draw.randrange(1, 113)}.{draw.randrange(256)}.9', 'ip'
  rest = '.'.join(str(draw.randrange(256)) for _ in range(3))
  return f'{first}.{rest}', 'ip'


def _negative(draw: random.Random) -> str:
  """Returns what looks like personal data and is none."""
  year = draw.randrange(1950, 2030)
  month, day = f'{draw.randrange(1, 13):02}', f'{draw.randrange(1, 29):02}'
  mobile = f'138{_digits(draw, 8)}'
  wrong_card = '4' + _digits(draw, 15)
  while checksums.luhn(wrong_card):
    wrong_card = '4' + _digits(draw, 15)
  wrong_id = f'110105{year}{month}{day}{_digits(draw, 3)}'
  check = checksums.chinese_id_check(wrong_id)
  wrong_id += draw.choice([c for c in '0123456789X' if c != check])
  octets = [str(draw.randrange(256)) for _ in range(3)]
  return draw.choice(
    [
      f'{year}-{month}-{day}',
      f'{year}.{month}.{day}',
      f'{year}/{month}/{day} {month}:{day}:07',
      f'{year}-{year + 5}',
      f'{year}年{int(month)}月{int(day)}日',
      f'ISBN 978-7-{_digits(draw, 2)}-{_digits(draw, 6)}-{_digits(draw, 1)}',
      f'order no. {mobile}',
      f'订单号{mobile}',
      f'快递单号：{_digits(draw, 13)}',
      f'version 2.{octets[0]}.{octets[1]}.{octets[2]}',
      f'v12.{octets[0]}.{octets[1]}.1',
      f'Chrome/91.{octets[0]}.{octets[1]}.12',
      f'192.168.{octets[0]}.{octets[1]}',
      f'10.{".".join(octets)}',
      f'section {int(month)}.{int(day)}.1.2',
      f'300.{".".join(octets)}',
      wrong_card,
      wrong_id,
      f'17{_digits(draw, 11)}',  # milliseconds since 1970
      f'0.{mobile}',
      f'{draw.randrange(1, 99)},{_digits(draw, 3)},{_digits(draw, 3)}',
      f'${_digits(draw, 4)}.{_digits(draw, 2)}',
      f'icon{_digits(draw, 2)}@2x.png',
      f'pkg@{month}.{day}.1',
      '@someone and @other_one',
      f'git@github.com:someone/project{month}.git',
      f'https://a.com/p/{mobile}.html',
      f'arXiv:2403.{_digits(draw, 5)}v2',
      f'doi:10.1000/{_digits(draw, 3)}-{_digits(draw, 7)}',
      f'{_digits(draw, 22)}',
      f'{month}:{day}:{_digits(draw, 2)}:ab:cd:ef',
      'std::vector<int>::size_type',
      f'3.1415926535{_digits(draw, 6)}',
      f'{_digits(draw, 3)} {_digits(draw, 3)} {_digits(draw, 3)} km',
      f'{year} {year + 1} {year + 2}',
      f'abc{mobile}def',
      f'{_digits(draw, 8)}-{_digits(draw, 4)}-4{_digits(draw, 3)}-8f{month}',
      f'score {draw.randrange(9)}-{draw.randrange(9)}, {day}-{month}',
      f'$${_digits(draw, 1)}x@{day}$$',
      f'RMB {_digits(draw, 2)}.{_digits(draw, 2)}-{_digits(draw, 3)}.00',
    ]
  )


def measure(count: int, seed: int = 0) -> dict[str, dict[str, float]]:
  """Returns recall and precision by kind and over all; wrong ones as text."""
  right, wanted, given = (collections.Counter() for _ in range(3))
  wrong: list[str] = []
  for text, truth in generate(count, seed):
    found = pii.find(text)
    for _, _, kind in truth:
      wanted[kind] += 1
    for span in found:
      given[span[2]] += 1
      right[span[2]] += span in truth
    if found != truth:
      wrong.append(f'{text!r}: {found}, not {truth}')
  rows = {
    kind: {
      'recall': right[kind] / wanted[kind],
      'precision': right[kind] / max(1, given[kind]),
    }
    for kind in sorted(wanted)
  }
  rows['all'] = {
    'recall': right.total() / wanted.total(),
    'precision': right.total() / given.total(),
  }
  rows['wrong'] = wrong
  return rows


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--count', type=int, default=20_000)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  rows = measure(flags.count, flags.seed)
  for line in rows.pop('wrong')[:20]:
    print(line)
  for kind, row in rows.items():
    print(
      f'{kind:6} recall {row["recall"]:.4f}, precision {row["precision"]:.4f}'
    )
  figures = {'benchmark': 'personal_data', 'texts': flags.count, **rows['all']}
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
