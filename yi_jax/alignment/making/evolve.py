"""New rows out of old ones: harder instructions, answers that step back.

A generator is a few prompts, asked one after the other, and a function that
makes a conversation of the replies, or says why there is none. Evolutions
follow WizardLM (arXiv:2304.12244): a task becomes harder (in depth) or another
one (in breadth), the model answers it, and what failed is eliminated. Step-Back
(arXiv:2310.06117) has an answer state the principle first and reason on the
concrete question after it; the Yi report names both (arXiv:2403.04652, 3.1).
The wording of all prompts is ours. Others are added with `register`.
"""

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yi_jax import spelling
from yi_jax.alignment.checks import texts
from yi_jax.alignment.making import endpoint, evolve_prompts
from yi_jax.data import conversations

Replies = Sequence[endpoint.Reply]

# All ours; WizardLM gives 80 words for an answer that says sorry.
_ALIKE = 0.9  # share of words in common from which a text is a copy
_COMPARED = 400  # words of a text that are compared
_LEAST_QUESTION, _LEAST_ANSWER = 3, 5  # words, or Chinese characters
_REFUSAL_WORDS = 80  # an answer of fewer that says sorry is a refusal
_REFUSAL = re.compile(
  r"\bsorry\b|\bapologi[sz]e|\bas an ai\b|\bi(?: can(?:no|['’])t|['’]m unable|"
  r' am (?:un|not )able)\b|抱歉|对不起|很遗憾|作为一个?(?:AI|人工智能|语言模型)|'
  r'我(?:无法|不能)',
  re.IGNORECASE,
)
# A task may say sorry ("Write a letter ...") or tell what a person cannot do.
_REFUSED_TASK = re.compile(
  r"\W*(?:(?:i['’]m|i am) (?:so |very )?sorry|sorry,|as an ai\b|(?:i can(?:no|['’])t"
  r"|(?:i['’]m|i am) (?:un|not )able to) (?:help|assist|write|create|provide|"
  r'rewrite|make)|(?:很|非常)?(?:抱歉|对不起)|我(?:无法|不能)(?:提供|帮|改写|完成))',
  re.IGNORECASE,
)
# What a reply has of the prompt when the model has not understood it.
_LEAKS = re.compile(
  r'<<<|>>>|\b(?:old|new|given|original|rewritten) (?:task|prompt)\b|原题|新题目',
  re.IGNORECASE,
)
_LABEL = re.compile(
  r'^\W*(?:(?:the |my )?new (?:task|prompt|question)|task|新题目?|题目)\W*[:：]'
  r'[\s*]*',
  re.IGNORECASE,
)
_CHINESE = 0.3  # share of Chinese characters among the words
_FIELD = re.compile(r'\{(question|answer|reply\d)\}')


class Eliminated(ValueError):  # noqa: N818, no error: it is expected
  """What a model made is no row; says why in a few words."""


@dataclasses.dataclass(frozen=True)
class Generator:
  """A way to make a row of a row.

  Attributes:
    name: for the command line and for provenance.
    prompts: language -> prompts, asked one after the other; see
      `evolve_prompts` for what stands in braces.
    parse: makes a conversation of the old one and the replies; raises
      Eliminated.
  """

  name: str
  prompts: Mapping[str, Sequence[str]]
  parse: Callable[[conversations.Messages, Replies], conversations.Messages]

  def hash(self) -> str:
    """Returns a hash of the prompts, for provenance."""
    words = repr(sorted((k, tuple(v)) for k, v in self.prompts.items()))
    return hashlib.sha256(words.encode()).hexdigest()[:16]

  def run(
    self,
    messages: conversations.Messages,
    ask: Callable[[list[dict[str, str]]], endpoint.Reply],
  ) -> conversations.Messages:
    """Makes a new row.

    Args:
      messages: the old one.
      ask: see `endpoint.Endpoint.ask`.

    Raises:
      Eliminated: if none came of it.
    """
    language = language_of(question(messages))
    fields = {
      'question': question(messages),
      'answer': messages[-1]['content'].strip(),
    }
    replies: list[endpoint.Reply] = []
    for prompt in self.prompts.get(language, self.prompts['en']):
      text = fill(prompt, fields)
      reply = ask([{'role': 'user', 'content': text}])
      if not reply.text.strip():
        raise Eliminated('empty reply')
      if reply.finish_reason == 'length':
        raise Eliminated('cut off')
      replies.append(reply)
      fields[f'reply{len(replies)}'] = clean(reply.text)
    made = self.parse(messages, replies)
    if found := conversations.problem(made):
      raise Eliminated(f'no conversation: {found}')
    return made


GENERATORS: dict[str, Generator] = {}


def register(generator: Generator) -> Generator:
  """Makes a generator known by its name; ValueError if the name is taken."""
  if generator.name in GENERATORS:
    raise ValueError(f'there is a generator {generator.name!r} already')
  if 'en' not in generator.prompts:
    raise ValueError(f'generator {generator.name!r} needs prompts for en')
  GENERATORS[generator.name] = generator
  return generator


def get(name: str) -> Generator:
  """Returns a generator by name; ValueError names the nearest."""
  if name not in GENERATORS:
    hint = spelling.nearest(name, GENERATORS)
    raise ValueError(f'no generator {name!r}{hint}')
  return GENERATORS[name]


def question(messages: conversations.Messages) -> str:
  """Returns what the last answer answers; turns before it are told with it."""
  turns = [m for m in messages[:-1] if m['role'] != 'system']
  if len(turns) == 1:
    return turns[0]['content'].strip()
  return '\n'.join(f'[{m["role"]}] {m["content"].strip()}' for m in turns)


def language_of(text: str) -> str:
  """Returns 'zh' or 'en': the language to ask a model in."""
  words = texts.words(text)
  chinese = sum('\u3400' <= word <= '\u9fff' for word in words)
  return 'zh' if chinese > _CHINESE * max(1, len(words)) else 'en'


def fill(prompt: str, fields: Mapping[str, str]) -> str:
  """Returns a prompt with its fields; braces inside them stay as they are."""
  return _FIELD.sub(lambda match: fields[match[1]], prompt)


def clean(text: str) -> str:
  """Returns a task without what models put around one.

  Example: 'New task: "Name a river."' gives 'Name a river.'.
  """
  text = text.strip().removeprefix('<<<').removesuffix('>>>').strip()
  text = _LABEL.sub('', text, count=1)
  for pair in ('""', '“”', '「」'):
    inner = text[1:-1]
    if text[:1] + text[-1:] == pair and not set(inner) & set(pair):
      text = inner
  return text.strip()


def is_copy(old: str, new: str) -> bool:
  """Returns whether two texts are the same but for a few words."""
  a, b = (texts.words(text)[:_COMPARED] for text in (old, new))
  return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() >= _ALIKE


def check_answer(text: str) -> None:
  """Raises Eliminated for an answer that is none."""
  words = texts.words(text)
  if len(words) < _LEAST_ANSWER:
    raise Eliminated('answer too short')
  if len(words) < _REFUSAL_WORDS and _REFUSAL.search(text):
    raise Eliminated('answer is a refusal')


def _evolved(
  old: conversations.Messages, replies: Replies
) -> conversations.Messages:
  """Makes a row of a new task and its answer."""
  task, answer = clean(replies[0].text), replies[1].text.strip()
  if len(texts.words(task)) < _LEAST_QUESTION:
    raise Eliminated('task too short')
  if _LEAKS.search(task) and not _LEAKS.search(question(old)):
    raise Eliminated('task repeats the prompt')
  if _REFUSED_TASK.match(task):
    raise Eliminated('task is a refusal')
  if is_copy(question(old), task):
    raise Eliminated('task is a copy')
  check_answer(answer)
  if is_copy(task, answer):
    raise Eliminated('answer repeats the task')
  system = [m for m in old if m['role'] == 'system']
  return (
    *system,
    {'role': 'user', 'content': task},
    {'role': 'assistant', 'content': answer},
  )


def _stepped_back(
  old: conversations.Messages, replies: Replies
) -> conversations.Messages:
  """Makes a row whose last answer has the principle, then the reasoning."""
  principle, reasoning = (reply.text.strip() for reply in replies)
  for text in (principle, reasoning):
    check_answer(text)
    if '<<<' in text or '>>>' in text:
      raise Eliminated('answer repeats the prompt')
  if is_copy(principle, question(old)):
    raise Eliminated('principle is the question')
  if is_copy(principle, reasoning):
    raise Eliminated('reasoning is the principle')
  answer = f'{principle}\n\n{reasoning}'
  if is_copy(old[-1]['content'], answer):
    raise Eliminated('answer is a copy')
  return (*old[:-1], {**old[-1], 'content': answer})


EVOLUTIONS = tuple(evolve_prompts.evolutions())
for _name, _prompts in evolve_prompts.evolutions().items():
  register(Generator(_name, _prompts, _evolved))
register(Generator('step_back', evolve_prompts.STEP_BACK, _stepped_back))


def choose(names: Sequence[str], key: str, seed: int) -> str:
  """Returns one of several generators for a row, always the same.

  Args:
    names: to choose from.
    key: of the row and the round.
    seed: another one chooses otherwise.
  """
  digest = hashlib.sha256(f'{seed} {key}'.encode()).digest()
  return names[int.from_bytes(digest[:8], 'big') % len(names)]


def provenance(
  generator: Generator, parent: str, made_by: Mapping[str, Any], date: str
) -> dict[str, Any]:
  """Returns what a made row remembers of how it was made."""
  return {
    'generator': generator.name,
    'parent': parent,
    'prompt_sha256': generator.hash(),
    'date': date,
    **made_by,
  }
