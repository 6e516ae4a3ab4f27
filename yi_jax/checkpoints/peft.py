"""LoRA adapters as the PEFT library keeps them: a folder of two files.

  adapter_config.json         rank, alpha, and which modules are adapted
  adapter_model.safetensors   base_model.model.MODULE.lora_A.weight [R, I] and
                              base_model.model.MODULE.lora_B.weight [O, R]

MODULE is LLaMA's name, e.g. model.layers.7.self_attn.q_proj. Ours are the
transposes, stacked if the layers are. What PEFT can do beyond plain LoRA on
products (DoRA, biases, whole modules, ranks that differ, ...) is refused by the
key that asks for it.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from yi_jax.checkpoints import (
  companions,
  lazy,
  naming,
  safetensors_files,
)
from yi_jax.data import atomic, tokenizer_files
from yi_jax.models import config as model_config
from yi_jax.models import lora

CONFIG_FILE = 'adapter_config.json'
WEIGHTS_FILE = 'adapter_model.safetensors'

_PREFIX = 'base_model.model.'
_USED = {
  *('peft_type', 'r', 'lora_alpha', 'target_modules', 'use_rslora'),
  *('layers_to_transform', 'init_lora_weights'),
}
# They say where an adapter comes from or how it was trained, or only mean
# something together with a key that is refused.
_WITHOUT_EFFECT = {
  *('auto_mapping', 'base_model_name_or_path', 'revision', 'task_type'),
  *('peft_version', 'inference_mode', 'lora_dropout', 'layers_pattern'),
  *('megatron_core', 'qalora_group_size', 'runtime_config', 'loftq_config'),
  *('eva_config', 'corda_config', 'lora_ga_config'),
}
# How A and B began. Other ways (PiSSA, OLoRA, LoftQ, ...) change the weights of
# the model as well, which are not in the file.
_PLAIN_INITS = (True, False, 'gaussian')


def load_adapter(
  path: pathlib.Path | str,
  config: model_config.ModelConfig,
  shardings: Any = None,
) -> tuple[lora.LoraConfig, lora.Params]:
  """Loads an adapter.

  Args:
    path: the folder.
    config: of the model that it is for; says whether the layers are stacked.
    shardings: where each array shall be, a tree as the adapter; None puts all
      on the first local device.

  Returns:
    (adapter config, whose targets fit both layouts, adapter in float32).

  Raises:
    OSError: if a file is missing, unreadable or cut off, naming it.
    ValueError: if it is of another kind or for another model, naming the key or
      the tensor.
  """
  path = pathlib.Path(path)
  for name in (CONFIG_FILE, WEIGHTS_FILE):
    if not (path / name).is_file():
      raise FileNotFoundError(
        f'no adapter: there is no {path / name}; give the folder that PEFT '
        'has saved'
      )
  file = path / CONFIG_FILE
  values = tokenizer_files.json_object(file)
  _refuse_other_kinds(values, str(file))
  entries = [
    entry
    for entry in _kernels(config).values()
    if _is_target(_module(entry), values, str(file))
  ]
  if not entries:
    raise ValueError(
      f'{file}: target_modules {json.dumps(values.get("target_modules"))} '
      'match no product of this model'
    )
  if not isinstance(values.get('r'), int):
    raise ValueError(f'{file} says nothing of r, the rank')
  try:
    adapter_config = lora.LoraConfig(
      rank=values['r'],
      alpha=float(values.get('lora_alpha', 8)),
      targets=_targets(config, entries, str(file)),
      rslora=bool(values.get('use_rslora')),
    )
  except (ValueError, TypeError) as error:
    raise ValueError(f'{file}: {error}') from error
  tensors = safetensors_files.read(path / WEIGHTS_FILE)
  tree = _to_tree(entries, tensors, adapter_config.rank)
  if 'layers' in tree:
    unrolled = config.replace(scan_layers=False)
    _, tree = lazy.relayout(unrolled, tree, config.scan_layers)
  return adapter_config, lazy.load(lazy.astype(tree, 'float32'), shardings)


def merge_adapter(
  path: pathlib.Path | str,
  config: model_config.ModelConfig,
  params: lora.Params,
) -> lora.Params:
  """Returns a model's parameters with an adapter of a folder added to them.

  Args:
    path: the folder.
    config: of the model, in the layout of its parameters.
    params: its parameters.

  Raises:
    OSError, ValueError: as `load_adapter`.
  """
  adapter_config, adapter = load_adapter(path, config)
  return lora.merge(params, adapter, adapter_config)


def save_adapter(
  config: model_config.ModelConfig,
  adapter_config: lora.LoraConfig,
  adapter: lora.Params,
  path: pathlib.Path | str,
  base_model: str | None = None,
) -> None:
  """Writes an adapter that PEFT loads; whole or not at all.

  Args:
    config: of the model that it is for.
    adapter_config: of the adapter. Which modules it has, the adapter says.
    adapter: nested dict of arrays, stacked if the layers of the model are.
    path: of the folder; nothing may be there.
    base_model: folder or name under which others find the model.

  Raises:
    FileExistsError: if something is there.
    OSError: if it cannot be written.
    ValueError: if the adapter does not fit the model, naming the module, or
      LLaMA has no such model.
  """
  path = pathlib.Path(path)
  tensors = _from_tree(config, adapter, adapter_config.rank)
  names = {name.removeprefix(_PREFIX).rsplit('.', 2)[0] for name in tensors}
  alpha = adapter_config.alpha
  values = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base_model,
    'r': adapter_config.rank,
    'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
    'use_rslora': adapter_config.rslora,
    'target_modules': _target_modules(config, names),
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  lock = path.with_name(f'.{path.name}.lock')
  with atomic.locked(lock, remove=True), atomic.new_folder(path) as folder:
    companions.write_json(folder / CONFIG_FILE, values)
    safetensors_files.write(folder / WEIGHTS_FILE, tensors, {'format': 'pt'})


def _kernels(config: model_config.ModelConfig) -> dict[str, naming.Entry]:
  """Returns '/'-joined name of a module -> its matrix, unrolled."""
  return {
    '/'.join(entry.path[:-1]): entry
    for entry in naming.entries(config)
    if entry.path[-1] == 'kernel'
  }


def _module(entry: naming.Entry) -> str:
  """Returns LLaMA's name of the module that has a matrix."""
  return entry.name.removesuffix('.weight')


def _halves(
  entry: naming.Entry, rank: int
) -> tuple[tuple[str, str, tuple[int, int]], ...]:
  """Returns (our name, name in the file, shape there) of A and B."""
  out, width = entry.shape
  name = f'{_PREFIX}{_module(entry)}'
  return (
    ('lora_A', f'{name}.lora_A.weight', (rank, width)),
    ('lora_B', f'{name}.lora_B.weight', (out, rank)),
  )


def _refuse_other_kinds(values: Mapping[str, Any], name: str) -> None:
  """Raises ValueError, naming the key, for what is no plain LoRA."""
  if values.get('peft_type') != 'LORA':
    raise ValueError(
      f'{name}: peft_type is {values.get("peft_type")!r}; only LORA is read'
    )
  start = values.get('init_lora_weights', True)
  if start not in _PLAIN_INITS:
    raise ValueError(
      f'{name}: init_lora_weights is {start!r}, which changes the weights of '
      'the model too; let PEFT convert it to plain LoRA, or merge it there'
    )
  for key, value in values.items():
    if key in _USED | _WITHOUT_EFFECT or not value or value == 'none':
      continue
    raise ValueError(
      f'{name}: {key} is {json.dumps(value)}; only plain LoRA is read. Merge '
      'such an adapter with PEFT and convert the whole model'
    )


def _is_target(module: str, values: Mapping[str, Any], name: str) -> bool:
  """Returns whether PEFT would adapt a module."""
  wanted = values.get('target_modules')
  if isinstance(wanted, str):
    try:
      return bool(re.fullmatch(wanted, module))
    except re.error as error:
      raise ValueError(
        f'{name}: target_modules {wanted!r} is no regex: {error}'
      ) from error
  if not isinstance(wanted, list):
    raise ValueError(
      f'{name}: target_modules is {json.dumps(wanted)}, neither a list of '
      'modules nor a regex'
    )
  if not any(f'.{module}'.endswith(f'.{end}') for end in wanted):
    return False
  layers = values.get('layers_to_transform')
  if layers is None or layers == []:
    return True
  layer = re.fullmatch(r'model\.layers\.(\d+)\..*', module)
  chosen = layers if isinstance(layers, list) else [layers]
  return layer is not None and int(layer[1]) in chosen


def _targets(
  config: model_config.ModelConfig, entries: list[naming.Entry], name: str
) -> str:
  """Returns our regex for the matrices that are adapted.

  Raises:
    ValueError: if the layers are stacked and only some of them adapted.
  """
  layers, outside = {}, []
  for entry in entries:
    first, *rest = entry.path
    if first == 'layers':
      layers.setdefault('/'.join(rest[1:]), []).append(rest[0])
    else:
      outside.append('/'.join(entry.path))
  for kernel, numbers in layers.items():
    if len(numbers) == config.num_hidden_layers:
      outside.append(rf'layers/(\d+/)?{kernel}')
      continue
    if config.scan_layers:
      raise ValueError(
        f'{name} adapts {kernel} in the layers {", ".join(numbers)} of '
        f'{config.num_hidden_layers}; load it for scan_layers=False, where '
        'layers are apart'
      )
    outside.append(f'layers/({"|".join(numbers)})/{kernel}')
  return '|'.join(outside)


def _target_modules(
  config: model_config.ModelConfig, names: set[str]
) -> list[str]:
  """Returns the shortest list that makes PEFT adapt these modules."""
  everywhere = {}
  for entry in _kernels(config).values():
    last = _module(entry).rpartition('.')[2]
    everywhere.setdefault(last, set()).add(_module(entry))
  wanted = set()
  for last, there in everywhere.items():
    wanted |= {last} if there <= names else there & names
  return sorted(wanted)


def _to_tree(
  entries: list[naming.Entry], tensors: Mapping[str, lazy.Leaf], rank: int
) -> lazy.LazyTree:
  """Returns the tensors of a file as an adapter of unrolled layers."""
  flat, known = {}, set()
  for entry in entries:
    for half, name, shape in _halves(entry, rank):
      known.add(name)
      if name not in tensors:
        raise ValueError(
          f'{name} {list(shape)} is missing from {WEIGHTS_FILE}; '
          f'{CONFIG_FILE} says that it is there (target_modules)'
        )
      _check_shape(name, tensors[name].shape, shape)
      flat[*entry.path[:-1], half] = tensors[name].transpose()
  for name in tensors.keys() - known:
    if '.lora_' not in name:  # PEFT adds the matrix under an adapted lm_head
      raise ValueError(
        f'{name} {list(tensors[name].shape)} is a weight of the model, not of '
        'the adapter; let PEFT save without it: save_embedding_layers=False'
      )
    raise ValueError(
      f'{name} {list(tensors[name].shape)} belongs to no module that '
      f'{CONFIG_FILE} adapts in this model (target_modules)'
    )
  return traverse_util.unflatten_dict(flat)


def _from_tree(
  config: model_config.ModelConfig, adapter: lora.Params, rank: int
) -> dict[str, lazy.Leaf]:
  """Returns an adapter as the tensors of a file."""
  count = config.num_hidden_layers
  tree = lazy.from_params(config, adapter)
  for name, leaf in lazy.leaves(tree):
    if isinstance(leaf, lazy.Stack) and len(leaf.parts) != count:
      raise ValueError(
        f'{name} of the adapter has {len(leaf.parts)} layers, the model {count}'
      )
  if 'layers' in tree:
    _, tree = lazy.relayout(config, tree, scan_layers=False)
  kernels = _kernels(config)
  tensors = {}
  for module, pair in lora.modules(tree).items():
    if module not in kernels:
      raise ValueError(
        f'the adapter changes {module}, which is no product here'
      )
    for (_, name, shape), leaf in zip(
      _halves(kernels[module], rank), pair, strict=True
    ):
      _check_shape(name, leaf.shape[::-1], shape)
      tensors[name] = leaf.transpose()
  return tensors


def _check_shape(
  name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
  """Raises ValueError if a tensor has another shape."""
  if found != wanted:
    raise ValueError(
      f'{name} has shape {list(found)}, but {list(wanted)} follows from the '
      'model and the rank'
    )
