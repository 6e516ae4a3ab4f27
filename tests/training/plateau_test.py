"""A batch grows where a loss has stopped falling, and nowhere else."""

import dataclasses
import json
import math

import numpy as np
import pytest

from yi_jax.training import plateau

_SETTINGS = plateau.Settings(
  window=10, least_gain=0.01, factor=2, most_tokens=800
)


def _grown(losses, settings=_SETTINGS, state=None, first=100):
  """Returns (step, tokens a step from there on) for each growth."""
  state = state or plateau.State()
  found, begun = [], state.begun
  for step, loss in enumerate(losses, begun + 1):
    before = state.multiple
    state = plateau.see(settings, state, step, loss, first * before)
    if state.multiple != before:
      found.append((step, first * state.multiple))
  return found, state


def test_a_falling_loss_never_grows_the_batch():
  losses = [4.0 * 0.998**step for step in range(500)]  # 2 % a stretch
  assert _grown(losses)[0] == []


def test_a_flat_loss_grows_it_every_second_stretch_up_to_the_most():
  # After a growth there is nothing to compare the first stretch with.
  want = [(20, 200), (40, 400), (60, 800)]
  assert _grown([2.0] * 200)[0] == want


def test_a_loss_that_falls_to_a_floor_grows_it_once_it_is_there():
  losses = [2.0 + math.exp(-step / 20) for step in range(120)]
  grown, _ = _grown(losses)
  # Stretches of 10 fall by a share of 0.083, 0.054, ... : below 0.01 is the
  # sixth of them.
  means = np.mean(np.reshape(losses, (-1, 10)), axis=1)
  gains = 1 - means[1:] / means[:-1]
  first = int(np.argmax(gains < 0.01)) + 2
  assert grown[0] == (10 * first, 200)
  assert first > 4


def test_a_rising_loss_counts_as_one_that_does_not_fall():
  assert _grown([1.0 + step / 10 for step in range(20)])[0] == [(20, 200)]


def test_skipped_updates_do_not_count():
  flat = [2.0] * 10
  some = [None if step % 3 else 2.0 for step in range(10)]
  assert _grown(flat + some)[0] == [(20, 200)]
  # Of a stretch without any nothing is known; the one before still counts.
  assert _grown(flat + [None] * 10 + flat)[0] == [(30, 200)]


def test_comparing_starts_anew_where_other_text_begins():
  _, state = _grown([2.0] * 17)
  state = plateau.anew(state, 17)
  # Told late, steps of before are no part of the stretch.
  for step in (16, 17):
    assert plateau.see(_SETTINGS, state, step, 2.0, 100) == state
  assert _grown([3.0] * 19, state=state)[0] == []
  assert _grown([3.0] * 20, state=state)[0] == [(37, 200)]


@pytest.mark.parametrize('stop', [1, 9, 10, 19, 20, 21, 33])
def test_a_state_kept_as_json_goes_on_as_if_nothing_had_been(stop):
  losses = (2 + np.random.default_rng(0).normal(size=90) / 100).tolist()
  want, end = _grown(losses)
  first, state = _grown(losses[:stop])
  again = plateau.State(**json.loads(json.dumps(dataclasses.asdict(state))))
  assert again == state
  rest = []
  for step, loss in enumerate(losses[stop:], stop + 1):
    before = again.multiple
    again = plateau.see(_SETTINGS, again, step, loss, 100 * before)
    rest += [(step, 100 * again.multiple)] * (again.multiple != before)
  assert first + rest == want
  assert again == end


def test_without_a_window_nothing_is_remembered():
  settings = plateau.Settings()
  assert _grown([2.0] * 50, settings) == ([], plateau.State())
  assert not plateau.is_due(settings, plateau.State(), 10)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'window': -1}, 'window must not be negative'),
    ({'least_gain': 1.0}, 'least_gain is a share of the loss'),
    ({'least_gain': -0.1}, 'least_gain is a share of the loss'),
    ({'least_gain': math.nan}, 'least_gain is a share of the loss'),
    ({'factor': 1}, 'whole number from 2 on'),
    ({'factor': 1.5}, 'whole number from 2 on'),
    ({'most_tokens': 150}, 'no room to grow: set it to 2 x .* = 200'),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    plateau.check(dataclasses.replace(_SETTINGS, **changes), 100)
