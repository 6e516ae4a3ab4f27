"""What a stage of the cascade is.

A stage gets its section of the config, checks it, and says what it does to a
batch. It needs no Beam: `engine` runs it, counts what it did, and writes what
it left and what it removed.
"""

from typing import Any

from yi_jax import spelling
from yi_jax.curation import documents


class Stage:
  """A stage that looks at one document at a time.

  Attributes:
    name: what configs, counters and trails call it.
    config: its section, see `defaults` of its module.
  """

  name = ''

  def __init__(self, config: Any) -> None:
    """Checks every key: ValueError names it and the cure."""
    self.config = config

  def identity(self) -> str:
    """Returns what else than code and config decides the result.

    Hashes of models and lists that are read, say: with another, the stage runs
    again.
    """
    return ''

  def setup(self) -> None:
    """Loads what is heavy, once a worker process, before `process`."""

  def process(self, batch: documents.Batch) -> documents.Batch:
    """Removes, changes and scores documents in place and returns the batch.

    Args:
      batch: documents that were kept so far.
    """
    raise NotImplementedError


class GlobalStage(Stage):
  """A stage that has to see all documents: duplicates, clusters, shares."""

  def expand(self, batches: Any) -> Any:
    """Returns the same batches, documents removed, changed or scored.

    Args:
      batches: use it as a PCollection of Batch on the left of `|`, as often as
        need be: each use reads the documents anew, so nothing holds them all.

    Returns:
      PCollection of Batch: each that came in, once, with its place. Shuffle
      arrays of hashes keyed by partition, never one element a document.
    """
    raise NotImplementedError


def check_keys(name: str, config: Any, known: Any) -> None:
  """Raises ValueError, with the nearest name, for a key that is not known."""
  for key in config:
    if key not in known:
      hint = spelling.nearest(key, sorted(known))
      raise ValueError(f'{name} has no key {key!r}{hint}')
