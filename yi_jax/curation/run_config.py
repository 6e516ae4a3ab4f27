"""Every key of a curation run, and its default."""

from collections.abc import Sequence
from typing import Any

from yi_jax.curation import cascade, reading, report, writing


def base(stages: Sequence[str]) -> Any:
  """Returns the config of a run as an ml_collections.ConfigDict.

  Args:
    stages: names of cascade.STAGES, in order.
  """
  import ml_collections

  config = {
    # Where raw files and vocabularies are; a relative path starts at the
    # repository.
    'root': 'data',
    # Name -> what is read, see reading.input_defaults.
    'inputs': {},
    # What is put aside, and the size of shards.
    'read': reading.read_defaults(),
    # In order; each has a section of its name.
    'stages': tuple(stages),
    # Neighbours that look at one document at a time share a pass; False gives
    # each a pass, and so a result, of its own: for trying out the last of them.
    'fuse': True,
    'write': writing.defaults(),
    'report': report.defaults(),
  }
  for name in stages:
    config[cascade.stage_class(name).name] = cascade.defaults(name)
  return ml_collections.ConfigDict(config)
