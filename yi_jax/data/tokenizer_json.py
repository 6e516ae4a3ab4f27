"""Tokenizers kept as tokenizer.json: byte-level BPE, and SentencePiece's BPE.

The work is done by Hugging Face's `tokenizers`; this module keeps it to the
rules of `vocabulary.Vocabulary`: nothing is added, no text becomes a special
token by itself, and decoding gives back bytes, so that a stream never shows
half a character.
"""

import concurrent.futures
import copy
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from yi_jax.data import tokenizer_files, vocabulary

# GGUF names the rule that cuts text into words before merging; these are the
# regular expressions of llama.cpp for models of the LLaMA architecture.
_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r'|\s+(?!\S)|\s+'
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_PRE_TOKENIZERS = {
  'gpt-2': (_GPT2,),
  'smollm': (r'\p{N}', _GPT2),
  'default': (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', '[0-9][0-9][0-9]'),
  'llama-bpe': (_LLAMA3,),
}


class JsonVocabulary:
  """A tokenizer.json with the interface of `vocabulary.Vocabulary`.

  Attributes:
    size: ids from 0 on; some may be unused.
    eos_id: end of a text; documents of pretraining begin after it.
    special_ids: spelling -> id of the special tokens.
    stop_ids: ids that end a text or a turn of a chat.
    chat_template: Jinja text that `save` writes, or None for a base model.
    hash: sha256 of tokenizer.json, hex.
  """

  def __init__(
    self, text: str, name: str, facts: tokenizer_files.Facts
  ) -> None:
    """Takes the content of a tokenizer.json.

    Args:
      text: the content.
      name: for messages.
      facts: what stands beside the file.

    Raises:
      ValueError: if it is damaged, no BPE, changes text in a way that decoding
        cannot undo, or does not say what ends a text.
    """
    try:
      content = json.loads(text)
      kind = content['model']['type']
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{name} is damaged or no tokenizer.json') from error
    if kind != 'BPE':
      raise ValueError(f'{name} has a {kind} model; only BPE is read')
    self._text, self._facts = text, facts
    self.hash = hashlib.sha256(text.encode()).hexdigest()
    added = {
      token['id']: (token['content'], token['special'])
      for token in content.get('added_tokens') or ()
    }
    # What the folder says of a token counts, as in transformers.
    added.update(facts.added)
    self.special_ids = {
      token: index
      for index, (token, special) in added.items()
      if tokenizer_files.is_special(token, special)
    }
    self._bytes = _token_bytes(content, added, name)
    self.size = max(self._bytes) + 1
    self.stop_ids = tokenizer_files.stop_ids(facts, self.special_ids)
    self.chat_template = facts.chat_template
    ends = (tokenizer_files.END_OF_TEXT, facts.eos)
    known = [self.special_ids[end] for end in ends if end in self.special_ids]
    if not known:
      raise ValueError(
        f'{name} has no end of text: neither {ends[0]!r} nor the eos_token of '
        f'{tokenizer_files.CONFIG_FILE} ({facts.eos!r}) is a special token'
      )
    self.eos_id = known[0]
    self._tokenizer = _plain(content, self.special_ids)

  def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Returns the ids of a text and nothing else: no BOS, no EOS.

    Args:
      text: any Unicode string.
      allow_special: whether '<|im_end|>' and its like become their special
        ids instead of ordinary tokens. Never for text of others.

    Raises:
      ValueError: for a lone surrogate, which is no text.
    """
    if allow_special:
      return tokenizer_files.encode_special(text, self.special_ids, self.encode)
    vocabulary.check_text(text)
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_batch(
    self, texts: Sequence[str], threads: int = 1
  ) -> list[list[int]]:
    """Returns `encode` of each text, on several threads."""
    if threads == 1:
      return list(map(self.encode, texts))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      return list(pool.map(self.encode, texts, chunksize=16))

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids, special tokens spelled out.

    Raises:
      ValueError: for an id that is no token.
    """
    return b''.join(map(self._lookup, ids)).decode('utf-8', 'replace')

  def stream(self) -> vocabulary.Stream:
    """Returns a decoder that takes ids one by one."""
    return vocabulary.Stream(self._lookup)

  def save(self, folder: pathlib.Path | str) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
      folder: is made if it is not there.
    """
    facts = tokenizer_files.Facts(
      bos=self._facts.bos,
      eos=self._facts.eos or self._spelling(self.eos_id),
      unk=self._facts.unk,
      pad=self._facts.pad,
      added=self._facts.added,
      chat_template=self.chat_template,
    )
    tokenizer_files.write(
      pathlib.Path(folder),
      {tokenizer_files.JSON_FILE: self._text},
      tokenizer_class='PreTrainedTokenizerFast',
      special_ids=self.special_ids,
      facts=facts,
    )

  def _spelling(self, index: int) -> str:
    return next(t for t, i in self.special_ids.items() if i == index)

  def _lookup(self, index: int) -> bytes:
    if index not in self._bytes:
      raise ValueError(f'no token {index}: the vocabulary has {self.size}')
    return self._bytes[index]


def from_tokens(
  tokens: Sequence[str],
  merges: Sequence[str],
  *,
  special: Iterable[int],
  added: Iterable[int],
  pre: str,
) -> str:
  """Returns the tokenizer.json of a byte-level BPE as GGUF files hold it.

  Args:
    tokens: by id, in the letters that GPT-2 writes bytes with.
    merges: 'left right', best first.
    special: ids of special tokens.
    added: ids of further tokens that are found in text whole.
    pre: llama.cpp's name of the rule that cuts text into words.

  Raises:
    ValueError: for an unknown rule.
  """
  if pre not in _PRE_TOKENIZERS:
    raise ValueError(
      f'the tokenizer cuts words by the rule {pre!r}; known are '
      f'{", ".join(_PRE_TOKENIZERS)}'
    )
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': False,
  }
  cuts = [
    {
      'type': 'Split',
      'pattern': {'Regex': pattern},
      'behavior': 'Isolated',
      'invert': False,
    }
    for pattern in _PRE_TOKENIZERS[pre]
  ]
  whole = {i: (tokens[i], False) for i in added}
  whole |= {i: (tokens[i], True) for i in special}
  content = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': tokenizer_files.json_added_tokens(whole),
    'normalizer': None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*cuts, byte_level]},
    'post_processor': None,
    'decoder': byte_level,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': pre == 'llama-bpe',
      'vocab': {token: i for i, token in enumerate(tokens)},
      'merges': [merge.split(' ') for merge in merges],
    },
  }
  return json.dumps(content, ensure_ascii=False)


def _plain(
  content: dict[str, Any], special_ids: Mapping[str, int]
) -> tokenizers.Tokenizer:
  """Returns a tokenizer that knows no special token and adds nothing."""
  content = copy.deepcopy(content)
  content['added_tokens'] = [
    token
    for token in content.get('added_tokens') or ()
    if token['content'] not in special_ids
  ]
  content['post_processor'] = None
  content['truncation'] = content['padding'] = None
  model = content['model']
  model['vocab'] = {
    token: index
    for token, index in model['vocab'].items()
    if token not in special_ids or token == model.get('unk_token')
  }
  return tokenizers.Tokenizer.from_str(json.dumps(content))


def _token_bytes(
  content: dict[str, Any], added: Mapping[int, tuple[str, bool]], name: str
) -> dict[int, bytes]:
  """Returns id -> what it decodes to, in UTF-8.

  Raises:
    ValueError: if that depends on what stands around it.
  """
  vocab = content['model']['vocab']
  parts = json.dumps([content.get('pre_tokenizer'), content.get('decoder')])
  if '"ByteLevel"' in parts:
    letters = _byte_letters()
    found = {
      index: bytes(letters[letter] for letter in token)
      for token, index in vocab.items()
      if all(letter in letters for letter in token)
    }
  elif content['model'].get('byte_fallback'):
    prepends = json.dumps([content.get('normalizer'), parts])
    if '"Prepend"' in prepends or re.search(
      r'prepend_scheme\W+(always|first)', prepends
    ):
      raise ValueError(
        f'{name} puts a space in front of text; Yi does not. Put the '
        f'{tokenizer_files.MODEL_FILE} of the checkpoint beside it'
      )
    found = {index: _piece_bytes(token) for token, index in vocab.items()}
  else:
    raise ValueError(
      f'{name} is neither byte-level nor has it byte fallback: some text '
      'would be lost'
    )
  found.update({index: text.encode() for index, (text, _) in added.items()})
  return found


def _piece_bytes(piece: str) -> bytes:
  """Returns what a SentencePiece piece decodes to."""
  if re.fullmatch('<0x[0-9A-F]{2}>', piece):
    return bytes([int(piece[1:-1], 16)])
  return piece.replace('\u2581', ' ').encode()


def _byte_letters() -> dict[str, int]:
  """Returns the letters GPT-2 writes bytes with -> the bytes.

  Printable bytes of Latin-1 are themselves; the others, in order, are the
  letters from U+0100 on.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {chr(byte): byte for byte in printable}
  return letters | {chr(256 + i): byte for i, byte in enumerate(others)}
