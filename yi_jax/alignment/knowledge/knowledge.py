"""Which answers a model does not support: what it would have to learn by heart.

Yi drops answers whose knowledge the base model does not have; the sentence of
the report reads as if it were the other way round (arXiv:2403.04652, 3.1), and
01.AI's own account says that data beyond the model's ability counts as poor.
Tuned on facts it has never met, a model learns to state things it does not
know. So each answer is compared with what the model itself says when it is
asked several times:

  gap        log-probability a token of the answer, less that of the model's own
             answers: far below 0, the model would not say it so
  support    share of the answer's words that the model's answers have, those
             of the question and small words apart
  agreement  the same among the model's answers: whether it is sure of anything

Both gap and support are of words, not of truth: an answer may be right and
unknown, or wrong and what the model believes.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from yi_jax.alignment.checks import texts
from yi_jax.alignment.making import evolve
from yi_jax.data import chatml, conversations
from yi_jax.serving import generation, opening, writing

# Words that every answer has.
_SMALL = frozenset(
  re.findall(
    r'\w+',
    'a an the and or but if of to in on at by for from with as is are was were be '
    'been being it its this that these those there i you he she they we not no '
    'yes do does did have has had can could will would so very more most also '
    'which who',
  )
) | frozenset('的了是在和与也就都而及或这那个一不有为以它他她我你们会可能吗呢')
_BASE = {
  'en': ('Question: ', 'Answer:', ' '),
  'zh': ('问题：', '回答：', ''),
}
_NEXT = ('\n\n', '\nQuestion:', '\n问题：')  # a base model goes on by itself


class Item(NamedTuple):
  """One answer to look at.

  Attributes:
    id: of the conversation.
    turn: index of the answer among the messages.
    question: what it answers.
    answer: its text.
    prompt: token ids up to the answer.
  """

  id: str
  turn: int
  question: str
  answer: str
  prompt: list[int]


class Figures(NamedTuple):
  """What is known of an answer; see the module.

  Attributes:
    tokens: of the answer.
    log_probability: of it, nats a token.
    own_log_probability: of the model's own answers, nats a token, their mean.
    gap: the difference.
    support: 0 to 1.
    agreement: 0 to 1.
    samples: what the model says.
  """

  tokens: int
  log_probability: float
  own_log_probability: float
  gap: float
  support: float
  agreement: float
  samples: list[str]


class Layout:
  """How a checkpoint is asked: its chat template, or as a base model."""

  def __init__(
    self, checkpoint: opening.Checkpoint, template: str = ''
  ) -> None:
    """Takes the chat template of a checkpoint, if it has one.

    Args:
      checkpoint: the model.
      template: name of another one; '' is its own.

    Raises:
      ValueError: if its template, or the name, is not known.
    """
    self.tokenizer, self._start = checkpoint.tokenizer, checkpoint.start
    self.template = None
    if template:
      self.template = chatml.get(template)
    elif self.tokenizer.chat_template:
      self.template = chatml.of_checkpoint(self.tokenizer)
    self.stop_ids = sorted({self.tokenizer.eos_id, *self.tokenizer.stop_ids})

  def items(self, key: str, messages: conversations.Messages) -> list[Item]:
    """Returns the answers of a conversation.

    Args:
      key: its id.
      messages: its turns.
    """
    return [
      Item(
        key,
        turn,
        messages[turn - 1]['content'],
        message['content'],
        self.prompt(messages[:turn]),
      )
      for turn, message in enumerate(messages)
      if message['role'] == 'assistant'
    ]

  def prompt(self, messages: conversations.Messages) -> list[int]:
    """Returns the ids up to an answer."""
    if self.template:
      return chatml.render(
        self.template, messages, self.tokenizer, generate=True
      ).ids
    language = self._language(messages[-1]['content'])
    asks, says, gap = _BASE[language]
    parts = []
    for message in messages:
      content = message['content']
      if message['role'] == 'user':
        parts.append(f'{asks}{content}\n')
      elif message['role'] == 'assistant':
        parts.append(f'{says}{gap}{content}\n')
      else:
        parts.append(f'{content}\n')
    ids = self.tokenizer.encode(f'{"".join(parts)}{says}')
    return [*self._start, *ids]

  def answer(self, question: str, text: str) -> list[int]:
    """Returns the ids of an answer after its prompt, without an end."""
    if self.template:
      before = self.template.answer_prefix
    else:
      before = _BASE[self._language(question)][2]
    return self.tokenizer.encode(before + text.strip())

  def read(self, ids: Sequence[int]) -> str:
    """Returns what a model said, as people read it."""
    stops = self.template.stop_texts if self.template else _NEXT
    text = self.tokenizer.decode(list(ids))
    return ''.join(writing.until([text.lstrip()], stops)).strip()

  def _language(self, text: str) -> str:
    return evolve.language_of(text)


def examine(
  layout: Layout,
  generator: generation.Generator,
  items: Sequence[Item],
  *,
  samples: int,
  temperature: float,
  max_new_tokens: int,
  seed: int,
) -> list[Figures]:
  """Returns the figures of some answers, in one batch.

  They do not depend on which answers are together in it, but for rounding.

  Args:
    layout: of the checkpoint.
    generator: of the checkpoint.
    items: the answers.
    samples: how often the model is asked.
    temperature: of its answers.
    max_new_tokens: of its answers.
    seed: of the first answer to each question; the others follow.

  Raises:
    ValueError: for settings out of range.
  """
  if samples < 2:
    raise ValueError(f'samples must be at least 2, not {samples}')
  asked = list(dict.fromkeys(tuple(item.prompt) for item in items))
  made = generator.generate(
    [prompt for prompt in asked for _ in range(samples)],
    max_new_tokens,
    temperature=temperature,
    seed=[seed + i for _ in asked for i in range(samples)],
    stop_ids=layout.stop_ids,
  )
  said: dict[tuple[int, ...], list[str]] = {prompt: [] for prompt in asked}
  for i, ids in enumerate(made):
    said[asked[i // samples]].append(layout.read(ids))
  likely = _likely(layout, generator, items, said)
  found = []
  for item in items:
    prompt, own = tuple(item.prompt), said[tuple(item.prompt)]
    tokens, mean = likely[prompt, item.answer.strip()]
    told = [likely[prompt, text] for text in own]
    told = [value for count, value in told if count]
    usual = statistics.fmean(told) if told else 0.0
    found.append(
      Figures(
        tokens,
        mean,
        usual,
        mean - usual,
        support(item.question, item.answer, own),
        agreement(item.question, own),
        own,
      )
    )
  return found


def _likely(
  layout: Layout,
  generator: generation.Generator,
  items: Sequence[Item],
  said: Mapping[tuple[int, ...], Sequence[str]],
) -> dict[tuple[tuple[int, ...], str], tuple[int, float]]:
  """Returns tokens, and nats a token, of answers and of what was said.

  Args:
    layout: of the checkpoint.
    generator: of the checkpoint.
    items: the answers.
    said: prompt -> what the model answers.

  Returns:
    (prompt, text) -> (tokens, mean log-probability); each is read once.
  """
  ids = {}
  for item in items:
    prompt = tuple(item.prompt)
    for text in (item.answer.strip(), *said[prompt]):
      ids[prompt, text] = layout.answer(item.question, text)
  scores = generator.score([[*key[0], *new] for key, new in ids.items()])
  return {
    key: (len(new), float(score[len(key[0]) - 1 :].mean()) if new else 0.0)
    for (key, new), score in zip(ids.items(), scores, strict=True)
  }


def support(question: str, answer: str, own: Sequence[str]) -> float:
  """Returns the share of an answer's words that a model's answers have.

  Example: 'Lyon.' to 'What is the capital of France?' has 0 if the model says
  'The capital of France is Paris.' each time.

  Args:
    question: its words do not count, unless the answer has no others.
    answer: the text in question.
    own: the model's answers; the mean over them is taken.
  """
  words = _content(question, answer)
  if not words or not own:
    return 0.0
  return statistics.fmean(
    len(words & _content(question, text, keep_all=True)) / len(words)
    for text in own
  )


def agreement(question: str, own: Sequence[str]) -> float:
  """Returns how much a model's answers have of each other, 0 to 1."""
  return statistics.fmean(
    support(question, text, [*own[:i], *own[i + 1 :]])
    for i, text in enumerate(own)
  )


def why(figures: Figures, gap: float, support: float) -> str:
  """Returns why an answer should go, '' if it should not.

  Args:
    figures: of the answer.
    gap: it goes only below.
    support: and only below.
  """
  if figures.gap >= gap or figures.support >= support:
    return ''
  sure = 'says otherwise' if figures.agreement >= 0.5 else 'does not know'
  return (
    f'the model {sure}: gap {figures.gap:.2f} < {gap:g}, support '
    f'{figures.support:.2f} < {support:g}, agreement {figures.agreement:.2f}'
  )


def _content(question: str, text: str, keep_all: bool = False) -> set[str]:
  """Returns the words that make an answer what it is."""
  words = set(texts.words(text))
  if keep_all:
    return words
  rest = words - _SMALL - set(texts.words(question))
  return rest or words


def medians(figures: Sequence[Figures]) -> dict[str, float]:
  """Returns the medians of the figures of many answers."""
  return {
    name: statistics.median(getattr(one, name) for one in figures)
    for name in ('log_probability', 'gap', 'support', 'agreement')
  }
