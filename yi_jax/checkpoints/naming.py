"""LLaMA's tensor names and ours: one table for both directions.

  model.embed_tokens.weight               embed_tokens/embedding
  model.layers.7.self_attn.q_proj.weight  layers/7/self_attn/q_proj/kernel   T
  model.layers.7.input_layernorm.weight   layers/7/input_layernorm/scale
  model.norm.weight                       norm/scale
  lm_head.weight                          lm_head/kernel                     T

T: a PyTorch matrix is [out, in], ours [in, out]. Which tensors there are, and
their shapes, follows from the ModelConfig: tied embeddings have no lm_head,
biases are there if the model has them. The rotary embedding needs no
permutation, as both rotate halves.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from yi_jax.checkpoints import lazy
from yi_jax.models import config as model_config
from yi_jax.models import transformer

# Last part of our path -> (last part of the name there, transposed).
_LEAVES = {
  'embedding': ('weight', False),
  'kernel': ('weight', True),
  'scale': ('weight', False),
  'bias': ('bias', False),
}
_OUTSIDE = 'lm_head'  # everything else is under `model.`
_EMBEDDING = 'model.embed_tokens.weight'
# The first upload of Yi had other names for two norms.
_EARLY = {
  r'\.ln1\.': '.input_layernorm.',
  r'\.ln2\.': '.post_attention_layernorm.',
}
# Buffers that older versions of transformers saved: they follow from theta.
_BUFFERS = re.compile(r'(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of a model.

  Attributes:
    name: LLaMA's.
    shape: in a LLaMA checkpoint.
    path: of our parameter, in the unrolled layout.
    transposed: whether ours is the transpose.
  """

  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  transposed: bool


@functools.lru_cache(maxsize=8)
def entries(config: model_config.ModelConfig) -> tuple[Entry, ...]:
  """Returns the tensors of a model: embedding, layer by layer, norm, output.

  Raises:
    ValueError: if LLaMA has no such model.
  """
  if config.layer_pattern != (model_config.LayerSpec(),):
    raise ValueError(
      'a LLaMA checkpoint has full attention and a dense MLP in every layer; '
      f'the layers of this model are {config.layer_pattern}'
    )
  one = config.replace(num_hidden_layers=1, scan_layers=False)
  shapes = transformer.abstract_params(one)  # all layers are alike
  layers = [str(i) for i in range(config.num_hidden_layers)]
  order = ['embed_tokens', *layers, 'norm', _OUTSIDE]
  found = {key: [] for key in order}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    first, *rest = (entry.key for entry in path)
    if first != 'layers':
      found[first].append(_entry((first, *rest), leaf.shape))
      continue
    for i in layers:
      found[i].append(_entry((first, i, *rest[1:]), leaf.shape))
  return tuple(itertools.chain(*(found[key] for key in order)))


def _entry(path: tuple[str, ...], shape: tuple[int, ...]) -> Entry:
  """Returns the tensor that goes with one of our parameters."""
  *modules, last = path
  last, transposed = _LEAVES[last]
  name = '.'.join((*modules, last))
  return Entry(
    name if modules[0] == _OUTSIDE else f'model.{name}',
    shape[::-1] if transposed else shape,
    path,
    transposed,
  )


def canonical(names: Iterable[str]) -> dict[str, str]:
  """Returns LLaMA's name -> name in a file, without buffers.

  Raises:
    ValueError: if a tensor is there under its early name and its later one.
  """
  found = {}
  for name in names:
    if _BUFFERS.fullmatch(name):
      continue
    usual = name
    for early, later in _EARLY.items():
      usual = re.sub(early, later, usual)
    if usual in found:
      raise ValueError(f'{name} and {found[usual]} are the same tensor')
    found[usual] = name
  return found


def to_params(
  config: model_config.ModelConfig, tensors: Mapping[str, lazy.Leaf]
) -> lazy.LazyTree:
  """Returns the tensors of a LLaMA checkpoint as our parameters.

  Args:
    config: the model, scanned or unrolled.
    tensors: by their names (the early ones are taken too).

  Raises:
    ValueError: if one is missing, has another shape, or belongs to no place.
  """
  there = canonical(tensors)
  tree = {}
  for entry in entries(config):
    leaf = tensors[_find(entry, there, config)]
    _check_shape(entry, leaf)
    node = tree
    for key in entry.path[:-1]:
      node = node.setdefault(key, {})
    node[entry.path[-1]] = leaf.transpose() if entry.transposed else leaf
  for name in there.keys() - {entry.name for entry in entries(config)}:
    _refuse_unknown(name, tensors[there[name]], tensors[there[_EMBEDDING]])
  unrolled = config.replace(scan_layers=False)
  return lazy.relayout(unrolled, tree, config.scan_layers)[1]


def from_params(
  config: model_config.ModelConfig, tree: lazy.LazyTree
) -> dict[str, lazy.Leaf]:
  """Returns our parameters as the tensors of a LLaMA checkpoint.

  Args:
    config: the model, scanned or unrolled.
    tree: its parameters.

  Raises:
    ValueError: if LLaMA has no such model, or a parameter is missing or has
      another shape.
  """
  _, tree = lazy.relayout(config, tree, scan_layers=False)
  tensors = {}
  for entry in entries(config):
    leaf: Any = tree
    for key in entry.path:
      if not isinstance(leaf, dict) or key not in leaf:
        raise ValueError(f'the parameters lack {"/".join(entry.path)}')
      leaf = leaf[key]
    leaf = leaf.transpose() if entry.transposed else leaf
    _check_shape(entry, leaf)
    tensors[entry.name] = dataclasses.replace(leaf, name=entry.name)
  return tensors


def _find(
  entry: Entry, there: dict[str, str], config: model_config.ModelConfig
) -> str:
  """Returns the name under which a file has a tensor."""
  if entry.name in there:
    return there[entry.name]
  message = f'{entry.name} {list(entry.shape)} is missing from the checkpoint'
  if entry.path[0] == _OUTSIDE:
    message += (
      ', and config.json says that the embeddings are not tied '
      '(tie_word_embeddings)'
    )
  elif config.attention_bias and entry.name.endswith('.bias'):
    message += '; config.json says that it has biases (attention_bias)'
  raise ValueError(message)


def _check_shape(entry: Entry, leaf: lazy.Leaf) -> None:
  """Raises ValueError if a tensor has another shape than the model."""
  if leaf.shape == entry.shape:
    return
  message = (
    f'{leaf.name} has shape {list(leaf.shape)}, but {list(entry.shape)} follows '
    'from the config'
  )
  if 'embed_tokens' in entry.path or entry.path[0] == _OUTSIDE:
    rows, expected = leaf.shape[0], entry.shape[0]
    if leaf.shape[1:] == entry.shape[1:]:
      message += (
        f': vocab_size is {expected:,} there, the matrix has {rows:,} rows. A '
        'tokenizer with added tokens does not lengthen the embedding: set '
        f'vocab_size to {rows}'
      )
  raise ValueError(message)


def _refuse_unknown(name: str, leaf: lazy.Leaf, embedding: lazy.Leaf) -> None:
  """Raises ValueError for a tensor that the model has no place for."""
  if name != f'{_OUTSIDE}.weight':
    raise ValueError(
      f'{leaf.name} {list(leaf.shape)} belongs to no parameter of this model; '
      'is config.json the one that came with these weights?'
    )
  # Embeddings are tied, and some tools save the matrix twice.
  same = leaf.shape == embedding.shape
  if not same or leaf.read().tobytes() != embedding.read().tobytes():
    raise ValueError(
      f'{leaf.name} differs from {embedding.name}, but config.json says that '
      'they are tied (tie_word_embeddings)'
    )
