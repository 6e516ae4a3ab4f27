"""Tasks of conversations: prepared rows, held-out ones, and seqio's view."""

import json

import pytest

seqio = pytest.importorskip('seqio')

from yi_jax import prepare  # noqa: E402
from yi_jax.data import (  # noqa: E402
  chatml,
  conversations,
  mixtures,
  prepared,
  tasks,
)
from yi_jax.training import run_config  # noqa: E402


@pytest.fixture
def config(tmp_path, english, chinese, monkeypatch):
  """Returns a run on 80 conversations of one to three exchanges."""
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  lines = []
  for seed in range(80):
    turns = []
    for number in range(1 + seed % 3):
      ask = english(100 * seed + number, 3 + seed % 7)
      turns.append({'role': 'user', 'content': ask})
      turns.append({'role': 'assistant', 'content': chinese(seed, 5 + number)})
    lines.append(json.dumps({'messages': turns}, ensure_ascii=False))
  path = tmp_path / 'chats.jsonl'
  path.write_text('\n'.join(lines))
  mixtures.register_chats('zh_dialogue_tiny', str(path))
  config = run_config.base()
  config.data.root = str(tmp_path / 'data')
  config.data.rates.update({'zh_dialogue_tiny': 1.0})
  config.data.vocabulary_size = 320
  config.data.length = 256
  config.data.heldout_fraction = 0.2
  config.data.heldout_bytes = 0
  return config


def _read(data, split):
  """Returns {text of a packed conversation: ids with weight}."""
  words = prepared.open_vocabulary(data)
  reader = prepared.open_prepared(data, split).readers['zh_dialogue_tiny']
  found = {}
  for row in (reader[index] for index in range(len(reader))):
    for number in range(1, row['segment_ids'].max() + 1):
      inside = row['segment_ids'] == number
      ids = tuple(row['tokens'][inside].tolist())
      found[ids] = row['targets'][inside & (row['loss_weights'] > 0)].tolist()
  assert words.eos_id not in {i for ids in found for i in ids}
  return found


def test_every_conversation_is_in_one_split_as_its_template_renders_it(config):
  prepare.prepare(config)
  assert prepare.is_current(config.data)
  words = prepared.open_vocabulary(config.data)
  train, heldout = (_read(config.data, split) for split in prepared.SPLITS)
  assert not train.keys() & heldout.keys()
  assert 4 < len(heldout) < 36
  both, want = {**train, **heldout}, {}
  pattern = mixtures.get('zh_dialogue_tiny').chat
  answers = 0
  for messages in conversations.read(pattern):
    ids, learned = chatml.render(chatml.get('chatml'), messages, words)
    want[tuple(ids)] = [i for i, on in zip(ids, learned, strict=True) if on]
    answers += len(conversations.answers(messages).encode())
  assert both == want
  sizes = [
    prepared.open_prepared(config.data, split).bytes['zh_dialogue_tiny']
    for split in prepared.SPLITS
  ]
  assert sum(sizes) == answers

  tasks.register(config.data.root, config.data.vocabulary)
  try:
    dataset = seqio.get_mixture_or_task('zh_dialogue_tiny').get_dataset(
      sequence_length=None, split='train', shuffle=True, seed=1
    )
    seen = {}
    for row in dataset.as_numpy_iterator():
      ids, on = row['targets'], row['loss_weights'] > 0
      seen[tuple(ids.tolist())] = ids[on].tolist()
    assert seen == want
  finally:
    mixtures.TASKS.pop('zh_dialogue_tiny')
    tasks.register(config.data.root)


def test_another_format_or_weight_is_asked_for_by_key(config):
  prepare.prepare(config)
  config.data.chat.weigh = 'sample'
  reader = prepared.open_prepared(config.data, 'train').readers[
    'zh_dialogue_tiny'
  ]
  row = reader[0]
  assert row['loss_weights'].sum() == pytest.approx(row['segment_ids'].max())
  assert prepare.is_current(config.data)
  config.data.chat.template = 'yi_1_5'
  assert not prepare.is_current(config.data)
  config.data.chat.template = 'chatlm'
  with pytest.raises(ValueError, match="no chat template 'chatlm'"):
    prepare.prepare(config)
  config.data.chat.update(template='chatml', weigh='word')
  with pytest.raises(ValueError, match='data.chat.weigh'):
    prepare.prepare(config)


def test_so_many_samples_are_read_of_the_rows_there_are(config):
  prepare.prepare(config)
  whole = {split: _read(config.data, split) for split in prepared.SPLITS}
  key = prepared.open_prepared(config.data, 'train').keys['zh_dialogue_tiny']
  config.data.samples = {'zh_dialogue_tiny': 7}
  assert prepare.is_current(config.data)
  train, heldout = (_read(config.data, split) for split in prepared.SPLITS)
  assert len(train) == 7
  assert train.items() <= whole['train'].items()
  assert heldout == whole['heldout']
  limited = prepared.open_prepared(config.data, 'train').keys
  assert limited == {'zh_dialogue_tiny': f'7 of {key}'}
  config.data.chat.weigh = 'sample'
  readers = prepared.open_prepared(config.data, 'train').readers
  rows = readers['zh_dialogue_tiny']
  weights = [rows[i]['loss_weights'].sum() for i in range(len(rows))]
  assert sum(weights) == pytest.approx(7)
  config.data.samples = {'zh_math_chalkbase': 7}
  with pytest.raises(ValueError, match='chalkbase, which the run does not'):
    prepared.open_prepared(config.data, 'train')


def test_a_vocabulary_is_that_of_a_checkpoint(config, tmp_path):
  prepare.prepare(config)
  words = prepared.open_vocabulary(config.data)
  words.save(tmp_path / 'model')
  config.data.vocabulary = str(tmp_path / 'model')
  config.data.vocabulary_size = 0
  prepare.prepare(config)
  assert prepared.open_prepared(config.data, 'train').readers
  config.data.vocabulary_size = 999
  with pytest.raises(ValueError, match='set data.vocabulary_size to 320'):
    prepare.prepare(config)
