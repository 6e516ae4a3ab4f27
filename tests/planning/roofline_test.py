"""Formulas of a step, against numbers worked out by hand."""

import dataclasses

import pytest

from yi_jax.models import config as model_config
from yi_jax.planning import roofline, topologies
from yi_jax.training import faults, run_config


def _run(rows=8, pieces=1, **changes):
  config = run_config.defaults()
  config['model']['overrides'] = dict(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    dtype='bfloat16',
    scan_layers=True,
    **changes,
  )
  config['data'] |= dict(length=64, batch_tokens=64 * rows, vocabulary_size=512)
  config['optimizer']['accumulate_steps'] = pieces
  return run_config.resolve(config)


# q, k, v, o and three of the MLP.
_LAYER = 128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 256
_NORMS = 128
_ALL = 2 * (_LAYER + 2 * _NORMS) + _NORMS + 2 * 512 * 128


def test_arguments_are_the_shards_of_state_and_batch():
  run = _run()
  assert model_config.num_params(run.model) == _ALL
  scalars = 4 * (2 + len(faults.fresh_guard()))  # step, Adam's count, guard
  batch = 5 * 8 * 64 * 4
  alone = roofline.memory(run, {})
  assert alone.arguments == 3 * 4 * _ALL + scalars + batch
  # Norms are whole everywhere, all else is cut.
  norms = (2 * 2 + 1) * _NORMS
  cut = roofline.memory(run, dict(fsdp=2, tensor=2))
  share = (_ALL - norms) // 4 + norms
  assert cut.arguments == 3 * 4 * share + scalars + batch // 2
  assert cut.gradients == 4 * share


def test_what_is_kept_follows_remat_and_microbatches():
  run = _run(remat='full')
  memory = roofline.memory(run, dict(fsdp=2))
  assert memory.activations == 2 * (4 * 64) * 128 * 2  # layers, tokens, D, bf16
  halves = roofline.memory(_run(pieces=2, remat='full'), dict(fsdp=2))
  assert halves.activations == memory.activations / 2
  assert halves.gradients == 2 * memory.gradients
  kept = [
    roofline.memory(_run(remat=remat), dict(fsdp=2)).activations
    for remat in ('full', 'dots', 'none')
  ]
  assert kept == sorted(set(kept))


def test_a_step_is_bounded_by_its_slowest_part_and_by_their_sum():
  times = roofline.Roofline(2.0, 0.5, dict(fsdp=1.0, tensor=0.5), 300.0, 200.0)
  assert times.overlapped == 2.0
  assert times.apart == 4.0
  assert times.mfu(times.overlapped) == 0.75
  slow = dataclasses.replace(times, links=dict(fsdp=3.0))
  assert slow.overlapped == 3.0


@pytest.mark.parametrize(
  ('remat', 'low', 'high'),
  # Recomputing all layers adds a third, less what the output matrix takes.
  [('none', 1.0, 1.0), ('dots', 0.96, 0.999), ('full', 0.75, 0.76)],
)
def test_recomputation_caps_the_utilisation(remat, low, high):
  config = run_config.defaults()
  config['model'] |= dict(preset='yi_34b', overrides=dict(remat=remat))
  config['data'] |= dict(length=4096, batch_tokens=2**18)
  run = run_config.resolve(config)
  topology = topologies.parse('v5p:4x4x8')
  times = roofline.roofline(run, topology, dict(fsdp=32, tensor=4), {})
  assert low <= times.mfu(times.compute) <= high
  # 6 FLOPs a weight and token, and attention, on 128 chips of 459 TFLOP/s.
  assert times.model_flops / times.peak == pytest.approx(0.955, rel=0.01)


def test_fsdp_gathers_weights_and_scatters_gradients():
  topology = topologies.parse('v5p:2x2x1')
  run = _run(remat='none')
  # Gathered in both passes and scattered once, in two bytes; a layer's share of
  # the final norm is counted with it.
  layers = 2 * (_LAYER + 2 * _NORMS) + _NORMS
  ends = 2 * 512 * 128
  got = roofline.expected(run, topology, dict(fsdp=4))
  assert got == {
    'fsdp': (
      pytest.approx((layers * 3 * 2 + ends * 6) * 3 / 4, rel=1e-3),
      200e9,
    )
  }


def test_tensor_parallelism_sums_the_stream():
  topology = topologies.parse('v5p:2x2x1')
  got = roofline.expected(_run(remat='full'), topology, dict(tensor=4))
  # Two sums a layer in each of three passes; a ring sends 2 (n - 1) / n.
  stream = 8 * 64 * 128 * 2
  assert got['tensor'][0] == stream * 2 * 3 * 2 * 2 * 3 / 4
  assert set(got) == {'tensor'}


def _long(length, context, tensor=1):
  config = run_config.defaults()
  config['model']['preset'] = 'yi_6b_200k'
  config['model']['overrides'] = dict(remat='full')
  config['data'] |= dict(length=length, batch_tokens=4 * length)
  run = run_config.resolve(config)
  topology = topologies.parse('v5p:2x4x4')
  sizes = dict(context=context, tensor=tensor, fsdp=32 // context // tensor)
  return roofline.ring(run, topology, sizes, 100e9)


def test_a_ring_hides_its_sending_behind_long_rows_only():
  found = _long(200_000, 8)
  # Four rows of 32 layers over 4 x 8 devices: in each pass (forward,
  # again, backward 2.5 times that) a half of 200,000^2 pairs, 4 FLOPs a number.
  pairs = 200_000**2 / 2 / 8
  assert found.compute == pytest.approx(
    32 * 4.5 * 4 * pairs * 4096 / 459e12, rel=1e-6
  )
  # Keys and values of 25,000 tokens: 4 heads of 128, both, two bytes; twice
  # so, then with gradients of four, and these once more at the end.
  kv = 25_000 * 4 * 128 * 2
  sent = 8 * (2 * 2 + 2 + 4) + 4
  assert found.sending == pytest.approx(32 * kv * sent / 100e9, rel=1e-6)
  assert found.share > 0.99
  short = [_long(length, 8).share for length in (1024, 4096, 16_384)]
  assert short == sorted(short)
  assert short[0] < 0.5
  # Where sending takes longer than the products, it alone counts.
  slow = _long(1024, 8)
  assert slow.together == pytest.approx(slow.sending)


def test_heads_that_are_cut_leave_the_share_as_it_is():
  whole, cut = _long(8192, 8), _long(8192, 8, tensor=4)
  assert cut.share == pytest.approx(whole.share)
