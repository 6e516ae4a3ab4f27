"""Tiny packages and texts in the form of the real ones."""

import hashlib
import io
import random
import tarfile
import zipfile

import pytest

from yi_jax.data import raw

_WORDS = (
  'the king said that his horse and crown were lost in a storm at sea while '
  'ships of the queen sailed home to her green fields with gold for all men'
)
_CHARACTERS = '国家保护公民的合法权益任何组织和个人不得侵犯本法自公布之日起施行'


def _english(seed, words):
  draw = random.Random(seed)
  return ' '.join(draw.choices(_WORDS.split(), k=words))


def _chinese(seed, characters):
  draw = random.Random(seed)
  return ''.join(draw.choices(_CHARACTERS, k=characters))


@pytest.fixture(scope='session')
def english():
  """Returns english(seed, words): the same text for the same seed."""
  return _english


@pytest.fixture(scope='session')
def chinese():
  """Returns chinese(seed, characters)."""
  return _chinese


class Shelf:
  """A folder of raw packages, with the requirements file that pins them."""

  def __init__(self, folder, requirements):
    self.folder, self.requirements = folder, requirements
    folder.mkdir()
    requirements.write_text('')

  def wheel(self, name, version, members):
    """Adds a wheel that pip accepts."""
    stem = f'{name.replace("-", "_")}-{version}'
    info = f'{stem}.dist-info'
    members = {
      f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\n'
      f'Version: {version}\n',
      f'{info}/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\n'
      'Tag: py3-none-any\n',
      f'{info}/RECORD': '',
      **members,
    }
    path = self.folder / f'{stem}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as file:
      for member, content in members.items():
        file.writestr(member, content)
    return self._pin(name, version, path)

  def sdist(self, name, version, members):
    """Adds a source package."""
    path = self.folder / f'{name}-{version}.tar.gz'
    with tarfile.open(path, 'w:gz') as file:
      for member, content in members.items():
        info = tarfile.TarInfo(f'{name}-{version}/{member}')
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return self._pin(name, version, path)

  def _pin(self, name, version, path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with open(self.requirements, 'a') as file:
      file.write(
        f'# group: small, all — test data; licence: MIT\n'
        f'{name}=={version} \\\n    --hash=sha256:{digest}\n'
      )
    raw._parse.cache_clear()
    return path


@pytest.fixture
def shelf(tmp_path, monkeypatch):
  """Returns an empty shelf, which takes the place of requirements-data.txt."""
  requirements = tmp_path / 'requirements-data.txt'
  monkeypatch.setattr(raw, 'REQUIREMENTS', requirements)
  yield Shelf(tmp_path / 'raw', requirements)
  raw._parse.cache_clear()
