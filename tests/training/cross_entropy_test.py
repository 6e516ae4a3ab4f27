"""The chunked loss is the plain one, and never holds all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.training import cross_entropy as ce


def _inputs(length=300, vocab=50):
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (3, length, 16))
  kernel = jax.random.normal(keys[1], (16, vocab))
  targets = jax.random.randint(keys[2], (3, length), 0, vocab)
  weights = jax.random.uniform(keys[3], (3, length))
  return hidden, kernel, targets, weights.at[:, ::5].set(0.0)


def _plain(hidden, kernel, targets, weights, z_loss):
  logits = hidden @ kernel
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.sum(weights * (nll + z_loss * log_z**2)), jnp.sum(weights * nll)


@pytest.mark.parametrize('z_loss', [0.0, 1e-1])
@pytest.mark.parametrize('length', [1, 128, 300])
def test_equals_the_plain_loss_in_value_and_gradient(z_loss, length):
  hidden, kernel, *rest = _inputs(length)

  def run(fn):
    # Times 2: the outer gradient must reach the ones made in the forward.
    def loss(h, w):
      return 2 * fn(h, w, *rest, z_loss)[0]

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, kernel)

  got, want = run(ce.cross_entropy), run(_plain)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
  for a, b in zip(got[1], want[1], strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


def test_without_a_gradient_it_gives_the_same_sums():
  inputs = _inputs()
  loss, sums = ce.cross_entropy(*inputs, z_loss=0.1)
  want_loss, want_nll = _plain(*inputs, 0.1)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  np.testing.assert_allclose(sums['nll'], want_nll, rtol=1e-6)
  np.testing.assert_allclose(sums['weight'], inputs[3].sum(), rtol=1e-6)


def test_a_position_without_weight_has_no_gradient():
  hidden, kernel, targets, weights = _inputs()
  grad = jax.grad(lambda h: ce.cross_entropy(h, kernel, targets, weights)[0])(
    hidden
  )
  assert not np.any(grad[:, ::5])
  assert np.all(np.any(grad[:, 1::5] != 0, axis=-1))


def test_yi_6b_never_holds_float32_logits():
  """Compiled at yi_6b's width and vocabulary, 8 rows of 4,096 tokens."""
  config = config_lib.get_preset('yi_6b', num_hidden_layers=1)
  shapes = transformer.abstract_params(config)
  hidden = jax.ShapeDtypeStruct((8, 4096, config.hidden_size), jnp.bfloat16)
  tokens = jax.ShapeDtypeStruct((8, 4096), jnp.int32)
  weights = jax.ShapeDtypeStruct((8, 4096), jnp.float32)

  def loss(kernel, hidden, targets, weights):
    return ce.cross_entropy(hidden, kernel, targets, weights)[0]

  step = jax.jit(jax.grad(loss, (0, 1)))
  compiled = step.lower(
    shapes['lm_head']['kernel'], hidden, tokens, weights
  ).compile()
  logits = 8 * 4096 * config.vocab_size * 4
  # 8.4 GB; what remains is the output's gradient and float32 copies of the
  # bfloat16 inputs of products, which this backend makes.
  assert compiled.memory_analysis().temp_size_in_bytes < logits / 2
  assert '[8,4096,64000]' not in compiled.as_text()
  assert '[32768,64000]' not in compiled.as_text()


def test_the_sums_of_buckets_are_those_of_their_positions():
  hidden, kernel, targets, weights = _inputs()
  buckets = jax.random.randint(jax.random.key(1), targets.shape, 0, 3)
  total, sums = jax.jit(functools.partial(ce.by_bucket, num_buckets=3))(
    hidden, kernel, targets, (weights, buckets)
  )
  for bucket in range(3):
    inside = weights * (buckets == bucket)
    _, want = _plain(hidden, kernel, targets, inside, 0.0)
    np.testing.assert_allclose(sums['bucket_nll'][bucket], want, rtol=1e-5)
    np.testing.assert_allclose(
      sums['bucket_weight'][bucket], inside.sum(), rtol=1e-5
    )
  _, want = _plain(hidden, kernel, targets, weights, 0.0)
  np.testing.assert_allclose([total, sums['nll']], want, rtol=1e-5)
