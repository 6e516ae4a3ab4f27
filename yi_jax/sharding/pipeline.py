"""Pipeline parallelism: each group of devices runs its own share of the layers.

Axes: B batch, T tokens a row, D model; S stages, M microbatches, R repeats of
the layer pattern, b = B/M rows of a microbatch, n = M/S microbatches of a
stage.

The mesh axis `stage` cuts the stacked layers: stage s holds repeats s R/S to
(s+1) R/S. A batch goes through in M microbatches; after S - 1 ticks every stage
works on one, each on another. What moves between devices is activations, from a
stage to the next, never weights: that suits links which are slow.

Outside the layers the stages are further copies for data parallelism: rows of
the embedding, the final norm and the loss are cut over them too, so that no
work is done twice and a process reads rows of its own wherever its devices
stand.

How it is written (GPipe, Huang et al. 2019, in the form of GSPMD, Xu et al.
2021, section 3.3): the stages are the leading axis of arrays that are cut over
`stage`, the layers of all of them run as one `vmap`, and what moves on is rolled
along that axis by a collective-permute. Gradients are those of the loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from yi_jax.models import attention, transformer
from yi_jax.models import config as config_lib
from yi_jax.sharding import attention as sharded_attention
from yi_jax.sharding import rules as rules_lib

_STREAM = ('activation_batch', 'activation_norm_length', 'activation_embed')
_AXIS = 'stage'


def bubble(stages: int, microbatches: int) -> float:
  """Returns the share of the time a stage waits: (S - 1) / (M + S - 1).

  Args:
    stages: S.
    microbatches: M.
  """
  return (stages - 1) / (microbatches + stages - 1)


def check(
  config: config_lib.ModelConfig, mesh: Mesh, microbatches: int, rows: int
) -> None:
  """Refuses what cannot be laid out in stages.

  Args:
    config: the model.
    mesh: the devices.
    microbatches: M, `mesh.microbatches` of a run.
    rows: B, rows that go through the model at once.

  Raises:
    ValueError: naming what does not divide, and the cure.
  """
  stages = mesh.shape[_AXIS]
  if microbatches < 1 or microbatches % stages:
    waits = bubble(stages, 4 * stages)
    raise ValueError(
      f'mesh.microbatches ({microbatches}) must be a multiple of mesh.stage '
      f'({stages}); with {4 * stages} each stage waits {waits:.0%} of the time'
    )
  if stages == 1 and microbatches > 1:
    raise ValueError(
      f'mesh.microbatches ({microbatches}) is for mesh.stage above 1; to save '
      'memory without stages use optimizer.accumulate_steps'
    )
  if stages == 1:
    return
  if not config.scan_layers:
    raise ValueError(
      f'mesh.stage ({stages}) cuts stacked layers; set '
      'model.overrides.scan_layers=True'
    )
  if config.num_repeats % stages:
    pattern = len(config.layer_pattern)
    raise ValueError(
      f'mesh.stage ({stages}) must divide the {config.num_repeats} repeats of '
      f'the layer pattern (num_hidden_layers {config.num_hidden_layers} / '
      f'{pattern} layers a repeat)'
    )
  pieces = _row_devices(mesh) * microbatches
  if rows % pieces:
    raise ValueError(
      f'{rows} rows cannot be cut into mesh.microbatches = {microbatches} for '
      f'{_row_devices(mesh)} devices (mesh data x fsdp) each; take a multiple '
      f'of {pieces} rows or fewer microbatches'
    )


def layers_fn(
  mesh: Mesh,
  microbatches: int,
  attention_fn: attention.AttentionFn,
  rules: rules_lib.Rules,
) -> transformer.LayersFn:
  """Returns the `layers_fn` of a Transformer whose layers are cut into stages.

  Args:
    mesh: the devices; `stage` is larger than 1.
    microbatches: M, see `check`.
    attention_fn: attention of one device.
    rules: the table, with 'layers' and the batch cut over `stage`.
  """
  inside = _within_a_stage(rules)
  attend = sharded_attention.sharded(attention_fn, mesh, inside)
  constrain = rules_lib.constrainer(mesh, inside)
  pipeline = _Pipeline(mesh, microbatches, rules)

  def run_layers(
    run: transformer.RunRepeats,
    params: dict[str, Any],
    x_BTD: jax.Array,
    context: Any,
  ) -> tuple[jax.Array, dict[str, Any]]:
    def stage(params: Any, x: jax.Array, context: Any) -> tuple:
      return run(params, x, context, attend, constrain)

    return pipeline(stage, params, x_BTD, context)

  return run_layers


class _Pipeline:
  """The loop over ticks; see the head of this file."""

  def __init__(
    self, mesh: Mesh, microbatches: int, rules: rules_lib.Rules
  ) -> None:
    self._mesh, self._rules = mesh, rules
    self._inside = _within_a_stage(rules)
    self._stages = mesh.shape[_AXIS]
    self._microbatches = microbatches
    self._per_stage = microbatches // self._stages

  def __call__(
    self,
    stage: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    params: dict[str, Any],
    x_BTD: jax.Array,
    context: Any,
  ) -> tuple[jax.Array, Any]:
    """Takes a batch through all stages.

    Args:
      stage: (params [R/S, ...], x [b, T, D], context [b, ...]) -> x, aux, for
        one stage.
      params: [R, ...] each.
      x_BTD: the stream before the first repeat.
      context: leaves [B, ...], which go with their rows, or scalars.

    Returns:
      The stream after the last repeat, and aux: leaves [R, ...], the mean over
      microbatches.
    """
    S, n = self._stages, self._per_stage
    B, T, D = x_BTD.shape
    ids = jnp.arange(S)
    params = jax.tree.map(self._cut_layers, params)
    context, in_axes = self._cut_context(context)
    stages = jax.vmap(stage, in_axes=(0, 0, in_axes), spmd_axis_name=_AXIS)

    def tick(carry: tuple, now: jax.Array) -> tuple[tuple, Any]:
      x, waiting = carry
      # Microbatches stand in line, n at each stage. The line of this tick ends
      # in stage 0; behind the last stage what is done joins it.
      place = now % n
      line = jax.lax.dynamic_index_in_dim(waiting, place, 1, keepdims=False)
      x = self._pin(jnp.where(_at(ids == 0, x), line, x), _STREAM, _AXIS)
      working_on = now - ids  # which microbatch; none yet or no more outside M
      x, aux = stages(params, x, self._of(context, working_on))
      x = self._pin(x, _STREAM, _AXIS)
      line = jnp.where(_at(ids == S - 1, x), x, self._move(line, -1))
      waiting = jax.lax.dynamic_update_index_in_dim(waiting, line, place, 1)
      waiting = self._pin(waiting, _STREAM, _AXIS, None)
      busy = (working_on >= 0) & (working_on < self._microbatches)
      aux = jax.tree.map(lambda a: jnp.where(_at(busy, a), a, 0), aux)
      return (self._move(x, 1), waiting), aux

    waiting = self._deal(x_BTD)
    start = jnp.zeros((S, B // self._microbatches, T, D), x_BTD.dtype)
    start = self._pin(start, _STREAM, _AXIS)
    ticks = jnp.arange(self._microbatches + S - 1)
    (_, waiting), aux = jax.lax.scan(tick, (start, waiting), ticks)
    # Microbatch j of a stage's n has come back to it, S - 1 places further on.
    x_BTD = self._gather(jnp.roll(waiting, -(S - 1), axis=1))
    aux = jax.tree.map(
      lambda a: jnp.sum(a, 0).reshape(-1, *a.shape[3:]) / self._microbatches,
      aux,
    )
    return x_BTD, aux

  def _pin(
    self, x: jax.Array, axes: tuple[str | None, ...], *lead: str | None
  ) -> jax.Array:
    """Pins dimensions in front to mesh axes, the others to logical ones."""
    cut = rules_lib.spec(
      self._mesh, axes, x.shape[len(lead) :], rules=self._inside
    )
    return jax.lax.with_sharding_constraint(
      x, NamedSharding(self._mesh, PartitionSpec(*lead, *cut))
    )

  def _move(self, x: jax.Array, by: int) -> jax.Array:
    """Sends each stage's part of x [S, ...] to the stage `by` further, around.

    A roll; written out, so that it is one message forwards and one backwards.
    """
    pairs = [(s, (s + by) % self._stages) for s in range(self._stages)]
    return jax.shard_map(
      lambda part: jax.lax.ppermute(part, _AXIS, pairs),
      mesh=self._mesh,
      axis_names={_AXIS},
      in_specs=PartitionSpec(_AXIS),
      out_specs=PartitionSpec(_AXIS),
    )(x)

  def _cut_layers(self, leaf: jax.Array) -> jax.Array:
    """[R, ...] -> [S, R/S, ...]: each stage its own."""
    leaf = leaf.reshape(self._stages, -1, *leaf.shape[1:])
    free = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
    return jax.lax.with_sharding_constraint(
      leaf, NamedSharding(self._mesh, PartitionSpec(_AXIS, *free))
    )

  def _deal(self, x: jax.Array) -> jax.Array:
    """[B, ...] -> [S, n, b, ...] without moving a row between devices.

    Rows are cut over the batch axes and then over stages; on a device,
    neighbours are dealt out to its n microbatches.
    """
    outer, S, n = _row_devices(self._mesh), self._stages, self._per_stage
    x = x.reshape(outer, S, -1, n, *x.shape[1:])
    x = jnp.moveaxis(x, (1, 3), (0, 1))
    x = x.reshape(S, n, -1, *x.shape[4:])
    return self._pin(x, _axes_of_rows(x.ndim - 2), _AXIS, None)

  def _gather(self, x: jax.Array) -> jax.Array:
    """[S, n, b, T, D] -> [B, T, D], as they came."""
    outer, S, n = _row_devices(self._mesh), self._stages, self._per_stage
    x = x.reshape(S, n, outer, -1, *x.shape[3:])
    x = jnp.moveaxis(x, (0, 1), (1, 3))
    x = x.reshape(-1, *x.shape[4:])
    cut = rules_lib.spec(self._mesh, _STREAM, x.shape, self._rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, cut))

  def _cut_context(self, context: Any) -> tuple[Any, Any]:
    """Leaves [B, ...] -> [M, b, ...], at every stage; and vmap's in_axes.

    They are small beside the stream, so that all stages hold all of them and
    nothing of them moves from tick to tick.
    """

    def cut(x: jax.Array) -> jax.Array:
      if not x.ndim:
        return x
      x = self._deal(x)
      x = x.reshape(self._microbatches, *x.shape[2:])
      return self._pin(x, _axes_of_rows(x.ndim - 1), None)

    in_axes = jax.tree.map(lambda x: 0 if x.ndim else None, context)
    return jax.tree.map(cut, context), in_axes

  def _of(self, context: Any, working_on: jax.Array) -> Any:
    """Returns the context [S, b, ...] of each stage's microbatch."""
    index = jnp.clip(working_on, 0, self._microbatches - 1)

    def pick(x: jax.Array) -> jax.Array:
      if not x.ndim:
        return x
      x = jnp.take(x, index, axis=0)
      return self._pin(x, _axes_of_rows(x.ndim - 1), _AXIS)

    return jax.tree.map(pick, context)


def _axes_of_rows(ndim: int) -> tuple[str | None, ...]:
  """Logical axes of [b, T, ...]."""
  return ('activation_batch', 'activation_length', *(None,) * ndim)[:ndim]


def _at(chosen: jax.Array, x: jax.Array) -> jax.Array:
  """bool[S] in a shape that broadcasts to x [S, ...]."""
  return chosen.reshape(-1, *(1,) * (x.ndim - 1))


def _row_devices(mesh: Mesh) -> int:
  """Returns over how many devices the rows of a microbatch are cut."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def _within_a_stage(rules: rules_lib.Rules) -> rules_lib.Rules:
  """Returns the table for one stage: nothing of it is cut over stages."""
  return {
    name: tuple(axis for axis in over if axis != _AXIS)
    for name, over in rules.items()
  }
