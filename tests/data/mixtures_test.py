"""Tasks and mixtures as tables."""

import json

import pytest

from yi_jax.data import chat_sources, mixtures


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))


def test_names_tell_language_and_kind():
  for name, task in mixtures.TASKS.items():
    assert name == task.name
    assert task.kind in (
      chat_sources.ABILITIES if task.chat else mixtures.KINDS
    )
    assert task.language in ('en', 'zh', 'code')
    found = (task.source, task.tfds, task.pattern, task.chat)
    assert sum(map(bool, found)) == 1


def test_every_mixture_reads_tasks_that_are_there():
  for name in mixtures.MIXTURES:
    assert mixtures.rates(name).keys() <= mixtures.TASKS.keys()


def test_yi_shares_by_kind():
  shares = {}
  for name, rate in mixtures.MIXTURES['yi_text'].items():
    kind = mixtures.get(name).kind
    shares[kind] = shares.get(kind, 0) + rate
  assert sum(shares.values()) == pytest.approx(1)
  # The report's shares, without the papers that no task has.
  assert shares['web'] == pytest.approx(0.8077 / (1 - 0.0488), abs=1e-4)
  assert shares['code'] == pytest.approx(0.0822 / (1 - 0.0488), abs=1e-4)
  assert shares['encyclopedia'] == pytest.approx(0.0112 / 0.9512, abs=1e-4)


def test_pretraining_reads_no_small_source_a_thousand_times():
  tasks = [mixtures.get(name) for name in mixtures.MIXTURES['yi_pretrain']]
  assert {task.language for task in tasks} == {'en', 'zh'}
  assert min(task.megabytes for task in tasks) > 1000


def test_languages_share_a_kind_as_told():
  rates = mixtures.by_kind(
    ['en_web_c4', 'zh_web_mc4', 'code_code_python'],
    {'en': 3, 'zh': 1, 'code': 1},
  )
  assert rates['en_web_c4'] == pytest.approx(3 * rates['zh_web_mc4'])
  assert rates['code_code_python'] == pytest.approx(2569 / (25239 + 2569))


def test_tasks_of_one_kind_and_language_share_by_size():
  rates = mixtures.by_kind(['en_books_plays', 'en_books_bible'])
  assert rates['en_books_plays'] / rates['en_books_bible'] == pytest.approx(
    5.3 / 4.1
  )


def test_rates_of_a_run_replace_those_of_the_mixture():
  assert mixtures.rates('quickstart', {'en_web_c4': 2}) == {'en_web_c4': 2}
  assert mixtures.rates('quickstart', {}) == mixtures.MIXTURES['quickstart']


def test_own_files_become_a_task():
  task = mixtures.register_files('en_papers_mine', '/disk/*.jsonl', 'body')
  assert mixtures.get('en_papers_mine') == task
  assert (task.language, task.kind, task.column) == ('en', 'papers', 'body')
  # The same again, as when a config file is read twice.
  mixtures.register_files('en_papers_mine', '/disk/*.jsonl', 'body')
  with pytest.raises(ValueError, match='is there already'):
    mixtures.register_files('en_papers_mine', '/other/*.jsonl')
  with pytest.raises(ValueError, match='language_kind_source'):
    mixtures.register_files('mine', '/disk/*.jsonl')


@pytest.mark.parametrize(
  ('mixture', 'rates', 'message'),
  [
    ('quikstart', {}, "did you mean 'quickstart'"),
    ('quickstart', {'en_books_play': 1}, "did you mean 'en_books_plays'"),
    ('quickstart', {'en_books_plays': -1}, 'en_books_plays is negative'),
    ('quickstart', {'en_books_plays': 0}, 'all rates are 0'),
    ('quickstart', {'en_books_plays': float('nan')}, 'plays is not finite'),
  ],
)
def test_bad_rates_are_refused_by_name(mixture, rates, message):
  with pytest.raises(ValueError, match=message):
    mixtures.rates(mixture, rates)


def _file(folder, **content):
  path = folder / 'fused.json'
  path.write_text(json.dumps(content))
  return str(path)


def test_a_mixture_may_be_a_file(tmp_path):
  rates = {'zh_math_chalkbase': 0.75, 'en_dialogue_chitchat': 0.25}
  path = _file(tmp_path, rates=rates, samples={'zh_math_chalkbase': 64})
  assert mixtures.rates(path, {'en_books_plays': None}) == rates
  assert mixtures.samples(path) == {'zh_math_chalkbase': 64}
  more = {'zh_math_chalkbase': 8, 'en_dialogue_chitchat': None}
  assert mixtures.samples(path, more) == {'zh_math_chalkbase': 8}
  assert mixtures.samples('chat', {'zh_math_chalkbase': None}) == {}
  with pytest.raises(ValueError, match='data.rates names en_web_c4 as well'):
    mixtures.rates(path, {'en_web_c4': 1})
  with pytest.raises(ValueError, match='has no "rates"'):
    mixtures.rates(_file(tmp_path, samples={}))
  with pytest.raises(FileNotFoundError, match='mixture_search.py writes'):
    mixtures.rates(str(tmp_path / 'lost.json'))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{"rates": {"zh_ma', 'fused.json is no mixture, or cut off'),
    ('{"rates": ["zh_math_chalkbase"]}', '"rates" is no object'),
    ('{"rates": {}, "samples": 4}', '"samples" is no object'),
  ],
)
def test_a_file_that_is_no_mixture_is_named(content, message, tmp_path):
  path = tmp_path / 'fused.json'
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    mixtures.read(str(path))


@pytest.mark.parametrize(
  ('samples', 'message'),
  [
    ({'zh_maths_chalkbase': 1}, "did you mean 'zh_math_chalkbase'"),
    ({'en_books_plays': 1}, 'en_books_plays is text'),
    ({'zh_math_chalkbase': 0}, 'samples.zh_math_chalkbase is .* not 0'),
    ({'zh_math_chalkbase': 0.5}, 'not 0.5'),
  ],
)
def test_bad_numbers_of_samples_are_refused_by_name(samples, message):
  with pytest.raises(ValueError, match=message):
    mixtures.samples('chat', samples)
