"""Questions on a passage that stands somewhere in many documents.

An answer first recites the passage and then answers from it: that is how Yi
teaches a long context (report, section 7.1), as it makes the model look for the
place before it speaks. Two ways to get a question:

* `local` needs no model. It takes a sentence of the passage and asks what
  follows its beginning, what fills a gap in it (a number, a name, a title), or
  in which document it stands. What it quotes stands once in all documents, so
  that there is one answer. English and Chinese.
* `prompt` and `parse` have a model write question and answer.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from yi_jax.alignment.making import evolve

LANGUAGES = ('en', 'zh')

# All ours: characters of a sentence that is asked about, by language.
_SENTENCE = {'en': (40, 300), 'zh': (14, 120)}
_END = re.compile(r'(?<=[.!?])["”’)]*\s+|(?<=[。！？])[”’」）]*|\n+')
_GAPS = {
  # Numbers, and names inside a sentence.
  'en': re.compile(
    r'(?<![\w.,])\d[\d,.]*\d(?![\w,])|(?<![\w.,])\d+(?![\w.,])|'
    r"(?<=[a-z,;] )(?!I\b)[A-Z][a-z'’]+(?: [A-Z][a-z'’]+)*"
  ),
  'zh': re.compile(
    r'(?<=《)[^《》]{2,20}(?=》)|(?<=[“「])[^“”「」]{2,12}(?=[”」])|'
    r'[0-9０-９]{2,}|[零〇一二三四五六七八九十百千万亿两]{2,}(?=[年月日条章元个人])'
  ),
}
_BLANK = {'en': '____', 'zh': '（　　）'}
_LONGEST_QUESTION = 1_000  # characters that a model may write

_TEXTS = {
  'en': {
    'head': (
      'Below are {count} documents. Read them; a question follows at the end.',
      'Below are {count} documents. Read them; questions follow at the end.',
    ),
    'document': 'Document {number}:',
    'tail': (
      'Quote the passage that answers this question, then answer it.\n{asked}',
      'Quote the passage that answers each of these questions, then answer it.'
      '\n{asked}',
    ),
    'follows': 'Which words follow “{quote}” in the documents?',
    'gap': 'What fills the gap in this sentence of the documents: “{quote}”?',
    'where': 'In which document does it say “{quote}”?',
    'recited': 'Document {number} says:\n“{passage}”\n\n{answer}',
    'follows answer': 'The words that follow are: {answer}',
    'gap answer': 'The gap is filled by: {answer}',
    'where answer': 'It is in document {number}.',
  },
  'zh': {
    'head': (
      '下面有{count}篇文档。请阅读，最后有一个问题。',
      '下面有{count}篇文档。请阅读，最后有几个问题。',
    ),
    'document': '文档{number}：',
    'tail': (
      '请先引用能回答这个问题的段落，再作答。\n{asked}',
      '请对每个问题先引用能回答它的段落，再作答。\n{asked}',
    ),
    'follows': '在这些文档中，“{quote}”后面接着的是什么？',
    'gap': '这些文档里有一句话：“{quote}”，空白处是什么？',
    'where': '“{quote}”这句话出自哪一篇文档？',
    'recited': '文档{number}中写道：\n“{passage}”\n\n{answer}',
    'follows answer': '后面接着的是：{answer}',
    'gap answer': '空白处是：{answer}',
    'where answer': '出自文档{number}。',
  },
}
_PROMPT = {
  'en': (
    'Read the passage below. Write one question that this passage alone '
    'answers, and the answer. Whoever is asked sees many other documents '
    'beside it and cannot tell what "the passage" is: let the question name '
    'what it is about. Answer in one to three sentences. Reply with JSON and '
    'nothing else: {"question": "...", "answer": "..."}\n\n'
  ),
  'zh': (
    '请阅读下面的段落，写一个只凭这一段就能回答的问题，并写出答案。答题的人还会'
    '看到许多别的文档，不知道“这一段”指什么，所以问题里要写明问的是什么。答案用一'
    '到三句话。只回复JSON，不要写别的：{"question": "...", "answer": "..."}\n\n'
  ),
}


class Passage(NamedTuple):
  """A part of one of several documents.

  Attributes:
    text: as it stands there.
    document: number of the document, from 1.
  """

  text: str
  document: int


class Asked(NamedTuple):
  """A question and what the answer says after the passage.

  Attributes:
    question: one line.
    answer: without the passage.
    kind: 'follows', 'gap', 'where' or 'model'.
  """

  question: str
  answer: str
  kind: str


def layout(documents: Sequence[str], language: str) -> str:
  """Returns numbered documents one after the other."""
  title = _TEXTS[language]['document']
  return '\n\n'.join(
    f'{title.format(number=number)}\n{text}'
    for number, text in enumerate(documents, 1)
  )


def messages(
  documents: Sequence[str],
  passages: Sequence[Passage],
  asked: Sequence[Asked],
  language: str,
) -> list[dict[str, str]]:
  """Returns a conversation: documents and questions, and what they hold.

  Args:
    documents: in order.
    passages: one a question.
    asked: one or more questions.
    language: one of LANGUAGES.
  """
  texts, many = _TEXTS[language], len(asked) > 1
  questions = [
    f'{number}. {one.question}' if many else one.question
    for number, one in enumerate(asked, 1)
  ]
  answers = []
  for number, (passage, one) in enumerate(zip(passages, asked, strict=True), 1):
    answer = texts['recited'].format(
      number=passage.document, passage=passage.text, answer=one.answer
    )
    answers.append(f'{number}. {answer}' if many else answer)
  parts = (
    texts['head'][many].format(count=len(documents)),
    layout(documents, language),
    texts['tail'][many].format(asked='\n'.join(questions)),
  )
  return [
    {'role': 'user', 'content': '\n\n'.join(parts)},
    {'role': 'assistant', 'content': '\n\n'.join(answers)},
  ]


def local(
  passage: Passage,
  language: str,
  times: Callable[[str], int],
  draw: random.Random,
) -> Asked | None:
  """Returns a question on a passage, or None if nothing there can be asked.

  Args:
    passage: what is asked about.
    language: one of LANGUAGES.
    times: tells how often a text stands in all documents.
    draw: chooses.
  """
  least, most = _SENTENCE[language]
  sentences = [
    sentence
    for sentence in map(str.strip, _END.split(passage.text))
    if least <= len(sentence) <= most
  ]
  draw.shuffle(sentences)
  kinds = ['follows', 'gap', 'where']
  draw.shuffle(kinds)
  for sentence in sentences:
    for kind in kinds:
      found = _MAKERS[kind](sentence, passage, language, times, draw)
      if found:
        return found
  return None


def _follows(
  sentence: str,
  passage: Passage,
  language: str,
  times: Callable[[str], int],
  draw: random.Random,
) -> Asked | None:
  """Asks for the second half of a sentence."""
  del passage, draw
  middle = len(sentence) // 2
  if language == 'en':
    middle = sentence.find(' ', middle)
    if middle < 0:
      return None
  quote, rest = sentence[:middle].rstrip(), sentence[middle:].strip()
  if not rest or times(quote) != 1:
    return None
  return _asked('follows', language, quote, answer=rest)


def _gap(
  sentence: str,
  passage: Passage,
  language: str,
  times: Callable[[str], int],
  draw: random.Random,
) -> Asked | None:
  """Asks for a number, a name or a title that was taken out."""
  del passage
  gaps = list(_GAPS[language].finditer(sentence))
  draw.shuffle(gaps)
  for gap in gaps:
    sides = sentence[: gap.start()], sentence[gap.end() :]
    longer = max(sides, key=len)
    if len(longer) >= _SENTENCE[language][0] // 2 and times(longer) == 1:
      quote = _BLANK[language].join(sides)
      return _asked('gap', language, quote, answer=gap[0])
  return None


def _where(
  sentence: str,
  passage: Passage,
  language: str,
  times: Callable[[str], int],
  draw: random.Random,
) -> Asked | None:
  """Asks for the number of the document."""
  del draw
  if times(sentence) != 1:
    return None
  return _asked('where', language, sentence, number=passage.document)


_MAKERS = {'follows': _follows, 'gap': _gap, 'where': _where}


def _asked(kind: str, language: str, quote: str, **fields: Any) -> Asked:
  texts = _TEXTS[language]
  return Asked(
    texts[kind].format(quote=quote),
    texts[f'{kind} answer'].format(**fields),
    kind,
  )


def prompt(passage: str, language: str) -> list[dict[str, str]]:
  """Returns what a model is asked for question and answer."""
  return [{'role': 'user', 'content': _PROMPT[language] + passage}]


def parse(text: str) -> Asked:
  """Returns question and answer of a model's reply.

  Raises:
    Eliminated: if the reply is none.
  """
  start, end = text.find('{'), text.rfind('}')
  try:
    row = json.loads(text[start : end + 1])
    question, answer = (row[key].strip() for key in ('question', 'answer'))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise evolve.Eliminated(f'no question and answer: {text[:80]!r}') from error
  if not question or not answer:
    raise evolve.Eliminated('empty question or answer')
  if len(question) > _LONGEST_QUESTION:
    raise evolve.Eliminated('a question of many words')
  return Asked(' '.join(question.split()), answer, 'model')
