"""Reading: exact reuse of what rows share, scores as of a whole forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.serving import reading

_V = 64


def _config(**changes):
  return config_lib.get_preset(
    'tiny',
    **{
      **dict(
        vocab_size=_V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
      ),
      **changes,
    },
  )


@pytest.fixture(scope='module')
def model():
  config = _config()
  params = transformer.init_params(config, jax.random.key(0))
  # Sharper than at the start, so that a wrong cache shows.
  return config, jax.tree.map(lambda x: x * 6 if x.ndim > 2 else x, params)


@pytest.fixture(scope='module')
def compiled(model):
  return reading.Reader(*model, max_length=900)


@pytest.fixture
def reader(compiled):
  """A reader with nothing in its cache; programs are compiled once."""
  compiled.read([])
  return compiled


@pytest.fixture(scope='module')
def whole(model):
  """whole(ids) -> (log-probabilities [n - 1], best [n]) of one forward."""
  config, params = model
  run = jax.jit(
    lambda tokens: transformer.Transformer(config).apply(
      {'params': params}, tokens
    )
  )

  def scores(ids):
    ids = np.asarray(ids)
    padded = np.zeros((1, 900), np.int32)
    padded[0, : len(ids)] = ids
    logits = run(padded).logits[0, : len(ids)].astype(jnp.float32)
    logprobs = jax.nn.log_softmax(logits)
    chosen = np.asarray(logprobs)[np.arange(len(ids) - 1), ids[1:]]
    return chosen, np.asarray(jnp.argmax(logits, axis=-1))

  return scores


def _ids(seed, length):
  return np.random.default_rng(seed).integers(3, _V, length)


def test_scores_of_chunks_are_those_of_one_forward(reader, whole):
  ids = _ids(0, 700)
  found = reader.score(ids, keep=True)
  wanted, best = whole(ids)
  np.testing.assert_allclose(found.logprobs, wanted, atol=2e-4)
  assert np.mean(found.best == best) > 0.99  # ties within rounding
  assert reader.held.tolist() == ids.tolist()


def test_a_shared_beginning_is_read_once_and_the_rest_exactly(reader, whole):
  text = _ids(1, 600)
  for cut, seed, more in ((400, 2, 60), (130, 3, 200), (130, 4, 40)):
    row = np.concatenate([text[:cut], _ids(seed, more)])
    shared = reading.common_prefix(reader.held, row)
    before = reader.tokens_read
    assert reader.read(row) == len(row) - shared
    assert reader.tokens_read - before == len(row) - shared
    answer = _ids(seed + 50, 6)
    found = reader.score(answer)
    wanted, best = whole(np.concatenate([row, answer]))
    np.testing.assert_allclose(found.logprobs, wanted[-5:], atol=2e-4)
    assert found.best[-1] == best[-1]
    assert len(reader.held) == len(row)  # the answer is forgotten again


def test_reading_the_beginning_of_what_is_held_costs_nothing(reader):
  ids = _ids(5, 90)
  assert reader.read(ids) == 90
  assert reader.read(ids[:40]) == 0
  assert reader.held.tolist() == ids[:40].tolist()


def test_layers_with_a_window_are_read_anew(model):
  sliding = config_lib.LayerSpec('sliding', 16)
  config = _config(layer_pattern=(sliding, config_lib.LayerSpec()))
  params = transformer.init_params(config, jax.random.key(1))
  ids = _ids(6, 64)
  used = reading.Reader(config, params, max_length=64)
  wanted = used.score(ids, keep=True)
  used.read(np.concatenate([ids[:40], _ids(7, 24)]))
  assert used.read(ids[:32]) == 32
  found = used.score(ids[32:], keep=True)
  np.testing.assert_allclose(found.logprobs, wanted.logprobs[32:], atol=2e-4)


def test_few_sizes_and_little_padding():
  sizes = (32, 128, 512)
  for length in (1, 31, 40, 65, 130, 257, 600, 5000):
    left, computed = length, 0
    while left > 0:
      size = reading._size(left, sizes)
      computed += size
      left -= size
    assert computed <= max(32, 2 * length)


@pytest.mark.parametrize(
  ('ids', 'message'),
  [
    (list(range(3)) * 400, '1,200 tokens do not fit a cache of 900'),
    ([5, 99], 'id 99 is none of the model, which knows 0 to 63'),
  ],
)
def test_bad_rows_are_refused(reader, ids, message):
  for call in (reader.read, reader.score):
    with pytest.raises(ValueError, match=message):
      call(ids)


def test_a_base_that_depends_on_the_length_is_refused(model):
  scaling = config_lib.RopeScaling(
    'dynamic', 2.0, original_max_position_embeddings=64
  )
  config = model[0].replace(rope_scaling=scaling)
  with pytest.raises(ValueError, match='rope scaling is dynamic'):
    reading.Reader(config, model[1], max_length=64)
