"""Learning rates: the corners of each schedule, worked out by hand."""

import math

import numpy as np
import pytest

from yi_jax.training import schedules


def _rates(schedule, steps=100, **changes):
  keys = {
    'peak': 2.0,
    'warmup_steps': 10,
    'final_fraction': 0.1,
    'decay_fraction': 0.2,
    **changes,
  }
  return np.array(
    [
      schedules.learning_rate(i, schedule=schedule, steps=steps, **keys)
      for i in range(steps)
    ]
  )


@pytest.mark.parametrize('schedule', schedules.NAMES)
def test_the_warm_up_is_linear_and_moves_from_the_first_update(schedule):
  rates = _rates(schedule)
  np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11), rtol=1e-6)


def test_constant_stays():
  assert set(_rates('constant')[10:]) == {2.0}


def test_cosine_is_half_a_cosine_down_to_the_final_share():
  rates = _rates('cosine')
  middle = 0.5 * (1 + math.cos(math.pi * (50 - 10) / 89))
  np.testing.assert_allclose(rates[50], 2 * (0.1 + 0.9 * middle), rtol=1e-5)
  np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-5)
  assert np.all(np.diff(rates[10:]) < 0)


def test_wsd_stays_and_falls_in_its_last_share():
  rates = _rates('wsd')
  assert set(rates[10:81]) == {2.0}
  np.testing.assert_allclose(np.diff(rates[80:]), -1.8 / 19, rtol=1e-4)
  np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-5)


@pytest.mark.parametrize('schedule', schedules.NAMES)
def test_a_run_of_one_step_without_warm_up_has_the_peak(schedule):
  assert _rates(schedule, steps=1, warmup_steps=0) == [2.0]
