"""Removes documents whose text another document has, letter for letter.

Of several copies the one of the best quality stays (then the longest, then the
one whose id has the smallest hash), not the first.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from yi_jax.curation import documents, shingles, stage, tables


def defaults() -> dict[str, Any]:
  """Returns the section of a config with every key."""
  return {
    # Pieces that shuffles are cut into; the outcome is the same for any.
    'partitions': 64,
  }


def checked(
  name: str, config: Any, known: dict[str, Any], least: dict[str, float]
) -> dict[str, Any]:
  """Returns a section with its defaults filled in.

  Args:
    name: of the stage.
    config: the section.
    known: its defaults.
    least: key -> smallest value that makes sense.

  Raises:
    ValueError: for an unknown key, or a number that is none or too small.
  """
  stage.check_keys(name, config, known)
  section = {**known, **dict(config)}
  for key, low in least.items():
    value, kind = section[key], type(known[key])
    right = isinstance(value, (int, float) if kind is float else int)
    if not right or isinstance(value, bool) or value < low:
      wanted = 'a number' if kind is float else 'a whole number'
      raise ValueError(
        f'{name}.{key} is {wanted} of at least {low}, not {value!r}'
      )
  return section


def hashes(batch: documents.Batch) -> tables.Table:
  """Returns a row for each document that is kept so far.

  Space around a text does not count. Two halves of a 128-bit hash, `high` and
  `low`: with 64 bits two of ten billion texts would be taken for copies.
  """
  alive = batch.alive()
  digests = b''.join(
    hashlib.blake2b(
      batch.texts[i].strip().encode('utf-8', 'surrogatepass'), digest_size=16
    ).digest()
    for i in alive
  )
  halves = np.frombuffer(digests, '<u8').reshape(-1, 2).astype(np.uint64)
  return {
    'high': halves[:, 0].copy(),
    'low': halves[:, 1].copy(),
    **tables.about(batch, alive),
  }


def decide(rows: tables.Table) -> tables.Table:
  """Returns the rows of documents with copies, see `tables.choose`."""
  if not rows:
    return rows
  return tables.choose(rows, ('high', 'low'))


def apply(
  batch: documents.Batch, decisions: tables.Table, name: str, what: str
) -> documents.Batch:
  """Removes the copies that are not the best ones, and notes those that are.

  Args:
    batch: changed in place.
    decisions: number, kept, first and copies of documents, perhaps others too.
    name: of the stage, for the trail.
    what: kind of copies, e.g. 'exact copies'.
  """
  if not decisions:
    return batch
  alive = batch.alive()
  row_of = {number: row for row, number in enumerate(decisions['number'])}
  for i, number in zip(
    alive, tables.numbers([batch.ids[i] for i in alive]), strict=True
  ):
    row = row_of.get(number)
    if row is None:
      continue
    group = f'{decisions["copies"][row]} {what}, {decisions["kept"][row]:016x}'
    if decisions['first'][row]:
      batch.note(i, name, f'kept as the best of {group}')
    else:
      batch.remove(i, name, 'duplicate', f'one of {group}')
  return batch


def shorten(
  batch: documents.Batch,
  i: int,
  name: str,
  text: str,
  what: str,
  least_left: int,
) -> None:
  """Gives a document the text that is left, or removes it if that is little.

  Args:
    batch: changed in place.
    i: index of the document.
    name: of the stage.
    text: what is left.
    what: went, for the trail.
    least_left: units a document has to have.
  """
  before = len(batch.texts[i])
  detail = f'cut {what}: {before - len(text):,} of {before:,} characters'
  left = len(shingles.units([text]).hashes)
  if left < max(least_left, 1):
    detail = f'{left} units < {least_left} are left; {detail}'
    batch.remove(i, name, 'least_left', detail)
  else:
    batch.change(i, name, text, detail)


class Exact(stage.GlobalStage):
  """Removes exact copies."""

  name = 'exact'

  def __init__(self, config: Any) -> None:
    """Checks the section, see `defaults`."""
    super().__init__(checked(self.name, config, defaults(), {'partitions': 1}))

  def expand(self, batches: Any) -> Any:
    """Returns the batches without copies; hashes move, 40 bytes a document."""
    import apache_beam as beam

    from yi_jax.curation import shuffle

    name, partitions = self.name, self.config['partitions']

    def reduce(rows: tables.Table) -> Iterator[tables.Table]:
      yield decide(rows)

    def finish(
      batch: documents.Batch, decisions: tables.Table
    ) -> Iterator[documents.Batch]:
      yield apply(batch, decisions, name, 'exact copies')

    rows = batches | f'{name}: hashes' >> beam.Map(hashes)
    decisions = shuffle.reduce(
      rows, f'{name}: copies', 'high', partitions, reduce
    )
    side = shuffle.to_batches(decisions, f'{name}: decisions', partitions)
    return shuffle.visit(batches, f'{name}: apply', side, finish)
