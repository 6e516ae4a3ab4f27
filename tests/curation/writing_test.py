"""What `curate` writes: tasks that `prepare` reads, whole or not at all."""

import json
import pathlib

import ml_collections
import pytest

from yi_jax.curation import documents, engine, writing
from yi_jax.data import files, mixtures, prepared


@pytest.fixture
def texts(tmp_path, monkeypatch):
  """Two inputs, and tables of tasks that other tests do not see."""
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  monkeypatch.setattr(mixtures, 'MIXTURES', dict(mixtures.MIXTURES))
  monkeypatch.setattr(documents, 'SIZE', 15)
  found = {
    'news': [f'news {n}\n\n{"word " * (n % 5)}' for n in range(40)],
    'book': ['\n\n'.join(f'paragraph {n} ' * 20 for n in range(80))],
  }
  for name, entries in found.items():
    lines = [json.dumps({'text': text, 'url': 'u'}) for text in entries]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  return found


def _config(tmp_path, **write):
  return ml_collections.ConfigDict(
    {
      'root': str(tmp_path / 'data'),
      'inputs': {
        'news': {'files': str(tmp_path / 'news.jsonl'), 'language': 'en'},
        'book': {
          'files': str(tmp_path / 'book.jsonl'),
          'task': 'en_books_novel',
        },
      },
      'read': {'shard_documents': 15, 'max_bytes': 100_000},
      'stages': (),
      'fuse': True,
      'write': write,
    }
  )


def _write(tmp_path, **write):
  config = _config(tmp_path, **write)
  machine = engine.Machine()
  found = engine.run(config, str(tmp_path / 'run'), machine)
  return writing.write(config, str(tmp_path / 'run'), found[-1], machine)


def test_prepare_reads_what_was_written(texts, tmp_path):
  manifest = _write(tmp_path)
  rates = mixtures.register_curated(str(tmp_path / 'run/curated'))
  assert sorted(rates) == ['en_books_novel_curated', 'en_web_news_curated']
  task = mixtures.get('en_web_news_curated')
  assert (task.language, task.kind) == ('en', 'web')
  assert list(files.read(task.pattern)) == texts['news']
  novel = list(files.read(mixtures.get('en_books_novel_curated').pattern))
  assert ''.join(novel) == texts['book'][0]
  assert 1 < len(novel) == manifest['tasks']['en_books_novel']['documents']
  size = sum(len(text.encode()) for text in texts['news'])
  assert manifest['tasks']['en_web_news']['bytes'] == size
  assert sum(rates.values()) == pytest.approx(1)
  data = ml_collections.ConfigDict(
    {'mixture': 'curated', 'rates': {}, 'stages': (), 'length': 16}
  )
  assert prepared.stages(data) == [(0, rates)]
  assert prepared.tasks(data)['en_web_news_curated'] == task


def test_buckets_can_be_tasks_of_their_own(texts, tmp_path, monkeypatch):
  load = writing.shards.read

  def read(path):
    for batch in load(path):
      for text, entry in zip(batch.texts, batch.metadata, strict=True):
        if text.startswith('news'):
          entry['perplexity'] = 'tail' if 'word' in text else 'head'
      yield batch

  monkeypatch.setattr(writing.shards, 'read', read)
  config = _config(tmp_path)
  config.inputs.news.task = '{language}_web_{bucket}'
  config.inputs.book.task = 'en_books_{bucket}'
  found = engine.run(config, str(tmp_path / 'run'), engine.Machine())
  made = writing.write(
    config, str(tmp_path / 'run'), found[-1], engine.Machine()
  )
  documents = {name: task['documents'] for name, task in made['tasks'].items()}
  assert documents.pop('en_books_none') > 1
  assert documents == {'en_web_head': 8, 'en_web_tail': 32}


def test_each_task_is_a_data_set_of_tfds(texts, tmp_path):
  import tensorflow_datasets as tfds

  _write(tmp_path)
  (folder,) = tmp_path.glob('run/curated/*/en_web_news/1.0.0')
  builder = tfds.builder_from_directory(str(folder))
  assert builder.info.splits['train'].shard_lengths == [15, 15, 10]
  rows = list(builder.as_data_source('train'))
  assert [row['text'].decode() for row in rows] == texts['news']
  assert rows[17]['id'] == b'news/17'
  assert rows[17]['url'] == b'u'


def test_parquet_holds_the_same(texts, tmp_path):
  found = []
  for kind in writing.defaults()['format'], 'parquet':
    manifest = _write(tmp_path, format=kind)
    mixtures.register_curated(str(tmp_path / 'run/curated'))
    tasks = map(mixtures.get, sorted(mixtures.MIXTURES['curated']))
    found.append([list(files.read(task.pattern)) for task in tasks])
    assert manifest['tasks']['en_web_news']['files'].count(kind) == 1
  assert found[0] == found[1]
  with pytest.raises(ValueError, match=r"\['array_record', 'parquet'\]"):
    _write(tmp_path, format='tfrecord')


def test_weights_multiply_shares_of_bytes(texts, tmp_path):
  plain = _write(tmp_path)['tasks']
  weighted = _write(tmp_path, weights={'en_web_news': 3})['tasks']
  before = plain['en_web_news']['rate'] / plain['en_books_novel']['rate']
  after = weighted['en_web_news']['rate'] / weighted['en_books_novel']['rate']
  assert after == pytest.approx(3 * before)
  with pytest.raises(ValueError, match="'en_web_new'; did you mean 'en_web_n"):
    _write(tmp_path, weights={'en_web_new': 1})
  with pytest.raises(ValueError, match='negative'):
    _write(tmp_path, weights={'en_web_news': -1})


def test_sections_can_be_left_whole(texts, tmp_path):
  manifest = _write(tmp_path, section=0)
  assert manifest['tasks']['en_books_novel']['documents'] == 1
  # The set before is gone, and the manifest names the new one.
  (folder,) = [p for p in (tmp_path / 'run/curated').iterdir() if p.is_dir()]
  assert manifest['tasks']['en_books_novel']['files'].startswith(folder.name)


def test_a_set_written_twice_is_the_same(texts, tmp_path):
  def content():
    return {
      str(path): path.read_bytes()
      for path in sorted((tmp_path / 'run/curated').rglob('*array_record*'))
    }

  _write(tmp_path)
  first = content()
  assert len(first) == 4  # three of the news, one of the book
  for path in (tmp_path / 'run/curated').rglob('000001-00001.json'):
    path.unlink()  # as if killed before it
  for path in (tmp_path / 'run/curated').rglob('*news*-00001-of-*'):
    path.unlink()
  _write(tmp_path)
  assert content() == first


def test_a_folder_without_a_set_is_named_with_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'yi_jax\.curate --config'):
    mixtures.register_curated(str(tmp_path))


def test_unknown_keys_are_refused(texts, tmp_path):
  with pytest.raises(ValueError, match="did you mean 'section'"):
    _write(tmp_path, sections=3)
  assert not pathlib.Path(tmp_path / 'run/curated').exists()
