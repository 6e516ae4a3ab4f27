"""What was found stays found, whatever happens to the process."""

import pytest

from yi_jax.evaluation import record

_IDENTITY = {'task': 'needle', 'seed': 0}


def test_results_are_there_again(tmp_path):
  path = tmp_path / 'deep/journal.jsonl'
  book = record.Record(path, _IDENTITY)
  book.add('a', {'exact': 1.0})
  book.add('乙', {'exact': 0.0, 'answer': '铜壶\n'})
  again = record.Record(path, _IDENTITY)
  assert again.done == book.done
  assert list(again.done) == ['a', '乙']


@pytest.mark.parametrize('kept', range(1, 40, 5))
def test_a_torn_line_is_cut_off_and_done_again(tmp_path, kept):
  path = tmp_path / 'journal.jsonl'
  book = record.Record(path, _IDENTITY)
  book.add('a', {'exact': 1.0})
  whole = path.read_bytes()
  book.add('b', {'exact': 1.0, 'answer': ' in the copper kettle.'})
  path.write_bytes(path.read_bytes()[: len(whole) + kept])
  again = record.Record(path, _IDENTITY)
  assert list(again.done) == ['a']
  again.add('c', {'exact': 0.0})
  assert list(record.Record(path, _IDENTITY).done) == ['a', 'c']


def test_a_kill_in_the_first_line_begins_again(tmp_path):
  path = tmp_path / 'journal.jsonl'
  record.Record(path, _IDENTITY)
  path.write_bytes(path.read_bytes()[:9])
  assert record.Record(path, _IDENTITY).done == {}
  assert record.Record(path, _IDENTITY).done == {}


def test_results_of_something_else_are_refused(tmp_path):
  path = tmp_path / 'journal.jsonl'
  record.Record(path, _IDENTITY)
  with pytest.raises(ValueError, match='seed was 0 and is 1 now; give another'):
    record.Record(path, {**_IDENTITY, 'seed': 1})


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / 'journal.jsonl'
  book = record.Record(path, _IDENTITY)
  book.add('a', {})
  path.write_bytes(path.read_bytes().replace(b'"name"', b'name'))
  with pytest.raises(ValueError, match=r'journal.jsonl is damaged'):
    record.Record(path, _IDENTITY)
