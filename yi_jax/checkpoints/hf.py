"""Checkpoints of Hugging Face's kind: a folder that LLaMA tools read.

  config.json                        the model
  generation_config.json             where a text ends
  model.safetensors                  the weights, or in several files:
  model-00001-of-00003.safetensors, ... and model.safetensors.index.json
  tokenizer.model, tokenizer.json, tokenizer_config.json ...

`pytorch_model*.bin` is read as well. Nothing but headers is read before all
names, shapes and types are known to fit; then tensor after tensor goes where it
shall be, so that no more than a few are in host memory.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from yi_jax.checkpoints import (
  companions,
  hf_config,
  lazy,
  naming,
  safetensors_files,
  torch_files,
)
from yi_jax.data import atomic, tokenizer_files
from yi_jax.models import config as model_config

SHARD_BYTES = 5_000_000_000  # as transformers cuts

_SINGLE = 'model.safetensors'
# In the order in which transformers looks.
_WEIGHTS = (_SINGLE, 'pytorch_model.bin')
_READERS = {
  '.safetensors': safetensors_files.read,
  '.bin': torch_files.read,
}


def is_checkpoint(path: pathlib.Path | str) -> bool:
  """Returns whether a path is a folder of this kind."""
  return (pathlib.Path(path) / hf_config.CONFIG_FILE).is_file()


def read_config(
  path: pathlib.Path | str, scan_layers: bool = True
) -> model_config.ModelConfig:
  """Returns the model of a checkpoint.

  Args:
    path: the folder.
    scan_layers: whether its layers shall be stacked; the files do not say.

  Raises:
    FileNotFoundError: if there is no config.json.
    ValueError: if it is of another architecture, naming the key.
  """
  file = pathlib.Path(path) / hf_config.CONFIG_FILE
  if not file.is_file():
    raise FileNotFoundError(
      f'no checkpoint: there is no {file}; give the folder that holds '
      'config.json and the weights'
    )
  found = hf_config.to_model(tokenizer_files.json_object(file), str(file))
  return found.replace(scan_layers=scan_layers)


def open_checkpoint(
  path: pathlib.Path | str, scan_layers: bool = True
) -> tuple[model_config.ModelConfig, lazy.LazyTree]:
  """Opens a checkpoint and compares all names and shapes with its config.

  Args:
    path: the folder.
    scan_layers: whether to stack the layers.

  Returns:
    (model config, lazy tree of the parameters in the types of the file).

  Raises:
    OSError: if a file is missing, unreadable or cut off, naming it.
    ValueError: if config or weights are not those of a Yi, naming the key or
      the tensor and what was expected.
  """
  path = pathlib.Path(path)
  config = read_config(path, scan_layers)
  tree = naming.to_params(config, _open_weights(path))
  kinds = {leaf.dtype.name for _, leaf in lazy.leaves(tree)}
  if len(kinds) == 1:  # what the file says may be out of date
    config = config.replace(dtype=kinds.pop())
  return config, tree


def load_pretrained(
  path: pathlib.Path | str,
  dtype: str | None = 'float32',
  shardings: Any = None,
  *,
  scan_layers: bool = True,
) -> tuple[model_config.ModelConfig, dict[str, Any]]:
  """Loads a checkpoint onto devices, tensor by tensor.

  Args:
    path: the folder.
    dtype: of the parameters, and of what is computed from them; None takes
      that of the file.
    shardings: where each array shall be, a tree as the parameters' (which
      follows from `read_config`); None puts all on the first local device.
    scan_layers: whether to stack the layers.

  Returns:
    (model config, nested dict of arrays).

  Raises:
    OSError: if a file is missing, unreadable or cut off, naming it.
    ValueError: if config or weights are not those of a Yi, naming the key or
      the tensor and what was expected.
  """
  config, tree = open_checkpoint(path, scan_layers)
  tree = lazy.astype(tree, dtype)
  if dtype is not None:
    config = config.replace(dtype=dtype)
  return config, lazy.load(tree, shardings)


def save_pretrained(
  config: model_config.ModelConfig,
  params: Any,
  path: pathlib.Path | str,
  tokenizer: Any = None,
  *,
  dtype: str | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a checkpoint that LLaMA tools read; whole or not at all.

  Args:
    config: the model.
    params: its parameters, a nested dict of arrays or a lazy tree.
    path: of the folder; nothing may be there.
    tokenizer: a tokenizer, or a folder whose tokenizer and settings of
      generation are taken; None writes none.
    dtype: of the weights; None keeps that of the parameters.
    shard_bytes: size that a file of weights shall not exceed.

  Raises:
    FileExistsError: if something is there.
    OSError: if it cannot be written.
    ValueError: if LLaMA has no such model, or a number is too large for the
      type.
  """
  path = pathlib.Path(path)
  tree = lazy.astype(lazy.from_params(config, params), dtype)
  naming.from_params(config, tree)  # mistakes before anything is written
  lock = path.with_name(f'.{path.name}.lock')
  with atomic.locked(lock, remove=True), atomic.new_folder(path) as folder:
    write(folder, config, tree, tokenizer, shard_bytes=shard_bytes)


def write(
  folder: pathlib.Path,
  config: model_config.ModelConfig,
  tree: lazy.LazyTree,
  tokenizer: Any = None,
  *,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the files of a checkpoint into a folder, as `save_pretrained`.

  Args:
    folder: a new one, under a name that nobody takes for a checkpoint.
    config: the model.
    tree: its parameters.
    tokenizer: see `save_pretrained`.
    shard_bytes: see `save_pretrained`.
  """
  tensors = naming.from_params(config, tree)
  companions.put(tokenizer, folder)
  ids = tokenizer_files.json_object(folder / hf_config.GENERATION_FILE)
  kinds = {leaf.dtype.name for leaf in tensors.values()}
  stored = kinds.pop() if len(kinds) == 1 else 'float32'
  values = hf_config.from_model(config, stored, ids)
  companions.write_json(folder / hf_config.CONFIG_FILE, values)
  shards = _cut(tensors, shard_bytes)
  for name, shard in shards.items():
    safetensors_files.write(folder / name, shard, {'format': 'pt'})
  if len(shards) > 1:
    index = {
      'metadata': {'total_size': sum(x.nbytes for x in tensors.values())},
      'weight_map': {
        tensor: name for name, shard in shards.items() for tensor in shard
      },
    }
    companions.write_json(folder / f'{_SINGLE}.index.json', index)


def weight_files(path: pathlib.Path | str) -> list[pathlib.Path]:
  """Returns the files that hold the weights of a checkpoint.

  Raises:
    OSError: if there are none, or one that the index names is missing.
    ValueError: if the index is damaged.
  """
  path = pathlib.Path(path)
  for name in _WEIGHTS:
    if (path / f'{name}.index.json').is_file():
      return sorted({path / n for n in _index(path, name).values()})
    if (path / name).is_file():
      return [path / name]
  raise FileNotFoundError(
    f'no weights in {path}: looked for {", ".join(_WEIGHTS)} and their '
    '*.index.json'
  )


def _open_weights(path: pathlib.Path) -> dict[str, lazy.Leaf]:
  """Returns all tensors of a checkpoint's files."""
  tensors = {}
  for file in weight_files(path):
    for name, leaf in _READERS[file.suffix](file).items():
      if name in tensors:
        raise ValueError(f'{name} is in {file} and in another file as well')
      tensors[name] = leaf
  for base in _WEIGHTS:
    if (path / f'{base}.index.json').is_file():
      for name, file in _index(path, base).items():
        if name not in tensors:
          raise ValueError(
            f'{name} is not in {path / file}, where {base}.index.json says it is'
          )
      break
  return tensors


def _index(path: pathlib.Path, name: str) -> dict[str, str]:
  """Returns tensor -> file of an index whose files are all there."""
  index = path / f'{name}.index.json'
  files = tokenizer_files.json_object(index).get('weight_map')
  if not isinstance(files, dict) or not files:
    raise ValueError(f'{index} is damaged: it has no weight_map')
  suffix = pathlib.PurePath(name).suffix
  for tensor, file in files.items():
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(f'{index} names a file outside of its folder: {file!r}')
    if not file.endswith(suffix):
      raise ValueError(f'{index} names {file}, which is no {suffix} file')
    if not (path / file).is_file():
      raise FileNotFoundError(
        f'{path / file} is missing: {index.name} says that it holds {tensor}. '
        'Download or copy it too'
      )
  return files


def _cut(
  tensors: Mapping[str, lazy.Leaf], shard_bytes: int
) -> dict[str, dict[str, lazy.Leaf]]:
  """Returns file -> tensors, files filled one after the other."""
  if shard_bytes < 1:
    raise ValueError(f'a shard needs at least 1 byte, not {shard_bytes}')
  shards, size = [{}], 0
  for name, leaf in tensors.items():
    if shards[-1] and size + leaf.nbytes > shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = leaf
    size += leaf.nbytes
  if len(shards) == 1:
    return {_SINGLE: shards[0]}
  count = len(shards)
  return {
    f'model-{i:05d}-of-{count:05d}.safetensors': shard
    for i, shard in enumerate(shards, start=1)
  }
