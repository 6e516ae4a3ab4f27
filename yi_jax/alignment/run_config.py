"""Every key of a run that polishes, and its default."""

from typing import Any

from yi_jax.alignment import report, rows, sampler
from yi_jax.alignment.checks import checks
from yi_jax.alignment.knowledge import knowledge_run
from yi_jax.alignment.making import endpoint, evolve_run
from yi_jax.alignment.review import reviewing
from yi_jax.alignment.tags import tags


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
