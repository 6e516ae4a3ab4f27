"""Searching: what is tried, in which order, and what the table says of it."""

import dataclasses

import pytest

from yi_jax.planning import compiling, fits, report, search, topologies
from yi_jax.training import run_config

_GIB = topologies.GIB


def _run(preset='yi_6b', rows=64, **overrides):
  config = run_config.defaults()
  config['model'] |= dict(preset=preset, overrides=overrides)
  config['data'] |= dict(length=4096, batch_tokens=4096 * rows)
  return run_config.resolve(config)


def test_every_layout_is_one_that_training_takes():
  topology = topologies.parse('v5e:4x4')
  found = list(search.layouts(_run(), topology))
  assert {x.sizes['tensor'] for x in found} == {1, 2, 4, 8, 16}
  assert {x.run.model.remat for x in found} == {'none', 'dots', 'full'}
  for layout in found:
    assert layout.sizes['fsdp'] * layout.sizes['tensor'] == 16
    assert layout.run.rows == 64
    pieces = layout.run.optimizer.accumulate_steps
    assert 64 % (pieces * layout.sizes['fsdp']) == 0
  # 56 heads of 34B cannot be cut into 16.
  wide = search.layouts(_run('yi_34b'), topology)
  assert {x.sizes['tensor'] for x in wide} == {1, 2, 4, 8}


def test_what_cannot_fit_is_not_compiled():
  topology = topologies.parse('v5e:4x4')
  found = search.ranked(search.layouts(_run(), topology))
  assert found
  for layout in found:
    memory, _ = layout.expected()
    assert memory.total < 1.1 * topology.chip.hbm
  none = topologies.parse('v5e:2x2')
  with pytest.raises(ValueError, match='no layout of 64 rows fits v5e:2x2'):
    search.search(_run('yi_34b'), none, 3, lambda text: None)


def test_those_that_fit_come_first_the_fastest_first(monkeypatch):
  told = []

  def compiled(job):
    # More microbatches need less memory here, and only remat fits.
    gib = 12 if job.run.model.remat == 'full' else 17
    return compiling.Measured(needed=gib * _GIB)

  monkeypatch.setattr(compiling, 'compile_job', compiled)
  topology = topologies.parse('v5e:4x4')
  found = search.search(_run(), topology, 12, told.append)
  assert len(told) == 13
  verdicts = [one.fits for one in found]
  assert verdicts == sorted(verdicts, reverse=True)
  assert verdicts[0]
  assert not verdicts[-1]
  table = report.ranking_table(found).split('\n')
  assert '--config.model.overrides.remat=full' in table[1]
  assert 'does not fit' in table[-1]


def test_advice_needs_less_memory_and_names_keys():
  topology = topologies.parse('v5e:4x4')
  sizes = dict(data=1, fsdp=16, tensor=1)
  layout = search.Layout(_run(rows=128), topology, sizes)
  now = layout.expected()[0].total
  found = report.changes(layout)
  assert [total for _, total in found] == sorted(t for _, t in found)
  assert all(total < now for _, total in found)
  keys = {text.partition('=')[0] for text, _ in found}
  assert keys == {
    'model.overrides.remat',
    'optimizer.accumulate_steps',
    'data.batch_tokens',
    'mesh.tensor',
  }


def test_presets_of_one_shape_are_compiled_once():
  shapes = fits.shapes()
  assert ('yi_6b', 'yi_6b_200k', 'yi_1_5_6b') in shapes
  names = [name for names in shapes for name in names]
  assert len(names) == len(set(names)) == 12
  assert len(shapes) == 5
  assert all(model.scan_layers for model in shapes.values())


@pytest.fixture
def small(monkeypatch):
  """A table of two chips and one preset, and a compiler that is told."""
  name = ('yi_coder_1_5b',)
  shapes = {name: fits.shapes()[name]}
  monkeypatch.setattr(fits, 'shapes', lambda: shapes)
  monkeypatch.setattr(fits, 'CHIPS', ('v5e', 'v5p'))
  jobs = []

  def compiled(job):
    jobs.append(job)
    if len(jobs) > 30:
      raise KeyboardInterrupt
    # Nothing fits v5e:2x2, whatever the formulas say.
    return compiling.Measured(
      needed=20 * _GIB if job.topology == 'v5e:2x2' else 10 * _GIB
    )

  monkeypatch.setattr(compiling, 'compile_job', compiled)
  return jobs


def test_the_table_goes_up_until_the_compiler_agrees(small, tmp_path):
  path = tmp_path / 'fits.md'
  fits.write(path, lambda text: None)
  tried = [job.topology for job in small]
  assert tried[0] == 'v5e:2x2'
  assert 'v5e:2x4' in tried
  for job in small[:-2]:
    chips = topologies.parse(job.topology).num_chips
    assert job.run.rows * job.run.length <= 8192 * chips
  text = path.read_text()
  rows = [line for line in text.split('\n') if line.startswith('| yi_')]
  assert ['v5e:2x4' in rows[0], 'v5p:2x2x1' in rows[1]] == [True, True]
  assert 'Not there yet' not in text
  # Then the rows of the long context, in their own layouts.
  assert [job.run.length for job in small[-2:]] == [200_000] * 2
  assert '| yi_6b_200k | v5p:2x4x4 | 4 x 8 x 1 | 5 | 10.0 of 95.7 |' in text
  assert list(tmp_path.iterdir()) == [path]


def test_a_stopped_table_names_what_is_missing(small, tmp_path, monkeypatch):
  path = tmp_path / 'fits.md'
  smallest = fits.smallest

  def stop(model, chip, tell):
    if chip == 'v5p':
      raise KeyboardInterrupt
    return smallest(model, chip, tell)

  monkeypatch.setattr(fits, 'smallest', stop)
  with pytest.raises(KeyboardInterrupt):
    fits.write(path, lambda text: None)
  text = path.read_text()
  assert '| v5e:2x4 |' in text
  assert '- yi_coder_1_5b on v5p' in text


def test_a_share_above_the_memory_does_not_fit():
  topology = topologies.parse('v6e:2x2')
  over = compiling.Measured(needed=32 * _GIB)
  assert not search.fits(over, topology)
  under = dataclasses.replace(over, needed=31 * _GIB)
  assert search.fits(under, topology)
