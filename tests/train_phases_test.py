"""A run whose rows grow longer and whose batch grows, and that is interrupted."""

import functools
import json
import shutil

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from yi_jax import app, train
from yi_jax.sharding import mesh as meshes
from yi_jax.training import faults, metrics


@pytest.fixture(autouse=True)
def _programs(tmp_path, monkeypatch):
  """On one device; the runs here compile the steps they share once."""
  make = functools.partial(meshes.make_mesh, devices=jax.devices()[:1])
  monkeypatch.setattr(train.meshes, 'make_mesh', make)
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = [getattr(jax.config, name) for name in names]

  def keep(values):
    for name, value in zip(names, values, strict=True):
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  keep([str(tmp_path / 'programs'), 0])
  yield
  keep(before)


def _train(path, workdir):
  with faults.StopSignal() as stop:
    return train.train(app.load_config(str(path)), str(workdir), stop)


@pytest.fixture
def config_file(tiny_run):
  """Returns a config that changes length twice, and batches when it can."""
  return tiny_run(
    # After steps 6 and 14.
    'c.data.lengths = ((768, 32), (2000, 8))',
    'c.data.batch_growth.window = 3',
    'c.data.batch_growth.least_gain = 0.5',
    'c.data.batch_growth.most_tokens = 512',
    'c.model.overrides.max_position_embeddings = 32',
    'c.optimizer.schedule = "constant"',
    # What 22 steps read.
    'c.train.steps = 99',
    'c.train.tokens = 4_600',
    'c.train.eval_every = 7',
    'c.train.eval_rows = 4',
    'c.train.eval_buckets = (0, 4, 16)',
    'c.train.log_rows = True',
    'c.checkpoint.every = 1',
    'c.checkpoint.keep = 99',
  )


def _told(workdir):
  """Returns what does not depend on the clock, and the rows of each step."""
  changing = {'tokens_per_second', 'goodput'}
  lines = [
    {k: v for k, v in line.items() if k not in changing}
    for line in metrics.read(workdir / 'metrics.jsonl')
  ]
  return lines, metrics.read(workdir / 'rows/0.jsonl')


def test_lengths_and_batches_change_as_they_would_without_interruptions(
  config_file, tmp_path, capsys
):
  whole = tmp_path / 'whole'
  assert _train(config_file, whole) == 0
  lines, rows = _told(whole)
  shapes = [(line['length'], line['batch_tokens']) for line in lines]
  # After 768 tokens, step 6 being due as well, comparing starts anew.
  assert shapes[:6] == [(16, 128)] * 6
  assert shapes[6:12] == [(32, 128)] * 6
  assert shapes[12:14] == [(32, 256)] * 2
  assert shapes[14:20] == [(8, 256)] * 6
  assert shapes[20:] == [(8, 512)] * 2
  tokens = 0
  for line, row, (length, batch_tokens) in zip(
    lines, rows, shapes, strict=True
  ):
    tokens += batch_tokens
    assert line['tokens'] == tokens
    assert len(row['row_id']) == batch_tokens // length
  report = json.loads((whole / 'report.json').read_text())
  assert report['tokens'] == tokens
  assert {line['step'] for line in lines if 'bits_per_byte' in line} == {
    *(7, 14, 21, 22)
  }
  by_length = {
    line['length']: set(line['loss_by_position'])
    for line in lines
    if 'loss_by_position' in line
  }
  assert by_length == {
    32: {'en/0', 'en/4', 'en/16'},
    8: {'en/0', 'en/4'},
  }
  assert report['loss_by_position'] == lines[-1]['loss_by_position']
  assert (whole / 'positions.png').read_bytes().startswith(b'\x89PNG')
  said = capsys.readouterr().out
  assert 'after step 6: 4 rows of 32 = 128 tokens a step; compiled' in said
  assert 'after step 12: 8 rows of 32 = 256 tokens a step; compiled' in said

  # In the middle of a stretch, right before and right after each change.
  for step in (11, 12):
    again = tmp_path / str(step)
    for name in ('metrics.jsonl', 'rows/0.jsonl', f'checkpoints/{step}'):
      source, target = whole / name, again / name
      target.parent.mkdir(parents=True, exist_ok=True)
      copy = shutil.copytree if source.is_dir() else shutil.copy
      copy(source, target)
    assert _train(config_file, again) == 0
    assert f'continues after step {step}' in capsys.readouterr().out
    assert _told(again) == (lines, rows)
