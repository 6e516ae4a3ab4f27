"""Tokenizers of checkpoints: one interface, found wherever they are.

  tokenizer.model    SentencePiece: Yi's, and what is trained here
  tokenizer.json     byte-level BPE, or SentencePiece's in another file
  *.gguf             either of them, inside the checkpoint

Where a folder has both files tokenizer.model is read: the other one of some
Yi checkpoints puts a space after special tokens.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from sentencepiece import sentencepiece_model_pb2

from yi_jax.data import (
  gguf_file,
  tokenizer_files,
  tokenizer_json,
  vocabulary,
)

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece


class Tokenizer(Protocol):
  """What every tokenizer here can do; see `vocabulary.Vocabulary`.

  Attributes:
    size: ids are below it.
    eos_id: end of a text; documents of pretraining begin after it.
    special_ids: spelling -> id of the special tokens.
    stop_ids: ids that end a text or a turn of a chat.
    chat_template: Jinja text the checkpoint brought, or None.
    hash: of the tokenizer, hex.
  """

  size: int
  eos_id: int
  special_ids: dict[str, int]
  stop_ids: tuple[int, ...]
  chat_template: str | None
  hash: str

  def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Returns the ids of a text; no special ones unless allowed."""

  def encode_batch(
    self, texts: Sequence[str], threads: int = 1
  ) -> list[list[int]]:
    """Returns `encode` of each text."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids."""

  def stream(self) -> vocabulary.Stream:
    """Returns a decoder that takes ids one by one."""

  def save(self, folder: pathlib.Path | str) -> None:
    """Writes the files that transformers reads a tokenizer from."""


def open_tokenizer(path: pathlib.Path | str) -> Tokenizer:
  """Opens the tokenizer of a checkpoint.

  Args:
    path: a folder with tokenizer.model or tokenizer.json, one of these files,
      or a .gguf file.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, or of a kind that is not read.
  """
  path = pathlib.Path(path)
  if path.is_file() and path.suffix == '.gguf':
    return _from_gguf(path)
  names = (tokenizer_files.MODEL_FILE, tokenizer_files.JSON_FILE)
  folder, files = path, [path / name for name in names]
  if path.is_file() and path.name in names:
    folder, files = path.parent, [path]
  facts = tokenizer_files.read(folder)
  for file in files:
    if file.is_file() and file.name == tokenizer_files.MODEL_FILE:
      return vocabulary.load(file, facts)
    if file.is_file():
      text = file.read_text(encoding='utf-8')
      return tokenizer_json.JsonVocabulary(text, str(file), facts)
  raise FileNotFoundError(
    f'no tokenizer: there is no {" or ".join(names)} in {path}'
  )


def _from_gguf(path: pathlib.Path) -> Tokenizer:
  """Returns the tokenizer in a GGUF file."""
  metadata = gguf_file.File(path).metadata

  def get(key: str, default: Any = None) -> Any:
    return metadata.get(f'tokenizer.ggml.{key}', default)

  tokens, kind = get('tokens'), get('model')
  if not tokens:
    raise ValueError(f'{path} holds no tokenizer')

  def spelled(role: str) -> str | None:
    index = get(f'{role}_token_id')
    return None if index is None else tokens[index]

  stops = [get('eos_token_id'), get('eot_token_id')]
  facts = tokenizer_files.Facts(
    bos=spelled('bos'),
    eos=spelled('eos'),
    unk=spelled('unknown'),
    pad=spelled('padding'),
    stop_ids=tuple(index for index in stops if index is not None),
    chat_template=metadata.get('tokenizer.chat_template'),
  )
  types = get('token_type', [_PIECE.NORMAL] * len(tokens))
  if kind == 'llama':
    # Files of before the key was invented leave it out; Yi has no such prefix.
    yi = tuple(tokens[:3]) == vocabulary.SPECIAL[:3]
    prefix = get('add_space_prefix', not yi)
    # llama.cpp's converter writes it as one more control symbol.
    types = list(types)
    types[get('unknown_token_id', vocabulary.UNK)] = _PIECE.UNKNOWN
    proto = _sentencepiece(tokens, get('scores'), types, prefix)
    return vocabulary.Vocabulary(proto, str(path), facts)
  if kind == 'gpt2':
    text = tokenizer_json.from_tokens(
      tokens,
      get('merges', ()),
      special=[i for i, t in enumerate(types) if t == _PIECE.CONTROL],
      added=[i for i, t in enumerate(types) if t == _PIECE.USER_DEFINED],
      pre=get('pre', 'default'),
    )
    return tokenizer_json.JsonVocabulary(text, str(path), facts)
  raise ValueError(
    f'{path} has a tokenizer of kind {kind!r}; read are llama (SentencePiece) '
    'and gpt2 (byte-level BPE)'
  )


def _sentencepiece(
  tokens: Sequence[str],
  scores: Sequence[float],
  types: Sequence[int],
  prefix: bool,
) -> bytes:
  """Returns the SentencePiece model that a GGUF file was made from."""
  model = sentencepiece_model_pb2.ModelProto()
  for token, score, kind in zip(tokens, scores, types, strict=True):
    # The numbers of the types are SentencePiece's.
    model.pieces.add(piece=token, score=float(score), type=int(kind))
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.byte_fallback = True
  trainer.vocab_size = len(model.pieces)
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = prefix
  normalizer.remove_extra_whitespaces = False
  return model.SerializeToString()
