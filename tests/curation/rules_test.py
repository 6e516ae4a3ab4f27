"""Rules: what they measure, where they cut, and what a bad config says."""

import copy
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yi_jax.curation import documents, rules, rules_chinese, rules_english

_PROSE = (
  'The committee met on Monday to talk about the budget of the coming year. '
  'Several members said that they would like to have more time for reading. '
  'A vote was put off until the report of the auditors is ready for everyone. '
  'Nobody left before the end, and the chair thanked all of them with a smile. '
  'Outside it rained, so most people waited in the hall until evening came. '
)
_CHINESE = (
  '会议在星期一举行，讨论了明年的预算。几位成员表示，他们希望有更多时间阅读材料。'
  '表决推迟到审计报告完成以后再进行，主席向大家表示感谢，没有人提前离开。'
  '外面下着雨，所以多数人在大厅里等到了傍晚，然后才慢慢走回各自的家中去。'
)


def _alone(language, *names):
  """Returns the rules of a language with only some of them on."""
  module = {'en': rules_english, 'zh': rules_chinese}[language]
  config = module.defaults()
  for family, ranges in config.items():
    for rule in ranges if family != 'options' else ():
      if f'{family}.{rule}' not in names:
        ranges[rule] = (None, None)
  return module.make(config)


def _failed(text, language='en'):
  module = {'en': rules_english, 'zh': rules_chinese}[language]
  return module.make({}).judge(text)[0]


def _words(text, n):
  return ' '.join((text.split() * n)[:n])


def test_prose_passes():
  assert rules_english.make({}).judge(_PROSE) == ('', '', _PROSE.strip())
  assert rules_chinese.make({}).judge(_CHINESE) == ('', '', _CHINESE)


@pytest.mark.parametrize(
  ('rule', 'good', 'bad'),
  [
    ('document.characters', 'a', ''),
    ('document.garbled', 'a' * 100 + '\ufffd', 'a' * 98 + '\ufffd' * 2),
    ('document.lost_marks', 'he hasn"t', 'he hasn"t, says "?we'),
    ('document.digits', 'abcdefg 123', 'abc 123 456'),
    ('document.symbols', 'a, b. c! de fg', 'a, b. ~~~'),
    ('document.short_lines', 'x\n' + 'long line ' * 4, 'x\ny\nz'),
    ('document.consecutive_lines', 'a 1\nb\na 2\nb', 'page 1\npage 2\nc'),
    ('document.incomplete_lines', 'a.\nb\nc', 'a\nb\nc'),
    ('gopher.words', 'word ' * 50, 'word ' * 49 + '. ! ?'),
    ('gopher.mean_word_length', 'abc abc', 'ab abc'),
    ('gopher.hashes', '# a b c d e f g h i', '# # a b c d e f g h i'),
    ('gopher.ellipses', 'a b c d e f g h i ...', 'a b c d e …'),
    ('gopher.bullet_lines', 'x\n' + '- a\n' * 9, 'x\n' + ' • a\n' * 10),
    ('gopher.ellipsis_lines', 'a...\nb\nc\nd', 'a...\nb…\nc\nd'),
    ('gopher.words_with_letters', 'a b c d 1', 'a b c 1'),
    ('gopher.stop_words', 'the cat and dog', 'The cat the dog'),
    ('repetition.paragraphs', 'a\n\nb\n\nc\n\na', 'a\n\na'),
    (
      'repetition.paragraph_characters',
      'long paragraph\n\na\n\na',
      'paragraph\n\nlonger paragraph\n\nlonger paragraph',
    ),
    ('repetition.lines', 'a\nb\nc\na', 'a\nb\na'),
    ('repetition.line_characters', 'a long line\nb\nb', 'line\nlonger\nlonger'),
    ('repetition.top_2_gram', 'of the ' + 'other words ' * 1, 'of the ' * 3),
    ('repetition.duplicated_5_grams', 'a b c d e f', 'a b c d e ' * 3),
    ('c4.lorem_ipsum', 'Lorem ipsum', 'We say lorem Ipsum here.'),
    ('c4.curly_brackets', 'a { b', 'We say { here.'),
    (
      'c4.sentences',
      'One is here. Two is here. Three is. Four is. Five is.',
      'One is here. Dr. Two is not. Or No. 3, or 3.5 of them.',
    ),
  ],
)
def test_each_rule_of_english_cuts_where_it_says(rule, good, bad):
  only = _alone('en', rule)
  if rule == 'repetition.top_2_gram':
    good = ' '.join(f'some{n} thing{n}' for n in range(10))
  assert only.judge(good)[0] == ''
  assert only.judge(bad)[0] == rule


@pytest.mark.parametrize(
  ('rule', 'good', 'bad'),
  [
    ('chinese.characters', '字' * 100, '字' * 99 + ' ' * 50),
    ('chinese.han', '汉字abcd', '汉字abcde'),
    ('chinese.marks', '一二三，四五六。', '一' * 200 + '。'),
    ('chinese.function_characters', '我的书', '的士的'),
    ('chinese.mean_line', '一二三四五六七八九十', '一二三四五六七八九\n十'),
    ('chinese.sentences', '一。', '一，'),
    ('chinese.longest_run', '一' * 200 + '，', '一' * 201),
    ('chinese.ellipsis_lines', '一\n二\n三\n四……', '一……\n二\n'),
    ('chinese.bullet_lines', '• 一\n二', '- 一\n• 二'),
    ('repetition.lines', '一\n二\n三\n一', '一\n二\n一'),
    ('repetition.top_4_gram', '一二三四' * 2 + _CHINESE, '买一送一，' * 20),
    ('repetition.duplicated_10_grams', _CHINESE, _CHINESE * 2),
    ('repetition.duplicated_20_grams', _CHINESE, _CHINESE * 2),
  ],
)
def test_each_rule_of_chinese_cuts_where_it_says(rule, good, bad):
  only = _alone('zh', rule)
  assert only.judge(good)[0] == ''
  assert only.judge(bad)[0] == rule


def test_a_top_n_gram_of_characters_has_no_spaces_between():
  text = '甲乙丙丁' * 5 + '一二三四五六七八九十'
  numbers = {}
  rules_chinese.make({}).judge(text, numbers.__setitem__)
  assert numbers['repetition.top_4_gram'] == pytest.approx(20 / 30)


def test_shares_of_lines_say_nothing_of_few():
  only = _alone('en', 'document.incomplete_lines')
  assert only.judge('a title\nand a line without an end')[0] == ''
  assert only.judge('a\nb\nc')[0] == 'document.incomplete_lines'


def test_cut_lines_are_those_of_c4():
  page = '\n'.join(
    [
      'Home',
      'This line is kept[1], as it ends well.',
      'This one has no end',
      'Too short.',
      'Please enable Javascript to see it.',
      'We have a Privacy Policy for you.',
      'This one trails off...',
      'An "ending" is also "this one."',
      'x' * 1_001 + ' is a word that is too long.',
      'Is it one? Yes, it is! And there is one more sentence here.',
    ]
  )
  only = _alone('en', 'c4.sentences')
  failed, _, text = only.judge(page)
  assert not failed
  assert text.split('\n') == [
    'This line is kept, as it ends well.',
    'An "ending" is also "this one."',
    'Is it one? Yes, it is! And there is one more sentence here.',
  ]
  config = {'options': {'cut_lines': False, 'line_words': 3}}
  whole = rules_english.make(config).judge(_PROSE + '\nMenu')
  assert whole[2].endswith('Menu')


def test_chinese_footers_and_fragments_go():
  page = (
    f'首页\n{_CHINESE}\n版权所有 某某公司\n京ICP备12345号\n一个没有句号的短行'
  )
  assert rules_chinese.make({}).judge(page)[2] == (
    f'首页\n{_CHINESE}\n一个没有句号的短行'
  )
  strict = rules_chinese.make({'options': {'cut_fragments': True}})
  assert strict.judge(page)[2] == _CHINESE


def test_the_first_rule_that_fails_removes():
  batch = documents.Batch(
    ids=['a', 'b', 'c', 'd'],
    texts=[
      _words(_PROSE, 14),
      _PROSE,
      '短得很，不到一百个字。',
      'def f(): pass',
    ],
    languages=['en', 'en', 'zh', 'code'],
  )
  rules.Rules({}).process(batch)
  assert batch.removed == [
    'rules.gopher.words', '', 'rules.chinese.characters', ''
  ]  # fmt: skip
  assert batch.trails[0] == [('rules', 'removed by gopher.words: 14 < 50')]
  assert batch.texts[3] == 'def f(): pass'


def test_recorded_numbers_are_of_every_rule_and_change_no_verdict():
  texts = [_PROSE, 'too short', _PROSE * 4, '', '\ud800\x00', _CHINESE]
  quick = documents.Batch(
    ids=list('abcdef'), texts=texts[:], languages=['en'] * 6
  )
  slow = copy.deepcopy(quick)
  rules.Rules({}).process(quick)
  rules.Rules({'record': True}).process(slow)
  assert slow.removed == quick.removed
  assert slow.texts == quick.texts
  assert not quick.scores
  assert set(slow.scores) == set(rules_english.TABLE)
  assert all(np.isfinite(column).all() for column in slow.scores.values())
  assert slow.scores['gopher.words'][1] == 2


def test_neither_order_nor_batch_matters():
  texts = [_PROSE, _CHINESE, _words(_PROSE, 49), _PROSE * 3, 'x']
  rule_set = rules_english.make({})
  together = [rule_set.judge(text) for text in texts]
  assert [rule_set.judge(text) for text in texts[::-1]] == together[::-1]


def test_a_vocabulary_that_is_full_starts_anew(monkeypatch):
  before = rules_english.make({}).judge(_PROSE * 2)
  monkeypatch.setattr(rules_english, '_KNOWN', 10)
  assert rules_english.make({}).judge(_PROSE * 2) == before


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab1.,'’-/@#&=:\n \x85\xa0…é"), max_size=60))
def test_words_are_those_of_the_pattern_over_the_whole_text(text):
  numbers, lengths, _ = rules_english._split(text)
  words = rules_english._WORD.findall(text)
  assert lengths.tolist() == [len(word) for word in words]
  assert len(set(numbers.tolist())) == len(set(words))


@pytest.mark.parametrize('language', ['en', 'zh'])
@pytest.mark.parametrize(
  'text',
  ['', ' ', '\n\n', '\x00', '\ud800', '. . .', '\u3000', '-'],
)
def test_odd_texts_have_numbers(language, text):
  module = {'en': rules_english, 'zh': rules_chinese}[language]
  numbers = {}
  assert module.make({}).judge(text, numbers.__setitem__)[0]
  assert all(np.isfinite(list(numbers.values())))


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'englis': {}}, "no key 'englis'; did you mean 'english'"),
    ({'english': {'gofer': {}}}, "rules.english has no key 'gofer'"),
    (
      {'english': {'gopher': {'word': (1, 2)}}},
      "rules.english.gopher has no key 'word'; did you mean 'words'",
    ),
    (
      {'english': {'gopher': {'words': 50}}},
      'rules.english.gopher.words is 50: give the lowest and the highest',
    ),
    ({'chinese': {'chinese': {'han': (0.9, 0.1)}}}, 'chinese.han is'),
    ({'chinese': {'options': {'short': 1}}}, "options has no key 'short'"),
  ],
)
def test_a_wrong_config_names_the_key(config, message):
  with pytest.raises(ValueError, match='rules') as error:
    rules.Rules(config)
  assert message in str(error.value)


def test_every_rule_has_a_default_range():
  for module in (rules_english, rules_chinese):
    named = {
      f'{family}.{rule}'
      for family, ranges in module.defaults().items()
      if family != 'options'
      for rule in ranges
    }
    assert named == set(module.TABLE)


def test_published_thresholds_stand():
  given = rules_english.defaults()
  path = pathlib.Path(__file__).parent / 'published_thresholds.json'
  for family, ranges in json.loads(path.read_text()).items():
    for rule, bounds in ranges.items():
      assert list(given[family][rule]) == bounds, rule
