"""Every key of a run that polishes, and its default."""

from typing import Any

from yi_jax.alignment import checks, report, rows, sampler, tags


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
    }
  )
