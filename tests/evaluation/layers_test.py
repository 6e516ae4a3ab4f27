"""Cosines of layers as a task: what it reports is what `convert` takes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from yi_jax.evaluation import documents, layers
from yi_jax.extension import depth_upscale
from yi_jax.models import transformer


@pytest.fixture(scope='module')
def deep(base):
  """The model with six layers, of which the third and fourth do little."""
  config = base.config.replace(num_hidden_layers=6, scan_layers=False)
  params = transformer.init_params(config, jax.random.key(1))
  for layer in ('2', '3'):
    params['layers'][layer] = jax.tree.map(
      lambda leaf: leaf if leaf.ndim < 2 else leaf * 0.1,
      params['layers'][layer],
    )
  return dataclasses.replace(base, config=config, params=params)


def _options(files, **changes):
  given = dict(languages=('en',), length=50, samples=2, repeat=2)
  return layers.Options(**given, documents=(files['en'],), **changes)


def test_the_block_that_turns_least_is_what_convert_takes(
  deep, files, tmp_path
):
  facts = layers.run(deep, _options(files), tmp_path)
  assert (facts['block'], facts['layers']) == ([2, 4], '0:4,2:6')
  order = depth_upscale.parse(facts['layers'], 6)
  made, _ = depth_upscale.take(deep.config, deep.params, order)
  assert made.num_hidden_layers == 8
  texts = documents.texts('en', (files['en'],), tmp_path)
  rows = documents.rows(texts, deep.words, 49, 2)
  tokens = np.stack([np.append(2, row) for row in rows])  # after <|endoftext|>
  want = depth_upscale.layer_means(
    depth_upscale.cosines(deep.config, deep.params, tokens)
  )
  found = facts['languages']['en']
  np.testing.assert_allclose(found['cosines'], want, rtol=1e-6)
  assert found['mean_of_inner_layers'] == pytest.approx(np.mean(want[1:-1]))
  assert json.loads((tmp_path / 'report.json').read_text()) == facts
  assert (tmp_path / 'layers.png').read_bytes().startswith(b'\x89PNG')
  table = (tmp_path / 'table.txt').read_text()
  assert table.count('  twice') == 2
  assert 'convert --layers=0:4,2:6' in table
  # Again: nothing is left to do, and the report is the same.
  nothing = dataclasses.replace(deep, params=None)
  assert layers.run(nothing, _options(files), tmp_path) == facts


def test_half_of_the_layers_are_repeated_unless_told(deep, files, tmp_path):
  wanted = dataclasses.replace(_options(files), repeat=0)
  first, end = layers.run(deep, wanted, tmp_path)['block']
  assert end - first == 3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(length=1), '--length must be at least 2, not 1'),
    (dict(samples=0), '--samples must be at least 1, not 0'),
    (dict(length=2000), '2,000 is beyond the 1,024 positions'),
    (dict(repeat=5), '--repeat takes from 1 to 4 of these 6 layers'),
    (dict(repeat=-1), '--repeat takes from 1 to 4 of these 6 layers'),
    (dict(samples=4000), 'and 4000 are needed'),
  ],
)
def test_bad_options_are_refused(deep, files, tmp_path, changes, message):
  options = _options(files)
  with pytest.raises(ValueError, match=message):
    layers.run(deep, dataclasses.replace(options, **changes), tmp_path / 'x')
