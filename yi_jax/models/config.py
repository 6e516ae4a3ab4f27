"""What a Yi is: one frozen dataclass, and the published sizes as presets.

Fields carry the names of Hugging Face's config.json, so that a checkpoint's
file maps onto them one to one. Sizes come from the Yi report (arXiv
2403.04652, table 1) and from the config files of the released checkpoints;
rope_theta, rms_norm_eps and max_position_embeddings differ between siblings
and are therefore spelled out for every preset, never inherited silently.
"""

import dataclasses
from typing import Any

from yi_jax import spelling
from yi_jax.models import lora as lora_lib

ATTENTIONS = ('full', 'sliding')
ROPE_TYPES = ('linear', 'dynamic', 'yarn')
REMATS = ('none', 'full', 'dots', 'offload')


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """One layer of the repeating pattern.

  Attributes:
    attention: 'full' or 'sliding'.
    window: how many tokens a sliding layer sees, itself included.
    kv_from: index within the pattern of an earlier layer whose keys and values
      this layer reuses (Yi-Lightning's cross-layer sharing); None owns its own.
    mlp: kind of the feed-forward part; 'dense' is SwiGLU.
  """

  attention: str = 'full'
  window: int | None = None
  kv_from: int | None = None
  mlp: str = 'dense'

  def __post_init__(self) -> None:
    if self.attention not in ATTENTIONS:
      raise ValueError(_unknown('attention', self.attention, ATTENTIONS))
    if (self.attention == 'sliding') != (self.window is not None):
      raise ValueError(
        f'A sliding layer needs a window and a full one has none: {self}'
      )
    if self.window is not None and self.window < 1:
      raise ValueError(f'window counts tokens and must be positive: {self}')
    if self.mlp != 'dense':
      raise ValueError(_unknown('mlp', self.mlp, ('dense',)))


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Positions stretched beyond what a checkpoint was trained for.

  Yi has none: it raises rope_theta instead. Fields are those of
  `rope_parameters` in Hugging Face's config.json.

  Attributes:
    rope_type: 'linear' (every position divided, Chen et al. 2023), 'dynamic'
      (a base that grows with the longest row at hand, "NTK"), or 'yarn' (slow
      planes divided, fast ones left alone; Peng et al. 2023).
    factor: how many times longer, at least 1.
    original_max_position_embeddings: tokens trained for; not of 'linear'.
    attention_factor: YaRN: what cosines and sines are multiplied with; None
      takes 0.1 log(factor) + 1.
    beta_fast: YaRN: planes that turn more often over the trained tokens stay.
    beta_slow: YaRN: planes that turn less often are divided by factor.
  """

  rope_type: str
  factor: float = 1.0
  original_max_position_embeddings: int | None = None
  attention_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0

  def __post_init__(self) -> None:
    if self.rope_type not in ROPE_TYPES:
      raise ValueError(_unknown('rope_type', self.rope_type, ROPE_TYPES))
    if not self.factor >= 1:
      raise ValueError(f'the factor of {self.rope_type} is at least 1: {self}')
    length = self.original_max_position_embeddings
    if self.rope_type != 'linear' and (length is None or length < 1):
      raise ValueError(
        f'{self.rope_type} needs original_max_position_embeddings, the tokens '
        'that were trained for'
      )
    if not self.beta_fast > self.beta_slow > 0:
      raise ValueError(f'beta_fast must exceed beta_slow, above 0: {self}')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder of the Yi family.

  Attributes:
    vocab_size: V, rows of the embedding.
    hidden_size: D, width of the residual stream.
    intermediate_size: F, width of the SwiGLU MLP.
    num_hidden_layers: L, a multiple of the pattern's length.
    num_attention_heads: N query heads.
    num_key_value_heads: K, divides N (grouped-query attention).
    head_dim: H, even.
    rms_norm_eps: added to the mean square before the root.
    rope_theta: base of the rotary embedding; belongs to the checkpoint.
    rope_scaling: positions stretched on top of that; no Yi has it.
    lora: adapters beside the kernels, see models/lora.py; None has none.
    max_position_embeddings: tokens the checkpoint was trained for.
    tie_word_embeddings: the output reuses the embedding.
    attention_bias: biases on the q, k, v and o projections (no Yi has them).
    initializer_range: standard deviation of fresh weights.
    layer_pattern: repeated to fill the layers; a dense Yi is one full layer.
    scan_layers: stack the repeats and scan them (small programs); False
      unrolls them (separate arrays, faster on CPU).
    remat: what the backward pass recomputes: 'none', 'full' (all but layer
      inputs), 'dots' (all but products with weights), 'offload' (as 'dots',
      kept in host memory).
    dtype: type activations are computed in; parameters stay float32 masters.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int = 128
  rms_norm_eps: float = 1e-5
  rope_theta: float = 5e6
  rope_scaling: RopeScaling | None = None
  lora: lora_lib.LoraConfig | None = None
  max_position_embeddings: int = 4096
  tie_word_embeddings: bool = False
  attention_bias: bool = False
  initializer_range: float = 0.02
  layer_pattern: tuple[LayerSpec, ...] = (LayerSpec(),)
  scan_layers: bool = True
  remat: str = 'none'
  dtype: str = 'float32'

  def __post_init__(self) -> None:
    sizes = (
      'vocab_size',
      'hidden_size',
      'intermediate_size',
      'num_hidden_layers',
      'num_attention_heads',
      'num_key_value_heads',
      'head_dim',
      'max_position_embeddings',
    )
    for name in sizes:
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be positive, not {getattr(self, name)}')
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f'num_attention_heads ({self.num_attention_heads}) must be a multiple '
        f'of num_key_value_heads ({self.num_key_value_heads})'
      )
    if self.head_dim % 2:
      raise ValueError(f'RoPE needs an even head_dim, not {self.head_dim}')
    if self.remat not in REMATS:
      raise ValueError(_unknown('remat', self.remat, REMATS))
    if self.dtype not in ('float32', 'bfloat16', 'float16'):
      raise ValueError(f'dtype must be a float type by name, not {self.dtype}')
    self._check_pattern()

  def _check_pattern(self) -> None:
    pattern = self.layer_pattern
    if not pattern or self.num_hidden_layers % len(pattern):
      raise ValueError(
        f'num_hidden_layers ({self.num_hidden_layers}) must be a multiple of '
        f'the layer pattern ({len(pattern)} layers)'
      )
    for i, spec in enumerate(pattern):
      owner = spec.kv_from
      if owner is not None and not (
        0 <= owner < i and pattern[owner].kv_from is None
      ):
        raise ValueError(
          f'Layer {i} of the pattern takes K/V from {owner}, which must be an '
          'earlier layer of the pattern that owns its own'
        )

  @property
  def num_repeats(self) -> int:
    """How often the layer pattern is repeated."""
    return self.num_hidden_layers // len(self.layer_pattern)

  def replace(self, **changes: Any) -> 'ModelConfig':
    """Returns a copy with some fields changed; unknown ones are refused."""
    known = [f.name for f in dataclasses.fields(self)]
    for name in changes:
      if name not in known:
        raise ValueError(_unknown('model field', name, known))
    if 'layer_pattern' in changes:
      # From JSON or a command line the layers arrive as plain dicts.
      changes['layer_pattern'] = tuple(
        spec if isinstance(spec, LayerSpec) else LayerSpec(**spec)
        for spec in changes['layer_pattern']
      )
    if isinstance(changes.get('rope_scaling'), dict):
      changes['rope_scaling'] = RopeScaling(**changes['rope_scaling'])
    return dataclasses.replace(self, **changes)

  def to_dict(self) -> dict[str, Any]:
    """Returns a JSON-ready dict that `from_dict` turns back."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> 'ModelConfig':
    """Rebuilds a config from `to_dict`."""
    pattern = tuple(LayerSpec(**spec) for spec in values['layer_pattern'])
    scaling = values.get('rope_scaling')  # checkpoints of before have no key
    adapter = values.get('lora')
    return cls(
      **{
        **values,
        'layer_pattern': pattern,
        'rope_scaling': scaling and RopeScaling(**scaling),
        'lora': adapter and lora_lib.LoraConfig(**adapter),
      }
    )


def _unknown(what: str, name: str, known: Any) -> str:
  return f'no {what} {name!r}{spelling.nearest(name, known)}'


_6B = ModelConfig(
  vocab_size=64_000,
  hidden_size=4096,
  intermediate_size=11_008,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=4,
  rms_norm_eps=1e-5,
  rope_theta=5e6,
  max_position_embeddings=4096,
  dtype='bfloat16',
)
_34B = _6B.replace(
  hidden_size=7168,
  intermediate_size=20_480,
  num_hidden_layers=60,
  num_attention_heads=56,
  num_key_value_heads=8,
)

_PRESETS = {
  'yi_6b': _6B,
  'yi_6b_200k': _6B.replace(max_position_embeddings=200_000),
  'yi_9b': _6B.replace(num_hidden_layers=48, rms_norm_eps=1e-6, rope_theta=1e4),
  'yi_9b_200k': _6B.replace(
    num_hidden_layers=48,
    rms_norm_eps=1e-6,
    rope_theta=1e7,
    max_position_embeddings=262_144,
  ),
  'yi_34b': _34B,
  # The weights of March 2024; those of November 2023 had theta 5e6.
  'yi_34b_200k': _34B.replace(rope_theta=1e7, max_position_embeddings=200_000),
  'yi_1_5_6b': _6B.replace(rms_norm_eps=1e-6),
  'yi_1_5_9b': _6B.replace(num_hidden_layers=48, rms_norm_eps=1e-6),
  'yi_1_5_34b': _34B.replace(rms_norm_eps=1e-6),
  'yi_coder_1_5b': _6B.replace(
    hidden_size=2048,
    intermediate_size=5504,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    rope_theta=1e7,
    max_position_embeddings=131_072,
  ),
  'yi_coder_9b': _6B.replace(
    num_hidden_layers=48, rope_theta=1e7, max_position_embeddings=131_072
  ),
  # Ours, for laptops and tests: the same shape of model at 7.0M parameters.
  'tiny': ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=512,
    scan_layers=False,
  ),
}


def preset_names() -> list[str]:
  """Returns the names `get_preset` knows."""
  return list(_PRESETS)


def get_preset(name: str, **overrides: Any) -> ModelConfig:
  """Returns a published size, with some fields changed.

  Args:
    name: e.g. 'yi_6b'.
    **overrides: fields of ModelConfig, e.g. rope_theta=1e6.

  Raises:
    ValueError: for an unknown name or field; the nearest one is suggested.
  """
  if name not in _PRESETS:
    raise ValueError(_unknown('preset', name, _PRESETS))
  return _PRESETS[name].replace(**overrides)


def num_params(config: ModelConfig) -> int:
  """Returns the exact number of parameters, embeddings included."""
  return (
    _embedding_params(config)
    + sum(_layer_params(config, spec) for spec in config.layer_pattern)
    * config.num_repeats
    + config.hidden_size
  )


def _embedding_params(config: ModelConfig) -> int:
  matrices = 1 if config.tie_word_embeddings else 2
  return matrices * config.vocab_size * config.hidden_size


def _layer_matrices(config: ModelConfig, spec: LayerSpec) -> int:
  """Weights of one layer that take part in matrix products."""
  d = config.hidden_size
  q_width = config.num_attention_heads * config.head_dim
  kv_width = config.num_key_value_heads * config.head_dim
  own_kv = 2 * d * kv_width if spec.kv_from is None else 0
  return 2 * d * q_width + own_kv + 3 * d * config.intermediate_size


def _layer_params(config: ModelConfig, spec: LayerSpec) -> int:
  d = config.hidden_size
  total = _layer_matrices(config, spec) + 2 * d  # two norms
  if config.attention_bias:
    total += config.num_attention_heads * config.head_dim + d
    if spec.kv_from is None:
      total += 2 * config.num_key_value_heads * config.head_dim
  return total


def flops_per_token(config: ModelConfig, length: int) -> float:
  """Returns the model FLOPs of one trained token, forward and backward.

  Counts matrix products only, two operations a multiply-add, backward as twice
  the forward, and attention at its causal half (a sliding layer at its
  window), the convention MaxText has used since July 2025. Recomputation is
  not counted: this is the numerator of MFU, not of hardware utilisation.

  Args:
    config: the model.
    length: tokens a row; the average token sees half of them.

  Returns:
    FLOPs a token.
  """
  d = config.hidden_size
  products = config.vocab_size * d  # the output; the embedding is a lookup
  attended = 0.0
  q_width = config.num_attention_heads * config.head_dim
  for spec in config.layer_pattern:
    products += _layer_matrices(config, spec) * config.num_repeats
    window = min(spec.window or length, length)
    # Mean number of visible keys: rises to the window, then stays.
    seen = (window * (window + 1) / 2 + (length - window) * window) / length
    attended += seen * config.num_repeats
  return 6.0 * products + 3 * 2 * 2 * q_width * attended
