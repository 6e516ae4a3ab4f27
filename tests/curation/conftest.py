"""Running a stage that sees all documents, as the engine does."""

import pathlib
import pickle
from collections.abc import Callable, Sequence

import pytest

from yi_jax.curation import documents, running, stage


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
