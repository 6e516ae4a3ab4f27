"""The judge of updates, and being asked to stop."""

import gc
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.training import faults


def _after(losses, norms=None, factor=4.0, guard=None):
  """Judges a sequence; returns the verdicts and the guard."""
  guard = guard or faults.fresh_guard()
  verdicts = []
  for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
    ok, guard = faults.judge(
      guard, jnp.float32(loss), jnp.float32(norm), factor
    )
    verdicts.append(bool(ok))
  return verdicts, guard


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_is_skipped_and_forgotten(bad):
  verdicts, guard = _after([2.0, bad, 2.0, 2.0], [1.0, 1.0, bad, 1.0], 0)
  assert verdicts == [True, False, False, True]
  assert (guard.good, guard.bad, guard.skipped) == (2, 0, 2)
  np.testing.assert_allclose([guard.loss, guard.norm], [2.0, 1.0])


def test_a_spike_counts_only_once_the_run_has_settled():
  assert _after([1.0, 100.0])[0] == [True, True]
  verdicts, guard = _after([1.0] * 60 + [3.9, 100.0], factor=4.0)
  assert verdicts[-2:] == [True, False]
  assert guard.bad == 1


def test_a_gradient_spike_is_skipped_as_well():
  norms = [1.0] * 60 + [100.0, 1.0]
  assert _after([1.0] * 62, norms)[0][-2:] == [False, True]


def test_the_guard_gets_used_to_a_larger_scale():
  verdicts, _ = _after([1.0] * 100, [1.0] * 60 + [6.0] * 40)
  assert not verdicts[60]
  assert all(verdicts[75:])


def test_too_many_skips_in_a_row_end_the_run_with_their_range():
  faults.check(12, bad=2, loss=1.0, max_bad_steps=3)
  with pytest.raises(faults.Diverged, match='steps 10 to 12 were skipped'):
    faults.check(12, bad=3, loss=float('nan'), max_bad_steps=3)


def test_the_first_signal_asks_and_the_second_interrupts(request):
  # An exception inside JAX's hook of the collector would be swallowed there.
  gc.disable()
  request.addfinalizer(gc.enable)
  # What a shell starts in the background ignores Ctrl-C, tests included.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
  with faults.StopSignal() as stop:
    assert not stop.agreed(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.agreed(2)
    assert stop.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
