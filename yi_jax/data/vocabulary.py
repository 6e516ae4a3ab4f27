"""The vocabulary: SentencePiece BPE with Yi's settings, lossless and safe.

Yi (report, section 2.2): identity normalisation, digits split one by one, byte
fallback, no dummy prefix. With spaces kept as they are, decode(encode(text)) is
text for every Unicode string; the one exception is U+2581, which SentencePiece
uses for the space.

Special pieces have Yi's ids 0-8 and are control pieces here: no text becomes
one by itself, so that a user who types '<|im_end|>' does not end a turn. Where
a template wants them, it says `allow_special=True` or takes `special_ids`.
Models with user-defined ChatML pieces (Yi's own) are read the same way.

This is the tokenizer of what is trained here and of Yi's checkpoints; those of
other checkpoints have the same interface, `tokenizer.Tokenizer`.
"""

import codecs
import collections
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from yi_jax.data import atomic, tokenizer_files

UNK, BOS, EOS = 0, 1, 2
# Ids 3 to 8, in this order.
CONTROL = (
  '<|Human|>',
  '<|Assistant|>',
  '<|System|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|im_sep|>',
)
SPECIAL = ('<unk>', '<|startoftext|>', '<|endoftext|>', *CONTROL)

MODEL_FILE = tokenizer_files.MODEL_FILE
MANIFEST_FILE = 'manifest.json'

# Ours. The most frequent characters of the sample become pieces until they
# cover all but 1 in 10,000 or take this share of the vocabulary; the others are
# spelled in bytes. At 8,192 pieces and half Chinese, 0.3 gave the fewest tokens.
_COVERAGE = 0.9999
_CHARACTERS = 0.3
# Ours: SentencePiece drops longer sentences, so lines are cut before.
_LINE = 4_000  # characters
_SMALLEST = 300  # 9 special pieces, 256 bytes, a few characters
_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece


class Vocabulary:
  """Encodes text as token ids and back.

  Attributes:
    size: pieces.
    unk_id, bos_id, eos_id: 0, 1 and 2; padding is 0, as byte fallback leaves
      no text that would need <unk>.
    special_ids: piece -> id of the special pieces.
    stop_ids: ids that end a text or a turn of a chat.
    chat_template: Jinja text that `save` writes, or None for a base model.
    hash: sha256 of the model file, hex; checkpoints and rows remember it.
    proto: the model file, as other tools read it.
  """

  def __init__(
    self,
    proto: bytes,
    name: str = 'the vocabulary',
    facts: tokenizer_files.Facts | None = None,
  ) -> None:
    """Takes the content of a SentencePiece model file.

    Args:
      proto: the content.
      name: for messages.
      facts: what stands beside the file in a checkpoint's folder; tokens that
        it adds or renames become pieces.

    Raises:
      ValueError: if it is no such file, or its settings are not Yi's.
    """
    model = sentencepiece_model_pb2.ModelProto()
    try:
      model.ParseFromString(proto)
    except Exception as error:  # protobuf's DecodeError has many homes
      raise ValueError(
        f'{name} is damaged or no SentencePiece model'
      ) from error
    if not model.pieces:
      raise ValueError(f'{name} is empty or no SentencePiece model')
    facts = facts or tokenizer_files.Facts()
    if _add_pieces(model, facts.added, name):
      proto = model.SerializeToString()
    _check_settings(model, name)
    self.proto = proto
    self.hash = hashlib.sha256(proto).hexdigest()
    self.size = len(model.pieces)
    self.unk_id, self.bos_id, self.eos_id = UNK, BOS, EOS
    self.special_ids = {}
    for index, piece in enumerate(model.pieces):
      _, special = facts.added.get(index, ('', False))
      if piece.type == _PIECE.USER_DEFINED and tokenizer_files.is_special(
        piece.piece, special
      ):
        piece.type = _PIECE.CONTROL
      if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN):
        self.special_ids[piece.piece] = index
    self.stop_ids = tokenizer_files.stop_ids(facts, self.special_ids)
    self.chat_template = facts.chat_template
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor(
      model_proto=model.SerializeToString()
    )
    self._bytes = [_piece_bytes(piece) for piece in model.pieces]

  def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Returns the ids of a text and nothing else: no BOS, no EOS.

    Args:
      text: any Unicode string.
      allow_special: whether '<|im_end|>' and its like become their special
        ids instead of ordinary pieces. Never for text of others.

    Raises:
      ValueError: for a lone surrogate, which is no text.
    """
    if allow_special:
      return tokenizer_files.encode_special(text, self.special_ids, self.encode)
    check_text(text)
    return self._processor.encode(text)

  def encode_batch(
    self, texts: Sequence[str], threads: int = 1
  ) -> list[list[int]]:
    """Returns `encode` of each text, on several threads."""
    for text in texts:
      check_text(text)
    return self._processor.encode(list(texts), num_threads=threads)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids, special pieces spelled out.

    It does not stop at EOS. Bytes that make no character become U+FFFD.

    Raises:
      ValueError: for an id outside the vocabulary.
    """
    return b''.join(map(self._lookup, ids)).decode('utf-8', 'replace')

  def stream(self) -> 'Stream':
    """Returns a decoder that takes ids one by one."""
    return Stream(self._lookup)

  def save(self, folder: pathlib.Path | str) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json.

    Transformers, vLLM and the converter of llama.cpp read the same ids out of
    them as `encode` gives.

    Args:
      folder: is made if it is not there.
    """
    tokenizer_files.write(
      pathlib.Path(folder),
      {
        MODEL_FILE: self.proto,
        tokenizer_files.JSON_FILE: tokenizer_files.sentencepiece_json(
          self._model, self.special_ids
        ),
      },
      tokenizer_class='LlamaTokenizer',
      special_ids=self.special_ids,
      facts=tokenizer_files.Facts(
        bos=SPECIAL[BOS],
        eos=SPECIAL[EOS],
        unk=SPECIAL[UNK],
        pad=SPECIAL[UNK],  # as Yi's; byte fallback leaves it free
        added={
          index: (piece.piece, False)
          for index, piece in enumerate(self._model.pieces)
          if piece.type == _PIECE.USER_DEFINED
        },
        chat_template=self.chat_template,
      ),
    )

  def _lookup(self, index: int) -> bytes:
    if not 0 <= index < self.size:
      raise ValueError(f'no token {index}: the vocabulary has {self.size}')
    return self._bytes[index]


class Stream:
  """Decodes ids as they come, holding back what is not a whole character."""

  def __init__(self, lookup: Callable[[int], bytes]) -> None:
    """Takes the function from an id to its bytes."""
    self._lookup = lookup
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

  def feed(self, index: int) -> str:
    """Returns the characters that are whole now that this id is known."""
    return self._decoder.decode(self._lookup(index))

  def flush(self) -> str:
    """Returns what is left at the end: U+FFFD for half a character, or ''."""
    return self._decoder.decode(b'', final=True)


def load(
  path: pathlib.Path | str, facts: tokenizer_files.Facts | None = None
) -> Vocabulary:
  """Reads a vocabulary.

  Args:
    path: tokenizer.model, or the folder that holds it.
    facts: see Vocabulary.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged or not what its manifest says.
  """
  path = pathlib.Path(path)
  file = path / MODEL_FILE if path.is_dir() else path
  if not file.is_file():
    raise FileNotFoundError(f'no vocabulary: there is no {file}')
  found = Vocabulary(file.read_bytes(), str(file), facts)
  manifest = file.with_name(MANIFEST_FILE)
  if manifest.is_file():
    expected = tokenizer_files.read_json(manifest).get('hash', found.hash)
    if expected != found.hash:
      raise ValueError(
        f'{file} is damaged: it is not the file that {manifest.name} describes; '
        f'delete {file.parent} and make it again with yi_jax.prepare'
      )
  return found


def train(
  texts: Iterable[str], size: int, directory: pathlib.Path | str
) -> Vocabulary:
  """Trains a vocabulary and writes it to a folder.

  Args:
    texts: the sample; the same sample gives the same file.
    size: pieces, special ones and 256 bytes included.
    directory: gets tokenizer.model and manifest.json, whole or not at all.

  Raises:
    ValueError: if the sample is too small, or has too many different
      characters, for the size.
  """
  directory = pathlib.Path(directory)
  if size < _SMALLEST:
    raise ValueError(f'a vocabulary needs at least {_SMALLEST} pieces')
  lines, counted = [], collections.Counter()
  characters = collections.Counter()
  for text in texts:
    counted['texts'] += 1
    counted['bytes'] += len(text.encode())
    # NUL ends a string inside SentencePiece, and it reserves U+2585.
    characters.update(text)
    for line in re.split(r'[\n\x00\u2585]', text):
      lines += [line[i : i + _LINE] for i in range(0, len(line), _LINE)]
  if not lines:
    raise ValueError('the text to train a vocabulary on is empty')
  frequent = characters.most_common(int(size * _CHARACTERS))
  coverage = sum(count for _, count in frequent) / characters.total()
  coverage = max(0.98, min(coverage, _COVERAGE))  # SentencePiece's limits
  found = Vocabulary(_train(lines, size, coverage))
  manifest = {
    'hash': found.hash,
    'size': found.size,
    'character_coverage': coverage,
    **counted,
  }
  with atomic.new_folder(directory) as folder:
    (folder / MODEL_FILE).write_bytes(found.proto)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2))
  return found


def _train(lines: list[str], size: int, coverage: float) -> bytes:
  """Returns the model file."""
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      model_type='bpe',
      vocab_size=size,
      # Yi's settings
      normalization_rule_name='identity',
      byte_fallback=True,
      split_digits=True,
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      unk_id=UNK,
      bos_id=BOS,
      eos_id=EOS,
      pad_id=-1,
      unk_piece=SPECIAL[UNK],
      bos_piece=SPECIAL[BOS],
      eos_piece=SPECIAL[EOS],
      control_symbols=list(CONTROL),
      # Ours
      character_coverage=coverage,
      max_sentence_length=_LINE * 4,
      num_threads=4,  # is written to the file, so it does not follow the machine
      minloglevel=2,
    )
  except RuntimeError as error:
    _explain(str(error), size)
    raise
  return model.getvalue()


def _explain(error: str, size: int) -> None:
  """Raises what SentencePiece means, if its message is one of the known."""
  if high := re.search(r'size too high .*<= (\d+)', error):
    raise ValueError(
      f'the text is too small for a vocabulary of {size}, at most {high[1]} '
      'pieces; lower data.vocabulary_size or add text'
    )
  if low := re.search(r'required_chars. \d+ vs (\d+)', error):
    raise ValueError(
      f'the characters of this text need a vocabulary of {low[1]} or more, not '
      f'{size}; raise data.vocabulary_size'
    )


def _add_pieces(
  model: sentencepiece_model_pb2.ModelProto,
  added: Mapping[int, tuple[str, bool]],
  name: str,
) -> bool:
  """Adds and renames pieces in place; returns whether there were any.

  Fine-tuned checkpoints often have a few tokens beyond the model file.

  Raises:
    ValueError: if the ids leave a gap.
  """
  changed = False
  for index in sorted(added):
    text, special = added[index]
    if index > len(model.pieces):
      raise ValueError(
        f'{name} has {len(model.pieces)} pieces, and a token is added as '
        f'{index} ({text!r}), which leaves a gap; see tokenizer_config.json '
        'beside it'
      )
    if index == len(model.pieces):
      model.pieces.add()
    piece = model.pieces[index]
    if piece.piece != text:
      piece.piece = text
      piece.type = _PIECE.CONTROL if special else _PIECE.USER_DEFINED
      changed = True
  return changed


def _check_settings(
  model: sentencepiece_model_pb2.ModelProto, name: str
) -> None:
  """Raises ValueError for what this file cannot decode exactly."""
  problems = []
  if model.normalizer_spec.add_dummy_prefix:
    problems.append('it adds a dummy prefix')
  if model.normalizer_spec.remove_extra_whitespaces:
    problems.append('it removes spaces')
  if model.normalizer_spec.precompiled_charsmap:
    problems.append('it normalises characters')
  if not any(piece.type == _PIECE.BYTE for piece in model.pieces):
    problems.append('it has no byte fallback')
  pieces = tuple(piece.piece for piece in model.pieces[:3])
  if pieces != SPECIAL[:3]:
    problems.append(f'ids 0 to 2 are {pieces}, not {SPECIAL[:3]}')
  if problems:
    raise ValueError(f'{name} is no vocabulary of Yi: {"; ".join(problems)}')


def check_text(text: str) -> None:
  """Raises ValueError unless a string is Unicode text."""
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise ValueError(f'no Unicode text: {error}') from error


def _piece_bytes(piece: _PIECE) -> bytes:
  """Returns what a piece decodes to, in UTF-8."""
  if piece.type == _PIECE.BYTE:
    return bytes([int(piece.piece[1:-1], 16)])  # <0x0A>
  if piece.type in (_PIECE.NORMAL, _PIECE.USER_DEFINED):
    return piece.piece.replace('\u2581', ' ').encode()
  return piece.piece.encode()
