"""The stages, in their published order (Yi, arXiv:2403.04652, figure 1).

A config lists names of this table; `engine` runs them in that order.
"""

import importlib
import inspect
from typing import Any

from yi_jax import spelling
from yi_jax.curation import stage

# Name -> 'module:Class' below yi_jax.curation; imported when it is asked for.
STAGES: dict[str, str] = {
  'language': 'language:Language',
  'lists': 'lists:Lists',
  'repair': 'repair:Repair',
  'rules': 'rules:Rules',
  'pii': 'pii:Anonymise',
  'perplexity': 'perplexity:Perplexity',
  'quality': 'quality:Quality',
  'coherence': 'coherence:Coherence',
  'safety': 'safety:Safety',
  'clusters': 'clusters:Clusters',
  'exact': 'exact:Exact',
  'paragraphs': 'paragraphs:Paragraphs',
  'minhash': 'minhash:MinHash',
  'substrings': 'substrings:Substrings',
  'topics': 'topics:Topics',
  'decontaminate': 'decontaminate:Decontaminate',
}


def stage_class(name: str) -> type[stage.Stage]:
  """Returns the class of a stage; ValueError names the nearest.

  Args:
    name: key of STAGES, or 'package.module:Class' of a stage of your own.
  """
  path = STAGES.get(name, name)
  module, _, attribute = path.partition(':')
  if not attribute:
    raise ValueError(f'no stage {name!r}{spelling.nearest(name, STAGES)}')
  if name in STAGES:
    module = f'yi_jax.curation.{module}'
  return getattr(importlib.import_module(module), attribute)


def defaults(name: str) -> dict[str, Any]:
  """Returns every key of a stage's section with its default."""
  return inspect.getmodule(stage_class(name)).defaults()


def make(name: str, config: Any) -> stage.Stage:
  """Returns a stage with its section of the config."""
  return stage_class(name)(config)
