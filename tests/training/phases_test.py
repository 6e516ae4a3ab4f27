"""Which rows each step reads when lengths and batches change on the way."""

import dataclasses
import json

import pytest

from yi_jax.data import lengths
from yi_jax.training import phases, run_config, run_identity


def _run(later=(), **growth):
  config = run_config.defaults()
  config['data'] |= dict(length=64, batch_tokens=512, lengths=later)
  config['data']['batch_growth'] |= growth
  config['optimizer']['accumulate_steps'] = 2
  return run_config.resolve(config)


def _walk(plan, first, last, loss=2.0):
  """Makes steps; returns (rows, length, pieces, first row) of each."""
  found = []
  for step in range(first + 1, last + 1):
    run = plan.present
    pieces = run.optimizer.accumulate_steps
    found.append((run.rows, run.length, pieces, plan.row(step - 1)))
    plan.made(step)
    plan.saw(step, loss, True)
  return found


def test_lengths_change_after_their_tokens_and_the_tokens_a_step_stay():
  plan = phases.Phases(_run(((1100, 256), (2560, 128))), 0, {})
  assert _walk(plan, 0, 6) == [
    (8, 64, 2, 0),
    (8, 64, 2, 8),
    (8, 64, 2, 16),
    # 1,536 tokens are read: rows of 256 go on with the seventh of their order.
    (2, 256, 2, 6),
    (2, 256, 2, 8),
    (4, 128, 2, 20),
  ]
  assert [plan.tokens(step) for step in (0, 3, 6)] == [0, 1536, 3072]


def test_a_batch_grows_by_its_pieces_and_reads_on_in_order():
  plan = phases.Phases(_run(window=2, most_tokens=2048), 0, {})
  walked = _walk(plan, 0, 10)
  assert [step[0] for step in walked] == [8] * 4 + [16] * 4 + [32] * 2
  assert [step[2] for step in walked] == [2] * 4 + [4] * 4 + [8] * 2
  rows = [row for *_, row in walked]
  assert rows == [0, 8, 16, 24, 32, 48, 64, 80, 96, 128]


@pytest.mark.parametrize('stop', range(1, 12))
def test_a_run_goes_on_from_any_step_with_the_same_rows(stop):
  def begin(step=0, past=None):
    run = _run(((4096, 128), (6144, 64)), window=2, most_tokens=1024)
    return phases.Phases(run, step, past or {}, turns=[2048])

  want = _walk(begin(), 0, 12)
  plan = begin()
  assert _walk(plan, 0, stop) == want[:stop]
  past = json.loads(json.dumps(plan.manifest(stop)))
  assert _walk(begin(stop, past), stop, 12) == want[stop:]


def test_other_text_and_other_lengths_are_not_compared():
  # A stretch of two ends after step 4; after step 3 other text begins.
  plan = phases.Phases(_run(window=2, most_tokens=1024), 0, {}, [1536])
  assert [step[0] for step in _walk(plan, 0, 8)] == [8] * 7 + [16]
  plan = phases.Phases(_run(((1536, 128),), window=2, most_tokens=1024), 0, {})
  assert [step[0] for step in _walk(plan, 0, 8)] == [8] * 3 + [4] * 4 + [8]


@pytest.mark.parametrize(('tokens', 'end'), [(0, 1000), (1025, 3), (1536, 3)])
def test_a_run_ends_with_the_step_that_reads_enough(tokens, end):
  run = dataclasses.replace(_run(), tokens=tokens)
  plan = phases.Phases(run, 0, {})
  assert [step for step in range(1, 1001) if plan.ends(step)][0] == end


@pytest.mark.parametrize('window', [0, 50])
def test_growth_that_is_set_anew_when_a_run_goes_on_begins_there(window):
  plan = phases.Phases(_run(window=window, most_tokens=4096), 0, {})
  _walk(plan, 0, 30)
  past = plan.manifest(30)
  plan = phases.Phases(_run(window=10, most_tokens=1024), 30, past)
  # Two stretches of ten, counted from where the run goes on.
  assert [step[0] for step in _walk(plan, 30, 51)] == [8] * 20 + [16]


def test_a_batch_that_has_grown_beyond_the_most_is_refused():
  plan = phases.Phases(_run(window=2, most_tokens=2048), 0, {})
  _walk(plan, 0, 8)
  past = plan.manifest(8)
  run = _run(window=2, most_tokens=1024)
  with pytest.raises(ValueError, match=r'4 x data.batch_tokens = 2,048 tokens'):
    phases.Phases(run, 8, past)
  # Switched off, growth keeps what there is.
  assert phases.Phases(_run(window=0), 8, past).present.rows == 32


def test_losses_that_are_told_one_step_late_change_nothing():
  def walk(late):
    plan = phases.Phases(
      _run(((2048, 128),), window=3, most_tokens=4096), 0, {}, [1024]
    )
    found, waiting = [], []
    for step in range(1, 25):
      found.append((plan.present.rows, plan.row(step - 1)))
      plan.made(step)
      waiting.append(step)
      while len(waiting) > (0 if plan.due(step) else late):
        plan.saw(waiting.pop(0), 2.0, True)
    return found

  assert walk(1) == walk(0)


def test_a_checkpoint_that_knows_only_rows_is_understood():
  past = {'rows_consumed': 24, 'skipped_rows': [[4, 8]]}
  plan = phases.Phases(_run(), 3, past)
  assert (plan.row(3), plan.tokens(3)) == (24, 1536)
  assert phases.skipped_rows(past, 64) == [(4, 8, 64)]
  assert phases.skipped_rows({'skipped_rows': [[1, 2, 32]]}, 64) == [(1, 2, 32)]


def test_rows_are_left_out_of_the_order_they_are_in():
  plan = phases.Phases(_run(((1024, 128),)), 0, {})
  _walk(plan, 0, 4)
  # Steps 2 and 3: the rows 8 to 15 of 64 tokens and 8 to 11 of 128.
  assert plan.left_out([], 2, 3) == [(8, 12, 128), (8, 16, 64)]
  again = plan.left_out([(2, 4, 64)], 2, 2)
  assert again == [(2, 4, 64), (10, 18, 64)]


def test_steps_left_out_at_once_are_one_range_however_the_batch_grows():
  plan = phases.Phases(_run(window=2, most_tokens=2048), 0, {})
  _walk(plan, 0, 10)
  # `train.rollback` counts ranges: steps 4 to 6 are one, of 8 + 16 + 16 rows.
  assert plan.left_out([], 4, 6) == [(24, 64, 64)]


@pytest.mark.parametrize(
  'later',
  [((0, 128),), ((9, 128), (9, 64)), ((9,),), ((9, 12.5),), (('a', 1),), (7,)],
)
def test_lengths_that_say_nothing_are_refused(later):
  with pytest.raises(ValueError, match=r'data.lengths is \(\(first token'):
    lengths.schedule(64, later)


@pytest.mark.parametrize(
  ('later', 'message'),
  [
    (((9, 1024),), 'data.lengths .1024. is longer than the 512 positions'),
    (((9, 96),), 'batch_tokens .512. must be a multiple of data.lengths .96.'),
  ],
)
def test_lengths_that_model_or_batch_cannot_have_are_refused(later, message):
  with pytest.raises(ValueError, match=message):
    _run(later)


def test_only_lengths_that_have_not_begun_may_change():
  def identity(later):
    config = run_config.defaults()
    config['data']['lengths'] = later
    return run_identity.identity(config, run_config.resolve(config))

  saved = identity(((5000, 128),))
  now = identity(((6000, 256),))
  (line,) = run_identity.refuse_other_run(saved, now, 5000)
  assert line.startswith('data.lengths changed')
  with pytest.raises(ValueError, match='another run, with data.lengths'):
    run_identity.refuse_other_run(saved, now, 5001)
