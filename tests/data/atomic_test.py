"""Files and folders appear whole or not at all."""

import pytest

from yi_jax.data import atomic


def test_a_folder_appears_in_one_step_when_its_block_ends(tmp_path):
  final = tmp_path / 'a' / 'final'
  with atomic.new_folder(final) as folder:
    (folder / 'file').write_text('content')
    assert not final.exists()
    number = folder.stat().st_ino
  # Renamed, not copied: a copy could be interrupted.
  assert final.stat().st_ino == number
  assert [path.name for path in final.parent.iterdir()] == ['final']


def test_a_file_is_replaced_in_one_step_when_its_block_ends(tmp_path):
  path = tmp_path / 'file'
  atomic.write(path, b'old')
  with atomic.new_file(path) as file:
    file.write(b'new')
    file.flush()
    assert path.read_bytes() == b'old'
  assert path.read_bytes() == b'new'


def _fail(context):
  with context:
    raise RuntimeError('stop')


def test_errors_leave_what_was_there(tmp_path):
  atomic.write(tmp_path / 'file', b'old')
  for context in (
    atomic.new_file(tmp_path / 'file'),
    atomic.new_folder(tmp_path / 'folder'),
  ):
    with pytest.raises(RuntimeError, match='stop'):
      _fail(context)
  assert [path.name for path in tmp_path.iterdir()] == ['file']
  assert (tmp_path / 'file').read_bytes() == b'old'


def test_leftovers_of_killed_processes_go(tmp_path):
  (tmp_path / '.folder.part-1').mkdir()
  (tmp_path / '.file.part-1').touch()
  with atomic.new_folder(tmp_path / 'folder'):
    pass
  atomic.write(tmp_path / 'file', b'')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
  with pytest.raises(FileExistsError), atomic.new_folder(tmp_path):
    pass
