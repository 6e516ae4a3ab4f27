"""One update: loss, gradients, judgement, AdamW, all in one program.

Axes: B rows a step, A microbatches, T tokens a row.

The step is made from shapes alone (`make`), so that it can be lowered and
compiled for a machine that is not there; plan, benchmarks and the tests of the
experiment files do that.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from yi_jax.models import attention
from yi_jax.sharding import attention as sharded_attention
from yi_jax.sharding import loss as sharded_loss
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import pipeline, report, ring, rules
from yi_jax.training import (
  cross_entropy,
  faults,
  objectives,
  optimizer,
  run_config,
)
from yi_jax.training import state as train_state

_FIELDS = {
  'tokens': jnp.int32,
  'targets': jnp.int32,
  'segment_ids': jnp.int32,
  'positions': jnp.int32,
  'loss_weights': jnp.float32,
}
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """A compiled-on-demand step, and the shapes it takes.

  Attributes:
    update: jitted (state, batch) -> (state, metrics); the state is donated.
      Metrics are float32 scalars but for `bad` and `skipped` (int32).
    state: shapes, types and shardings of the state.
    batch: the same of a global batch.
  """

  update: Callable[..., tuple[train_state.TrainState, Metrics]]
  state: train_state.TrainState
  batch: dict[str, jax.ShapeDtypeStruct]

  def lower(self) -> jax.stages.Lowered:
    """Lowers the step from shapes; `.compile()` it for memory and time."""
    return self.update.lower(self.state, self.batch)


def make(
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  *,
  objective: objectives.Objective | None = None,
  attention_fn: attention.AttentionFn | None = None,
) -> TrainStep:
  """Builds the step of a run on a mesh.

  Args:
    run: the run.
    mesh: devices, which may be a compile-only topology.
    objective: (params, batch) -> (sum, aux with 'nll' and 'weight'); None is
      next-token prediction.
    attention_fn: attention of one device, for that default objective; None
      takes the backend's.

  Raises:
    ValueError: if rows or parameters cannot be divided over the devices.
  """
  check(run, mesh)
  if objective is None:
    objective = functools.partial(
      next_token(run, mesh, attention_fn, z_loss=run.optimizer.z_loss),
      neftune_alpha=run.optimizer.neftune_alpha,
    )
  state = train_state.abstract(run, mesh)
  batch = abstract_batch(run, mesh)
  update = jax.jit(
    functools.partial(_update, run=run, mesh=mesh, objective=objective),
    in_shardings=jax.tree.map(lambda leaf: leaf.sharding, (state, batch)),
    out_shardings=(
      jax.tree.map(lambda leaf: leaf.sharding, state),
      rules.replicated(mesh),
    ),
    donate_argnums=0,
  )
  return TrainStep(update, state, batch)


def next_token(
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  attention_fn: attention.AttentionFn | None = None,
  z_loss: float = 0.0,
  loss_fn: sharded_loss.Loss = cross_entropy.cross_entropy,
) -> objectives.Objective:
  """Returns next-token prediction with all that depends on the mesh filled in.

  Args:
    run: the run.
    mesh: devices; one device needs no pinning of activations.
    attention_fn: attention of one device; None takes the backend's.
    z_loss: see `objectives.next_token`.
    loss_fn: of one device.
  """
  table = rules.strategy(run.strategy, mesh.shape).rules
  attention_fn = attention_fn or attention.get()
  layers_fn = None
  if mesh.shape['stage'] > 1:
    layers_fn = pipeline.layers_fn(mesh, run.microbatches, attention_fn, table)
  return functools.partial(
    objectives.next_token,
    config=run.model,
    attention_fn=sharded_attention.sharded(attention_fn, mesh, table),
    constrain=rules.constrainer(mesh, table) if mesh.size > 1 else None,
    layers_fn=layers_fn,
    z_loss=z_loss,
    loss_fn=sharded_loss.sharded(loss_fn, mesh, table),
  )


def abstract_batch(
  run: run_config.Run, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, types and shardings of a global batch, each [B, T].

  Where rows are cut along their length, T is what `ring.padded` makes of it.
  """
  sharding = rules.batch_sharding(
    mesh, rules.strategy(run.strategy, mesh.shape).rules
  )
  shape = run.rows, ring.padded(run.length, mesh.shape['context'])
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    for name, dtype in _FIELDS.items()
  }


def row_group(run: run_config.Run, mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Returns which rows this process reads; see `sharding.mesh.row_group`."""
  table = rules.strategy(run.strategy, mesh.shape).rules
  return meshes.row_group(mesh, table)


def put_batch(
  rows: dict[str, np.ndarray], batch: dict[str, jax.ShapeDtypeStruct]
) -> objectives.Batch:
  """Puts this process's rows where the step wants them.

  Where rows are cut along their length (mesh.context), each row is padded with
  tokens of segment 0 and weight 0 and brought into the order of `ring.zigzag`,
  all its arrays alike: an objective may look at any token and its target, but
  not at what stands beside it in the array.

  Args:
    rows: arrays [B / G, T] by name, G groups of processes with rows of their
      own (see `row_group`); names the step does not take, such as row_id, are
      left out.
    batch: see `abstract_batch`.

  Returns:
    Global arrays [B, T].
  """
  return {
    name: _put(rows[name].astype(leaf.dtype), leaf)
    for name, leaf in batch.items()
  }


def _put(x: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """Makes one global array of the rows of each process."""
  height, length = leaf.shape
  x = np.pad(x, ((0, 0), (0, length - x.shape[1])))
  x = x[:, ring.zigzag(length, leaf.sharding.mesh.shape['context'])]
  # What its devices hold of the global rows, in order, are the rows it has.
  places = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
  starts = sorted({rows.indices(height)[0] for rows, _ in places})

  def part(index: tuple[slice, slice]) -> np.ndarray:
    first, stop, _ = index[0].indices(height)
    here = starts.index(first) * (stop - first)
    return x[here : here + stop - first, index[1]]

  return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def check(run: run_config.Run, mesh: jax.sharding.Mesh) -> None:
  """Refuses a mesh that does not suit a run, before anything is compiled.

  Raises:
    ValueError: if a device would not get whole rows of a microbatch, layers
      cannot be cut into stages, or parameters would be whole that shall be cut.
  """
  table = rules.strategy(run.strategy, mesh.shape).rules
  over = table['activation_batch']
  shards = math.prod(mesh.shape[axis] for axis in over)
  pieces = run.optimizer.accumulate_steps
  if run.rows % (shards * pieces):
    raise ValueError(
      f'{run.rows} rows a step (data.batch_tokens / data.length) cannot be '
      f'divided over {shards} devices (mesh {" x ".join(over)}) and '
      f'{pieces} microbatches; take a multiple of {shards * pieces} rows'
    )
  pipeline.check(run.model, mesh, run.microbatches, run.rows // pieces)
  report.check(run.model, mesh, run.strategy)


def _update(
  state: train_state.TrainState,
  batch: objectives.Batch,
  *,
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  objective: objectives.Objective,
) -> tuple[train_state.TrainState, Metrics]:
  """Makes one update; see `TrainStep.update`."""
  settings = run.optimizer
  trained, frozen = optimizer.split(state.params, settings.trainable)
  rows = abstract_batch(run, mesh)['tokens'].sharding
  pieces = _microbatches(batch, settings.accumulate_steps, rows)
  if settings.neftune_alpha:
    key = jax.random.fold_in(jax.random.key(run.seed), state.step)
    keys = jax.random.split(key, settings.accumulate_steps)
    pieces['noise_key'] = jax.random.key_data(keys)
  grads, sums = _gradients(
    lambda trained, batch: objective(optimizer.merge(trained, frozen), batch),
    trained,
    pieces,
  )
  # One division, by the weight of the whole batch. A batch without any weight
  # has no gradient either.
  scale = 1 / jnp.maximum(sums['weight'], 1e-6)
  loss = sums['nll'] * scale
  norm = optax.global_norm(grads) * scale
  ok, guard = faults.judge(state.guard, loss, norm, run.spike_factor)

  rate = optimizer.rate(settings, state.step, run.steps)
  scale *= optimizer.clip_scale(norm, settings.clip_norm)
  grads = jax.tree.map(lambda g: g * scale, grads)
  # Each device updates what it has the moments of: with ZeRO-1 a share of the
  # parameters it holds, which are then put together again.
  places = train_state.moment_shardings(run, mesh)
  grads = jax.lax.with_sharding_constraint(grads, places)
  trained = jax.lax.with_sharding_constraint(trained, places)

  def keep(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)

  _, opt_state = optimizer.moments(settings).update(grads, state.opt_state)
  opt_state = keep(opt_state, state.opt_state)
  direction = optimizer.direction(settings, opt_state, trained)
  moved = jax.tree.map(lambda p, d: p - rate * d, trained, direction)
  new_state = train_state.TrainState(
    step=state.step + 1,
    params=optimizer.merge(keep(moved, trained), frozen),
    opt_state=opt_state,
    guard=guard,
  )
  metrics = {
    'loss': loss,
    'grad_norm': norm,
    'learning_rate': rate,
    'weight': sums['weight'],
    'bad': guard.bad,
    'skipped': guard.skipped,
  }
  return new_state, metrics


def _microbatches(
  batch: objectives.Batch, pieces: int, sharding: jax.sharding.NamedSharding
) -> objectives.Batch:
  """Reshapes [B, T] to [A, B/A, T] without moving rows between devices."""
  if pieces == 1:
    return {name: x[None] for name, x in batch.items()}
  sharding = jax.sharding.NamedSharding(
    sharding.mesh, jax.sharding.PartitionSpec(None, *sharding.spec)
  )

  def cut(x: jax.Array) -> jax.Array:
    # Row r goes to microbatch r mod A: neighbours, which share a device, are
    # dealt out one each.
    x = x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, sharding)

  return {name: cut(x) for name, x in batch.items()}


def _gradients(
  objective: objectives.Objective,
  params: optimizer.Params,
  batch: objectives.Batch,
) -> tuple[optimizer.Params, dict[str, jax.Array]]:
  """Returns gradients of the summed loss, and the sums, over [A, B/A, T]."""
  value_and_grad = jax.value_and_grad(objective, has_aux=True)

  def one(piece: objectives.Batch) -> tuple[Any, dict[str, jax.Array]]:
    (_, sums), grads = value_and_grad(params, piece)
    return grads, sums

  pieces = len(batch['tokens'])
  first = jax.tree.map(lambda x: x[0], batch)
  if pieces == 1:
    return one(first)

  def add(carry: Any, piece: objectives.Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, carry, one(piece)), None

  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, first)
  )
  total, _ = jax.lax.scan(add, zeros, batch)
  return total
