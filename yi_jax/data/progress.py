"""What `prepare` says: a line a stage, one every few seconds, and why it ended."""

import contextlib
import errno
import pathlib
import time
from collections.abc import Iterator, Mapping

_SECONDS = 10  # between two lines of one stage


def tell(stage: str, text: str) -> None:
  """Prints a line."""
  print(f'{stage:>10}  {text}', flush=True)


def skipped(counts: Mapping[str, int]) -> str:
  """Returns `; skipped 3 blank`, or nothing if nothing was."""
  parts = [f'{count:,} {why}' for why, count in counts.items() if count]
  return f'; skipped {", ".join(parts)}' if parts else ''


class Progress:
  """Counts documents and bytes, and tells how fast they pass."""

  def __init__(self, stage: str, name: str) -> None:
    """Starts the clock."""
    self._stage, self._name = stage, name
    self._documents = self._bytes = 0
    self._started = self._told = time.monotonic()

  def add(self, size: int) -> None:
    """Counts a document of so many bytes."""
    self._documents += 1
    self._bytes += size
    if time.monotonic() - self._told > _SECONDS:
      self.end(', so far')
      self._told = time.monotonic()

  def end(self, remark: str = '') -> None:
    """Tells the totals."""
    seconds = time.monotonic() - self._started
    megabytes = self._bytes / 1e6
    tell(
      self._stage,
      f'{self._name}: {self._documents:,} documents, {megabytes:.1f} MB, '
      f'{seconds:.1f} s, {megabytes / max(seconds, 1e-3):.1f} MB/s{remark}',
    )


@contextlib.contextmanager
def explain_full_disk(folder: pathlib.Path) -> Iterator[None]:
  """Says what to do when the disk is full, whichever library found out.

  Raises:
    OSError: instead of the error of that library.
  """
  try:
    yield
  except Exception as error:
    full = getattr(error, 'errno', None) == errno.ENOSPC
    if not full and 'No space left on device' not in str(error):
      raise
    raise OSError(
      f'the disk of {folder} is full; what was finished is kept, so make room '
      'and start again'
    ) from error
