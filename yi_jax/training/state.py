"""The training state: what a step reads and writes, and a checkpoint keeps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from yi_jax.models import lora, transformer
from yi_jax.sharding import rules
from yi_jax.training import faults, optimizer, run_config


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """Everything that changes from step to step.

  Attributes:
    step: int32 scalar, updates made, skipped ones included.
    params: nested dict of float32 master weights.
    opt_state: AdamW's moments, of the trainable parameters only.
    guard: memory of the judge over updates.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: optax.ScaleByAdamState
  guard: faults.Guard


def fresh(
  run: run_config.Run,
  mesh: jax.sharding.Mesh,
  seed: int,
  params: dict[str, Any] | None = None,
) -> TrainState:
  """Returns the state at step 0, made where it belongs.

  Args:
    run: the run.
    mesh: where it lives.
    seed: decides the weights; the same on any mesh.
    params: weights to start from instead, on the devices of the mesh; those
      of the plain model where adapters are trained, which are made here.
  """
  target = shardings(run, mesh)
  if params is None:
    params = jax.jit(
      lambda key: transformer.init_params(run.model, key),
      out_shardings=target.params,
    )(jax.random.key(seed))
  elif run.model.lora:
    params = jax.jit(
      functools.partial(_adapted, config=run.model.lora),
      out_shardings=target.params,
    )(params, jax.random.key(seed))
  else:
    params = jax.device_put(params, target.params)

  def rest(params: dict[str, Any]) -> tuple[Any, ...]:
    trained, _ = optimizer.split(params, run.optimizer.trainable)
    opt_state = optimizer.moments(run.optimizer).init(trained)
    return jnp.zeros((), jnp.int32), opt_state, faults.fresh_guard()

  step, opt_state, guard = jax.jit(
    rest, out_shardings=(target.step, target.opt_state, target.guard)
  )(params)
  return TrainState(step, params, opt_state, guard)


def _adapted(
  params: dict[str, Any], key: jax.Array, config: lora.LoraConfig
) -> dict[str, Any]:
  return lora.attach(params, lora.init(config, params, key), config)


def abstract(run: run_config.Run, mesh: jax.sharding.Mesh) -> TrainState:
  """Returns the state's shapes, types and shardings, without any memory."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    _shapes(run),
    shardings(run, mesh),
  )


def shardings(run: run_config.Run, mesh: jax.sharding.Mesh) -> TrainState:
  """Returns where each part lives, by the tables of the run's strategy."""
  everywhere = rules.replicated(mesh)
  shapes = _shapes(run)
  return TrainState(
    step=everywhere,
    params=rules.shardings(
      mesh,
      transformer.param_axes(run.model),
      shapes.params,
      rules.strategy(run.strategy, mesh.shape).rules,
    ),
    opt_state=optax.tree.map_params(
      optimizer.moments(run.optimizer),
      lambda _, sharding: sharding,
      shapes.opt_state,
      moment_shardings(run, mesh),
      transform_non_params=lambda _: everywhere,
    ),
    guard=jax.tree.map(lambda _: everywhere, shapes.guard),
  )


def moment_shardings(
  run: run_config.Run, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Returns where the moments of each trainable parameter live."""
  places = rules.shardings(
    mesh,
    transformer.param_axes(run.model),
    transformer.abstract_params(run.model),
    rules.strategy(run.strategy, mesh.shape).moments,
  )
  return optimizer.split(places, run.optimizer.trainable)[0]


def _shapes(run: run_config.Run) -> TrainState:
  params = transformer.abstract_params(run.model)
  trained, _ = optimizer.split(params, run.optimizer.trainable)
  return TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=params,
    opt_state=jax.eval_shape(optimizer.moments(run.optimizer).init, trained),
    guard=jax.eval_shape(faults.fresh_guard),
  )
