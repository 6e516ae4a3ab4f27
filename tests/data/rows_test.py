"""Rows on disk: what is written is read, and damage is found when opening."""

import numpy as np
import pytest

from yi_jax.data import atomic, packing, rows

_SMALL = {'tokens': 'uint16', 'segment_ids': 'uint16'}


def _documents(seed=0, count=30):
  draw = np.random.default_rng(seed)
  return [draw.integers(3, 60_000, draw.integers(1, 40)) for _ in range(count)]


def _write(folder, task='en_books_tiny', shard=(0, 1), documents=None):
  packed = list(packing.pack(documents or _documents(), 16, 2))
  with rows.RowWriter(folder, task, shard, _SMALL) as writer:
    for row in packed:
      writer.write(row)
    writer.close(bytes=5)
  return packed


def test_rows_come_back_ready_for_training(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, '_ROWS_A_FILE', 7)  # several files
  packed = _write(tmp_path / 'rows')
  assert len(list((tmp_path / 'rows').glob('*.array_record'))) > 1
  reader = rows.RowReader(tmp_path / 'rows')
  assert len(reader) == len(packed)
  assert reader.facts['bytes'] == 5
  for index in reversed(range(len(packed))):
    row, want = reader[index], packed[index]
    np.testing.assert_array_equal(row['tokens'], want['tokens'][:-1])
    np.testing.assert_array_equal(row['targets'], want['tokens'][1:])
    np.testing.assert_array_equal(row['segment_ids'], want['segment_ids'])
    np.testing.assert_array_equal(
      row['positions'], packing.positions(want['segment_ids'])
    )
    np.testing.assert_array_equal(
      row['loss_weights'], (want['segment_ids'] > 0).astype(np.float32)
    )
    types = {name: str(array.dtype) for name, array in row.items()}
    assert types == {
      'tokens': 'int32',
      'targets': 'int32',
      'segment_ids': 'int32',
      'positions': 'int32',
      'loss_weights': 'float32',
      'row_id': 'int64',
    }


def test_own_weights_and_other_arrays_travel_along(tmp_path):
  row = {
    'tokens': np.arange(5, dtype=np.int32),
    'segment_ids': np.ones(4, np.int32),
    'loss_weights': np.array([0, 1, 0.25, 0], np.float32),
    'patches': np.arange(12, dtype=np.uint8).reshape(2, 3, 2),
  }
  with rows.RowWriter(tmp_path / 'rows', 'task') as writer:
    writer.write(row)
    writer.close()
  back = rows.RowReader(tmp_path / 'rows')[0]
  assert back['loss_weights'].tolist() == [0, 1, 0.25, 0]
  np.testing.assert_array_equal(back['patches'], row['patches'])
  assert back['patches'].dtype == np.uint8


def test_row_ids_are_unique_over_tasks_splits_and_shards(tmp_path):
  folders, ids = [], []
  for task in ('en_books_tiny/train', 'en_books_tiny/heldout', 'zh_other_tiny'):
    for index in range(3):
      folders.append(tmp_path / f'{task}-{index}')
      documents = _documents(index, 10 + index)
      _write(folders[-1], task, (index, 3), documents)
      reader = rows.RowReader(folders[-1])
      ids += [int(reader[i]['row_id']) for i in range(len(reader))]
  assert len(set(ids)) == len(ids)
  assert all(row_id >= 0 for row_id in ids)


def test_several_folders_are_read_as_one(tmp_path):
  first = _write(tmp_path / 'a', documents=_documents(1))
  second = _write(tmp_path / 'b', documents=_documents(2))
  reader = rows.RowReader([tmp_path / 'a', tmp_path / 'b'])
  assert len(reader) == len(first) + len(second)
  np.testing.assert_array_equal(
    reader[len(first)]['tokens'], second[0]['tokens'][:-1]
  )


def test_a_folder_of_no_rows_has_none(tmp_path):
  with rows.RowWriter(tmp_path / 'none', 'task') as writer:
    writer.close()
  assert len(rows.RowReader(tmp_path / 'none')) == 0
  _write(tmp_path / 'some')
  both = rows.RowReader([tmp_path / 'none', tmp_path / 'some'])
  assert both[0]['tokens'].shape == (16,)


def _fail_while_writing(folder):
  with (
    atomic.new_folder(folder) as part,
    rows.RowWriter(part, 'task') as writer,
  ):
    writer.write(next(packing.pack(_documents(), 16, 2)))
    raise RuntimeError('stop')


def test_an_error_leaves_no_folder(tmp_path):
  with pytest.raises(RuntimeError, match='stop'):
    _fail_while_writing(tmp_path / 'rows')
  assert list(tmp_path.iterdir()) == []


def test_without_a_manifest_there_are_no_rows(tmp_path):
  with rows.RowWriter(tmp_path / 'rows', 'task') as writer:
    writer.write(next(packing.pack(_documents(), 16, 2)))
  with pytest.raises(FileNotFoundError, match='holds no rows; run yi_jax.prep'):
    rows.RowReader(tmp_path / 'rows')


def test_a_damaged_file_is_found_when_opening(tmp_path):
  _write(tmp_path / 'rows')
  path = tmp_path / 'rows' / 'rows-00000.array_record'
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r'rows-00000\.array_record is damaged'):
    rows.RowReader(tmp_path / 'rows')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'tokens': np.full(17, 70_000)},
      r'tokens int64\[17\] does not fit uint16',
    ),
    ({'tokens': np.zeros(9, np.int32)}, r'tokens int32\[9\] does not fit'),
    ({'other': np.zeros(1)}, 'a row of .*other'),
  ],
)
def test_a_row_that_does_not_fit_is_refused(change, message, tmp_path):
  row = next(packing.pack(_documents(), 16, 2))
  with rows.RowWriter(tmp_path / 'rows', 'task', types=_SMALL) as writer:
    writer.write(row)
    with pytest.raises(ValueError, match=message):
      writer.write({**row, **change})
