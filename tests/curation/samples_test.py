"""Documents to train on: chosen by hash, no book on both sides."""

import pathlib

import pytest

from yi_jax.curation import samples
from yi_jax.data import sources


@pytest.fixture
def books(monkeypatch):
  """A source of 30 books in sections, and one of many short texts."""

  def long(archives):
    for number in range(30):
      yield f'book{number}', f'{number} ' * 5_000

  def short(archives):
    for number in range(400):
      yield str(number), f'short text {number:03}'

  for name, read in (('long', long), ('short', short)):
    monkeypatch.setitem(
      sources.SOURCES, name, sources.Source('', 'en', 'web', 1, read)
    )


def _read(*names, **changes):
  settings = {
    **{'most': 10**9, 'characters': 2_000, 'seed': 0, 'heldout': 0.3},
    **changes,
  }
  return samples.read(pathlib.Path(), names, **settings)


def test_sections_of_a_book_are_on_one_side(books):
  found = _read('long')
  sides = {}
  for one in found:
    sides.setdefault(one.id.partition('#')[0], set()).add(one.heldout)
  assert len(sides) == 30
  assert all(len(side) == 1 for side in sides.values())
  assert 3 <= sum(side == {True} for side in sides.values()) <= 16
  assert max(len(one.text) for one in found) == 2_000


def test_a_large_source_is_thinned_and_a_small_one_is_whole(books):
  assert len(_read('short')) == 400
  fewer = _read('short', most=2_000)
  assert 1_000 < sum(len(one.text) for one in fewer) < 3_000
  assert fewer == _read('short', most=2_000)
  assert fewer != _read('short', most=2_000, seed=1)


def test_passages_have_lengths_that_tell_nothing(books):
  found = _read('short', 'long')
  made = samples.passages(found, shortest=50, longest=800, seed=0)
  for name in ('short', 'long'):
    lengths = [len(one.text) for one in made if one.source == name]
    assert all(50 <= n <= 800 for n in lengths)
    assert min(lengths) < 120
    assert max(lengths) > 500
  texts = {one.text: one.heldout for one in found}
  for one in made:
    whole = one.text.split('\n')[:-1]  # the last one is cut
    assert all(texts[text] == one.heldout for text in whole)


def test_the_table_of_a_card_counts_both_sides(books):
  (row,) = samples.table(_read('short'), side={'short': 'bad'})
  assert row['side'] == 'bad'
  assert (row['documents'], row['characters']) == (400, 400 * 14)
  assert 80 < row['held out'] < 160
