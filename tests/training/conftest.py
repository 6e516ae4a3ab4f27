"""Configs of runs for the tests of training."""

import pytest

from yi_jax.training import run_config


@pytest.fixture
def config_with():
  """Returns a function: 'section__key' changes -> the defaults with them."""

  def make(**changes):
    config = run_config.defaults()
    for path, value in changes.items():
      *sections, key = path.split('__')
      node = config
      for section in sections:
        node = node[section]
      node[key] = value
    return config

  return make
