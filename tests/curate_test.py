"""The verb: its flags, its variants, and the way from raw text to training."""

import json
import pathlib

import pytest

from yi_jax import app, curate, prepare
from yi_jax.curation import cascade, engine
from yi_jax.data import mixtures, prepared

_EXAMPLE = '--config=experiments/curate.py'


@pytest.fixture
def crawl(tmp_path):
  """Pages, half of them copies, and the arguments of a run over them."""
  rows = [
    {
      'text': '\n'.join(
        f'Line {m} of page {n % 150} names the number {n % 150 * m}.'
        for m in range(30)
      ),
      'id': str(n),
    }
    for n in range(300)
  ]
  path = tmp_path / 'pages.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n{"text": \n')
  config = tmp_path / 'crawl.py'
  config.write_text(
    'from yi_jax.curation import run_config\n'
    'def get_config():\n'
    "  c = run_config.base(('exact',))\n"
    f'  c.root = {str(tmp_path / "data")!r}\n'
    f"  c.inputs = {{'pages': {{'files': {str(path)!r}, 'language': 'en'}}}}\n"
    '  return c\n'
  )
  return [f'--config={config}', f'--workdir={tmp_path / "run"}', '--workers=1']


def _run(*arguments):
  return app.run(
    curate.main, curate.FLAGS, example=_EXAMPLE, argv=list(arguments)
  )


def test_a_run_leaves_data_and_a_report_and_tells_a_story(
  crawl, tmp_path, capsys
):
  assert _run(*crawl) == 0
  folder = tmp_path / 'run'
  facts = json.loads((folder / 'report.json').read_text())
  assert [stage['documents'] for stage in facts['stages']] == [300, 150]
  assert facts['quarantine'] == {'pages': {'broken JSON': 1}}
  assert facts['clusters'] == {'exact: exact copies': {'2': 150}}
  assert (folder / 'report.html').stat().st_size > 1000
  assert (folder / 'funnel.png').read_bytes().startswith(b'\x89PNG')
  manifest = json.loads((folder / 'curated/manifest.json').read_text())
  assert manifest['tasks']['en_web_pages']['documents'] == 150
  capsys.readouterr()
  stories = ''
  for number in (7, 157):
    assert _run(*crawl, f'--explain=pages/{number}') == 0
    stories += capsys.readouterr().out
  assert 'exact: kept as the best of 2 exact copies' in stories
  assert 'removed by exact.duplicate' in stories
  assert _run(*crawl, '--explain=pages/x') == app.BAD_INPUT
  assert "no document 'pages/x'" in capsys.readouterr().err


def test_a_dry_run_writes_no_data(crawl, tmp_path, capsys):
  assert _run(*crawl, '--sample=20') == 0
  assert not (tmp_path / 'run/curated').exists()
  facts = json.loads((tmp_path / 'run/sample-20/report.json').read_text())
  assert facts['stages'][0]['documents'] == 20
  assert _run(*crawl, '--sample=20', '--calibrate') == app.BAD_INPUT
  assert 'record=True' in capsys.readouterr().err


def test_training_data_comes_of_what_was_left(crawl, tmp_path, monkeypatch):
  monkeypatch.setattr(mixtures, 'TASKS', dict(mixtures.TASKS))
  monkeypatch.setattr(mixtures, 'MIXTURES', dict(mixtures.MIXTURES))
  assert _run(*crawl) == 0
  mixtures.register_curated(str(tmp_path / 'run/curated'))
  config = app.load_config('experiments/quickstart.py')
  config.data.update(
    dict(
      root=str(tmp_path / 'data'),
      mixture='curated',
      vocabulary='tiny',
      vocabulary_size=300,
      length=32,
      heldout_bytes=2000,
    )
  )
  prepare.prepare(config)
  train = prepared.open_prepared(config.data, 'train')
  heldout = prepared.open_prepared(config.data, 'heldout')
  assert train.languages == {'en_web_pages_curated': 'en'}
  (task,) = json.loads((tmp_path / 'run/curated/manifest.json').read_text())[
    'tasks'
  ].values()
  both = sum(sum(split.bytes.values()) for split in (train, heldout))
  assert both == task['bytes']
  assert len(train.readers['en_web_pages_curated']) > 100


@pytest.mark.parametrize('arg', ['', ':quickstart', ':sources', ':crawl'])
def test_every_variant_of_the_experiment_is_a_run(arg, tmp_path):
  config = app.load_config(f'experiments/curate.py{arg}')
  # In the published order; the quickstart reads no pages of the web.
  left_out = {'language', 'lists', 'rules', 'perplexity', 'coherence'}
  left_out |= {'safety', 'clusters', 'topics'}
  missing = left_out if arg in ('', ':quickstart') else set()
  assert list(config.stages) == [s for s in cascade.STAGES if s not in missing]
  for name in config.stages:
    made = cascade.make(name, engine.plain(config[name]))
    assert made.name == name
  if arg == ':crawl':
    with pytest.raises(FileNotFoundError, match=r'crawl/\*\.warc\.wet\.gz'):
      engine.plan(config, str(tmp_path))


def test_what_is_wrong_is_told_in_a_line(crawl, capsys, tmp_path):
  assert _run(_EXAMPLE + ':all') == app.BAD_INPUT
  assert 'quickstart, sources or crawl' in capsys.readouterr().err
  assert _run(*crawl, '--config.exact.partition=3') == app.BAD_INPUT
  assert "did you mean 'partitions'" in capsys.readouterr().err
  assert _run(*crawl, '--sample=-1') == app.BAD_INPUT
  assert _run(*crawl, '--explain=pages/1') == app.BAD_INPUT
  assert "no document 'pages/1'" in capsys.readouterr().err
  assert not pathlib.Path(tmp_path / 'run/stages').exists()
