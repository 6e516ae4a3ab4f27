"""Weights without a run: imported ones, and those that another run starts from.

An imported checkpoint is a workdir with one checkpoint, of step 0, that has
parameters and a manifest but nothing else of a training state; the tokenizer's
files stand beside it. `load_params`, `generate` and `init_from` read it as they
read a run's.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from yi_jax.checkpoints import companions, gguf, hf, lazy, orbax_params
from yi_jax.models import config as model_config
from yi_jax.models import lora, transformer
from yi_jax.sharding import rules
from yi_jax.training import checkpointing


def save(
  workdir: pathlib.Path,
  config: model_config.ModelConfig,
  tree: lazy.LazyTree,
  *,
  vocabulary_hash: str,
  origin: dict[str, Any],
) -> None:
  """Writes parameters as the checkpoint of step 0 of a workdir.

  Args:
    workdir: absolute; the checkpoint may not be there.
    config: the model.
    tree: its parameters, read one after the other.
    vocabulary_hash: of the tokenizer, '' if there is none.
    origin: where they come from, JSON types only.
  """
  total = 0

  def count(numbers: np.ndarray) -> None:
    nonlocal total
    total += checkpointing.digest_of_floats(numbers)

  folder = workdir / 'checkpoints' / '0'
  folder.mkdir(parents=True)
  orbax_params.write(folder / 'params', lazy.watch(tree, count))
  manifest = checkpointing.manifest(
    identity=origin,
    model=config,
    vocabulary_hash=vocabulary_hash,
    rows_consumed=0,
    rates={},
    rows={},
    seconds=0.0,
  )
  manifest['digests'] = {'params': total % 2**32}
  (folder / 'manifest').mkdir()
  (folder / 'manifest' / 'metadata').write_text(json.dumps(manifest))


def open_checkpoint(
  workdir: str, step: int | None = None
) -> tuple[model_config.ModelConfig, lazy.LazyTree, dict[str, Any]]:
  """Opens the parameters of a workdir; they are read when they are needed.

  Args:
    workdir: of a run or of an imported checkpoint.
    step: which checkpoint; None takes the newest with a readable manifest.

  Returns:
    (model config, lazy tree in the types of the file, manifest).

  Raises:
    FileNotFoundError: if there is no such checkpoint.
    OSError: if it cannot be read.
  """
  if step is None:
    step, manifest = checkpointing.newest(workdir)
  else:
    folder = epath.Path(workdir) / 'checkpoints' / str(step)
    if not folder.exists():
      raise FileNotFoundError(f'no checkpoint {step} in {folder.parent}')
    manifest = checkpointing.read_manifest(folder)
  config = model_config.ModelConfig.from_dict(manifest['model'])
  folder = pathlib.Path(workdir, 'checkpoints', str(step), 'params')
  try:
    tree = orbax_params.read(
      folder, lambda name: config.scan_layers and name.startswith('layers/')
    )
  except Exception as error:  # whatever the storage library throws
    raise OSError(f'{folder} cannot be read: {error}') from error
  expected = transformer.abstract_params(config)
  if jax.tree.structure(tree) != jax.tree.structure(expected):
    raise OSError(f'{folder} does not hold the parameters of its manifest')
  return config.replace(lora=None), _folded(tree, config.lora), manifest


def _folded(
  tree: lazy.LazyTree, config: lora.LoraConfig | None
) -> lazy.LazyTree:
  """Returns the tree with adapters added to their kernels, layer by layer."""
  if config is None:
    return tree
  flat = traverse_util.flatten_dict(tree, sep='/')
  adapter = {k: v for k, v in flat.items() if lora.is_adapter(k)}
  scales = {k: v for k, v in flat.items() if k.endswith('/kernel_scale')}
  plain = {k: v for k, v in flat.items() if k not in {**adapter, **scales}}
  for module in {name.rpartition('/')[0] for name in adapter}:
    name = f'{module}/kernel'
    halves = adapter[f'{module}/lora_A'], adapter[f'{module}/lora_B']
    leaves = [plain[name], *halves]
    if config.base_bits == 8:
      leaves.append(scales[f'{name}_scale'])
    layers = zip(*(leaf.parts for leaf in leaves), strict=True)
    folded = [_folded_leaf(*layer, config=config) for layer in layers]
    whole = isinstance(plain[name], lazy.Leaf)
    plain[name] = folded[0] if whole else lazy.Stack(folded)
  return traverse_util.unflatten_dict(plain, sep='/')


def _folded_leaf(
  kernel: lazy.Leaf,
  a: lazy.Leaf,
  b: lazy.Leaf,
  scale: lazy.Leaf | None = None,
  *,
  config: lora.LoraConfig,
) -> lazy.Leaf:
  def change(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    if scale is not None:
      x *= scale.read()
    return x + np.float32(config.scale) * (a.read() @ b.read())

  return kernel.map(change, dtype='float32')


def describe(source: str) -> dict[str, Any]:
  """Returns what weights say about themselves: model and vocabulary_hash.

  Args:
    source: a workdir, a folder of Hugging Face's kind, or a .gguf file.

  Raises:
    OSError: if there is no checkpoint, or one without tokenizer.
    ValueError: if it is of another architecture.
  """
  if not _is_hf(source) and not _is_gguf(source):
    return checkpointing.newest_manifest(source)
  words, reason = companions.open_tokenizer(pathlib.Path(source))
  if words is None:
    raise OSError(f'nobody can tell what the token ids mean: {reason}')
  return {'model': _model(source), 'vocabulary_hash': words.hash}


def load_into(
  source: str, config: model_config.ModelConfig, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Loads weights as those of a model.

  Args:
    source: a workdir, a folder of Hugging Face's kind, or a .gguf file.
    config: the model here.
    mesh: where the parameters shall be.

  Raises:
    OSError: if there is no checkpoint, or it cannot be read.
    ValueError: if the weights do not fit, naming one.
  """
  config = config.replace(lora=None)
  if not _is_hf(source) and not _is_gguf(source):
    return checkpointing.load_into(source, config, mesh)
  load = hf.load_pretrained if _is_hf(source) else gguf.load_gguf
  checkpointing.refuse_other_weights({'model': _model(source)}, config)
  places = rules.shardings(
    mesh, transformer.param_axes(config), transformer.abstract_params(config)
  )
  return load(source, 'float32', places, scan_layers=config.scan_layers)[1]


def differences(
  found: dict[str, Any], config: model_config.ModelConfig
) -> list[str]:
  """Returns a line for each number that weights were trained with but not here.

  Another base of RoPE, say, is what lengthening the context is about, and
  otherwise a mistake that no shape would show.

  Args:
    found: from `describe`.
    config: the model here.
  """
  theirs = model_config.ModelConfig.from_dict(found['model'])
  return [
    f'{name} was {getattr(theirs, name):g}, here it is {getattr(config, name):g}'
    for name in ('rope_theta', 'rms_norm_eps')
    if getattr(theirs, name) != getattr(config, name)
  ]


def _model(source: str) -> dict[str, Any]:
  """Returns the model of a file or folder of others, as manifests have it."""
  if _is_hf(source):
    return hf.read_config(source).to_dict()
  return gguf.open_checkpoint(source)[0].to_dict()


def _is_gguf(source: str) -> bool:
  return source.endswith('.gguf')


def _is_hf(source: str) -> bool:
  return '://' not in source and hf.is_checkpoint(source)
