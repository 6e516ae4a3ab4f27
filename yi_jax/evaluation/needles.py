"""What is hidden in a long text and asked for: facts, and keys with values.

The sentences are ours (the ones of Yi's grids were not published), about people
and places that are in no book. Each has values of one form: one is right, the
others are what it is compared with.
"""

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

from yi_jax.evaluation import documents

VALUE = '{value}'  # in a sentence


@dataclasses.dataclass(frozen=True)
class Wording:
  """How a question is put in one language.

  Attributes:
    before: stands before the document.
    chat: after it, for models that answer.
    base: after it, for models that continue.
    gap: between a sentence and the next, and before a value.
  """

  before: str
  chat: str
  base: str
  gap: str


WORDINGS = {
  'en': Wording(
    'Read this text. A question about it follows at its end.\n\n',
    '\n\nThis is the end of the text. {question} Answer in one sentence.',
    '\n\nQuestion: {question}\nAnswer: ',
    ' ',
  ),
  'zh': Wording(
    '请阅读下面的文字，文末有一个关于它的问题。\n\n',
    '\n\n文字到此结束。{question}请用一句话回答。',
    '\n\n问题：{question}\n回答：',
    '',
  ),
}


@dataclasses.dataclass(frozen=True)
class Needle:
  """A sentence that is hidden, and the question about it.

  Attributes:
    name: unique among those of a language.
    language: 'en' or 'zh'.
    sentence: what is hidden.
    question: what is asked.
    opening: how the answer begins; the value follows.
    right: the value, or several.
    wrong: values it is compared with.
    others: (share of the document, sentence) of what else is hidden.
  """

  name: str
  language: str
  sentence: str
  question: str
  opening: str
  right: tuple[str, ...]
  wrong: tuple[str, ...]
  others: tuple[tuple[float, str], ...] = ()

  def traces(self) -> list[str]:
    """Returns what must not be in the document: the sentences' beginnings."""
    return [
      trace(sentence, self.right)
      for sentence in (self.sentence, *(text for _, text in self.others))
    ]


def trace(sentence: str, values: Iterable[str]) -> str:
  """Returns what of a sentence comes before a value, or all of it.

  Example: trace('The code of the gate is 123.', ['123'])
    -> 'The code of the gate is'
  """
  places = [sentence.find(value) for value in values if value in sentence]
  head = sentence[: min(places, default=0)].strip()
  return head if len(head) >= 6 else sentence.strip()


# Language -> sentence, question, opening, values.
_FACTS = {
  'en': (
    (
      'The lighthouse keeper of Port Ellery hid the spare key inside a {value}.',
      'Where did the lighthouse keeper of Port Ellery hide the spare key?',
      'The lighthouse keeper of Port Ellery hid the spare key inside a',
      'copper kettle, wooden clock, leather boot, velvet glove, tin lantern',
    ),
    (
      'The code that opens the greenhouse at Hallow Farm is {value}.',
      'What is the code that opens the greenhouse at Hallow Farm?',
      'The code that opens the greenhouse at Hallow Farm is',
      '58213, 40976, 71342, 93605, 26481',
    ),
    (
      'The astronomer Mirela Dunn eats nothing for breakfast but {value}.',
      'What does the astronomer Mirela Dunn eat for breakfast?',
      'For breakfast the astronomer Mirela Dunn eats nothing but',
      'pickled plums, boiled barley, roasted chestnuts, dried herring, '
      'pumpkin soup',
    ),
    (
      'The night train to Varnholt carries a cargo of {value}.',
      'What does the night train to Varnholt carry?',
      'The night train to Varnholt carries a cargo of',
      'piano strings, garden chairs, marble dust, paper umbrellas, oak barrels',
    ),
    (
      'Old captain Brandt painted the hull of his boat {value}.',
      'In which colour did old captain Brandt paint the hull of his boat?',
      'Old captain Brandt painted the hull of his boat',
      'yellow, purple, green, orange, silver',
    ),
  ),
  'zh': (
    (
      '临江书院的看门人把备用钥匙藏在{value}里。',
      '临江书院的看门人把备用钥匙藏在哪里？',
      '临江书院的看门人把备用钥匙藏在',
      '铜壶, 木钟, 皮靴, 瓷瓶, 竹篮',
    ),
    (
      '青石农场温室的开门密码是{value}。',
      '青石农场温室的开门密码是多少？',
      '青石农场温室的开门密码是',
      '58213, 40976, 71342, 93605, 26481',
    ),
    (
      '天文学家陆远舟每天早餐只吃{value}。',
      '天文学家陆远舟每天早餐吃什么？',
      '天文学家陆远舟每天早餐只吃',
      '腌梅子, 大麦粥, 烤栗子, 南瓜汤, 咸鱼干',
    ),
    (
      '开往白桦岭的夜班火车运的是{value}。',
      '开往白桦岭的夜班火车运的是什么？',
      '开往白桦岭的夜班火车运的是',
      '钢琴弦, 大理石, 纸雨伞, 橡木桶, 旧书籍',
    ),
    (
      '老船长方铁山把他的船身漆成了{value}。',
      '老船长方铁山把他的船身漆成了什么颜色？',
      '老船长方铁山把他的船身漆成了',
      '黄色, 紫色, 绿色, 橙色, 银色',
    ),
  ),
}

MOST_FACTS = min(map(len, _FACTS.values()))


def facts(language: str, count: int, seed: int) -> list[Needle]:
  """Returns needles that come with us.

  Args:
    language: 'en' or 'zh'.
    count: how many.
    seed: decides which value of each is the right one.

  Raises:
    ValueError: if there are not so many.
  """
  if not 1 <= count <= MOST_FACTS:
    raise ValueError(
      f'--needles takes 1 to {MOST_FACTS}, not {count}; more of your own come '
      'with --needles_file'
    )
  found = []
  for number, fact in enumerate(_FACTS[language][:count], start=1):
    *texts, values = fact
    choice = values.split(', ')
    first = seed % len(choice)
    found.append(
      _fact(f'{language}-{number}', language, *texts, _turned(choice, first))
    )
  return found


def _turned(values: Sequence[str], first: int) -> list[str]:
  return [*values[first:], *values[:first]]


def _fact(
  name: str,
  language: str,
  sentence: str,
  question: str,
  opening: str,
  values: Sequence[str],
) -> Needle:
  """Returns a needle; the first value is right."""
  right, *wrong = values
  sentence = sentence.replace(VALUE, right)
  return Needle(
    name, language, sentence, question, opening, (right,), tuple(wrong)
  )


_FIELDS = ('language', 'sentence', 'question', 'opening', 'values')


def read(path: str) -> list[Needle]:
  """Returns the needles of a file.

  Args:
    path: of JSON lines with language, sentence (with `{value}` in it),
      question, opening and values, the right one first.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it has none, or one that is not whole.
  """
  found = []
  for number, line in enumerate(documents.read(path).splitlines(), start=1):
    if line.strip():
      entry = _entry(line, f'{path}, line {number}')
      fields = [entry[name] for name in _FIELDS]
      found.append(_fact(f'line-{number}', *fields))
  if not found:
    raise ValueError(f'{path} has no needles; write one a line')
  return found


def _entry(line: str, where: str) -> dict[str, Any]:
  """Returns a needle as it stands in a file.

  Raises:
    ValueError: if it is not whole.
  """
  try:
    entry = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{where}: no JSON ({error})') from error
  if not isinstance(entry, dict):
    raise ValueError(f'{where}: no JSON object with {", ".join(_FIELDS)}')
  missing = [name for name in _FIELDS if not entry.get(name)]
  if missing:
    raise ValueError(f'{where}: {", ".join(missing)} is missing')
  *texts, values = (entry[name] for name in _FIELDS)
  for name, text in zip(_FIELDS, texts, strict=False):
    if not isinstance(text, str):
      raise ValueError(f'{where}: {name} is no text: {text!r}')
  if VALUE not in entry['sentence']:
    raise ValueError(f'{where}: the sentence has no {VALUE}')
  if entry['language'] not in WORDINGS:
    raise ValueError(
      f'{where}: language is {entry["language"]!r}; there are: '
      f'{", ".join(WORDINGS)}'
    )
  if not isinstance(values, list) or not all(map(_is_value, values)):
    raise ValueError(
      f'{where}: values are a list of texts with letters or digits, numbers '
      f'in quotation marks, not {values!r}'
    )
  if len(values) < 2 or len(set(values)) < len(values):
    raise ValueError(
      f'{where}: values are the right one and others to compare it with, '
      'each once'
    )
  return entry


def _is_value(value: object) -> bool:
  return isinstance(value, str) and any(map(str.isalnum, value))


# Two words make a key: 24 x 24 of them a language.
_KEY_WORDS = {
  'en': (
    'amber ancient brave bright calm crimson crooked distant gentle golden '
    'hidden hollow humble icy lonely mellow narrow pale quiet rusty silver '
    'solemn velvet windy',
    'anchor bridge candle canyon castle comet falcon forest fountain garden '
    'harbor island lantern meadow mirror orchard pebble river sparrow temple '
    'thunder tower valley willow',
  ),
  'zh': (
    '琥珀 古老 勇敢 明亮 平静 深红 弯曲 遥远 温柔 金色 隐秘 空心 谦逊 冰冷 孤独 '
    '柔和 狭窄 苍白 安静 生锈 银色 庄严 丝绒 多风',
    '船锚 石桥 蜡烛 峡谷 城堡 彗星 猎鹰 森林 喷泉 花园 港口 岛屿 灯笼 草地 镜子 '
    '果园 卵石 河流 麻雀 庙宇 雷声 高塔 山谷 柳树',
  ),
}
_KEY_TEXTS = {
  'en': (
    'The secret number of the {key} is {value}.',
    'What is the secret number of the {key}?',
    'The secret number of the {key} is',
    'What are all the secret numbers of the {key}?',
    'The secret numbers of the {key} are',
  ),
  'zh': (
    '{key}的密码是{value}。',
    '{key}的密码是多少？',
    '{key}的密码是',
    '{key}的所有密码是哪些？',
    '{key}的密码有',
  ),
}
_DIGITS = 6
_COMPARED = 7  # wrong values at most
_EDGE = 0.02  # of the document, where nothing else is hidden

MOST_KEYS = min(
  len(adjectives.split()) * len(nouns.split())
  for adjectives, nouns in _KEY_WORDS.values()
)


def keys(
  language: str, count: int, num_keys: int, num_values: int, seed: int
) -> list[Needle]:
  """Returns needles of many keys, one of which is asked for.

  After RULER (Hsieh et al. 2024, arXiv:2404.06654, "multi-keys" and
  "multi-values"): every key has numbers, hidden in one sentence each. A first
  number of the asked key stands at the depth of the cell; all else stands at
  random places, the same shares of every length.

  Args:
    language: 'en' or 'zh'.
    count: needles: draws of keys, numbers and places.
    num_keys: K, keys in the document; 1 hides nothing else.
    num_values: numbers of the asked key.
    seed: of the draws.

  Raises:
    ValueError: for numbers that make no sense.
  """
  if not 1 <= num_keys <= MOST_KEYS:
    raise ValueError(f'--keys takes 1 to {MOST_KEYS}, not {num_keys}')
  if num_values < 1:
    raise ValueError(f'--values must be at least 1, not {num_values}')
  if count < 1:
    raise ValueError(f'--needles must be at least 1, not {count}')
  return [
    _keys(language, number, num_keys, num_values, seed)
    for number in range(1, count + 1)
  ]


def _keys(
  language: str, number: int, num_keys: int, num_values: int, seed: int
) -> Needle:
  draw = random.Random(f'{seed} {language} {number}')
  adjectives, nouns = (text.split() for text in _KEY_WORDS[language])
  mark = WORDINGS[language].gap
  pairs = list(itertools.product(adjectives, nouns))
  names = [mark.join(pair) for pair in draw.sample(pairs, num_keys)]
  low, high = 10 ** (_DIGITS - 1), 10**_DIGITS
  amount = num_values + num_keys - 1 + _COMPARED
  numbers = list(map(str, draw.sample(range(low, high), amount)))
  right, rest = numbers[:num_values], numbers[num_values:]
  sentence, *asked = _KEY_TEXTS[language]
  question, opening = asked[2:] if num_values > 1 else asked[:2]
  key, *other_keys = names

  def write(key: str, value: str) -> str:
    return sentence.replace('{key}', key).replace(VALUE, value)

  others = [write(key, value) for value in right[1:]]
  others += [
    write(k, value) for k, value in zip(other_keys, rest, strict=False)
  ]
  return Needle(
    name=f'{language}-keys-{number}',
    language=language,
    sentence=write(key, right[0]),
    question=question.replace('{key}', key),
    opening=opening.replace('{key}', key),
    right=tuple(right),
    # Numbers of other keys first: mixing them up is what goes wrong.
    wrong=tuple(rest[:_COMPARED]),
    others=tuple((draw.uniform(_EDGE, 1 - _EDGE), text) for text in others),
  )
