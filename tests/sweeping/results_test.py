"""What came of a sweep: numbers picked, tables, the picture, the best."""

import csv
import json
import math

import pytest
from etils import epath

from yi_jax.sweeping import plot, points, results


def _run(folder, name, bits, losses=(2.0,)):
  (folder / name).mkdir()
  report = {
    'steps': 10,
    'seconds': 5.0,
    'tokens': 100,
    'bits_per_byte': bits,
    'samples': [{'prompt': 'x', 'text': 'y'}],
  }
  (folder / name / 'report.json').write_text(json.dumps(report))
  lines = [json.dumps({'step': i, 'loss': x}) for i, x in enumerate(losses)]
  (folder / name / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"st')


def _points(*changes):
  return [
    points.Point(f'run{index}', change) for index, change in enumerate(changes)
  ]


@pytest.fixture
def sweep(tmp_path):
  """Three finished runs and one that failed."""
  for index, (en, zh) in enumerate([(3.0, 2.0), (1.0, 2.0), (2.5, 0.9)]):
    losses = [9.0] * 18 + [index + 1.0, index + 3.0]
    _run(tmp_path, f'run{index}', {'en': en, 'zh': zh}, losses)
  rates, seeds = (1e-4, 1e-2), (0, 1)
  grid = [{'optimizer.lr': r, 'seed': s} for r in rates for s in seeds]
  return epath.Path(tmp_path), _points(*grid)


@pytest.mark.parametrize(
  ('metric', 'highest', 'values', 'winner'),
  [
    ('bits_per_byte', False, [2.5, 1.5, 1.7], 'run1'),
    ('bits_per_byte.zh', False, [2.0, 2.0, 0.9], 'run2'),
    ('bits_per_byte.en', True, [3.0, 1.0, 2.5], 'run0'),
    ('loss', False, [2.0, 3.0, 4.0], 'run0'),  # mean of the last tenth
  ],
)
def test_the_best_run_is_found_by_any_number(
  sweep, metric, highest, values, winner
):
  path, found = sweep
  rows = results.collect(path, found, metric, {'run3': 'error: boom'})
  assert [row.value for row in rows] == [*values, None]
  assert results.best(rows, highest).point.name == winner
  text = results.markdown(rows, metric, highest).split('\n')
  assert [line for line in text if line.startswith(f'| **{winner}**')]
  assert sum('**' in line for line in text) == 1
  assert 'error: boom' in text[-2]


def test_table_and_picture_are_written(sweep):
  path, found = sweep
  rows = results.collect(path, found, 'loss', {})
  results.write(path, rows, 'loss')
  with open(path / 'results.csv') as file:
    lines = list(csv.DictReader(file))
  assert [line['run'] for line in lines] == ['run0', 'run1', 'run2', 'run3']
  assert [line['optimizer.lr'] for line in lines][1:3] == ['0.0001', '0.01']
  assert lines[0]['bits_per_byte.en'] == '3.0'
  assert (lines[3]['loss'], lines[3]['remark']) == ('', 'not finished')
  assert (path / 'results.png').read_bytes().startswith(b'\x89PNG')
  assert (path / 'results.md').read_text().count('\n') == 6


def test_losses_of_abilities_are_columns(tmp_path):
  _run(tmp_path, 'run0', {'en': 3.0})
  path = tmp_path / 'run0/report.json'
  losses = {'response_loss': {'zh_math': 2.0, 'en_code': 4.0}}
  path.write_text(json.dumps(json.loads(path.read_text()) | losses))
  rows = results.collect(
    *(epath.Path(tmp_path), _points({'seed': 0}), 'response_loss', {})
  )
  assert rows[0].value == 3.0
  head, [line] = results.columns(rows, 'response_loss')
  found = dict(zip(head, line, strict=True))
  assert found['response_loss.en_code'] == 4.0


def test_an_unknown_number_is_refused_with_the_nearest(sweep):
  path, found = sweep
  with pytest.raises(ValueError, match="did you mean 'bits_per_byte.en'"):
    results.collect(path, found, 'bits_per_byte.em', {})


def test_a_sweep_without_results_has_a_table_but_no_picture(tmp_path):
  rows = results.collect(epath.Path(tmp_path), _points({'seed': 1}), 'loss', {})
  results.write(epath.Path(tmp_path), rows, 'loss')
  assert results.best(rows) is None
  assert not (tmp_path / 'results.png').exists()


def _row(value, **changes):
  return results.Row(points.Point(str(changes), changes), value, {})


@pytest.fixture
def drawn(monkeypatch):
  """Returns the axes that plot.draw has drawn on."""
  figures = []
  monkeypatch.setattr(plot.plt, 'close', figures.append)

  def draw(*arguments):
    assert plot.draw(*arguments).startswith(b'\x89PNG')
    return figures.pop().axes[0]

  return draw


def test_two_keys_make_a_heat_map_with_gaps(drawn):
  rows = [
    _row(1.0, rate=0.1, kind='b'),
    _row(2.0, rate=0.1, kind='a'),
    _row(3.0, rate=0.01, kind='b'),
    _row(None, rate=0.01, kind='a'),
  ]
  axes = drawn(rows, 'loss')
  [image] = axes.images
  assert image.get_array().filled(-1).tolist() == [[3.0, -1], [1.0, 2.0]]
  texts = [text.get_text() for text in axes.texts]
  assert texts == ['3', '-', '1', '2']
  bold = [t.get_text() for t in axes.texts if t.get_weight() == 'bold']
  assert bold == ['1']
  assert [t.get_text() for t in axes.get_yticklabels()] == ['0.01', '0.1']


def test_one_key_makes_a_line_in_order(drawn):
  rows = [_row(3.0, rate=1e-2), _row(1.0, rate=1e-4), _row(None, rate=1e-3)]
  axes = drawn(rows, 'loss')
  line, winner = axes.lines
  assert list(line.get_xdata()) == [1e-4, 1e-3, 1e-2]
  assert math.isnan(line.get_ydata()[1])
  assert (winner.get_xdata()[0], winner.get_ydata()[0]) == (1e-4, 1.0)
  assert axes.get_xscale() == 'log'


def test_words_and_lists_make_a_line_too(drawn):
  rows = [_row(3.0, betas=[0.9, 0.95]), _row(1.0, betas=[0.9, 0.99])]
  axes = drawn(rows, 'loss')
  labels = [text.get_text() for text in axes.get_xticklabels()]
  assert labels == ['[0.9, 0.95]', '[0.9, 0.99]']


def test_other_sweeps_are_drawn_from_worst_to_best(drawn):
  rows = [_row(2.0, a=1), _row(3.0, b=1), _row(1.0, a=1, b=2), _row(None, c=1)]
  axes = drawn(rows, 'loss')
  assert list(axes.lines[0].get_xdata()) == [3.0, 2.0, 1.0]
  axes = drawn(rows, 'loss', True)
  assert list(axes.lines[0].get_xdata()) == [1.0, 2.0, 3.0]
