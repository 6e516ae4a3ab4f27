"""The report: its figures are those of the documents, its samples the edges."""

import html
import json

import ml_collections
import numpy as np
import pytest
from PIL import Image

from yi_jax.curation import (
  calibration,
  counting,
  documents,
  engine,
  explain,
  report,
  stage,
)


class Lengths(stage.Stage):
  """Removes short texts, marks the rest, and calls long ones copies."""

  name = 'lengths'

  def process(self, batch):
    for i in batch.alive():
      size = len(batch.texts[i])
      batch.languages[i] = 'zh' if '文' in batch.texts[i] else 'en'
      batch.score('size')[i] = size
      if size < self.config['least']:
        batch.remove(i, 'lengths', 'size', f'{size} < {self.config["least"]}')
      elif size > 90:
        batch.note(i, 'lengths', 'kept as the best of 3 near copies, 0012')
      elif size % 2:
        batch.change(i, 'lengths', batch.texts[i] + '\nend', 'ended')
    return batch


_PATH = f'{__name__}:Lengths'


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run over two sources, in one process."""
  monkeypatch.setattr(
    'yi_jax.curation.cascade.stage_class', lambda name: Lengths
  )
  for name, letter in (('latin', 'x'), ('han', '文')):
    lines = [json.dumps({'text': letter * n}) for n in range(1, 101)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  config = ml_collections.ConfigDict(
    {
      'root': str(tmp_path / 'data'),
      'inputs': {
        name: {'files': str(tmp_path / f'{name}.jsonl')}
        for name in ('latin', 'han')
      },
      'read': {'shard_documents': 30},
      'stages': ('lengths',),
      'fuse': True,
      'lengths': {'least': 41},
      'report': {'vocabulary': 'none', 'dollars_per_core_hour': 1.0},
    }
  )
  found = engine.run(config, str(tmp_path / 'run'), engine.Machine())
  return config, found


def test_figures_are_those_of_the_documents(run, tmp_path):
  config, found = run
  facts = report.write(config, str(tmp_path), found, 1)
  read, lengths = facts['stages']
  assert (read['documents'], read['characters']) == (200, 2 * 5050)
  assert lengths['documents'] == 120
  changed = sum(n % 2 for n in range(41, 91))
  each = sum(range(41, 101)) + 4 * changed
  assert lengths['by'] == {
    'han|zh': [60, each, None],
    'latin|en': [60, each, None],
  }
  assert lengths['removed'] == {'lengths.size': [80, 2 * sum(range(1, 41))]}
  assert lengths['changed'] == 2 * (changed + 10)
  assert facts['clusters'] == {'lengths: near copies': {'3': 20}}
  seen = lengths['seconds'] / 3600 * 1e6 / 200
  assert lengths['dollars_per_million'] == pytest.approx(
    seen, rel=0.2, abs=5e-3
  )
  assert json.loads((tmp_path / 'report.json').read_text()) == facts


def test_the_page_shows_both_sides_of_a_threshold(run, tmp_path):
  config, found = run
  report.write(config, str(tmp_path), found, 1)
  page = html.unescape((tmp_path / 'report.html').read_text())
  removed = page.split('removed, nearest to being kept')[1]
  removed, kept = removed.split('kept, nearest to being removed')
  assert f'>{"x" * 40}<' in removed
  assert f'>{"x" * 30}<' not in removed
  assert f'>{"x" * 41}\nend<' in kept
  assert f'>{"x" * 99}<' not in kept
  with Image.open(tmp_path / 'funnel.png') as image:
    assert np.asarray(image).std() > 10


def test_texts_cannot_break_the_page(run, tmp_path):
  config, found = run
  counts = counting.Counts('s')
  batch = documents.Batch(ids=['a'], texts=['<script>alert(1)</script>'])
  batch.remove(0, 's', 'r', '<b>')
  counts.add(batch)
  page = '\n'.join(report._samples([counts.to_json()]))
  assert '<script>' not in page
  assert '<b>' not in page


def test_counts_add_up_whatever_the_batches():
  draw = np.random.default_rng(0)
  batch = documents.Batch(
    ids=[f's/{n}' for n in range(300)],
    texts=['x' * int(n) for n in draw.integers(1, 99, 300)],
    sources=[f's{n % 3}' for n in range(300)],
  )
  for i in range(300):
    batch.score('rule')[i] = len(batch.texts[i])
    if len(batch.texts[i]) > 50:
      batch.remove(i, 's', 'rule', 'long')
  whole = counting.Counts('s')
  whole.add(batch)
  merged = counting.Counts('s')
  for start in range(0, 300, 70):
    part = counting.Counts('s')
    part.add(batch.select(range(start, min(start + 70, 300))))
    merged.merge(json.loads(json.dumps(part.to_json())))
  assert merged.to_json() == whole.to_json()
  near = counting.near(whole.edges['rule'])
  assert min(entry['score'] for entry in near['removed']) == 51
  assert max(entry['score'] for entry in near['kept']) == 50


def test_tokens_are_counted_with_the_vocabulary(run, tmp_path, monkeypatch):
  config, found = run
  folder = tmp_path / 'data/vocabularies/none'
  folder.mkdir(parents=True)
  (folder / 'tokenizer.model').write_bytes(b'')

  class Words:
    def encode(self, text):
      return list(text)[::2]

  monkeypatch.setattr('yi_jax.data.vocabulary.load', lambda path: Words())
  facts = report.write(config, str(tmp_path), found, 1)
  assert facts['tokens_per_character']['han'] == pytest.approx(0.5, abs=0.01)
  tokens = facts['stages'][0]['tokens']
  assert tokens == pytest.approx(0.5 * 10_100, rel=0.02)


def test_a_story_tells_what_each_stage_did(run):
  _, found = run
  told = list(explain.story(found, 'latin/44'))
  assert told[0] == 'latin/44, 45 characters'
  assert '  lengths: ended' in told
  assert '    +end' in told
  assert '  score size = 45' in told
  assert 'kept' in told
  told = list(explain.story(found, 'han/9'))
  assert '  lengths: removed by size: 10 < 41' in told
  assert 'removed by lengths.size' in told
  with pytest.raises(ValueError, match="no document 'han/1000'"):
    list(explain.story(found, 'han/1000'))


def test_percentiles_are_of_all_documents_by_language(run, monkeypatch):
  _, found = run
  table = calibration.percentiles(found)
  assert sorted(table) == ['size']
  assert sorted(table['size']) == ['en', 'zh']
  entry = table['size']['zh']
  assert entry['documents'] == 100
  wanted = np.percentile(np.arange(1, 101), calibration.PERCENTILES)
  np.testing.assert_allclose(entry['percentiles'], wanted)
  assert any('size' in line and '90%' not in line for line in
             calibration.lines(table))  # fmt: skip
  monkeypatch.setattr(calibration, '_MOST', 60)
  thinned = calibration.percentiles(found)['size']['zh']
  assert 20 < thinned['documents'] < 75
  assert abs(thinned['percentiles'][4] - 50.5) < 20


def test_no_recorded_score_is_an_error(run):
  _, found = run
  with pytest.raises(ValueError, match='record=True'):
    calibration.percentiles(found[:1])
