"""Every key of a run that polishes, and its default."""

from typing import Any

from yi_jax.alignment import (
  checks,
  endpoint,
  evolve_run,
  knowledge_run,
  report,
  reviewing,
  rows,
  sampler,
  tags,
)


def base() -> Any:
  """Returns the config of a run as an ml_collections.ConfigDict."""
  import ml_collections

  return ml_collections.ConfigDict(
    {
      'data': rows.defaults(),
      'checks': checks.defaults(),
      'tags': tags.defaults(),
      'sample': sampler.defaults(),
      'report': report.defaults(),
      # Only flags of their own read these, see docs/review.md.
      'review': reviewing.defaults(),
      'endpoint': endpoint.defaults(),
      'evolve': evolve_run.defaults(),
      'knowledge': knowledge_run.defaults(),
    }
  )
