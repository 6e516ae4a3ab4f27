"""Opens a checkpoint of any kind to write with: weights and tokenizer.

a workdir             of a training run, or of `convert`
a folder              of Hugging Face's kind, with config.json
a .gguf file          of llama.cpp's kind
"""

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath

from yi_jax import paths
from yi_jax.checkpoints import gguf, hf
from yi_jax.data import tokenizer as tokenizers
from yi_jax.data import tokenizer_files
from yi_jax.models import config as model_config
from yi_jax.training import checkpointing

# Of a tokenizer, beside the weights.
_FILES = (
  tokenizer_files.MODEL_FILE,
  tokenizer_files.JSON_FILE,
  tokenizer_files.CONFIG_FILE,
  tokenizer_files.TEMPLATE_FILE,
  'added_tokens.json',
  'generation_config.json',
)


class Checkpoint(NamedTuple):
  """A model to write with.

  Attributes:
    tokenizer: what its ids mean.
    start: ids that stand before a text, as in training: the end of the text
      before it for models trained here, nothing for the others.
    load: reads the weights, gives (config, nested dict of arrays); on CPU they
      are float32, where narrow types are slow.
  """

  tokenizer: tokenizers.Tokenizer
  start: tuple[int, ...]
  load: Callable[[], tuple[model_config.ModelConfig, dict[str, Any]]]


def open_checkpoint(path: str) -> Checkpoint:
  """Opens a checkpoint with the tokenizer that belongs to it.

  Args:
    path: absolute, or the URL of a workdir.

  Returns:
    The checkpoint; its weights are not read yet, so that what is wrong with
    the rest shows at once.

  Raises:
    FileNotFoundError: if there is no checkpoint, or no tokenizer.
    OSError: if no checkpoint can be read; also when it is loaded.
    ValueError: if the tokenizer is another one; when it is loaded, if the model
      is no Yi.
  """
  if '://' not in path:
    if not os.path.exists(path):
      raise FileNotFoundError(
        f'no checkpoint: there is no {path}; give the --workdir of a training '
        'run, a folder of Hugging Face or a .gguf file'
      )
    on_cpu = jax.default_backend() == 'cpu'
    load = None
    if os.path.isfile(path):
      dtype = 'float32' if on_cpu else 'bfloat16'
      load = functools.partial(gguf.load_gguf, path, dtype, scan_layers=False)
    elif hf.is_checkpoint(path):
      dtype = 'float32' if on_cpu else None
      load = functools.partial(
        hf.load_pretrained, path, dtype, scan_layers=False
      )
    if load:
      return Checkpoint(tokenizers.open_tokenizer(path), (), load)
  manifest = checkpointing.newest_manifest(path)
  words = _tokenizer_of_workdir(path, manifest)
  trained = 'data.vocabulary' in manifest['run']
  return Checkpoint(
    words,
    (words.eos_id,) if trained else (),
    lambda: checkpointing.load_params(path)[:2],
  )


def _tokenizer_of_workdir(
  workdir: str, manifest: dict[str, Any]
) -> tokenizers.Tokenizer:
  """Returns the tokenizer that a checkpoint was trained with.

  It is in the workdir; runs of before that was so have it with their data.

  Raises:
    FileNotFoundError: if it is nowhere.
    ValueError: if there is another one.
  """
  folder = _local(workdir)
  run = manifest['run']
  beside = any((folder / name).is_file() for name in _FILES[:2])
  if not beside and 'data.vocabulary' in run:
    root = pathlib.Path(paths.in_repository(run['data.root']))
    folder = root / 'vocabularies' / run['data.vocabulary']
  try:
    words = tokenizers.open_tokenizer(folder)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{error}; put the tokenizer of {workdir} into that folder'
    ) from error
  if words.hash != manifest['vocabulary_hash']:
    raise ValueError(
      f'the tokenizer in {folder} is not the one that {workdir} was trained '
      'with: its token ids mean other text. Put the old one back'
    )
  return words


def _local(workdir: str) -> pathlib.Path:
  """Returns a local folder with the tokenizer's files of a workdir."""
  if '://' not in workdir:
    return pathlib.Path(workdir)
  folder = pathlib.Path(tempfile.mkdtemp(prefix='yi_jax_'))
  for name in _FILES:
    file = epath.Path(workdir) / name
    if file.exists():
      (folder / name).write_bytes(file.read_bytes())
  return folder
