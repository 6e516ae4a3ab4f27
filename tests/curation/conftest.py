"""Running a stage that sees all documents; sources to train models on."""

import pathlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from yi_jax.curation import documents, running, stage
from yi_jax.data import sources


def _load(path: str) -> documents.Batch:
  return pickle.loads(pathlib.Path(path).read_bytes())


def _save(batch: documents.Batch, folder: str) -> None:
  shard, number = batch.place
  path = pathlib.Path(folder, f'{shard:03}-{number:03}')
  path.write_bytes(pickle.dumps(batch))


class _Stored:
  """Batches that are read anew by every use, as `running.Stored` does."""

  def __init__(self, paths):
    self._paths, self._uses, self.pipeline = paths, 0, paths.pipeline

  def __or__(self, transform):
    import apache_beam as beam

    self._uses += 1
    return (self._paths | f'Read{self._uses}' >> beam.Map(_load)) | transform


@pytest.fixture
def through_beam(
  tmp_path: pathlib.Path,
) -> Callable[..., list[documents.Batch]]:
  """Runs a global stage on batches; returns them in order of place."""

  def run(
    one: stage.GlobalStage, batches: Sequence[documents.Batch]
  ) -> list[documents.Batch]:
    import apache_beam as beam

    for side in ('in', 'out'):
      (tmp_path / side).mkdir(exist_ok=True)
      for path in (tmp_path / side).iterdir():
        path.unlink()
    for batch in batches:
      _save(batch, str(tmp_path / 'in'))
    paths = sorted(map(str, (tmp_path / 'in').iterdir()))
    with running.pipeline(running.LOCAL, 1, '') as made:
      stored = _Stored(made | beam.Create(paths) | beam.Reshuffle())
      _ = one.expand(stored) | 'Save' >> beam.Map(_save, str(tmp_path / 'out'))
    return [_load(path) for path in sorted((tmp_path / 'out').iterdir())]

  return run


def _subject(
  first: int, count: int, seed: int, chinese: bool = False
) -> list[str]:
  """Returns texts about one subject: of words that no other number has.

  Args:
    first: number of the subject.
    count: of the texts.
    seed: of their words.
    chinese: whether words are of Han characters.
  """
  draw = random.Random(seed)
  if chinese:
    words = [chr(0x4E00 + 100 * first + n) for n in range(60)]
  else:
    words = [
      f'{"bdfgklmnprst"[first % 12]}{a}{b}{c}'
      for a in 'aeiou'
      for b in 'lmnrst'
      for c in 'aeo'
    ]
  made = []
  for _ in range(count):
    lines = []
    for _ in range(draw.randint(20, 30)):
      line = draw.choices(words, k=draw.randint(8, 14))
      lines.append(
        ''.join(line) + '。' if chinese else ' '.join(line).capitalize() + '.'
      )
    made.append('\n'.join(lines))
  return made


@pytest.fixture(scope='session')
def subject() -> Callable[..., list[str]]:
  """Makes texts about a numbered subject, see `_subject`."""
  return _subject


@pytest.fixture(scope='module')
def made_up_sources() -> Iterator[None]:
  """Sources calm_N and loud_N, English, and zh_calm and zh_loud, Chinese.

  Loud ones shout: marks and capitals are what tells them from calm ones.
  """

  def reader(number: int, loud: bool, chinese: bool) -> Callable:
    def texts(archives: sources.Archives) -> Iterator[tuple[str, str]]:
      del archives
      for key, text in enumerate(_subject(number, 40, number, chinese)):
        if loud:
          text = text.replace('.', ' WOW!!!').replace('。', '哈哈！！')
        yield str(key), text

    return texts

  known = dict(sources.SOURCES)
  for number in range(3):
    for kind in ('calm', 'loud'):
      read = reader(number, kind == 'loud', False)
      sources.SOURCES[f'{kind}_{number}'] = sources.Source(
        '', 'en', 'web', 1, read
      )
  for number, kind in enumerate(('calm', 'loud')):
    read = reader(number, kind == 'loud', True)
    sources.SOURCES[f'zh_{kind}'] = sources.Source('', 'zh', 'web', 1, read)
  yield
  sources.SOURCES.clear()
  sources.SOURCES.update(known)
