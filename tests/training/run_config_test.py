"""Configs: what is refused before compiling."""

import pytest

from yi_jax import app
from yi_jax.models import config as model_config
from yi_jax.training import run_config


def test_the_defaults_are_a_run():
  run = run_config.resolve(run_config.defaults())
  assert run.model == model_config.get_preset('tiny')
  assert (run.rows, run.length) == (8, 512)


def test_base_holds_the_defaults_and_takes_overrides_of_every_type():
  config = run_config.base()
  flat = run_config.to_dict(config)
  want = run_config.defaults()
  # Every task has a rate and a number of samples to set, and none is set.
  for key in ('rates', 'samples'):
    assert set(flat['data'].pop(key).values()) == {None}
    assert want['data'].pop(key) == {}
  # So have the fields of stretched positions.
  assert set(flat['model']['overrides'].pop('rope_scaling').values()) == {None}
  assert want['model']['overrides'].pop('rope_scaling') is None
  assert flat == want
  config.data.rates.en_books_plays = 1.0
  config.model.overrides.rope_theta = 1e6
  config.model.overrides.remat = 'full'
  config.model.overrides.num_hidden_layers = 2
  config.model.overrides.tie_word_embeddings = True
  config.model.overrides.rope_scaling.rope_type = 'linear'
  config.model.overrides.rope_scaling.factor = 4.0
  model = run_config.resolve(config).model
  assert model == model_config.get_preset(
    'tiny',
    rope_theta=1e6,
    remat='full',
    num_hidden_layers=2,
    tie_word_embeddings=True,
    rope_scaling=model_config.RopeScaling('linear', 4.0),
  )


def test_stages_can_be_set_on_the_command_line():
  config = app.override(
    run_config.base(),
    ["data.stages=((600_000, {'zh_other_law': 1}), (7e5, {'en_web_c4': 2}))"],
  )
  want = ((600_000, {'zh_other_law': 1}), (700_000, {'en_web_c4': 2}))
  assert config.data.stages == want


def test_base_refuses_a_key_that_is_not_there():
  with pytest.raises(AttributeError, match='stepz'):
    run_config.base().train.stepz = 3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model__preset': 'yi_6bb'}, "did you mean 'yi_6b'"),
    ({'model__overrides__rope_thet': 1.0}, "did you mean 'rope_theta'"),
    ({'model__overrides__num_key_value_heads': 3}, 'num_key_value_heads'),
    ({'data__length': 1024, 'data__batch_tokens': 4096}, '512 positions'),
    ({'data__batch_tokens': 4000}, 'multiple of data.length'),
    ({'data__vocabulary_size': 9000}, 'model.overrides.vocab_size'),
    ({'train__stepz': 3}, "did you mean 'train.steps'"),
    ({'train__steps': 0}, 'train.steps must be at least 1'),
    ({'train__profile': '5'}, "'first-last'"),
    ({'train__profile': '5-3'}, "'first-last'"),
    ({'optimizer__schedule': 'cosin'}, 'cosine, constant, wsd'),
    ({'optimizer__warmup_steps': 2000}, 'between 0 and train.steps'),
    ({'optimizer__final_fraction': 1.5}, 'share'),
    ({'optimizer__trainable': 'q_proj'}, 'matches no parameter'),
    ({'optimizer__trainable': '('}, 'no regex'),
    ({'optimizer__accumulate_steps': 3}, '3 equal pieces'),
    ({'optimizer__betas': (0.9, 1.0)}, 'betas'),
    ({'optimizer__learning_rate': float('nan')}, 'learning_rate is nan'),
    ({'optimizer__neftune_alpha': float('inf')}, 'neftune_alpha is inf'),
    ({'train__eval_buckets': (0, 'a')}, 'eval_buckets are whole numbers'),
    ({'train__eval_buckets': (0, 9, 9)}, 'eval_buckets are whole numbers'),
    ({'train__tokens': 999 * 4096}, 'before step 1,000, where the cosine'),
    ({'sample__heldout': -1}, 'sample.heldout must not be negative'),
  ],
)
def test_a_config_that_cannot_run_is_refused_by_name(
  config_with, changes, message
):
  with pytest.raises(ValueError, match=message):
    run_config.resolve(config_with(**changes))


def test_a_run_may_end_by_its_tokens_where_its_schedule_does_not_mind(
  config_with,
):
  for changes in (
    {'train__tokens': 999 * 4096 + 1},
    {'train__tokens': 4096, 'optimizer__schedule': 'constant'},
  ):
    run = run_config.resolve(config_with(**changes))
    assert run.tokens == changes['train__tokens']
  # A batch that grows may end it earlier.
  growth = {'data__batch_growth__window': 5}
  growth['data__batch_growth__most_tokens'] = 8192
  with pytest.raises(ValueError, match=r'train.tokens .* may end the run'):
    run_config.resolve(config_with(train__tokens=1000 * 4096, **growth))


def test_a_missing_key_is_named():
  config = run_config.defaults()
  del config['optimizer']['eps']
  with pytest.raises(ValueError, match='optimizer.eps is missing'):
    run_config.resolve(config)


@pytest.mark.parametrize(
  ('rule', 'factor'), [('none', 1), ('sqrt', 2), ('linear', 4)]
)
def test_the_learning_rate_follows_the_batch_only_when_asked(rule, factor):
  config = run_config.defaults()
  config['optimizer']['scale_with_batch'] = rule
  config['optimizer']['reference_batch_tokens'] = 1024
  config['data']['batch_tokens'] = 4096
  rate = run_config.resolve(config).optimizer.learning_rate
  assert rate == pytest.approx(1e-3 * factor)


@pytest.mark.parametrize(
  ('rule', 'message'),
  [('square', "none, sqrt, linear, not 'square'"), ('sqrt', 'the batch that')],
)
def test_a_rule_for_the_learning_rate_that_says_nothing_is_refused(
  rule, message
):
  config = run_config.defaults()
  config['optimizer']['scale_with_batch'] = rule
  with pytest.raises(ValueError, match=message):
    run_config.resolve(config)
