"""Worker processes of this machine, which take work as they become free."""

import concurrent.futures
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import process
from multiprocessing import connection
from types import TracebackType
from typing import Any

_TICK = 5  # seconds between two looks at the workers
_AHEAD = 3  # pieces of work a worker that are handed out before one is done

# What workers need, and take some seconds to import: done once, before forks.
_IMPORTED = ('yi_jax.curation.passes', 'yi_jax.curation.segments')


@functools.cache
def _context() -> multiprocessing.context.BaseContext:
  """Returns how workers start: forked from a process that has no threads.

  A fork of this one might hang, and a fresh one imports everything anew.
  """
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(list(_IMPORTED))
  return context


def _end_with_parent() -> None:
  """Ends this worker when the process that started it is gone, killed say.

  Else it would wait for work for ever.
  """
  parent = multiprocessing.parent_process()

  def watch() -> None:
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class Pool:
  """Some worker processes, or none: one worker is this process itself.

  Use it in a `with`; the workers start with the first piece of work.
  """

  def __init__(self, workers: int) -> None:
    """Starts nothing yet."""
    self.workers = workers
    self._executor = None

  def __enter__(self) -> 'Pool':
    """Returns itself."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Waits for the workers to end."""
    if self._executor:
      self._executor.shutdown(wait=True, cancel_futures=True)

  def each(
    self,
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    tell: Callable[[Any, Any], None],
  ) -> None:
    """Applies a function to each task, in any order.

    Args:
      function: found by name in other processes.
      tasks: its arguments; taken as they are wanted.
      tell: is called with each task that is done and what came of it, and with
        (None, None) now and then.

    Raises:
      OSError: if a worker died; and whatever the function raises.
    """
    if self.workers == 1:
      for task in tasks:
        tell(task, function(task))
      return
    if self._executor is None:
      self._executor = process.ProcessPoolExecutor(
        self.workers, _context(), _end_with_parent
      )
    tasks, waiting = iter(tasks), {}
    try:
      while True:
        while len(waiting) < self.workers * _AHEAD:
          task = next(tasks, waiting)
          if task is waiting:
            break
          waiting[self._executor.submit(function, task)] = task
        if not waiting:
          return
        done, _ = concurrent.futures.wait(
          waiting, _TICK, concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          tell(waiting.pop(future), future.result())
        tell(None, None)
    except process.BrokenProcessPool as error:
      raise OSError(
        'a worker process was killed, for want of memory perhaps: take fewer '
        '--workers and start again; what was finished is kept'
      ) from error
    finally:
      for future in waiting:
        future.cancel()
