"""Trains the models of the cascade: those a run lacks, or those asked for."""

import pathlib
from collections.abc import Sequence
from typing import Any

from yi_jax import paths, spelling
from yi_jax.curation import cascade, engine, learned
from yi_jax.data import progress


def train(config: Any, names: Sequence[str]) -> list[dict[str, Any]]:
  """Trains models anew and returns their cards.

  Args:
    config: of experiments/curate.py.
    names: of stages.

  Raises:
    ValueError: for a stage that the config lacks, or that has no model.
    FileNotFoundError: if what a model is trained on is missing.
  """
  stages = _stages(config)
  for name in names:
    if name not in stages:
      hint = spelling.nearest(name, sorted(stages))
      raise ValueError(
        f'--train={name}: no stage of config.stages with a model is called '
        f'that{hint}; there are {", ".join(stages) or "none"}'
      )
  return [_train(stages[name], config, anew=True) for name in names]


def train_missing(config: Any) -> None:
  """Trains the models that a run needs and that are not there."""
  for one in _stages(config).values():
    if not one.trained():
      _train(one, config, anew=False)


def _stages(config: Any) -> dict[str, learned.Learned]:
  """Returns the stages of a config that have a model, by name."""
  made = [
    cascade.make(given, engine.plain(config[cascade.stage_class(given).name]))
    for given in config.stages
    if issubclass(cascade.stage_class(given), learned.Learned)
  ]
  return {one.name: one for one in made}


def _train(one: learned.Learned, config: Any, anew: bool) -> dict[str, Any]:
  progress.tell('train', f'{one.name}: its model goes to {one.folder}')
  card = one.train(pathlib.Path(paths.in_repository(config.root)), anew)
  progress.tell('trained', f'{one.name}: see {one.folder / "card.md"}')
  return card
