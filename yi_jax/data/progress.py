"""What long work says: a line a stage, one every few seconds, and why it ended."""

import contextlib
import errno
import pathlib
import sys
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


class Bar:
  """Shows how much of a known number of bytes is done, and when it will be."""

  def __init__(self, stage: str, total: int) -> None:
    """Starts the clock.

    Args:
      stage: what is done.
      total: bytes.
    """
    self._stage, self._total, self._done = stage, total, 0
    self._started = self._told = time.monotonic()
    # One line that changes for a person, now and then a new one for a log.
    self._live = sys.stdout.isatty()

  def add(self, size: int) -> None:
    """Counts bytes."""
    self._done += size
    now = time.monotonic()
    if now - self._told > (0.2 if self._live else _SECONDS):
      self._told = now
      print(self._line(), end='\r' if self._live else '\n', flush=True)

  def end(self) -> None:
    """Tells the totals."""
    seconds = max(time.monotonic() - self._started, 1e-3)
    rate = self._done / 1e6 / seconds
    text = f'{self._done / 1e9:.2f} GB in {seconds:.1f} s, {rate:.0f} MB/s'
    tell(self._stage, f'{text:<60}')

  def _line(self) -> str:
    seconds = max(time.monotonic() - self._started, 1e-3)
    share = min(self._done / max(self._total, 1), 1)
    left = seconds * (1 - share) / max(share, 1e-6)
    bar = '#' * round(20 * share)
    return (
      f'{self._stage:>10}  [{bar:<20}] {share:4.0%} of '
      f'{self._total / 1e9:.2f} GB, {self._done / 1e6 / seconds:.0f} MB/s, '
      f'{left:.0f} s left   '
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
