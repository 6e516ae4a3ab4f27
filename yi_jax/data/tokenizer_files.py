"""What stands beside a tokenizer in a checkpoint's folder, read and written.

Hugging Face spreads what a tokenizer is over several files: the pieces are in
tokenizer.model or tokenizer.json; which of them are special, which end a text
and how a chat is laid out is in tokenizer_config.json, generation_config.json,
config.json and added_tokens.json. Facts are what is left when they are read.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2

MODEL_FILE = 'tokenizer.model'
JSON_FILE = 'tokenizer.json'
CONFIG_FILE = 'tokenizer_config.json'
TEMPLATE_FILE = 'chat_template.jinja'
_ROLES = ('bos', 'eos', 'unk', 'pad')

# Marks of the ends of texts and of turns; a model that has one was taught it.
END_OF_TEXT = '<|endoftext|>'
END_OF_TURN = '<|im_end|>'

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a checkpoint says about its tokenizer, apart from the pieces.

  Attributes:
    bos, eos, unk, pad: the token in that role, spelled, or None.
    stop_ids: ids that end a text, as the checkpoint has them.
    added: id -> (spelling, whether it is special), tokens that the file of
      the pieces may not have, or has under another spelling.
    chat_template: Jinja text, or None for a model without a chat format.
  """

  bos: str | None = None
  eos: str | None = None
  unk: str | None = None
  pad: str | None = None
  stop_ids: tuple[int, ...] = ()
  added: Mapping[int, tuple[str, bool]] = dataclasses.field(
    default_factory=dict
  )
  chat_template: str | None = None


def read(folder: pathlib.Path) -> Facts:
  """Reads the facts of a folder; a file that is not there says nothing.

  Raises:
    ValueError: if a file is no JSON object.
  """
  config = read_json(folder / CONFIG_FILE)
  added = {
    int(index): (token['content'], bool(token.get('special')))
    for index, token in config.get('added_tokens_decoder', {}).items()
  }
  for text, index in read_json(folder / 'added_tokens.json').items():
    added.setdefault(index, (text, True))
  stops = []
  for name in ('config.json', 'generation_config.json'):
    found = read_json(folder / name).get('eos_token_id')
    if found is not None:
      stops += found if isinstance(found, list) else [found]
  return Facts(
    **{role: spelling(config.get(f'{role}_token')) for role in _ROLES},
    stop_ids=tuple(sorted(set(stops))),
    added=added,
    chat_template=_template(folder, config),
  )


def write(
  folder: pathlib.Path,
  files: Mapping[str, str | bytes],
  *,
  tokenizer_class: str,
  special_ids: Mapping[str, int],
  facts: Facts,
) -> None:
  """Writes a tokenizer as transformers' AutoTokenizer reads it.

  Args:
    folder: is made if it is not there; files of the same names are replaced.
    files: name -> content of the files with the pieces.
    tokenizer_class: of transformers.
    special_ids: spelling -> id.
    facts: what goes into tokenizer_config.json.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(data)
  added = {index: (text, True) for text, index in special_ids.items()}
  added = {**facts.added, **added}
  config = {
    'tokenizer_class': tokenizer_class,
    'add_bos_token': False,
    'add_eos_token': False,
    # Without it LlamaTokenizer puts a space before each text and after each
    # special token, whatever the model file says; llama.cpp reads it too.
    'add_prefix_space': False,
    'clean_up_tokenization_spaces': False,
    **{f'{role}_token': getattr(facts, role) for role in _ROLES},
    'added_tokens_decoder': {
      str(index): added_token(*added[index]) for index in sorted(added)
    },
  }
  if facts.chat_template:
    config['chat_template'] = facts.chat_template
  text = json.dumps(config, indent=2, ensure_ascii=False)
  (folder / CONFIG_FILE).write_text(f'{text}\n', encoding='utf-8')


def is_special(text: str, special: bool) -> bool:
  """Returns whether a token found whole in text must not be made from it.

  Checkpoints do not agree on whether the marks of ChatML are special; here they
  always are. Other tokens may be ordinary words that were added.
  """
  return special or re.fullmatch(r'<\|.+\|>', text) is not None


def added_token(text: str, special: bool) -> dict[str, Any]:
  """Returns a token that is found in text before anything is split."""
  return {
    'content': text,
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': special,
  }


def spelling(token: Any) -> str | None:
  """Returns a token's text; config files give it bare or in an object."""
  return token.get('content') if isinstance(token, dict) else token


def encode_special(
  text: str, special_ids: Mapping[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
  """Returns the ids of a text whose special tokens become their ids.

  Args:
    text: any Unicode string; where several fit, the longest token counts.
    special_ids: spelling -> id, not empty.
    encode: gives the ids of the text between them.
  """
  longest_first = sorted(special_ids, key=len, reverse=True)
  ids = []
  for part in re.split(f'({"|".join(map(re.escape, longest_first))})', text):
    ids += [special_ids[part]] if part in special_ids else encode(part)
  return ids


def stop_ids(facts: Facts, special_ids: Mapping[str, int]) -> tuple[int, ...]:
  """Returns all ids that end a text or a turn.

  What the config files name, and the marks that are always one: Yi's config
  names 2 where turns end with 7.
  """
  marks = (facts.eos, END_OF_TEXT, END_OF_TURN)
  found = {special_ids[mark] for mark in marks if mark in special_ids}
  return tuple(sorted(found | set(facts.stop_ids)))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file, {} if there is no file.

  Raises:
    ValueError: if it holds something else.
  """
  return json_object(path) if path.is_file() else {}


def json_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: if it holds something else.
  """
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no JSON object')
  return found


def sentencepiece_json(
  model: sentencepiece_model_pb2.ModelProto, special_ids: Mapping[str, int]
) -> str:
  """Returns a SentencePiece BPE model as a tokenizer.json.

  SentencePiece joins the two neighbours whose union has the best score; the
  other format lists the pairs to join, best first. Every way to cut a piece in
  two pieces is such a pair.

  Args:
    model: without dummy prefix and normalisation, with byte fallback.
    special_ids: spelling -> id of the special pieces.
  """
  bar = '\u2581'
  whole = {
    index: (piece.piece.replace(bar, ' '), False)
    for index, piece in enumerate(model.pieces)
    if piece.type == _PIECE.USER_DEFINED
  }
  whole |= {index: (text, True) for text, index in special_ids.items()}
  normal = {
    piece.piece: index
    for index, piece in enumerate(model.pieces)
    if piece.type == _PIECE.NORMAL
  }
  merges = []
  for piece in sorted(normal, key=lambda p: -model.pieces[normal[p]].score):
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    pairs = [(a, b) for a, b in cuts if a in normal and b in normal]
    merges += sorted(pairs, key=lambda p: (normal[p[0]], normal[p[1]]))
  unknown = [p.piece for p in model.pieces if p.type == _PIECE.UNKNOWN]
  content = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': json_added_tokens(whole),
    'normalizer': _replace(' ', bar),
    'pre_tokenizer': None,
    'post_processor': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [
        _replace(bar, ' '),
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
      ],
    },
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': unknown[0],
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': True,
      'byte_fallback': True,
      'ignore_merges': False,
      'vocab': {piece.piece: i for i, piece in enumerate(model.pieces)},
      'merges': merges,
    },
  }
  return json.dumps(content, ensure_ascii=False)


def json_added_tokens(
  added: Mapping[int, tuple[str, bool]],
) -> Sequence[dict[str, Any]]:
  """Returns the list of added tokens of a tokenizer.json."""
  return [{'id': i, **added_token(*added[i])} for i in sorted(added)]


def _replace(old: str, new: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': {'String': old}, 'content': new}


def _template(folder: pathlib.Path, config: dict[str, Any]) -> str | None:
  """Returns the chat template; newer folders have it in a file of its own."""
  file = folder / TEMPLATE_FILE
  if file.is_file():
    return file.read_text(encoding='utf-8')
  found = config.get('chat_template')
  if isinstance(found, list):  # several by name, e.g. one for tools
    by_name = {entry['name']: entry['template'] for entry in found}
    found = by_name.get('default')
  return found
