"""k-means in JAX: seeds drawn by distance, then Lloyd's rounds, in blocks.

Seeds are those of k-means++ (Arthur and Vassilvitskii 2007), drawn `restarts`
times; the outcome of the least objective stays. All is one compiled program:
distances of a block of points to all centres are in memory at a time, and the
sums go block after block, so the same points give the same centres.

Axes: N points, B points a block, D their width, K centres.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1024
_HIGHEST = jax.lax.Precision.HIGHEST  # not TF32 or bfloat16 on accelerators


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What k-means found.

  Attributes:
    centres: float32[K, D]; those without a point are left out.
    members: int32[N], the centre nearest to each point.
    objective: sum of squared distances to them.
    rounds: of Lloyd's algorithm.
  """

  centres: np.ndarray
  members: np.ndarray
  objective: float
  rounds: int


def fit(
  points: np.ndarray,
  count: int,
  *,
  seed: int,
  restarts: int = 4,
  rounds: int = 100,
) -> Fitted:
  """Returns the best of several runs.

  Args:
    points: float32[N, D].
    count: of centres; fewer come back if fewer points differ.
    seed: of the choice of seeds.
    restarts: runs from other seeds.
    rounds: at most; it ends when no point changes its centre.

  Raises:
    ValueError: without points, or for a count below 1.
  """
  if not len(points) or count < 1:
    raise ValueError(f'no {count} clusters of {len(points)} points')
  size = min(_BLOCK, len(points))
  blocks = -(-len(points) // size)
  padded = np.zeros((blocks * size, points.shape[1]), np.float32)
  padded[: len(points)] = points
  real = (np.arange(len(padded)) < len(points)).reshape(blocks, size)
  padded = padded.reshape(blocks, size, -1)
  best = None
  for key in jax.random.split(jax.random.key(seed), restarts):
    centres = plus_plus(key, padded, real, count)
    found = lloyd(padded, real, centres, rounds)
    # A later run has to be better by more than rounding.
    if best is None or found[2] < best[2] * (1 - 1e-6):
      best = found
  centres, members, objective, steps = map(np.asarray, best)
  members = members.reshape(-1)[: len(points)]
  used, members = np.unique(members, return_inverse=True)
  return Fitted(
    centres[used], members.astype(np.int32), float(objective), int(steps)
  )


@functools.partial(jax.jit, static_argnums=3)
def plus_plus(
  key: jax.Array, points: jax.Array, real: jax.Array, count: int
) -> jax.Array:
  """Returns seeds: each is a point, drawn by its distance to those before.

  Args:
    key: of the draws.
    points: float32[N / B, B, D].
    real: bool[N / B, B], false for padding.
    count: K.

  Returns:
    float32[K, D].
  """
  flat = points.reshape(-1, points.shape[-1])
  keys = jax.random.split(key, count)
  alone = jnp.where(real.reshape(-1), 0.0, -jnp.inf)
  first = flat[jax.random.categorical(keys[0], alone)]

  def add(k: jax.Array, state: tuple) -> tuple:
    centres, nearest = state
    centre = flat[jax.random.categorical(keys[k], alone + jnp.log(nearest))]
    centres = centres.at[k].set(centre)
    return centres, jnp.minimum(nearest, _to_one(flat, centre))

  centres = jnp.zeros((count, flat.shape[1])).at[0].set(first)
  return jax.lax.fori_loop(1, count, add, (centres, _to_one(flat, first)))[0]


def _to_one(points: jax.Array, centre: jax.Array) -> jax.Array:
  return jnp.sum((points - centre) ** 2, -1)


@jax.jit
def lloyd(
  points: jax.Array, real: jax.Array, centres: jax.Array, rounds: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Moves centres to the means of their points until none changes side.

  A centre that lost its points stays where it is.

  Args:
    points: float32[N / B, B, D].
    real: bool[N / B, B], false for padding.
    centres: float32[K, D].
    rounds: at most.

  Returns:
    Centres, float32[K, D]; the nearest centre of each point, int32[N / B, B];
    the sum of squared distances to them; and the rounds it took.
  """

  def step(state: tuple) -> tuple:
    centres, members, _, _, done = state
    now, sums, counts, objective = _assign(points, real, centres)
    means = sums / jnp.maximum(counts, 1)[:, None]
    moved = jnp.where((counts > 0)[:, None], means, centres)
    same = jnp.all(now == members)
    # Where nothing changes, the centres are the means already.
    return jnp.where(same, centres, moved), now, objective, same, done + 1

  state = step((centres, jnp.full(real.shape, -1), jnp.inf, False, 0))
  centres, members, objective, _, done = jax.lax.while_loop(
    lambda state: ~state[3] & (state[4] < rounds), step, state
  )
  members, _, _, objective = _assign(points, real, centres)
  return centres, members, objective, done


def _assign(
  points: jax.Array, real: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns members, and sums, counts and objective of the clusters."""
  squares = jnp.sum(centres**2, -1)

  def block(totals: tuple, part: tuple) -> tuple:
    rows, mask = part
    products = jnp.matmul(rows, centres.T, precision=_HIGHEST)
    nearest = jnp.argmin(squares - 2 * products, -1)
    near = jnp.sum((rows - centres[nearest]) ** 2, -1)
    one = jax.nn.one_hot(nearest, len(centres)) * mask[:, None]
    added = (
      jnp.matmul(one.T, rows, precision=_HIGHEST),
      one.sum(0),
      jnp.sum(near * mask),
    )
    return jax.tree.map(jnp.add, totals, added), jnp.where(mask, nearest, -1)

  zeros = (jnp.zeros_like(centres), jnp.zeros(len(centres)), jnp.zeros(()))
  totals, members = jax.lax.scan(block, zeros, (points, real))
  return members, *totals
