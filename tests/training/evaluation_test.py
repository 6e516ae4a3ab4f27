"""Held-out loss by position: of every mesh the same, of each bucket its own."""

import types

import jax
import numpy as np
import pytest

from yi_jax.models import transformer
from yi_jax.sharding import mesh as meshes
from yi_jax.training import evaluation, run_config, train_step

_LENGTH, _WORDS = 30, 96


def _run(strategy='auto'):
  config = run_config.defaults()
  config['model']['overrides'] |= dict(
    vocab_size=_WORDS,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
  )
  config['data'] |= dict(
    length=_LENGTH, batch_tokens=4 * _LENGTH, vocabulary_size=_WORDS
  )
  config['mesh']['strategy'] = strategy
  return run_config.resolve(config)


def _rows(seed, count=6):
  """Returns rows of two documents and padding."""
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    tokens = rng.integers(0, _WORDS, _LENGTH + 1)
    place = np.arange(_LENGTH)
    border, end = rng.integers(2, 20), rng.integers(22, _LENGTH)
    segments = np.where(place < border, 1, 2) * (place < end)
    found.append(
      dict(
        tokens=tokens[:-1],
        targets=tokens[1:],
        segment_ids=segments,
        positions=np.where(place < border, place, place - border),
        loss_weights=rng.random(_LENGTH) * (segments > 0),
      )
    )
  return found


@pytest.fixture(scope='module')
def texts():
  readers = {'en_a': _rows(0), 'en_b': _rows(1), 'zh_a': _rows(2)}
  return types.SimpleNamespace(
    readers=readers,
    languages={name: name[:2] for name in readers},
    abilities={},
    bytes=dict.fromkeys(readers, 100),
  )


@pytest.mark.parametrize('sizes', [{}, dict(context=2, tensor=2)], ids=str)
def test_each_bucket_has_the_loss_of_its_positions(sizes, texts):
  run = _run('context' if sizes else 'auto')
  devices = jax.devices()[: 4 if sizes else 1]
  mesh = meshes.make_mesh(sizes, devices)
  params = transformer.init_params(run.model, jax.random.key(0))
  firsts = (0, 4, 12, 64)
  evaluate = evaluation.Evaluator(run, mesh, texts, None, 0, firsts)
  got = evaluate(params)
  assert got.response_loss == {}
  plain = evaluation.Evaluator(run, mesh, texts, None)(params)
  assert plain.loss_by_position == {}
  for language, bits in plain.bits_per_byte.items():
    assert got.bits_per_byte[language] == pytest.approx(bits, rel=1e-5)

  # The same rows, weighted in one bucket alone, one device.
  alone = meshes.make_mesh({}, jax.devices()[:1])
  objective = jax.jit(train_step.next_token(_run(), alone))
  want = {}
  for language in ('en', 'zh'):
    rows = [
      row
      for name, reader in texts.readers.items()
      if name.startswith(language)
      for row in reader
    ]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    places = np.digitize(batch['positions'], firsts) - 1
    for bucket, first in enumerate(firsts[:3]):
      inside = batch['loss_weights'] * (places == bucket)
      _, sums = objective(params, {**batch, 'loss_weights': inside})
      want[f'{language}/{first}'] = float(sums['nll'] / sums['weight'])
  # No row has a position from 64 on.
  assert got.loss_by_position == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
  ('firsts', 'length', 'want'),
  [
    ((), 4096, ()),
    ((), 10_000, (0, 1024, 2048, 4096, 8192)),
    ((0, 100, 9000), 4096, (0, 100)),
  ],
)
def test_long_rows_have_buckets_that_double(firsts, length, want):
  assert evaluation.buckets(firsts, length) == want


@pytest.mark.parametrize(
  ('most', 'want'),
  [
    (0, dict(web=9, books=2, code=3, zh_web=5)),
    (6, dict(web=2, books=2, code=2, zh_web=5)),
    (3, dict(web=1, books=1, code=1, zh_web=3)),
    (2, dict(books=1, web=1, zh_web=2)),  # most text first
    (1, dict(books=1, zh_web=1)),
  ],
)
def test_rows_are_dealt_out_among_the_tasks_of_a_language(most, want):
  prepared = types.SimpleNamespace(
    readers=dict(web=range(9), books=range(2), code=range(3), zh_web=range(5)),
    languages=dict(web='en', books='en', code='en', zh_web='zh'),
    bytes=dict(web=50, books=90, code=10, zh_web=20),
  )
  assert evaluation.row_counts(prepared, most) == want
