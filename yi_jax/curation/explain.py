"""What happened to one document, from its reading to where it is now."""

import difflib
from collections.abc import Iterator, Sequence

import pyarrow.compute
from etils import epath
from pyarrow import parquet

from yi_jax.curation import documents, engine

_EXCERPT = 1_500  # characters
_CHANGES = 60  # lines


def find(one: engine.Pass, identifier: str) -> documents.Batch | None:
  """Returns a document as a pass left or removed it, None if it is not there.

  Columns of ids are read, and the text of the document alone.
  """
  for kind in ('kept', 'removed'):
    for path in sorted((one.folder / kind).glob('*.parquet')):
      found = _find(path, identifier)
      if found:
        return found
  return None


def _find(path: epath.Path, identifier: str) -> documents.Batch | None:
  with path.open('rb') as opened:
    file = parquet.ParquetFile(opened)
    for number in range(file.num_row_groups):
      ids = file.read_row_group(number, columns=['id']).column('id')
      row = pyarrow.compute.index(ids, identifier).as_py()
      if row >= 0:
        table = file.read_row_group(number).slice(row, 1)
        return documents.from_arrow(table)
  return None


def story(found: Sequence[engine.Pass], identifier: str) -> Iterator[str]:
  """Yields lines that tell a document's story.

  Args:
    found: the passes of a run, done as far as it got.
    identifier: of the document.

  Raises:
    ValueError: if no pass has it.
  """
  done = [one for one in found if one.manifest()]
  # Parts of a document that was split begin in a later pass.
  begun = 0
  first = find(done[0], identifier) if done else None
  while first is None and begun + 1 < len(done):
    begun += 1
    first = find(done[begun], identifier)
  if first is None:
    raise ValueError(
      f'no document {identifier!r} was read by this run; ids are in the report, '
      'and in the parquet files of the folder stages'
    )
  yield f'{identifier}, {len(first.texts[0]):,} characters'
  if first.urls[0]:
    yield f'from {first.urls[0]}'
  for stage, text in first.trails[0] if begun else ():
    yield f'  {stage}: {text}'
  last = first
  for one in done[begun + 1 :]:
    now = find(one, identifier)
    if now is None:
      break
    told = len(last.trails[0])
    for stage, text in now.trails[0][told:]:
      yield f'  {stage}: {text}'
    if len(now.trails[0]) == told:
      yield f'  {" + ".join(one.names)}: nothing to say'
    yield from _changes(last.texts[0], now.texts[0])
    last = now
    if now.removed[0]:
      break
  for name, values in sorted(last.scores.items()):
    yield f'  score {name} = {values[0]:.6g}'
  removed = last.removed[0]
  yield f'removed by {removed}' if removed else 'kept'
  yield ''
  yield last.texts[0][:_EXCERPT]


def _changes(before: str, after: str) -> Iterator[str]:
  """Yields what lines differ between two texts."""
  if before == after:
    return
  lines = difflib.unified_diff(
    before.split('\n'), after.split('\n'), lineterm='', n=0
  )
  for number, line in enumerate(lines):
    if number >= _CHANGES:
      yield '    ...'
      return
    if not line.startswith(('---', '+++', '@@')):
      yield f'    {line[:200]}'
