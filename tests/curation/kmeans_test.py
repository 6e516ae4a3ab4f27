"""k-means: against NumPy, on planted groups, and where it could go wrong."""

import numpy as np
import pytest

from yi_jax.curation import kmeans


def _groups(count, each, width, seed=0, apart=3):
  """Returns points about some centres, and whose they are."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(count, width)) * apart
  owners = np.repeat(np.arange(count), each)
  points = centres[owners] + rng.normal(size=(len(owners), width))
  order = rng.permutation(len(owners))
  return points[order].astype(np.float32), owners[order]


def _numpy_lloyd(points, centres):
  """Returns centres, members and objective, in float64."""
  members = None
  while True:
    distances = ((points[:, None] - centres[None]) ** 2).sum(-1)
    now = distances.argmin(1)
    if members is not None and np.array_equal(now, members):
      return centres, members, distances.min(1).sum()
    members = now
    centres = np.stack(
      [
        points[members == k].mean(0) if np.any(members == k) else centre
        for k, centre in enumerate(centres)
      ]
    )


def test_rounds_are_those_of_numpy(monkeypatch):
  monkeypatch.setattr(kmeans, '_BLOCK', 64)  # 5 blocks, the last one padded
  points, _ = _groups(6, 50, 8)
  found = kmeans.fit(points, 9, seed=1, restarts=1)
  size = 64
  padded = np.zeros((320, 8), np.float32)
  padded[:300] = points
  key = kmeans.jax.random.split(kmeans.jax.random.key(1), 1)[0]
  real = np.arange(320) < 300
  seeds = kmeans.plus_plus(
    key, padded.reshape(5, size, 8), real.reshape(5, size), 9
  )
  for seed in np.asarray(seeds):
    assert (points == seed).all(1).any(), 'a seed is a point, never padding'
  centres, members, objective = _numpy_lloyd(
    points.astype(np.float64), np.asarray(seeds, np.float64)
  )
  np.testing.assert_allclose(found.centres, centres, atol=1e-4)
  np.testing.assert_array_equal(found.members, members)
  assert found.objective == pytest.approx(objective, rel=1e-5)


def test_seeds_spread_and_restarts_help():
  points, owners = _groups(12, 20, 6, seed=3, apart=8)
  one = [kmeans.fit(points, 12, seed=s, restarts=1) for s in range(5)]
  best = kmeans.fit(points, 12, seed=0, restarts=8)
  assert best.objective <= min(found.objective for found in one) * 1.0001
  # Planted groups come back, each under one number.
  pairs = set(zip(owners.tolist(), best.members.tolist(), strict=True))
  assert len(pairs) == 12


def test_the_same_seed_gives_the_same_bytes():
  points, _ = _groups(4, 100, 5)
  first, second = (kmeans.fit(points, 7, seed=2) for _ in range(2))
  np.testing.assert_array_equal(first.centres, second.centres)
  np.testing.assert_array_equal(first.members, second.members)


def test_fewer_different_points_than_clusters():
  points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
  found = kmeans.fit(points, 5, seed=0)
  assert found.centres.shape == (3, 3)
  assert found.objective == 0
  np.testing.assert_array_equal(found.centres[found.members], points)


def test_nothing_to_cluster_is_refused():
  with pytest.raises(ValueError, match='no 3 clusters of 0 points'):
    kmeans.fit(np.zeros((0, 2), np.float32), 3, seed=0)
