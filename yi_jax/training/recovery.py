"""From where a run goes on: lasting checkpoints, and faster ones on the hosts.

The lasting ones are in the workdir, on any mesh (`checkpointing`); the fast ones
on each host's disk, for the mesh that wrote them (`local_checkpoints`). A run
goes on from the newest that is complete, and all processes from the same.
"""

import math
from collections.abc import Callable
from typing import Any

from yi_jax.training import checkpointing, local_checkpoints, workdir_lock
from yi_jax.training import state as train_state


class Checkpoints:
  """Both kinds of one workdir."""

  def __init__(
    self,
    workdir: str,
    lock: workdir_lock.WorkdirLock,
    settings: Any,
    say: Callable[[str], None],
  ) -> None:
    """Opens them.

    Args:
      workdir: absolute path or URL.
      lock: of the workdir; names the run.
      settings: section `checkpoint` of the config.
      say: is told what went wrong and does not end the run.
    """
    self._durable = checkpointing.Checkpointer(workdir, settings.keep)
    self._local = local_checkpoints.LocalCheckpoints(
      settings.local_folder, workdir, lock.run, lock.start
    )
    self._every, self._local_every = settings.every, settings.local_every
    self._say = say

  def kind(self, step: int, end: bool) -> str:
    """Returns 'durable', 'local' or '': what is to be written after a step.

    Args:
      step: updates made.
      end: whether the run, or this part of it, ends here.
    """
    if end or step % self._every == 0:
      return 'durable'
    if self._local_every and step % self._local_every == 0:
      return 'local'
    return ''

  def restore(
    self,
    abstract: train_state.TrainState,
    check: Callable[[dict[str, Any]], None],
  ) -> tuple[train_state.TrainState, dict[str, Any], list[str]] | None:
    """Restores the newest state that all processes can have.

    Args:
      abstract: shapes, types and shardings of the state.
      check: raises ValueError for a manifest that is not of this run.

    Returns:
      (state, manifest, what was wrong with newer ones), None if there is none.

    Raises:
      OSError: if there are checkpoints but none can be read.
      ValueError: from `check`.
    """
    complaints = []
    steps, local = self._durable.steps(), self._newest_local()
    while local and (not steps or local > steps[-1]):
      found = self._restore_local(local, abstract, check, complaints)
      if found:
        return found
      local = self._newest_local(local)
    if not steps:
      for line in complaints:
        self._say(line)
      return None
    check(self._durable.newest_manifest())
    state, manifest, more = self._durable.restore(abstract)
    complaints += more
    while local > int(state.step):  # those after it were damaged
      found = self._restore_local(local, abstract, check, complaints)
      if found:
        return found
      local = self._newest_local(local)
    self._local.forget_after(int(state.step))
    return state, manifest, complaints

  def save(
    self,
    kind: str,
    step: int,
    state: train_state.TrainState,
    manifest: dict[str, Any],
  ) -> None:
    """Starts to write a checkpoint; what goes wrong is said, not raised.

    Args:
      kind: see `kind`.
      step: updates made.
      state: may be donated right after.
      manifest: see `checkpointing.manifest`.
    """
    target = self._durable if kind == 'durable' else self._local
    complaint = target.save(step, state, manifest)
    if complaint:
      self._say(f'warning: {complaint}. Training goes on')

  def wait(self) -> None:
    """Returns when the last lasting one is on disk; OSError if it is not."""
    self._durable.wait()

  def durable_before(self, step: int) -> bool:
    """Returns whether a lasting checkpoint is older than a step."""
    return any(saved < step for saved in self._durable.steps())

  def forget_after(self, step: int) -> None:
    """Removes checkpoints beyond a step: the run goes another way from it."""
    self._local.forget_after(step)
    self._durable.forget_after(step)

  def complete(self) -> None:
    """Says that the run has ended well: the fast ones are not needed."""
    self._local.remove()

  def close(self) -> None:
    """Waits for writing to end; what went wrong is said."""
    complaint = self._local.wait()
    try:
      self._durable.close()
    except OSError as error:
      complaint = str(error)
    if complaint:
      self._say(f'warning: {complaint}')

  def _newest_local(self, before: float = math.inf) -> int:
    return self._local.newest(before) if self._local_every else 0

  def _restore_local(
    self,
    step: int,
    abstract: train_state.TrainState,
    check: Callable[[dict[str, Any]], None],
    complaints: list[str],
  ) -> tuple[train_state.TrainState, dict[str, Any], list[str]] | None:
    found = self._local.restore(step, abstract)
    if found is None:
      complaints.append(
        f'the local checkpoint of step {step} is not complete on these hosts'
      )
      return None
    state, manifest = found
    check(manifest)
    self._local.forget_after(step)
    return state, manifest, complaints
