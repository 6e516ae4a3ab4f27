"""A walk over documents: every one once, each beside what is like it."""

import numpy as np

from yi_jax.curation import neighbours


def _texts(count):
  """Documents of four subjects in turn."""
  words = [f'{subject}{k}' for subject in 'abcd' for k in range(30)]
  found = []
  for number in range(count):
    draw = np.random.default_rng(number)
    first = 30 * (number % 4)
    picked = draw.integers(first, first + 30, 40)
    found.append(' '.join(words[k] for k in picked))
  return found


def test_a_walk_goes_to_the_nearest_that_is_left():
  angles = np.radians([0, 50, 10, 35, 90])
  points = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
  assert neighbours.nearest_next(points, points[0]).tolist() == [0, 2, 3, 1, 4]
  # The one least like the others is first.
  assert neighbours.nearest_next(points)[0] == 4
  assert len(neighbours.nearest_next(points[:0])) == 0


def test_subjects_stay_together_whether_clustered_first_or_not():
  texts = _texts(80)
  for walk in (100, 25):
    found = neighbours.order(lambda: iter(texts), walk)
    assert sorted(found.numbers) == list(range(80))
    subjects = found.numbers % 4
    assert (subjects[1:] != subjects[:-1]).sum() <= (3 if walk == 100 else 8)
    assert found.likeness['similar'] > 0.6
    assert found.likeness['similar'] > 2 * found.likeness['random']


def test_the_order_is_that_of_the_texts_alone():
  texts = _texts(60)
  first = neighbours.order(lambda: texts, 20).numbers
  assert first.tolist() == neighbours.order(lambda: texts, 20).numbers.tolist()


def test_texts_that_share_nothing_keep_their_order():
  texts = ['one two', 'three four', 'five six']
  found = neighbours.order(lambda: iter(texts))
  assert found.numbers.tolist() == [0, 1, 2]
  assert neighbours.order(lambda: iter([])).numbers.tolist() == []


def test_copies_of_one_text_can_be_more_than_a_walk():
  found = neighbours.order(lambda: iter(['the same words'] * 30), 8)
  assert sorted(found.numbers) == list(range(30))
