"""Grids: scores of an oracle, exact reuse, resuming, reports, bad input."""

import dataclasses
import json

import numpy as np
import pytest

from yi_jax.evaluation import needle, needles
from yi_jax.serving import reading

_GRID = dict(
  languages=('en',), lengths=(300, 500), depths=(0.0, 60.0), needles=2
)


class Oracle:
  """Reads like a Reader, finds what is written before a depth, and no later."""

  def __init__(self, config, words, finds):
    self.config, self._words, self._finds = config, words, finds
    self._row, self.rows = [], []

  def read(self, row):
    self._written = 0  # tokens of the answer that are held
    if list(row) == self._row:
      return 0
    self.rows.append(row)
    self._row = list(row)
    text = self._words.decode(self._row)
    self._answer = self._words.encode(self._finds(text))
    return len(row)

  def score(self, text, keep=False):
    likes = [*self._answer[self._written :], *[2] * len(text)][: len(text)]
    agree = [a == b for a, b in zip(text[1:], likes, strict=False)]
    if keep:
      self._written += len(text)
    return reading.Scores(np.where(agree, -0.1, -9.0), np.array(likes))


@pytest.fixture
def options(files):
  return needle.Options(documents=(files['en'],), **_GRID)


@pytest.fixture
def with_oracle(base, monkeypatch):
  """with_oracle(finds) makes every reader an oracle; they are in its list."""
  made = []

  def use(finds):
    def reader(subject, max_length):
      made.append(Oracle(subject.config, subject.words, finds))
      return made[-1]

    monkeypatch.setattr(type(base), 'reader', reader)
    return made

  return use


def _finds_late(text):
  """Answers ' copper kettle' where the needle is not right at the start."""
  found = text.find('copper kettle')
  if found >= 0:
    return ' copper kettle' if found > 250 else ' wooden clock'
  found = text.find('58213')
  return ' 58213' if found > 250 else ' nothing'


def test_an_oracle_is_scored_cell_by_cell(
  base, options, with_oracle, tmp_path, capsys
):
  with_oracle(_finds_late)
  facts = needle.run(base, options, tmp_path / 'out')
  found = facts['languages']['en']
  assert len(found['cells']) == 8
  for cell in found['cells']:
    right = cell['depth'] > 0
    assert cell['exact'] == right, cell
    if right:
      assert cell['judged'] == 1
      assert cell['probability'] > 0.9
      assert cell['answer'] == f' {cell["right"][0]}'
  wrong = [c for c in found['cells'] if c['depth'] == 0]
  assert {c['answer'] for c in wrong} == {' wooden clock', ' nothing'}
  assert all(c['judged'] == 0 for c in wrong)
  assert found['exact'] == 0.5
  assert json.loads((tmp_path / 'out/report.json').read_text()) == facts
  picture = (tmp_path / 'out/en.png').read_bytes()
  assert picture.startswith(b'\x89PNG')
  assert len(picture) > 5_000
  table = (tmp_path / 'out/table.txt').read_text()
  assert 'exact 50.0 %' in table
  assert table in capsys.readouterr().out


def test_a_killed_grid_goes_on_where_it_was(
  base, options, with_oracle, tmp_path
):
  made = with_oracle(_finds_late)
  whole = needle.run(base, options, tmp_path / 'whole')
  [first] = made

  def dies(text):
    if len(made[-1].rows) > 3:
      raise KeyboardInterrupt
    return _finds_late(text)

  made = with_oracle(dies)
  with pytest.raises(KeyboardInterrupt):
    needle.run(base, options, tmp_path / 'cut')
  journal = tmp_path / 'cut/journal.jsonl'
  journal.write_bytes(journal.read_bytes() + b'{"name": "en-1 3')
  made = with_oracle(_finds_late)
  again = needle.run(base, options, tmp_path / 'cut')
  assert again == whole
  assert len(made[-1].rows) == len(first.rows) - 3
  # All is there: no model is needed any more.
  count = len(made)
  assert needle.run(base, options, tmp_path / 'cut') == whole
  assert len(made) == count
  # A larger grid keeps what it has.
  more = dataclasses.replace(options, lengths=(300, 400, 500))
  needle.run(base, more, tmp_path / 'cut')
  assert len(made[-1].rows) == 4
  other = dataclasses.replace(options, seed=1)
  with pytest.raises(ValueError, match='seed was 0 and is 1 now'):
    needle.run(base, other, tmp_path / 'cut')


def test_depths_of_one_name_are_one_depth(base, options, with_oracle, tmp_path):
  made = with_oracle(_finds_late)
  for depth in (33.333333, 33.3333333):
    again = dataclasses.replace(options, depths=(depth,))
    facts = needle.run(base, again, tmp_path)
  assert len(facts['languages']['en']['cells']) == 4
  assert len(made) == 1


def test_a_grid_scores_as_rows_read_in_full(base, files, one_reader, tmp_path):
  options = needle.Options(
    documents=(files['en'],),
    **{**_GRID, 'needles': 1, 'depths': (0.0, 50.0, 100.0)},
  )
  facts = needle.run(base, options, tmp_path)
  found = facts['languages']['en']
  assert found['tokens_read'] < 0.8 * found['tokens']
  lengths = needle.lengths_of(base, options)
  planned = needle.plan(
    base, options, lengths, lambda language: needles.facts(language, 1, 0)
  )
  for cell, result in zip(planned['en'], found['cells'], strict=True):
    one_reader.read([])  # nothing is left of the row before
    wanted = needle.score(cell, one_reader, base)
    assert wanted['read'] == len(cell.row()) - 1
    np.testing.assert_allclose(
      result['logprobs'], wanted['logprobs'], atol=2e-3
    )
    assert (result['answer'], result['judged']) == (
      wanted['answer'],
      wanted['judged'],
    )


def test_keys_are_told_apart_by_their_numbers(
  base, files, with_oracle, tmp_path
):
  options = needle.KeyOptions(
    documents=(files['zh'],),
    **{**_GRID, 'languages': ('zh',), 'lengths': (700,), 'needles': 1},
    keys=3,
    values=2,
  )
  [asked] = needles.keys('zh', 1, 3, 2, 0)
  with_oracle(lambda text: f'{asked.right[1]}，{asked.wrong[0]}')
  facts = needle.run_keys(base, options, tmp_path)
  for cell in facts['languages']['zh']['cells']:
    assert cell['right'] == list(asked.right)
    assert (cell['exact'], cell['judged']) == (0.5, 0.5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(depths=(0.0, 101.0)), 'a depth of 101 % is outside 0 to 100'),
    (dict(depths=(-1.0,)), 'a depth of -1 % is outside'),
    (dict(depths=()), '--depths names no depth'),
    (dict(lengths=(0, 300)), '--lengths are at least 1, not 0'),
    (
      dict(lengths=(300, 2000)),
      r'2,000 is beyond the 1,024 positions .*--max_position_embeddings=2000.*'
      '--rope_theta',
    ),
    (dict(languages=('fr',)), "no language 'fr'; there are: en, zh"),
    (dict(languages=('en', 'zh')), 'say with --languages which one'),
    (dict(needles=9), '--needles takes 1 to 5, not 9'),
    (dict(lengths=(1000,)), 'the documents have .* and 1,000 are needed'),
  ],
)
def test_bad_options_are_refused(base, options, changes, message, tmp_path):
  short = tmp_path / 'short.txt'
  short.write_text('The king went to sea. ' * 20)
  if changes.get('lengths') == (1000,):
    changes = {**changes, 'documents': (str(short),)}
  with pytest.raises(ValueError, match=message):
    needle.run(base, dataclasses.replace(options, **changes), tmp_path / 'x')
  assert not (tmp_path / 'x').exists()


@pytest.fixture
def own(options, tmp_path):
  """Options with three needles of one's own."""
  path = tmp_path / 'own.jsonl'
  with path.open('w') as file:
    for town in ('Ulm', 'Ghent', 'Padua'):
      entry = {
        'language': 'en',
        'sentence': f'The bridge of {town} is {{value}}.',
        'question': f'What is the bridge of {town}?',
        'opening': f'The bridge of {town} is',
        'values': ['green', 'blue'],
      }
      file.write(json.dumps(entry) + '\n')
  return dataclasses.replace(options, needles=None, needles_file=str(path))


@pytest.mark.parametrize('count', [None, 2])
def test_a_file_gives_as_many_needles_as_are_asked_for(
  base, own, tmp_path, with_oracle, count
):
  with_oracle(_finds_late)
  wanted = dataclasses.replace(own, needles=count, lengths=(300,))
  found = needle.run(base, wanted, tmp_path / 'x')['languages']['en']
  names = [f'line-{number}' for number in range(1, (count or 3) + 1)]
  assert sorted({cell['needle'] for cell in found['cells']}) == names


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(needles=4), "takes 1 to 3, not 4: .*own.jsonl has no more .*'en'"),
    (dict(needles=0), 'takes 1 to 3, not 0'),
    (dict(languages=('zh',)), "own.jsonl has no needles of language 'zh'"),
  ],
)
def test_needles_that_a_file_has_not_are_refused(
  base, own, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    needle.run(base, dataclasses.replace(own, **changes), tmp_path / 'x')


def test_short_documents_are_joined(base, options, tmp_path, with_oracle):
  with_oracle(_finds_late)
  paths = []
  for i in range(40):
    path = tmp_path / f'{i}.txt'
    path.write_text(f'The king went to castle {i}. The sea took the horse.')
    paths.append(str(path))
  joined = dataclasses.replace(options, documents=tuple(paths), lengths=(400,))
  facts = needle.run(base, joined, tmp_path / 'x')
  assert len(facts['languages']['en']['cells']) == 4


@pytest.mark.parametrize(
  ('content', 'message'),
  [(b'', 'is empty'), (b' \n', 'is empty'), (b'a\xff', 'no valid UTF-8')],
)
def test_bad_documents_are_refused(base, options, tmp_path, content, message):
  (tmp_path / 'bad.txt').write_bytes(content)
  bad = dataclasses.replace(options, documents=(str(tmp_path / 'bad.txt'),))
  with pytest.raises(ValueError, match=f'bad.txt.*{message}'):
    needle.run(base, bad, tmp_path / 'x')


def test_without_raw_data_it_says_what_to_fetch(base, options, tmp_path):
  absent = dataclasses.replace(options, documents=(), data_root=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='yi_jax.data.raw --group='):
    needle.run(base, absent, tmp_path / 'x')
