"""The model that is evaluated, with all that questions to it need."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from yi_jax.checkpoints import peft
from yi_jax.data import chatml
from yi_jax.data import tokenizer as tokenizers
from yi_jax.models import config as model_config
from yi_jax.serving import opening, reading

_SAMPLES = 64  # numbers of each array that tell one model from another


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to evaluate.

  Attributes:
    name: how pictures call it.
    config: the model.
    params: its parameters.
    words: its tokenizer.
    start: ids before a text; see opening.Checkpoint.
    template: how it was taught to chat, or None for a base model.
    identity: tells it from other models, and from other settings of it.
  """

  name: str
  config: model_config.ModelConfig
  params: Any
  words: tokenizers.Tokenizer
  start: tuple[int, ...]
  template: chatml.Template | None
  identity: dict[str, Any]

  def reader(self, max_length: int) -> reading.Reader:
    """Returns a reader of rows of up to `max_length` tokens."""
    return reading.Reader(
      self.config,
      self.params,
      max_length=max_length,
      vocabulary_size=self.words.size,
    )

  def frame(
    self, before: str, chat: str, base: str, answer: str
  ) -> tuple[list[int], list[int]]:
    """Returns the ids around a document, up to the middle of an answer.

    Args:
      before: stands before the document.
      chat: after it, the rest of the question to a model that chats.
      base: after it, for one that continues text.
      answer: how the answer begins.
    """
    words = self.words
    if self.template is None:
      head = [*self.start, *words.encode(before)]
      return head, words.encode(base + answer)
    head, tail = chatml.surround(self.template, before, chat, words)
    return head, [*tail, *words.encode(self.template.answer_prefix + answer)]

  def check_length(self, length: int) -> None:
    """Raises ValueError for a row longer than the model has positions."""
    most = self.config.max_position_embeddings
    if length > most:
      raise ValueError(
        f'a length of {length:,} is beyond the {most:,} positions of this model '
        '(max_position_embeddings); to see what it does there, raise them with '
        f'--max_position_embeddings={length}, and its base with --rope_theta if '
        'that was raised too'
      )


def open_subject(
  path: str,
  *,
  adapter: str | None = None,
  chat: bool | None = None,
  template: str | None = None,
  rope_theta: float | None = None,
  max_position_embeddings: int | None = None,
) -> Subject:
  """Opens a checkpoint of any kind.

  Args:
    path: see opening.open_checkpoint.
    adapter: folder of a LoRA adapter to put onto it.
    chat: whether it is asked as one that chats; None goes by whether the
      checkpoint brings a chat template.
    template: name of the template; None takes the checkpoint's own.
    rope_theta: another base than the checkpoint's.
    max_position_embeddings: another number of positions.

  Raises:
    OSError: if something cannot be read.
    ValueError: if the checkpoint does not fit what is asked.
  """
  if rope_theta is not None and not rope_theta > 1:
    raise ValueError(f'--rope_theta must be above 1, not {rope_theta:g}')
  checkpoint = opening.open_checkpoint(path)
  words = checkpoint.tokenizer
  if chat is None:
    chat = bool(template or words.chat_template)
  if template and not chat:
    raise ValueError('--template belongs to a chat; leave --nochat out')
  found = None
  if chat:
    found = chatml.get(template) if template else chatml.of_checkpoint(words)
  config, params = checkpoint.load()
  if adapter:
    params = peft.merge_adapter(adapter, config, params)
  changes = dict(
    rope_theta=rope_theta, max_position_embeddings=max_position_embeddings
  )
  changes = {k: v for k, v in changes.items() if v is not None}
  config = config.replace(**changes)
  identity = {
    'model': fingerprint(config, params),
    'tokenizer': words.hash,
    'template': found.name if found else None,
  }
  name = path.rstrip('/').rpartition('/')[2]
  return Subject(name, config, params, words, checkpoint.start, found, identity)


def fingerprint(config: model_config.ModelConfig, params: Any) -> str:
  """Returns a short hash of a model: its config, and some of its numbers."""
  digest = hashlib.sha256(repr(config).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    flat = leaf.reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLES)][:_SAMPLES]
    digest.update(f'{path} {leaf.shape}'.encode())
    digest.update(np.asarray(some, np.float32).tobytes())
  return digest.hexdigest()[:16]
