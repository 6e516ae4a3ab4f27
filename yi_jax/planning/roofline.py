"""How much a step must compute, keep and send: formulas, and the time of it.

Axes: B rows a step, A microbatches, T tokens a row, D model, F ffn, V vocabulary,
L layers, N query heads, K key/value heads, H head dim.

All figures are one device's. Bytes of arguments follow from the shardings and
are exact but for the padding of tiles. All else here is a formula and is
called so wherever it is shown: it chooses what to compile, and splits what the
compiler gives as one number. A roofline is a bound, not a forecast: it takes
every unit at its peak.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from yi_jax.models import config as model_config
from yi_jax.planning import topologies
from yi_jax.sharding import loss, rules
from yi_jax.sharding import mesh as mesh_lib
from yi_jax.training import run_config, train_step
from yi_jax.training import state as train_state

# What the compiler needs more than the sum of arrays: gaps between them, arrays
# that live a little longer.
_GAPS = 1.1


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device in a training step, by formula but for the arguments.

  Attributes:
    arguments: parameters, moments and the batch; exact but for padding.
    gradients: float32, of all microbatches and the one in work.
    activations: what the forward pass keeps for the backward pass.
    copies: of the layers' weights in the compute type, made before the loop
      over them.
    layer: one layer at work: its gathered weights and what it recomputes.
    ends: embedding or output matrix, its gradient, and a chunk of logits.
  """

  arguments: int
  gradients: int
  activations: int
  copies: int
  layer: int
  ends: int

  @property
  def total(self) -> int:
    # A layer and the ends are not at work at the same time.
    kept = self.arguments + self.gradients + self.activations + self.copies
    return round(_GAPS * (kept + max(self.layer, self.ends)))


@dataclasses.dataclass(frozen=True)
class Roofline:
  """The time of a step if every unit ran at its peak, in seconds.

  Attributes:
    compute: products, those done twice because of remat included.
    hbm: reading and writing memory, by formula.
    links: sending, by ','-joined mesh axes.
    model_flops: a device's share of what the model needs, nothing twice.
    peak: FLOP/s of a device.
  """

  compute: float
  hbm: float
  links: dict[str, float]
  model_flops: float
  peak: float

  @property
  def overlapped(self) -> float:
    """Everything at the same time: the slowest unit alone counts."""
    return max(self.compute, self.hbm, *self.links.values(), 0.0)

  @property
  def apart(self) -> float:
    """Nothing at the same time: the sum."""
    return self.compute + self.hbm + sum(self.links.values())

  def mfu(self, seconds: float) -> float:
    """Returns model FLOPs utilisation of a step of so many seconds."""
    return self.model_flops / self.peak / seconds


@dataclasses.dataclass(frozen=True)
class Ring:
  """Attention over a row that is cut over devices, in one step, in seconds.

  Attributes:
    compute: its products at the peak, those done twice because of remat
      included.
    sending: keys, values and their gradients from device to device.
    together: both, each round's sending beside its products.
  """

  compute: float
  sending: float
  together: float

  @property
  def share(self) -> float:
    """Speed beside that of attention which need not send anything, 0 to 1."""
    return self.compute / self.together


@dataclasses.dataclass(frozen=True)
class _Share:
  """What one device has of a step."""

  tokens: int  # of a microbatch
  pieces: int  # microbatches
  tensor: int
  shards: int  # of the parameters, beside those


def _share(run: run_config.Run, sizes: Mapping[str, int]) -> _Share:
  size = {name: sizes.get(name, 1) for name in mesh_lib.AXES}
  table = rules.strategy(run.strategy, size).rules

  def over(name: str) -> int:
    return math.prod(size[axis] for axis in table[name])

  pieces = run.optimizer.accumulate_steps
  rows = pieces * over('activation_batch') * over('activation_length')
  return _Share(
    tokens=run.rows * run.length // rows,
    pieces=pieces,
    tensor=over('mlp'),
    shards=over('embed'),
  )


def memory(run: run_config.Run, sizes: Mapping[str, int]) -> Memory:
  """Returns what a training step needs on a device; see `Memory`.

  Args:
    run: the run.
    sizes: every axis of the mesh that is larger than 1.
  """
  c, share = run.model, _share(run, sizes)
  held = _held(run, sizes)
  width = _width(c.dtype)
  saved, inside = _activations(c, share)
  layer_weights = _layer_weights(c) // share.tensor
  ends = 8 * c.vocab_size * c.hidden_size + 10 * min(
    loss.CHUNK_LOGITS, share.tokens * c.vocab_size
  )
  return Memory(
    arguments=held.state + _bytes(_batch(run, sizes)),
    gradients=held.trained * (1 if share.pieces == 1 else 2),
    activations=share.tokens * saved * c.num_hidden_layers,
    copies=layer_weights * c.num_hidden_layers // share.shards * width,
    layer=share.tokens * inside * 2 + layer_weights * (width + 4),
    ends=ends // share.tensor,
  )


def roofline(
  run: run_config.Run,
  topology: topologies.Topology,
  sizes: Mapping[str, int],
  sent: Mapping[str, tuple[float, float]],
) -> Roofline:
  """Returns the times of a training step.

  Args:
    run: the run.
    topology: the machine.
    sizes: the mesh.
    sent: bytes a device sends and bytes/s, by ','-joined axes.
  """
  c, share = run.model, _share(run, sizes)
  tokens = run.rows * run.length / topology.num_devices
  needed = model_config.flops_per_token(c, run.length) * tokens
  again = _recomputed(c, run.length) * tokens
  return Roofline(
    compute=(needed + again) / topology.chip.peak,
    hbm=_hbm_bytes(run, sizes, share) / topology.chip.hbm_bandwidth,
    links={axes: size / speed for axes, (size, speed) in sent.items()},
    model_flops=needed,
    peak=topology.chip.peak,
  )


def ring(
  run: run_config.Run,
  topology: topologies.Topology,
  sizes: Mapping[str, int],
  speed: float,
) -> Ring:
  """Returns what sending costs ring attention (sharding/ring.py), by formula.

  In each of the `context` rounds a device multiplies its queries with the keys
  that are there, of which the causal mask leaves all devices the same, and
  sends these keys and values on; backwards their float32 gradients as well,
  which travel home once more at the end. The longer of products and sending
  counts.

  Args:
    run: the run; layers with a window are taken as if they had none.
    topology: the machine.
    sizes: the mesh; `context` devices share a row.
    speed: bytes/s to the next device, one way.
  """
  c, share = run.model, _share(run, sizes)
  rounds, width = sizes['context'], _width(c.dtype)
  heads = c.num_attention_heads * c.head_dim / share.tensor
  # A token sees half of the row; two products of 2 FLOPs a number.
  forward = 2 * run.length * heads * share.tokens / topology.chip.peak / rounds
  kv = 2 * c.num_key_value_heads * c.head_dim / share.tensor * share.tokens
  passes = 1 if c.remat == 'none' else 2
  # (times a step, seconds of products, seconds of sending) of each round.
  kinds = (
    (passes, forward, kv * width / speed),
    (1, 2.5 * forward, kv * (width + 4) / speed),
  )
  again = share.pieces * c.num_hidden_layers
  home = again * kv * 4 / speed
  return Ring(
    compute=again * rounds * sum(n * work for n, work, _ in kinds),
    sending=again * rounds * sum(n * sent for n, _, sent in kinds) + home,
    together=home
    + again * rounds * sum(n * max(work, sent) for n, work, sent in kinds),
  )


def expected(
  run: run_config.Run,
  topology: topologies.Topology,
  sizes: Mapping[str, int],
) -> dict[str, tuple[float, float]]:
  """Returns what a device will send and how fast, before any compiling.

  FSDP gathers the weights once a pass and scatters the gradients; tensor
  parallelism sums the stream twice a pass; copies of the model sum gradients.
  A formula, and one for ranking: the ring of the tensor axis is taken to lie
  along one dimension and that of the others along the rest.
  """
  c, share = run.model, _share(run, sizes)
  width = _width(c.dtype)
  passes = 2 if c.remat == 'none' else 3
  layers = _layer_weights(c) * c.num_hidden_layers / share.tensor
  matrices = (1 if c.tie_word_embeddings else 2) * c.vocab_size * c.hidden_size
  sent = {}
  if share.shards > 1:
    # Gathered in every pass, scattered in the last; the two ends once each.
    size = layers * (passes + 1) * width
    size += matrices / share.tensor * (width + 4)
    sent['fsdp'] = size * (1 - 1 / share.shards) * share.pieces
  if sizes.get('data', 1) > 1:
    copies = sizes['data']
    held = model_config.num_params(c) / share.tensor / share.shards
    sent['data'] = 2 * held * width * (1 - 1 / copies) * share.pieces
  if share.tensor > 1:
    stream = share.tokens * c.hidden_size * width
    sums = 2 * passes * c.num_hidden_layers
    ring = 2 * (1 - 1 / share.tensor)
    sent['tensor'] = stream * sums * ring * share.pieces
  return {
    axis: (size, _speed(topology, axis, share)) for axis, size in sent.items()
  }


def _speed(topology: topologies.Topology, axis: str, share: _Share) -> float:
  chip = topology.chip
  if not topology.is_tpu:
    inside = axis == 'tensor' and share.tensor <= topology.shape[1]
    alone = topology.shape[0] == 1
    return chip.link if inside or alone else chip.across
  ways = [2 if closed else 1 for closed in topologies.wraps(topology)]
  used = [w for w, n in zip(ways, topology.shape, strict=True) if n > 1]
  used = used or [1]
  if axis == 'tensor':
    return chip.link * used[0]
  rest = used[1:] if share.tensor > 1 and len(used) > 1 else used
  return chip.link * sum(rest)


# --------------------------------------------------------- bytes of the formulas


def _width(dtype: str) -> int:
  return 4 if dtype == 'float32' else 2


def _abstract(sizes: Mapping[str, int]) -> AbstractMesh:
  shape = tuple(sizes.get(name, 1) for name in mesh_lib.AXES)
  auto = (AxisType.Auto,) * len(shape)
  return AbstractMesh(shape, mesh_lib.AXES, axis_types=auto)


@dataclasses.dataclass(frozen=True)
class _Held:
  """Bytes a device holds of the state, of the parameters, and of a moment."""

  state: int
  params: int
  trained: int


_HELD: dict[Any, _Held] = {}


def _held(run: run_config.Run, sizes: Mapping[str, int]) -> _Held:
  """Returns what follows from the shardings; takes a second the first time."""
  # What the shapes do not depend on is left out.
  model = run.model.replace(remat='none')
  key = (model, run.optimizer.trainable, tuple(sorted(sizes.items())))
  if key not in _HELD:
    state = train_state.abstract(run, _abstract(sizes))
    parts = (state, state.params, state.opt_state.mu)
    _HELD[key] = _Held(*map(_bytes, parts))
  return _HELD[key]


def _batch(run: run_config.Run, sizes: Mapping[str, int]) -> dict[str, Any]:
  return train_step.abstract_batch(run, _abstract(sizes))


def _bytes(tree: Any) -> int:
  """Returns the bytes of one device's shards."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _layer_weights(c: model_config.ModelConfig) -> int:
  """Returns the weights of one layer, on average over the pattern."""
  ends = (1 if c.tie_word_embeddings else 2) * c.vocab_size * c.hidden_size
  return (model_config.num_params(c) - ends) // c.num_hidden_layers


def _activations(c: model_config.ModelConfig, share: _Share) -> tuple[int, int]:
  """Returns the bytes a token that a layer keeps, and has while it works."""
  t, width = share.tensor, _width(c.dtype)
  heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim // t
  products = heads + 2 * c.hidden_size + 2 * c.intermediate_size // t
  rotated = c.num_attention_heads * c.head_dim // t
  everything = products + heads + rotated + 3 * c.hidden_size
  everything += c.intermediate_size // t
  stream = c.hidden_size // t  # cut along the length
  kept = {
    'full': stream,
    'none': everything,
    'dots': stream + products,
    'offload': stream,  # the products are in the host's memory
  }[c.remat]
  return kept * width, everything * width


def _recomputed(c: model_config.ModelConfig, length: int) -> float:
  """Returns the FLOPs a token that the backward pass does again."""
  output = 6.0 * c.vocab_size * c.hidden_size
  layers = model_config.flops_per_token(c, length) - output
  products = 6.0 * c.num_hidden_layers * _layer_weights(c)
  if c.remat == 'none':
    return 0.0
  if c.remat == 'full':
    return layers / 3
  return max(layers - products, 0.0) / 3  # attention alone


def _hbm_bytes(
  run: run_config.Run, sizes: Mapping[str, int], share: _Share
) -> float:
  """Returns bytes read and written in a step.

  Weights are written once gathered and read by each product; every product
  reads and writes its activations; AdamW reads four arrays of float32 and
  writes three; a chunk of logits passes four times.
  """
  c, width = run.model, _width(run.model.dtype)
  passes = 3 if c.remat in ('none', 'dots', 'offload') else 4
  weights = _layer_weights(c) * c.num_hidden_layers / share.tensor
  _, inside = _activations(c, share)
  a_piece = weights * (2 * passes * width + 4)
  a_piece += 2 * inside * share.tokens * c.num_hidden_layers * passes
  logits = share.tokens * c.vocab_size / share.tensor
  a_piece += logits * 4 * 4
  return a_piece * share.pieces + 7 * _held(run, sizes).params
