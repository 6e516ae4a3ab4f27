"""Connected components of graphs that no machine can hold.

Alternates the two steps of Kiveris et al. 2014 (Connected Components in
MapReduce and Beyond): a large star ties the larger neighbours of each node to
its smallest one, a small star the smaller ones. Each step needs only the edges
of one node at a time, so edges are spread over partitions by node, and no
place ever holds the graph. After a few rounds every component is a star around
its smallest node. Nothing here is a union-find over all.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from yi_jax.curation import tables

# A round halves the longest path, or better: 6 settle any of 60 nodes, 8 any of
# 200, 17 one of 100,000. Copies lie close together; `unsettled` counts the rest.
ROUNDS = 6


def both_ways(edges: tables.Table) -> tables.Table:
  """Returns edges from either end: what a large star is made of.

  Args:
    edges: columns `node` and `other`, uint64[e].
  """
  ends = edges['node'], edges['other']
  return {
    'node': np.concatenate(ends),
    'other': np.concatenate(ends[::-1]),
  }


def large_star(edges: tables.Table) -> tables.Table:
  """Ties the larger neighbours of each node to the smallest around it.

  Args:
    edges: of some nodes: all rows with such a `node`.

  Returns:
    Edges from a larger `node` to a smaller `other`.
  """
  edges = tables.unique(edges, 'node', 'other')
  starts = tables.first_of_runs(edges['node'])
  smallest = np.minimum(edges['node'][starts], edges['other'][starts])
  sizes = np.diff(np.append(starts, len(edges['node'])))
  larger = edges['other'] > edges['node']
  return {
    'node': edges['other'][larger],
    'other': np.repeat(smallest, sizes)[larger],
  }


def small_star(edges: tables.Table) -> tables.Table:
  """Ties each node and its smaller neighbours to the smallest of them.

  Args:
    edges: from a larger `node` to a smaller `other`: all rows with such a
      `node`.

  Returns:
    Edges from a larger `node` to a smaller `other`.
  """
  edges = tables.unique(edges, 'node', 'other')
  starts = tables.first_of_runs(edges['node'])
  sizes = np.diff(np.append(starts, len(edges['node'])))
  smallest = edges['other'][starts]
  rest = np.ones(len(edges['node']), bool)
  rest[starts] = False
  return {
    'node': np.concatenate([edges['node'][starts], edges['other'][rest]]),
    'other': np.concatenate([smallest, np.repeat(smallest, sizes)[rest]]),
  }


def labels(edges: tables.Table) -> tuple[tables.Table, int]:
  """Returns the label of each node once the graph is made of stars.

  Args:
    edges: from a larger `node` to a smaller `other`; rows with the node and
      itself, for the centres, may be among them.

  Returns:
    `number` and `label` of each node, sorted, and how many nodes were tied to
    two or more: 0 unless the rounds were too few.
  """
  edges = tables.unique(edges, 'node', 'other')
  starts = tables.first_of_runs(edges['node'])
  # A centre is tied to itself alone; a node that is not settled has two rows.
  unsettled = len(edges['node']) - len(starts)
  found = {'number': edges['node'][starts], 'label': edges['other'][starts]}
  return found, unsettled


def with_centres(edges: tables.Table) -> tables.Table:
  """Returns edges and a row of itself for each node that others are tied to."""
  centres = np.unique(edges['other'])
  return {
    'node': np.concatenate([edges['node'], centres]),
    'other': np.concatenate([edges['other'], centres]),
  }


def find(
  edges: tables.Table, partitions: int = 8, rounds: int = ROUNDS
) -> tuple[tables.Table, int]:
  """Returns what `labels` does, by the same steps, without Beam.

  Args:
    edges: columns `node` and `other`, uint64[e], in any direction.
    partitions: the edges are cut into; the result is the same for any.
    rounds: of both stars.
  """

  def step(function: Any, rows: tables.Table) -> tables.Table:
    parts = tables.split(rows, 'node', partitions)
    return tables.concatenate(function(part) for _, part in parts) or rows

  for _ in range(rounds):
    edges = step(large_star, both_ways(edges))
    edges = step(small_star, edges)
  parts = [
    labels(part)
    for _, part in tables.split(with_centres(edges), 'node', partitions)
  ]
  found = tables.concatenate(part for part, _ in parts)
  unsettled = sum(count for _, count in parts)
  return tables.unique(found, 'number') if found else found, unsettled


def propagate(edges: Any, partitions: int, rounds: int = ROUNDS) -> Any:
  """Returns the labels of the nodes of a graph.

  Args:
    edges: PCollection of tables with `node` and `other`, in any direction.
    partitions: that each step is spread over.
    rounds: of both stars.

  Returns:
    PCollection of tables with `number` and `label`. The counter `unsettled`
    of `components` is above 0 if the rounds were too few: then some component
    is in several pieces, that is, some copies stay.
  """
  import apache_beam as beam

  from yi_jax.curation import shuffle

  def settle(table: tables.Table) -> Iterator[tables.Table]:
    found, unsettled = labels(table)
    if unsettled:
      beam.metrics.Metrics.counter('components', 'unsettled').inc(unsettled)
    yield found

  steps = []
  for number in range(rounds):
    last = with_centres if number == rounds - 1 else both_ways
    steps += [
      lambda table: [large_star(table)],
      lambda table, last=last: [last(small_star(table))],
    ]
  edges = edges | 'both ways' >> beam.Map(both_ways)
  return shuffle.reduce(edges, 'components', 'node', partitions, *steps, settle)
