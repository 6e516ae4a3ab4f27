"""Chat formats: how a conversation becomes token ids, and what is learned.

Which format a checkpoint was tuned on is data: a Template here, found by
comparing what the checkpoint's own Jinja text renders. A base model has none.

Ids are made piece by piece. The marks of a format become special ids, text of
people never does: '<|im_end|>' typed by a user stays text and ends no turn.
Nothing else is added, no BOS and no space after a mark. What the model writes
is encoded apart from the header before it, as it is when the model writes.

  <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
                                                         ^^^^^^^^^^^^^^^ learned
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from yi_jax.data import tokenizer as tokenizers

ROLES = ('system', 'user', 'assistant')

Message = Mapping[str, str]  # {'role': ..., 'content': ...}

_MARK = re.compile(r'(<\|im_start\|>|<\|im_end\|>)')


@dataclasses.dataclass(frozen=True)
class Template:
  """A chat format.

  Attributes:
    name: how flags and manifests call it.
    frames: role -> (text before the content, text after it).
    jinja: the same for other tools, in tokenizer_config.json.
    end: follows an answer and is learned, so that the model stops there.
    default_system: system message of conversations that bring none.
    opening: stands before the first turn, after the system message.
    answer_prefix: an answer begins with it; learned, and hidden from people.
    stop_texts: the model's text ends before these, where no id ends it.
  """

  name: str
  frames: Mapping[str, tuple[str, str]]
  jinja: str
  end: str = '<|im_end|>'
  default_system: str | None = None
  opening: str = ''
  answer_prefix: str = ''
  stop_texts: tuple[str, ...] = ()


class Rendered(NamedTuple):
  """A conversation as a model reads it.

  Attributes:
    ids: token ids.
    learned: for each, whether the assistant wrote it: answers and their ends.
  """

  ids: list[int]
  learned: list[bool]


_CHATML = {role: (f'<|im_start|>{role}\n', '<|im_end|>\n') for role in ROLES}
# The mark after an answer is `end`; what follows it is for the next turn.
_CHATML['assistant'] = ('<|im_start|>assistant\n', '\n')

_CHATML_JINJA = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
  "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SMOLLM2_SYSTEM = (
  'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
)

# Yi-VL was tuned with this very text (01-ai/Yi, VL/llava/conversation.py).
_YI_VL_SYSTEM = (
  'This is a chat between an inquisitive human and an AI assistant. Assume the '
  'role of the AI assistant. Read all the images carefully, and respond to the '
  "human's questions with informative, helpful, detailed and polite answers. "
  '这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。'
  '仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。'
)

_ALL = (
  # Yi chat models and Yi-Coder (Yi report, section 3.1).
  Template('chatml', _CHATML, _CHATML_JINJA),
  # Yi-1.5 chat models: the system message has no header.
  Template(
    'yi_1_5',
    {**_CHATML, 'system': ('', '')},
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ message['content'] }}{% else %}{{ '<|im_start|>' + message['role'] + "
    "'\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
  ),
  Template(
    'smollm2',
    _CHATML,
    "{% if messages[0]['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\\n{_SMOLLM2_SYSTEM}<|im_end|>\\n' }}}}"
    f'{{% endif %}}{_CHATML_JINJA}',
    default_system=_SMOLLM2_SYSTEM,
  ),
  # Yi-VL, after LLaVA; its stop is a text. '###' belongs to the turn it ends.
  Template(
    'yi_vl',
    {
      'system': ('', '\n\n'),
      'user': (' Human: ', '\n###'),
      'assistant': (' Assistant:', ''),
    },
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    f'{{% else %}}{_YI_VL_SYSTEM}{{% endif %}}'
    "{{ '\\n\\n###' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ ' Human: ' + message['content'] + '\\n###' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' Assistant: ' + message['content'] + '\\n###' }}{% endif %}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ ' Assistant:' }}{% endif %}",
    end='\n###',
    default_system=_YI_VL_SYSTEM,
    opening='###',
    answer_prefix=' ',
    stop_texts=('###',),
  ),
)
TEMPLATES = {template.name: template for template in _ALL}


def render(
  template: Template,
  messages: Sequence[Message],
  tokenizer: tokenizers.Tokenizer,
  *,
  generate: bool = False,
) -> Rendered:
  """Returns a conversation as token ids.

  Args:
    template: the format.
    messages: the turns in order, the system message (if any) first.
    tokenizer: of the checkpoint.
    generate: ends with the header of an answer, for the model to write it.

  Raises:
    ValueError: for a conversation or a tokenizer that does not fit.
  """
  _check(messages, generate)
  return _encode(template, _segments(template, messages, generate), tokenizer)


def surround(
  template: Template, before: str, after: str, tokenizer: tokenizers.Tokenizer
) -> tuple[list[int], list[int]]:
  """Returns the ids of a question on both sides of text given as ids.

  So a document of known tokens can stand in a question: head + document + tail
  is a conversation up to the answer that is due.

  Args:
    template: the format.
    before: of the question, before the document.
    after: of the question, after the document.
    tokenizer: of the checkpoint.

  Raises:
    ValueError: for a tokenizer that does not fit.
  """
  messages = [{'role': 'user', 'content': before}]
  segments = list(_segments(template, messages, True))
  place = segments.index((before, False, False))
  rest = [(after, False, False), *segments[place + 1 :]]
  return (
    _encode(template, segments[: place + 1], tokenizer).ids,
    _encode(template, rest, tokenizer).ids,
  )


def _encode(
  template: Template,
  segments: Iterable[tuple[str, bool, bool]],
  tokenizer: tokenizers.Tokenizer,
) -> Rendered:
  """Returns segments of a conversation as ids; see `_segments`."""
  ids, learned, pending = [], [], ''

  def flush(is_learned: bool) -> None:
    nonlocal pending
    new = tokenizer.encode(pending)
    ids.extend(new)
    learned.extend([is_learned] * len(new))
    pending = ''

  before = False
  for text, is_frame, is_learned in segments:
    if is_learned != before:
      flush(before)
      before = is_learned
    for part in _MARK.split(text) if is_frame else [text]:
      if is_frame and _MARK.fullmatch(part):
        flush(is_learned)
        ids.append(_mark(template, part, tokenizer))
        learned.append(is_learned)
      else:
        pending += part
  flush(before)
  return Rendered(ids, learned)


def render_text(
  template: Template, messages: Sequence[Message], *, generate: bool = False
) -> str:
  """Returns a conversation as text, as Jinja renders it.

  For people and comparisons: text cannot tell a mark from its spelling.

  Raises:
    ValueError: as `render`.
  """
  _check(messages, generate)
  return ''.join(text for text, *_ in _segments(template, messages, generate))


def get(name: str) -> Template:
  """Returns a format by name.

  Raises:
    ValueError: for an unknown one.
  """
  if name not in TEMPLATES:
    raise ValueError(
      f'no chat template {name!r}; there are: {", ".join(TEMPLATES)}'
    )
  return TEMPLATES[name]


def of_checkpoint(tokenizer: tokenizers.Tokenizer) -> Template:
  """Returns the format that a checkpoint was tuned on.

  Raises:
    ValueError: if it has none, or one that is not known here.
  """
  if not tokenizer.chat_template:
    raise ValueError(
      'this checkpoint has no chat template, so it is a base model that '
      'continues text and does not answer; name a template if it does chat: '
      + ', '.join(TEMPLATES)
    )
  for template in _ALL:
    if _agrees(template, tokenizer.chat_template):
      return template
  raise ValueError(
    'the chat template of this checkpoint is none that is known; name the '
    f'nearest one: {", ".join(TEMPLATES)}'
  )


def _agrees(template: Template, jinja: str) -> bool:
  """Returns whether a Jinja text lays out conversations like a template."""
  # Jinja is needed here only, and its import takes a while.
  import jinja2
  from jinja2 import sandbox

  def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

  system, user, answer, more = (
    {'role': role, 'content': f'({role} {i})'}
    for i, role in enumerate((*ROLES, 'user'))
  )
  try:
    # As transformers renders them; in a sandbox, as the text is a stranger's.
    compiled = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True
    ).from_string(jinja)
    return all(
      compiled.render(
        messages=messages,
        add_generation_prompt=generate,
        bos_token='(bos)',
        eos_token='(eos)',
        raise_exception=refuse,
      )
      == render_text(template, messages, generate=generate)
      for messages, generate in (
        ([user], True),
        ([system, user], True),
        ([system, user, answer, more], True),
        ([user, answer], False),
      )
    )
  except jinja2.TemplateError:
    return False


def _segments(
  template: Template, messages: Sequence[Message], generate: bool
) -> Iterator[tuple[str, bool, bool]]:
  """Yields (text, whether it is of the format, whether it is learned)."""
  turns = list(messages)
  if turns[0]['role'] != 'system' and template.default_system is not None:
    turns.insert(0, {'role': 'system', 'content': template.default_system})
  if turns[0]['role'] != 'system':
    yield template.opening, True, False
  for turn in turns:
    role, content = turn['role'], turn['content']
    before, after = template.frames[role]
    yield before, True, False
    if role == 'assistant':
      yield template.answer_prefix, True, True
      yield content, False, True
      yield template.end, True, True
    else:
      yield content, False, False
    yield after, True, False
    if role == 'system':
      yield template.opening, True, False
  if generate:
    yield template.frames['assistant'][0], True, False


def _check(messages: Sequence[Any], generate: bool) -> None:
  """Raises ValueError for what is no conversation."""
  if not messages:
    raise ValueError('a conversation needs a message')
  for i, message in enumerate(messages):
    role, content = message.get('role'), message.get('content')
    if role not in ROLES:
      raise ValueError(
        f'message {i} has role {role!r}; there are: {", ".join(ROLES)}'
      )
    if not isinstance(content, str):
      raise ValueError(f'the content of message {i} is no text: {content!r}')
    if role == 'system' and i:
      raise ValueError(f'message {i}: only the first may be of the system')
  if generate and messages[-1]['role'] != 'user':
    raise ValueError(
      f'an answer follows a message of the user, not of the '
      f'{messages[-1]["role"]}'
    )


def _mark(
  template: Template, mark: str, tokenizer: tokenizers.Tokenizer
) -> int:
  if mark not in tokenizer.special_ids:
    raise ValueError(
      f'chat template {template.name!r} needs the special token {mark!r}, '
      'which this tokenizer does not have'
    )
  return tokenizer.special_ids[mark]
