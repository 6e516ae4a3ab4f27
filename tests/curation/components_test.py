"""Connected components: against a search through the whole graph."""

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import csgraph

from yi_jax.curation import components, tables


def _wanted(first, second):
  """Returns node -> smallest node of its component."""
  nodes, flat = np.unique(np.concatenate([first, second]), return_inverse=True)
  half = len(first)
  graph = sparse.coo_matrix(
    (np.ones(half), (flat[:half], flat[half:])), (len(nodes),) * 2
  )
  _, groups = csgraph.connected_components(graph, directed=False)
  return {
    int(node): int(nodes[groups == group].min())
    for node, group in zip(nodes, groups, strict=True)
  }


def _as_dict(found):
  return {
    int(number): int(label)
    for number, label in zip(found['number'], found['label'], strict=True)
  }


@pytest.mark.parametrize('edges', [20, 150, 400])
@pytest.mark.parametrize('partitions', [1, 5])
def test_random_graphs_of_every_density(edges, partitions):
  rng = np.random.default_rng(edges)
  nodes = tables.mix(np.arange(300, dtype=np.uint64))
  first, second = nodes[rng.integers(0, 300, (2, edges))]
  found, unsettled = components.find(
    {'node': first, 'other': second}, partitions
  )
  assert unsettled == 0
  assert _as_dict(found) == _wanted(first, second)


@pytest.mark.parametrize(('nodes', 'rounds'), [(60, 6), (200, 8)])
def test_a_path_settles_in_as_many_rounds_as_told(nodes, rounds):
  for order in (np.arange(nodes), np.random.default_rng(0).permutation(nodes)):
    path = order.astype(np.uint64)
    edges = {'node': path[1:], 'other': path[:-1]}
    found, unsettled = components.find(edges, rounds=rounds)
    assert unsettled == 0
    assert set(found['label']) == {0}


def test_too_few_rounds_are_counted():
  path = np.arange(1000, dtype=np.uint64)
  edges = {'node': path[1:], 'other': path[:-1]}
  found, unsettled = components.find(edges, rounds=1)
  assert unsettled > 0
  assert len(set(found['label'])) > 1


def test_a_hub_with_many_neighbours_settles_at_once():
  hub = np.full(50_000, 7, np.uint64)
  others = np.arange(100, 50_100).astype(np.uint64)
  found, unsettled = components.find({'node': others, 'other': hub}, rounds=1)
  assert unsettled == 0
  assert set(found['label']) == {7}
  assert len(found['number']) == 50_001
