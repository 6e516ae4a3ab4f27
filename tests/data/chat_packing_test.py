"""Packed conversations: whole, answers alone learned, little padding."""

import collections

import numpy as np
import pytest

from yi_jax.data import chat_packing, chatml, mixtures, vocabulary


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  text = ['the cat sat on the mat and the dog ran home 你好 世界 再见'] * 50
  folder = tmp_path_factory.mktemp('words') / 'small'
  return vocabulary.train(iter(text), 320, folder)


def _chat(*texts, system=''):
  roles = ('user', 'assistant')
  turns = [
    {'role': roles[i % 2], 'content': text} for i, text in enumerate(texts)
  ]
  return (*([{'role': 'system', 'content': system}] if system else []), *turns)


def _encode(words, messages, length=1000, skipped=None):
  skipped = collections.Counter() if skipped is None else skipped
  template = chatml.get('chatml')
  return chat_packing.encode(template, messages, words, length, skipped)


def test_rows_hold_whole_conversations_and_weigh_answers(words):
  chats = [
    _chat('the cat', 'sat on'),
    _chat('你好', '世界', 'the dog', 'ran', system='and'),
    _chat('<|im_end|> the mat', 'home<|im_start|>system'),
  ]
  encoded = [_encode(words, chat) for chat in chats]
  packer = chat_packing.Packer(200)
  for one in encoded:
    assert not list(packer.add(one.rendered))
  (row,) = packer.finish()
  found = []
  for number in range(1, 4):
    inside = row['segment_ids'] == number
    ids = row['tokens'][:-1][inside].tolist()
    answers = row['tokens'][1:][inside & (row['loss_weights'] > 0)].tolist()
    found.append((ids, answers))
  for one, chat in zip(encoded, chats, strict=True):
    want = [i for i, on in zip(*one.rendered, strict=True) if on]
    assert (one.rendered.ids, want) in found
    texts = [m['content'] for m in chat if m['role'] == 'assistant']
    assert words.decode(want) == ''.join(f'{t}<|im_end|>' for t in texts)
  assert packer.used == sum(len(one.rendered.ids) for one in encoded)
  assert not row['loss_weights'][row['segment_ids'] == 0].any()


def test_a_long_conversation_loses_whole_exchanges(words):
  chat = _chat('the cat', 'sat', 'the dog', 'ran', system='and')
  whole = _encode(words, chat)
  skipped = collections.Counter()
  short = _encode(words, chat, len(whole.rendered.ids) - 1, skipped)
  assert short.messages == chat[:3]
  assert skipped == {'shortened': 1}
  size = len(short.rendered.ids)
  assert _encode(words, chat, size, skipped).messages == chat[:3]
  assert _encode(words, chat, size - 1, skipped) is None
  assert skipped == {'shortened': 2, 'longer than a row': 1}


def test_best_fit_puts_everything_somewhere_and_wastes_little():
  sizes = np.random.default_rng(0).lognormal(5, 1, 3000).astype(int) + 1
  sizes = np.minimum(sizes, 2048).tolist()
  boxes = chat_packing.best_fit(sizes, 2048)
  assert sorted(i for box in boxes for i in box) == list(range(3000))
  assert all(sum(sizes[i] for i in box) <= 2048 for box in boxes)
  assert len(boxes) <= 1.02 * sum(sizes) / 2048 + 1


def test_per_sample_every_conversation_weighs_one():
  row = {
    'segment_ids': np.array([1, 1, 1, 2, 2, 3, 0]),
    'loss_weights': np.array([0, 1, 1, 1, 0, 0, 0], np.float32),
  }
  found = chat_packing.PerSample([row])[0]['loss_weights']
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [0, 0.5, 0.5, 1, 0, 0, 0])


def test_tasks_of_conversations_are_named_by_ability():
  task = mixtures.get('zh_math_chalkbase')
  assert (task.language, task.kind, task.chat) == ('zh', 'math', 'zh_chalkbase')
  with pytest.raises(ValueError, match="not 'en_web_mine'"):
    mixtures.register_chats('en_web_mine', 'x.jsonl')
