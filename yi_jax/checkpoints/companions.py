"""What stands beside the weights: the tokenizer's files, and where a text ends.

A checkpoint is only of use with them, so every conversion takes them along,
byte for byte, also into workdirs of ours: files that a tool has not understood
still reach the next one.
"""

import json
import pathlib
import shutil
from typing import Any

from yi_jax.checkpoints import hf_config
from yi_jax.data import tokenizer, tokenizer_files

# All that transformers, vLLM and llama.cpp look for.
_FILES = (
  'tokenizer.model',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
)


def put(source: Any, folder: pathlib.Path) -> None:
  """Puts a tokenizer and a generation_config.json into a folder.

  Args:
    source: a folder that has the files of one, or a tokenizer (see
      `data/tokenizer.py`), or None for no tokenizer.
    folder: is there already.
  """
  config, settings = {}, {}
  if isinstance(source, str | pathlib.Path):
    place = pathlib.Path(source)
    config = tokenizer_files.read_json(place / hf_config.CONFIG_FILE)
    settings = tokenizer_files.read_json(place / hf_config.GENERATION_FILE)
    source = None
    if (place / tokenizer_files.CONFIG_FILE).is_file():
      for name in _FILES:
        if (place / name).is_file():
          shutil.copyfile(place / name, folder / name)
    else:  # a bare tokenizer: others would guess its settings, and wrongly
      source, _ = open_tokenizer(place)
  if source is not None:
    source.save(folder)
  settings = hf_config.generation(config, settings, _ids(folder))
  write_json(folder / hf_config.GENERATION_FILE, settings)


def open_tokenizer(
  path: pathlib.Path,
) -> tuple[tokenizer.Tokenizer | None, str]:
  """Opens the tokenizer of a checkpoint, if it can be read here.

  Args:
    path: the checkpoint's folder, or a .gguf file.

  Returns:
    (tokenizer, '') or (None, why not).
  """
  try:
    return tokenizer.open_tokenizer(path), ''
  except (FileNotFoundError, ValueError) as error:
    return None, str(error)


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes a file as people read it."""
  text = json.dumps(values, indent=2, ensure_ascii=False)
  path.write_text(f'{text}\n', encoding='utf-8')


def _ids(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the ids of the tokens that a folder's tokenizer is steered by."""
  found, _ = open_tokenizer(folder)
  if found is None:
    return {}
  facts = tokenizer_files.read(folder)
  ids = {
    'bos_token_id': found.special_ids.get(facts.bos),
    'pad_token_id': found.special_ids.get(facts.pad),
    'eos_token_id': [found.eos_id, *found.stop_ids],
  }
  return {key: value for key, value in ids.items() if value is not None}
