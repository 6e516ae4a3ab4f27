"""Each fault is planted among clean rows, and found; clean rows are left alone."""

import random

import ml_collections
import pytest

from yi_jax.alignment import rows
from yi_jax.alignment.checks import checks
from yi_jax.curation import language
from yi_jax.data import conversations

_THINGS = [
  'rivers',
  'bridges',
  'lamps',
  'gardens',
  'clocks',
  'mountains',
  'harbours',
  'letters',
  'kitchens',
  'maps',
  'violins',
  'wheels',
  'candles',
  'deserts',
  'towers',
  'schools',
  'markets',
  'engines',
  'islands',
  'coins',
  'ladders',
  'windows',
  'tunnels',
  'orchards',
  'mirrors',
  'baskets',
  'anchors',
  'pianos',
  'glaciers',
  'libraries',
]
_ASKS = (
  'Explain why {} matter to people.',
  'How do {} change over a long time?',
  'Describe the oldest {} that are known.',
  'What makes good {} hard to find?',
)
_WORDS = [
  'old',
  'stone',
  'water',
  'light',
  'paper',
  'winter',
  'small',
  'quiet',
  'people',
  'build',
  'carry',
  'morning',
  'colour',
  'value',
  'road',
  'north',
  'early',
  'strong',
  'simple',
  'wooden',
  'trade',
  'family',
  'season',
  'travel',
  'story',
  'iron',
  'glass',
  'careful',
  'distant',
  'useful',
  'common',
  'narrow',
  'open',
  'deep',
]
_ZH_THINGS = [
  '河流',
  '桥梁',
  '灯火',
  '花园',
  '时钟',
  '高山',
  '港口',
  '书信',
  '厨房',
  '地图',
  '提琴',
  '车轮',
  '蜡烛',
  '沙漠',
  '高塔',
  '学堂',
  '集市',
  '机器',
  '海岛',
  '硬币',
  '梯子',
  '窗户',
  '隧道',
  '果园',
  '镜子',
  '篮子',
  '船锚',
  '钢琴',
  '冰川',
  '书馆',
]
_ZH_ASKS = (
  '请解释{}对人们有哪些意义。',
  '{}在漫长岁月里怎样变化？',
  '描述已知最古老的{}是何模样。',
  '好的{}为何如此难以寻得？',
)
_ZH_WORDS = '石水光纸冬小静人建带晨色值路北早强简木贸家季旅事铁璃细远用常窄开深古村雨风云田'


def _row(question, answer, language='en', ability='instruction', system=''):
  """Returns a row of one exchange."""
  messages = [
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  ]
  return _talk(messages, language, ability, system)


def _talk(messages, language='en', ability='instruction', system=''):
  """Returns a row of these messages."""
  if system:
    messages = [{'role': 'system', 'content': system}, *messages]
  return rows.Row(
    conversations.identity(messages),
    f'{language}_{ability}_test',
    language,
    ability,
    tuple(messages),
  )


def _english(seed, sentences=3):
  """Returns sentences that mean nothing, each another."""
  draw = random.Random(seed)
  lines = [' '.join(draw.sample(_WORDS, 9)) for _ in range(sentences)]
  return ' '.join(f'{line.capitalize()}.' for line in lines)


def _chinese(seed, sentences=3):
  """Returns Chinese sentences that mean nothing, each another."""
  draw = random.Random(seed)
  return ''.join(
    f'{"".join(draw.sample(_ZH_WORDS, 14))}。' for _ in range(sentences)
  )


def _clean(count=30):
  """Returns rows without a fault, so many of each language."""
  found = []
  for k in range(count):
    ask = _ASKS[k % len(_ASKS)].format(_THINGS[k % len(_THINGS)])
    found.append(_row(ask, _english(k, 2 + k % 3)))
    ask = _ZH_ASKS[k % len(_ZH_ASKS)].format(_ZH_THINGS[k % len(_ZH_THINGS)])
    found.append(_row(ask, _chinese(k, 2 + k % 3), 'zh'))
  return found


class _Identifier:
  """Stands in for fastText's model: Han characters are Chinese."""

  def predict(self, text, k):
    han = sum('\u4e00' <= character <= '\u9fff' for character in text)
    best, other = ('zh', 'en') if 2 * han > len(text) else ('en', 'zh')
    return (f'__label__{best}', f'__label__{other}')[:k], (0.99, 0.01)[:k]


@pytest.fixture(autouse=True)
def identifier(monkeypatch):
  monkeypatch.setattr(language, 'load', lambda path: _Identifier())


def _config():
  return ml_collections.ConfigDict(checks.defaults())


def _exchange(*texts):
  roles = ('user', 'assistant')
  return _talk(
    [{'role': roles[k % 2], 'content': t} for k, t in enumerate(texts)]
  )


_LONG = _english(900, 3)
_ZH_LONG = _chinese(900, 3)
# Name -> the check that has to find it, what it says, the rows, and which of
# them it finds.
_FAULTS = {
  'a near copy of a prompt': (
    'duplicates',
    'Jaccard',
    [
      _row(
        'Write two lines on how a mill by the old river grinds its wheat in '
        'autumn for the villages around it, please.',
        _english(901, 4),
      ),
      _row(
        'Write two lines on how a mill by the old river grinds its wheat in '
        'autumn for the villages around it.',
        _english(902, 2),
      ),
    ],
    [1],
  ),
  'yes against no': (
    'contradictions',
    'yes against no',
    [
      _row('Is the moon larger than the sun?', 'No, it is far smaller.'),
      _row('is the Moon larger than the sun', 'Yes, it certainly is.'),
    ],
    [0, 1],
  ),
  'another number': (
    'contradictions',
    '8848 against 9200',
    [
      _row('请问珠穆朗玛峰有多高？', '它的高度是8848米。', 'zh'),
      _row('珠穆朗玛峰有多高', '海拔约9,200米。', 'zh'),
    ],
    [0, 1],
  ),
  'nothing in common': (
    'contradictions',
    'nothing in common',
    [
      _row('What is a quasar?', 'Old stone water light paper winter small.'),
      _row('What is the quasar?', 'Trade family season travel story iron.'),
      # Terms count that stand in three answers.
      *(
        _row(f'Say {w} for me.', f'{w} {_english(w)}')
        for w in ('stone', 'trade', 'winter', 'season')
      ),
    ],
    [0, 1],
  ),
  'an answer far too long': (
    'outliers',
    'words an answer',
    [_row('Explain how tides are made.', _english(903, 60))],
    [0],
  ),
  'a question far too long': (
    'outliers',
    'words a question',
    [_row(f'总结这段话：{_chinese(904, 30)}', _ZH_LONG, 'zh')],
    [0],
  ),
  'many turns': (
    'outliers',
    'turns',
    [
      _exchange(
        *(_english(905 + k, 1) for k in range(24)),
      )
    ],
    [0],
  ),
  'an English answer to a Chinese question': (
    'language',
    'asked in zh, answered in en',
    [_row('怎样才能种好一棵苹果树苗呢？', _LONG, 'zh')],
    [0],
  ),
  'a Chinese answer to an English question': (
    'language',
    'asked in en, answered in zh',
    [_row('How does one plant a young apple tree well?', _ZH_LONG)],
    [0],
  ),
  'a sentence that comes again and again': (
    'repetition',
    'comes 3 times',
    [
      _row(
        'Describe a ship in the fog.',
        f'{_LONG} The ship waits in the fog. The ship waits in the fog. The '
        'ship waits in the fog.',
      )
    ],
    [0],
  ),
  'a loop of characters': (
    'repetition',
    'comes 3 times',
    [_row('描述雾中的一艘船。', f'{_ZH_LONG}{"船在雾中等待。" * 5}', 'zh')],
    [0],
  ),
  'the same phrase in every line': (
    'repetition',
    'repetition.',
    [
      _row(
        'Describe a day at the harbour.',
        ' '.join(
          f'People at the harbour carry {w} stone by the narrow road and {w}.'
          for w in [
            'red',
            'blue',
            'green',
            'grey',
            'white',
            'black',
            'brown',
            'gold',
            'pink',
            'pale',
          ]
        ),
      )
    ],
    [0],
  ),
  'an answer that is the question': (
    'repetition',
    'the answer is the question',
    [_row('Ferns like shade.', 'ferns like shade')],
    [0],
  ),
  'an answer given twice in a conversation': (
    'repetition',
    'turn 2 says turn 1 again',
    [_exchange('What of the bells?', _LONG, 'And what of the drums?', _LONG)],
    [0],
  ),
  'a fence that stays open': (
    'stop',
    'a fence of code',
    [_row('Show me a loop.', 'Here it is:\n\n```python\nfor x in y:\n  z')],
    [0],
  ),
  'a bracket that stays open': (
    'stop',
    "'（' is not closed",
    [_row('潮汐怎样形成？', f'{_ZH_LONG}月亮的引力（也就是说', 'zh')],
    [0],
  ),
  'an answer cut off in a sentence': (
    'stop',
    'no mark at the end',
    [
      _row(
        'How is bread made at home?',
        f'{_LONG} Then one carries the warm dough over to a large stone table',
      )
    ],
    [0],
  ),
  'a Chinese answer cut off': (
    'stop',
    'no mark at the end',
    [
      _row(
        '家里怎样做面包？',
        f'{_ZH_LONG}然后把温热的面团放到一张很大的石桌上去',
        'zh',
      )
    ],
    [0],
  ),
  'an end that asks for more': (
    'stop',
    'it ends with',
    [_row('Where do swallows sleep?', 'They sleep in barns and under the')],
    [0],
  ),
  'another style': (
    'style',
    'bullets',
    [
      _row(
        'Plan a walk through the valley.',
        '# A walk\n\nThe plan:\n\n- old road\n- stone bridge\n- the mill\n\n'
        '```\nmap\n```\n\nHave a good time',
      )
    ],
    [0],
  ),
}


@pytest.fixture(scope='module')
def crowd():
  return _clean(60)


@pytest.mark.parametrize('name', list(_FAULTS))
def test_a_planted_fault_is_found_and_clean_rows_are_left_alone(name, crowd):
  check, says, planted, guilty = _FAULTS[name]
  found = [*crowd, *planted]
  said, _ = checks.run(found, _config())
  for k in guilty:
    reasons = [one.reason for one in said[len(crowd) + k] if one.check == check]
    assert any(says in reason for reason in reasons), reasons
  for row, mine in zip(crowd, said, strict=False):
    assert not mine, (row.messages, mine)
  for k in range(len(planted)):
    if k not in guilty:
      assert not [m for m in said[len(crowd) + k] if m.check == check]


def test_clean_rows_have_no_finding(crowd):
  said, seconds = checks.run(crowd, _config())
  assert not any(said)
  assert set(seconds) == set(checks.defaults()['run'])


def test_what_looks_like_a_fault_and_is_none(crowd):
  innocent = [
    # Translations, wanted or by ability; words quoted in another language.
    _row('Translate into Chinese: the stone is old and grey.', _ZH_LONG),
    _row('“石头又老又灰的样子”用英语怎么说？', _LONG, 'zh', 'translation'),
    _row('用“opulent”造一个完整的句子给我。', _LONG, 'zh'),
    # No prose: code, data, a list, an address, a face.
    _row('Call the tool.', '{"name": "search", "arguments": {"q": "("}}'),
    _row('Where is the page?', 'Look at https://example.org/a_page_(old'),
    _row('Sad news today.', f'{_LONG} I am sorry to hear that :('),
    # The same question of an ability that has many answers.
    _row(
      'Say something nice to me.', 'Yes, your hat is fine.', 'en', 'dialogue'
    ),
    _row(
      'say something nice to me', 'No, I would rather not.', 'en', 'dialogue'
    ),
    # Another number, or sign, asks something else.
    _row('Compute 6 + 9 for the class.', 'The answer is 15.', 'en', 'math'),
    _row('Compute 6 * 9 for the class.', 'The answer is 54.', 'en', 'math'),
    # The same result in another form.
    _row('What is one half of a loaf?', 'It is 1/2. The answer is 1/2'),
    _row('what is one half of the loaf', 'Answer: 0.5'),
  ]
  said, _ = checks.run([*crowd, *innocent], _config())
  for row, mine in zip(innocent, said[len(crowd) :], strict=True):
    told = {'outliers', 'style'}  # these are few, and of every form
    if row.ability == 'dialogue' or 'loaf' in row.exchanges[0][0]:
      told.add('duplicates')
    wrong = [m for m in mine if m.check not in told]
    assert not wrong, (row.messages, wrong)


def test_of_one_wording_a_few_rows_stay(crowd):
  config = _config()
  config.templates.keep = 3
  made = [
    _row(
      f'Work out the total price of {k} apples that cost {k + 2} coins apiece.',
      f'That is {k * (k + 2)}.',
      ability='math',
    )
    for k in range(8)
  ]
  said, _ = checks.run([*crowd, *made], config)
  flagged = [
    i
    for i, mine in enumerate(said)
    if any(m.check == 'templates' for m in mine)
  ]
  assert len(flagged) == 5
  assert min(flagged) >= len(crowd)


def test_a_check_of_another_name_is_refused(crowd):
  config = _config()
  config.run = ('duplicats',)
  with pytest.raises(ValueError, match="did you mean 'duplicates'"):
    checks.run(crowd, config)


def test_rows_without_a_word_are_no_problem():
  found = [
    _row('?', '!'),
    _row('??', '。。。', 'zh'),
    _row('```', '```'),
    _row('[]', '{}'),
    _row('\n\n.', ' . '),
  ]
  said, _ = checks.run(found, _config())
  assert len(said) == len(found)
