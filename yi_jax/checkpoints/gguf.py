"""Checkpoints of llama.cpp's kind: a GGUF file of a LLaMA.

Weights are given as floats, whatever they are packed as, and under LLaMA's
names, so that the table of `naming` serves this format too. GGUF keeps the rows
of the query and key projections in the order in which llama.cpp rotates them,
neighbour with neighbour; ours rotates halves, as Hugging Face's, and so the
rows are put back.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from yi_jax.checkpoints import lazy, naming
from yi_jax.data import gguf_file
from yi_jax.models import config as model_config

_TYPES = gguf.GGMLQuantizationType
# Read as they are; all the others become float32.
_PLAIN = {
  _TYPES.F32: np.float32,
  _TYPES.F16: np.float16,
  _TYPES.BF16: ml_dtypes.bfloat16,
}
_PACKED = (
  *(_TYPES.Q8_0, _TYPES.Q4_0, _TYPES.Q4_1, _TYPES.Q5_0, _TYPES.Q5_1),
  *(_TYPES.Q2_K, _TYPES.Q3_K, _TYPES.Q4_K, _TYPES.Q5_K, _TYPES.Q6_K),
)
_ROWS_BYTES = 1 << 24  # of packed rows that are unpacked at once

# GGUF's name -> LLaMA's, before `.weight` or `.bias`.
_OUTSIDE = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_INSIDE = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}


def open_checkpoint(
  path: pathlib.Path | str, scan_layers: bool = True
) -> tuple[model_config.ModelConfig, lazy.LazyTree]:
  """Opens a GGUF file and compares all names and shapes with its metadata.

  Args:
    path: of the file.
    scan_layers: whether to stack the layers.

  Returns:
    (model config, lazy tree of the parameters; what is packed comes out as
    float32).

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is cut off, of another architecture, or lacks a tensor or
      has one too many, naming it.
  """
  file = gguf_file.File(path)
  config = read_config(file).replace(scan_layers=scan_layers)
  heads = {
    'self_attn.q_proj': config.num_attention_heads,
    'self_attn.k_proj': config.num_key_value_heads,
  }
  tensors = {}
  for name in file.tensors:
    usual = _llama_name(name, str(file.path))
    leaf = _leaf(file, name)
    for part, count in heads.items():
      if part in usual:
        leaf = leaf.map(_halves(count, config.head_dim))
    tensors[usual] = leaf
  try:
    tree = naming.to_params(config, tensors)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return config, tree


def load_gguf(
  path: pathlib.Path | str,
  dtype: str = 'float32',
  shardings: Any = None,
  *,
  scan_layers: bool = True,
) -> tuple[model_config.ModelConfig, dict[str, Any]]:
  """Loads a GGUF file onto devices, tensor by tensor.

  Args:
    path: of the file.
    dtype: of the parameters, and of what is computed from them.
    shardings: where each array shall be, a tree as the parameters'; None puts
      all on the first local device.
    scan_layers: whether to stack the layers.

  Returns:
    (model config, nested dict of arrays).

  Raises:
    OSError, ValueError: see `open_checkpoint`.
  """
  config, tree = open_checkpoint(path, scan_layers)
  tree = lazy.astype(tree, dtype)
  return config.replace(dtype=dtype), lazy.load(tree, shardings)


def read_config(file: gguf_file.File) -> model_config.ModelConfig:
  """Returns the model of a GGUF file.

  Raises:
    ValueError: if it is of another architecture, naming the key.
  """
  path, metadata = file.path, file.metadata
  _refuse_others(path, metadata)

  def get(key: str, default: Any = None) -> Any:
    found = metadata.get(f'llama.{key}', default)
    if found is None:
      raise ValueError(f'{path} does not say llama.{key}')
    return found

  if 'token_embd.weight' not in file.tensors:
    raise ValueError(f'{path} has no token_embd.weight: is it a model?')
  heads = get('attention.head_count')
  width = get('embedding_length')
  try:
    return model_config.ModelConfig(
      # Metadata may leave it out, or count tokens that have no row.
      vocab_size=file.tensors['token_embd.weight'].shape[0],
      hidden_size=width,
      intermediate_size=get('feed_forward_length'),
      num_hidden_layers=get('block_count'),
      num_attention_heads=heads,
      num_key_value_heads=get('attention.head_count_kv', heads),
      head_dim=get('attention.key_length', width // heads),
      rms_norm_eps=_decimal(get('attention.layer_norm_rms_epsilon')),
      rope_theta=_decimal(get('rope.freq_base', 1e4)),  # llama.cpp's default
      max_position_embeddings=get('context_length'),
      tie_word_embeddings='output.weight' not in file.tensors,
      attention_bias=any(n.endswith('attn_q.bias') for n in file.tensors),
    )
  except (ValueError, TypeError, ZeroDivisionError) as error:
    raise ValueError(f'{path}: {error}') from error


def _refuse_others(path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
  """Raises ValueError, naming the key, for what is not computed here."""
  heads = metadata.get('llama.attention.head_count', 0)
  width = metadata.get('llama.embedding_length', 0)
  head_dim = metadata.get(
    'llama.attention.key_length',
    width // heads if isinstance(heads, int) and heads else None,
  )
  for key, default, allowed in (
    ('general.architecture', None, ('llama',)),
    ('llama.rope.scaling.type', 'none', ('none', 'linear')),
    ('llama.rope.scaling.factor', 1, (1, 0)),
    ('llama.expert_count', 0, (0,)),
    ('llama.rope.dimension_count', head_dim, (head_dim,)),
    ('llama.attention.value_length', head_dim, (head_dim,)),
  ):
    found = metadata.get(key, default)
    if found not in allowed:
      raise ValueError(
        f'{path}: {key} is {found!r}; Yi has {allowed[0]!r}, and this code '
        'computes nothing else'
      )


def _llama_name(name: str, path: str) -> str:
  """Returns LLaMA's name of a tensor.

  Raises:
    ValueError: if it has none.
  """
  stem, _, kind = name.rpartition('.')
  if stem in _OUTSIDE:
    return f'{_OUTSIDE[stem]}.{kind}'
  inside = re.fullmatch(r'blk\.(\d+)\.(\w+)', stem)
  if inside and inside[2] in _INSIDE:
    return f'model.layers.{inside[1]}.{_INSIDE[inside[2]]}.{kind}'
  if stem == 'rope_freqs':
    raise ValueError(
      f'{path} scales its positions (rope_freqs); Yi does so by rope_theta '
      'alone, and this code computes no other scaling'
    )
  raise ValueError(f'{path}: {name} belongs to no parameter of a LLaMA')


def _leaf(file: gguf_file.File, name: str) -> lazy.Leaf:
  """Returns one tensor, to be unpacked when it is read."""
  tensor = file.tensors[name]
  try:
    kind = _TYPES(tensor.type)
  except ValueError:
    kind = None
  if kind not in _PLAIN and kind not in _PACKED:
    known = ', '.join(x.name for x in (*_PLAIN, *_PACKED))
    raise ValueError(
      f'{file.path}: {name} is packed as {kind.name if kind else tensor.type}; '
      f'read are {known}'
    )
  per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  *outer, inner = tensor.shape
  if inner % per_block:
    raise ValueError(
      f'{file.path} is damaged: {name} {list(tensor.shape)} cannot be packed as '
      f'{kind.name}, in blocks of {per_block}'
    )
  row = inner // per_block * block_bytes
  rows = int(np.prod(outer, dtype=np.int64))
  content = file.bytes_of(name, rows * row)
  if kind in _PLAIN:
    dtype = np.dtype(_PLAIN[kind])
    return lazy.Leaf(
      name,
      tensor.shape,
      dtype,
      lambda: content.view(dtype).reshape(tensor.shape).copy(),
    )

  def unpack() -> np.ndarray:
    packed = content.reshape(rows, row)
    numbers = np.empty((rows, inner), np.float32)
    # Unpacking takes several times the memory of its result.
    step = max(1, _ROWS_BYTES // row)
    for i in range(0, rows, step):
      numbers[i : i + step] = gguf.dequantize(packed[i : i + step], kind)
    return numbers.reshape(tensor.shape)

  return lazy.Leaf(name, tensor.shape, np.dtype(np.float32), unpack)


def _halves(heads: int, head_dim: int) -> Callable[[np.ndarray], np.ndarray]:
  """Returns what puts the rows of a projection back for rotating halves.

  GGUF has row 2i beside row 2i + 1 of a head where we have row i and row
  i + head_dim / 2.
  """

  def change(x: np.ndarray) -> np.ndarray:
    pairs = x.reshape(heads, head_dim // 2, 2, *x.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(x.shape)

  return change


def _decimal(number: float) -> float:
  """Returns the short decimal that a float32 of the metadata stands for."""
  return float(str(np.float32(number)))
