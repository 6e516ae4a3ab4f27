"""The choice balances tags and difficulty, and depends on nothing but its input."""

import json
import random

import pytest

from yi_jax.alignment import rows, sampler
from yi_jax.data import conversations


def _row(k, language='en', words=5):
  messages = (
    {'role': 'user', 'content': f'q{k} ' * words},
    {'role': 'assistant', 'content': f'a{k} ' * words},
  )
  return rows.Row(
    conversations.identity(messages), 'x', language, 'instruction', messages
  )


def _skewed(count=400):
  """Returns rows of which nine of ten have one tag."""
  draw = random.Random(0)
  found, tags = [], []
  for k in range(count):
    found.append(_row(k, draw.choice(['en', 'zh']), draw.randrange(1, 30)))
    rare = draw.choice(['a', 'b', 'c', 'd'])
    tags.append(('common',) if draw.random() < 0.9 else (rare,))
  return found, tags


def test_rare_tags_are_as_frequent_as_common_ones():
  found, tags = _skewed()
  _, levels = sampler.difficulty(found, tags)
  where = sampler.cells(tags, levels)
  chosen = sampler.choose(found, where, 40, 0)
  random_rows = sampler.at_random(found, 40, 0)
  assert len(set(chosen)) == len(set(random_rows)) == 40
  common = [
    sum(tags[i] == ('common',) for i in s) for s in (chosen, random_rows)
  ]
  assert common[0] <= 15 < 30 <= common[1]
  ours, chance = (
    sampler.coverage(found, where, some) for some in (chosen, random_rows)
  )
  for language in ('en', 'zh'):
    assert ours[language]['rows'] == chance[language]['rows'] == 20
    assert ours[language]['evenness'] > chance[language]['evenness'] + 0.15
    assert (
      ours[language]['cells with a row'] == ours[language]['cells there are']
    )


def test_the_choice_depends_on_rows_and_seed_alone():
  found, tags = _skewed(100)
  where = sampler.cells(tags, ['easy'] * 100)

  def ids(order, seed):
    mine = [found[i] for i in order]
    picks = sampler.choose(mine, [where[i] for i in order], 20, seed)
    return {mine[k].id for k in picks}

  straight = ids(range(100), 0)
  shuffled = random.Random(1).sample(range(100), 100)
  assert ids(shuffled, 0) == straight
  assert ids(range(100), 1) != straight


def test_a_row_of_many_tags_has_no_advantage():
  found = [_row(k) for k in range(4)]
  tags = [('a', 'b', 'c'), ('a',), ('b',), ('c',)]
  where = sampler.cells(tags, ['easy'] * 4)
  firsts = {sampler.choose(found, where, 1, seed)[0] for seed in range(20)}
  assert firsts == {0, 1, 2, 3}


def test_languages_share_alike_as_far_as_they_go():
  members = {'en': range(100), 'zh': range(3), 'fr': range(50)}
  assert sampler.quotas(members, 31) == {'en': 14, 'fr': 14, 'zh': 3}
  assert sampler.quotas(members, 1_000) == {'en': 100, 'fr': 50, 'zh': 3}
  assert sum(sampler.quotas(members, 2).values()) == 2


def test_difficulty_grows_with_tags_and_lengths():
  found = [_row(k, words=1 + 10 * k) for k in range(9)]
  tags = [tuple('abcdefghi'[: k + 1]) for k in range(9)]
  values, levels = sampler.difficulty(found, tags)
  assert list(values) == sorted(values)
  assert (values[0], values[-1]) == (0, 1)
  assert levels == ['easy'] * 3 + ['medium'] * 3 + ['hard'] * 3


def test_the_loss_of_a_model_counts_where_it_is_known(tmp_path):
  found = [_row(k) for k in range(4)]
  tags = [('a',)] * 4
  lines = [
    {'id': found[0].id, 'tokens': 1, 'log_probability': -9},
    {'id': found[0].id, 'tokens': 3, 'log_probability': -1},
    {'id': found[1].id, 'tokens': 2, 'log_probability': -5},
  ]
  path = tmp_path / 'knowledge.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)))
  losses = sampler.read_losses(str(path))
  assert losses == {found[0].id: (9 + 3) / 4, found[1].id: 5}
  values, _ = sampler.difficulty(found, tags, losses)
  # All else is the same, a rank of one half.
  assert list(values) == [1.5 / 4, 2.5 / 4, 0.5, 0.5]
  path.write_text('{"id": "x"}')
  with pytest.raises(ValueError, match='line 1 is no line of --knowledge'):
    sampler.read_losses(str(path))


def test_a_language_is_ranked_by_itself():
  found = [_row(0, 'zh', 1), _row(1, 'zh', 2), _row(2, 'en', 50)]
  _, levels = sampler.difficulty(found, [('a',)] * 3)
  alone, _ = sampler.difficulty(found[:2], [('a',)] * 2)
  both, _ = sampler.difficulty(found, [('a',)] * 3)
  assert list(alone) == list(both[:2])
