"""Stages that read a model which the project trains itself.

A model is a folder, `data/filters/NAME` unless the config says otherwise. It is
made by

  python -m yi_jax.curate --config=experiments/curate.py:sources --train=NAME

or by the first run that needs it, and holds arrays, `card.json` and `card.md`:
what it was trained on, how it does on documents it has not seen, and where it
fails. Nothing in it tells of the day or the machine.

A stage of this kind keeps what decides its model in the key `training` of its
section. A folder whose card has another `training` is refused, not replaced.
"""

import hashlib
import inspect
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from yi_jax import paths
from yi_jax.curation import stage
from yi_jax.data import atomic

CARD = 'card.json'
_PAGE = 'card.md'


class Learned(stage.Stage):
  """A stage with a model; `class X(Learned, stage.GlobalStage)` works too.

  The module's `defaults()` has the keys `model`, a folder, and `training`, a
  dict of what `fit` reads.

  Attributes:
    settings: the section, with defaults for what it leaves out.
    training: `settings['training']`, likewise.
  """

  # Raise it when files of older models can no longer be used.
  format = 1

  def __init__(self, config: Any) -> None:
    """Checks the names of the keys: ValueError names the nearest."""
    super().__init__(config)
    known = inspect.getmodule(type(self)).defaults()
    stage.check_keys(self.name, config, known)
    given = config.get('training', {})
    stage.check_keys(f'{self.name}.training', given, known['training'])
    # As JSON has it: what a worker is given is the same as what was written.
    plain = json.loads(json.dumps({**known['training'], **given}))
    self.settings = {**known, **config, 'training': plain}
    self.training = plain

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the model."""
    return pathlib.Path(paths.in_repository(self.settings['model']))

  def fit(self, root: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Trains the model by `self.training`; the same input, the same files.

    Args:
      root: data root; raw packages are in root/raw.
      folder: empty; for the files of the model.

    Returns:
      The facts of the card: `what` (a sentence or two), `data` (rows of dicts,
      such as source and documents), `metrics` (name -> number, or rows of
      dicts), `limits` (sentences).

    Raises:
      FileNotFoundError: if sources are missing, naming the command.
    """
    raise NotImplementedError

  def trained(self) -> bool:
    """Returns whether the model is there.

    Raises:
      ValueError: if one is there that was trained by another config.
    """
    path = self.folder / CARD
    if not path.is_file():
      return False
    if json.loads(path.read_text())['key'] != self._key():
      raise ValueError(
        f'{self.folder} was trained by another config than {self.name}.'
        f'training, or for another version; train it again with --train='
        f'{self.name}, or set {self.name}.model to another folder'
      )
    return True

  def train(self, root: pathlib.Path, anew: bool = True) -> dict[str, Any]:
    """Trains the model, puts it into its place, and returns its card.

    Args:
      root: data root.
      anew: also if it is there; else what another process made meanwhile stays.
    """
    final = self.folder
    with atomic.locked(final.parent / f'.{final.name}.lock'):
      if not anew and self.trained():
        return self.card()
      new = final.with_name(f'.{final.name}.new')
      shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
      with atomic.new_folder(new) as folder:
        facts = self.fit(root, folder)
        card = {
          'name': self.name,
          **facts,
          'training': self.training,
          'files': {
            path.name: path.stat().st_size for path in sorted(folder.iterdir())
          },
          'key': self._key(),
        }
        text = json.dumps(card, ensure_ascii=False, indent=1, sort_keys=True)
        (folder / CARD).write_text(text + '\n')
        (folder / _PAGE).write_text('\n'.join(page(card)) + '\n')
      shutil.rmtree(final, ignore_errors=True)
      os.rename(new, final)
    return card

  def card(self) -> dict[str, Any]:
    """Returns the card of the model; FileNotFoundError names the command."""
    if not self.trained():
      raise FileNotFoundError(
        f'{self.folder}, the model of the stage {self.name}, is not there; '
        f'train it with\n  python -m yi_jax.curate --config=... '
        f'--train={self.name}'
      )
    return json.loads((self.folder / CARD).read_text())

  def identity(self) -> str:
    """Returns a hash of the files of the model."""
    self.card()
    digest = hashlib.sha256()
    for path in sorted(self.folder.iterdir()):
      if path.name != _PAGE:
        digest.update(f'{path.name} {path.stat().st_size}\n'.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

  def recipe(self) -> Any:
    """Returns what decides the model, as JSON has it; lists that are read, say."""
    return self.training

  def _key(self) -> str:
    """Returns a hash of what decides the model."""
    text = json.dumps([self.name, self.format, self.recipe()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def page(card: Mapping[str, Any]) -> list[str]:
  """Returns a card as lines of Markdown."""
  lines = [f'# The model of the stage `{card["name"]}`', '', card['what']]
  lines += ['', '## Trained on', '', *_table(card['data'])]
  lines += ['', '## On documents it has not seen', '']
  numbers, tables = {}, {}
  for name, value in card['metrics'].items():
    (numbers if isinstance(value, int | float) else tables)[name] = value
  lines += [f'* {name}: {_cell(value)}' for name, value in numbers.items()]
  for name, rows in tables.items():
    lines += ['', f'{name}:', '', *_table(rows)]
  lines += ['', '## Limits', '', *(f'* {text}' for text in card['limits'])]
  training = json.dumps(card['training'], ensure_ascii=False)
  lines += ['', '## Config', '', f'`{training}`, key {card["key"]}']
  return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns rows with the keys of the first as a table of Markdown."""
  if not rows:
    return ['nothing']
  names = list(rows[0])
  lines = [f'| {" | ".join(names)} |', f'|{"---|" * len(names)}']
  for row in rows:
    cells = [_cell(row.get(name, '')) for name in names]
    lines.append(f'| {" | ".join(cells)} |')
  return lines


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.4g}'
  if isinstance(value, int):
    return f'{value:,}'
  return str(value).replace('|', '\\|').replace('\n', ' ')


def choices(name: str, value: Any, known: Sequence[str]) -> None:
  """Raises ValueError unless `value`, of the key `name`, is one of `known`."""
  if value not in known:
    options = ', '.join(map(repr, known))
    raise ValueError(f'{name} is {value!r}: one of {options}')
