"""Packed rows: every token once, documents kept apart, nothing invented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yi_jax.data import packing

_EOS = 2
_documents = st.lists(
  st.lists(st.integers(min_value=3, max_value=500), max_size=40), max_size=12
)


def _stream(documents):
  tokens = [_EOS]
  for document in documents:
    tokens += [*document, _EOS]
  return tokens


@settings(max_examples=200)
@given(_documents, st.integers(min_value=1, max_value=17))
def test_every_token_but_the_first_eos_is_a_target_exactly_once(
  documents, length
):
  rows = list(packing.pack(documents, length, _EOS))
  targets = [
    token
    for row in rows
    for token, segment in zip(
      row['tokens'][1:], row['segment_ids'], strict=True
    )
    if segment
  ]
  assert targets == _stream(documents)[1:]


@settings(max_examples=200)
@given(_documents, st.integers(min_value=1, max_value=17))
def test_segments_begin_at_separators_and_count_up(documents, length):
  for row in packing.pack(documents, length, _EOS):
    inputs, segments = row['tokens'][:-1], row['segment_ids']
    used = segments > 0
    assert not used[np.argmin(used) :].any() or used.all()  # padding is last
    expected = np.cumsum(inputs[used] == _EOS)
    expected += used.any() and expected[0] == 0  # a document goes on
    np.testing.assert_array_equal(segments[used], expected)
    np.testing.assert_array_equal(row['tokens'][1:][~used], 0)


@settings(max_examples=100)
@given(_documents, st.integers(min_value=1, max_value=17))
def test_only_the_last_row_has_padding(documents, length):
  rows = list(packing.pack(documents, length, _EOS))
  for row in rows[:-1]:
    assert (row['segment_ids'] > 0).all()
  assert len(rows) == -(-(len(_stream(documents)) - 1) // length)


def test_rows_do_not_depend_on_how_much_is_gathered_before_a_cut(monkeypatch):
  draw = np.random.default_rng(0)
  documents = [draw.integers(3, 99, draw.integers(0, 50)) for _ in range(60)]
  whole = list(packing.pack(documents, 13, _EOS))
  monkeypatch.setattr(packing, '_BLOCK', 20)
  pieces = list(packing.pack(documents, 13, _EOS))
  assert len(whole) == len(pieces)
  for one, other in zip(whole, pieces, strict=True):
    np.testing.assert_array_equal(one['tokens'], other['tokens'])
    np.testing.assert_array_equal(one['segment_ids'], other['segment_ids'])


def test_positions_restart_in_each_segment_and_rest_in_padding():
  segments = np.array([1, 1, 1, 2, 3, 3, 0, 0])
  np.testing.assert_array_equal(
    packing.positions(segments), [0, 1, 2, 0, 0, 1, 0, 0]
  )


def test_the_example_of_the_docstring():
  first, second = packing.pack([[5, 6], [7, 8, 9, 10]], 4, _EOS)
  assert first['tokens'].tolist() == [2, 5, 6, 2, 7]
  assert first['segment_ids'].tolist() == [1, 1, 1, 2]
  assert second['tokens'].tolist() == [7, 8, 9, 10, 2]
  assert second['segment_ids'].tolist() == [1, 1, 1, 1]


def test_rows_of_no_length_are_refused():
  with pytest.raises(ValueError, match='at least one token, not 0'):
    list(packing.pack([[3]], 0, _EOS))
