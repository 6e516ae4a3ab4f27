"""Generation: what a full forward pass would say, for any batch and setting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.serving import compute, generation
from yi_jax.sharding import mesh as meshes
from yi_jax.sharding import rules

_SLIDING = config_lib.LayerSpec('sliding', 5)
_PATTERNS = {
  'dense': (config_lib.LayerSpec(),),
  'sliding': (_SLIDING,),
  'lightning': (
    _SLIDING,
    config_lib.LayerSpec(),
    _SLIDING,
    config_lib.LayerSpec(kv_from=1),
  ),
}
_LENGTH = 48


@functools.cache
def _model(pattern='dense', **changes):
  specs = _PATTERNS[pattern]
  values = dict(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2 * len(specs),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    layer_pattern=specs,
    # Far from uniform, so that no two tokens come near a tie.
    initializer_range=0.4,
  )
  config = config_lib.get_preset('tiny', **{**values, **changes})
  return config, transformer.init_params(config, jax.random.key(1))


def _prompts(*lengths, seed=0):
  draw = np.random.default_rng(seed)
  return [draw.integers(9, 67, length).tolist() for length in lengths]


def _by_full_passes(config, params, prompts, count):
  """Appends the best token `count` times, each by a pass without a cache."""
  longest = max(map(len, prompts)) + count

  @jax.jit
  def best(tokens):
    out = transformer.Transformer(config).apply({'params': params}, tokens)
    return jnp.argmax(out.logits, axis=-1)

  rows = np.zeros((len(prompts), longest), np.int32)
  lengths = np.array([len(prompt) for prompt in prompts])
  for row, prompt in zip(rows, prompts, strict=True):
    row[: len(prompt)] = prompt
  every = np.arange(len(prompts))
  for i in range(count):
    # What stands right of a row's end cannot reach back to it.
    rows[every, lengths + i] = np.asarray(best(rows))[every, lengths + i - 1]
  return [
    row[length : length + count].tolist()
    for row, length in zip(rows, lengths, strict=True)
  ]


@pytest.fixture(scope='module')
def dense():
  """One generator for all tests that can share its programs."""
  return generation.Generator(*_model(), max_length=_LENGTH)


@pytest.mark.parametrize(
  ('pattern', 'scan_layers'),
  [('dense', False), ('dense', True), ('sliding', False), ('lightning', True)],
)
def test_greedy_is_the_best_token_of_repeated_full_passes(pattern, scan_layers):
  config, params = _model(pattern, scan_layers=scan_layers)
  generator = generation.Generator(config, params, max_length=_LENGTH)
  prompts = _prompts(3, 17, 1)
  made = generator.generate(prompts, 20, stop_ids=())
  assert made == _by_full_passes(config, params, prompts, 20)


def test_tied_embeddings_and_biases_generate_as_full_passes_do():
  config, params = _model(tie_word_embeddings=True, attention_bias=True)
  params = jax.tree.map(
    lambda x: x + 0.1 if x.ndim == 1 else x, params
  )  # fresh biases are 0
  generator = generation.Generator(config, params, max_length=_LENGTH)
  prompts = _prompts(4)
  made = generator.generate(prompts, 12, stop_ids=())
  assert made == _by_full_passes(config, params, prompts, 12)


def test_a_row_does_not_depend_on_its_batch(dense):
  prompts = _prompts(9, 2, 16, 5)
  settings = dict(
    temperature=[0.0, 1.0, 0.7, 1.5],
    top_k=[0, 20, 0, 5],
    top_p=[1.0, 0.9, 0.8, 1.0],
    repetition_penalty=[1.0, 1.0, 1.4, 0.9],
    seed=[3, 4, 5, 6],
    stop_ids=[(), (11,), (2, 7), (30, 31, 32, 33, 34)],
  )
  together = dense.generate(prompts, 16, **settings)
  for i, prompt in enumerate(prompts):
    own = {name: [values[i]] for name, values in settings.items()}
    assert dense.generate([prompt], 16, **own) == [together[i]]


def test_a_row_ends_before_its_stop_id_and_others_go_on(dense):
  prompts = _prompts(6, 3)
  free = dense.generate(prompts, 12, stop_ids=())
  stop = free[0][4]
  end = free[0].index(stop)
  made = dense.generate(prompts, 12, stop_ids=[(66, stop), ()])
  assert made == [free[0][:end], free[1]]
  # A stop id of one row is an ordinary token of the other.
  made = dense.generate(prompts, 12, stop_ids=[(), (66, stop)])
  assert made[0] == free[0]


def test_the_first_token_may_end_a_row(dense):
  [prompt] = _prompts(6)
  [[first]] = dense.generate([prompt], 1, stop_ids=())
  assert dense.generate([prompt], 5, stop_ids=(first,)) == [[]]


def test_by_default_end_of_text_and_end_of_turn_stop(dense):
  prompts = _prompts(5, 4, 3, 2)
  settings = dict(temperature=3.0, seed=1)
  free = dense.generate(prompts, 30, stop_ids=(), **settings)
  ended = [_before(row, (2, 7)) for row in free]
  assert any(map(list.__ne__, ended, free))
  assert dense.generate(prompts, 30, **settings) == ended


def _before(row, stops):
  for i, token in enumerate(row):
    if token in stops:
      return row[:i]
  return row


@pytest.mark.parametrize('steps', [1, 5, 16])
def test_a_stream_yields_what_generate_returns(dense, steps):
  prompts = _prompts(7, 12, 4)
  settings = dict(temperature=1.0, seed=3, stop_ids=(20, 21, 22, 23))
  whole = dense.generate(prompts, 15, **settings)
  chunks = list(dense.stream(prompts, 15, steps=steps, **settings))
  joined = [sum(parts, []) for parts in zip(*chunks, strict=True)]
  assert joined == whole
  assert max(len(ids) for chunk in chunks for ids in chunk) <= steps
  # Nothing is computed after the last row has ended.
  assert any(chunks[-1]) or len(chunks) == 1 + -(-max(map(len, whole)) // steps)


def test_the_seed_decides_and_equal_prompts_differ(dense):
  prompts = _prompts(5) * 4

  def made(seed):
    return dense.generate(prompts, 8, temperature=1.5, seed=seed, stop_ids=())

  assert made(1) == made(1)
  assert made(1) != made(2)
  assert len(set(map(tuple, made(1)))) == 4


def test_each_token_is_drawn_anew(dense):
  [ids] = dense.generate(_prompts(5), 30, temperature=1e4, stop_ids=())
  assert len(set(ids)) > 15


def test_the_repetition_penalty_counts_prompt_and_continuation(dense):
  prompts = _prompts(8, 3)
  settings = dict(repetition_penalty=1e6, stop_ids=())
  for prompt, ids in zip(
    prompts, dense.generate(prompts, 30, **settings), strict=True
  ):
    # So punished, a token comes a second time only if its score was about 0.
    assert len(set(prompt + ids)) == len(set(prompt)) + 30


def test_an_empty_prompt_stands_after_the_end_of_a_text(dense):
  made = dense.generate([[], [generation.END_OF_TEXT]], 6, stop_ids=())
  assert made[0] == made[1]
  assert dense.generate([], 6) == []


def test_a_full_row_ends(dense):
  prompts = _prompts(_LENGTH - 3, 2, _LENGTH - 1)
  made = dense.generate(prompts, 10, stop_ids=())
  assert list(map(len, made)) == [3, 10, 1]
  assert made[:1] == _by_full_passes(*_model(), prompts[:1], 3)


def test_an_id_beyond_the_vocabulary_is_never_chosen():
  config, params = _model()
  generator = generation.Generator(
    config, params, max_length=_LENGTH, vocabulary_size=10
  )
  prompts = [[9]] * 4
  settings = dict(temperature=[0.0, 1.0, 100.0, 1e3], stop_ids=())
  for ids in generator.generate(prompts, 40, **settings):
    assert max(ids) < 10
    assert len(ids) == 40


def test_programs_are_compiled_once_a_size(dense):
  generator = generation.Generator(*_model(), max_length=64)
  compiled = []
  counting = True

  def listen(event, duration, **details):
    if counting and event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  generator.generate(_prompts(9, 3), 10)
  first = ['prefill 2 x 16', 'grow 2 to 32', 'decode 2 x 32']
  assert generator.programs == first
  assert compiled
  # Other lengths, other settings, single steps, early ends: nothing new.
  compiled.clear()
  generator.generate(
    _prompts(2, 16), 16, temperature=[0.0, 2.0], top_k=3, stop_ids=[(5,), ()]
  )
  list(generator.stream(_prompts(12, 4), 9, top_p=0.5, temperature=1.0))
  assert generator.programs == first
  assert compiled == []
  # A longer continuation takes the same prefill.
  generator.generate(_prompts(9, 3), 40)
  assert generator.programs[3:] == ['grow 2 to 64', 'decode 2 x 64']
  assert generator.compile_seconds > 0
  counting = False
  # Three rows run as four.
  dense.generate(_prompts(9, 3, 1), 16)
  known = list(dense.programs)
  dense.generate(_prompts(9, 3, 1, 2), 16)
  assert dense.programs == known


def test_parameters_spread_over_devices_generate_the_same():
  config, params = _model(vocab_size=64)
  prompts = _prompts(6, 11)
  prompts = [[token % 64 for token in prompt] for prompt in prompts]
  mesh = meshes.make_mesh({'fsdp': 2, 'tensor': 2})
  shardings = rules.shardings(
    mesh,
    transformer.param_axes(config),
    transformer.abstract_params(config),
  )
  want = _by_full_passes(config, params, prompts, 10)
  params = jax.device_put(params, shardings)
  spread = generation.Generator(config, params, max_length=32)
  assert spread.generate(prompts, 10, stop_ids=()) == want


def test_a_narrow_type_is_taken_when_asked_for(dense):
  config, params = _model(dtype='bfloat16')
  on_cpu = generation.Generator(config, params, max_length=32)
  assert on_cpu.config.dtype == 'float32'
  generator = generation.Generator(
    config, params, max_length=32, dtype='bfloat16'
  )
  prompts = _prompts(5)
  [ids] = generator.generate(prompts, 8, stop_ids=())
  assert len(ids) == 8
  assert ids[:1] == dense.generate(prompts, 1, stop_ids=())[0]


def test_beyond_the_trained_positions_it_warns_and_goes_on(dense, caplog):
  config, params = _model(max_position_embeddings=16)
  generator = generation.Generator(config, params, max_length=_LENGTH)
  prompts = _prompts(6)
  generator.generate(prompts, 10, stop_ids=())
  assert not caplog.records
  made = generator.generate(prompts, 20, stop_ids=())
  assert made == dense.generate(prompts, 20, stop_ids=())
  assert 'trained on 16' in caplog.text


@pytest.mark.parametrize(
  ('prompts', 'new', 'settings', 'message'),
  [
    ([[9], [9] * 48], 4, {}, 'prompt 1 has 48 tokens, and a row may hold 48'),
    ([[9, 67]], 4, {}, 'prompt 0 holds id 67, but the model knows 0 to 66'),
    ([[-1]], 4, {}, 'prompt 0 holds id -1'),
    ([[9]], 0, {}, 'max_new_tokens must be at least 1, not 0'),
    ([[9]], 4, dict(steps=17), 'steps must be from 1 to 16, not 17'),
    ([[9]], 4, dict(top_p=0.0), 'top_p must be above 0'),
    ([[9]], 4, dict(stop_ids=[(2,), (7,)]), '2 lists of stop_ids for 1 prompt'),
  ],
)
def test_a_bad_request_is_refused_at_once(
  dense, prompts, new, settings, message
):
  known = len(dense.programs)
  with pytest.raises(ValueError, match='.') as error:
    dense.stream(prompts, new, **settings)  # not even started
  assert message in str(error.value)
  assert len(dense.programs) == known


def test_no_room_for_a_prompt_is_refused():
  with pytest.raises(ValueError, match='max_length must be at least 2, not 1'):
    generation.Generator(*_model(), max_length=1)


@pytest.mark.parametrize('rows', [1, 3, 80])
def test_kernels_stored_transposed_give_the_same_logits(rows):
  config = config_lib.get_preset(
    'tiny',
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    attention_bias=True,
    scan_layers=False,
  )
  params = transformer.init_params(config, jax.random.key(0))
  params = jax.tree.map(lambda x: x + 0.1, params)  # biases begin at zero
  turned = dict(params)
  turned['layers'] = jax.tree.map(
    lambda x: x.T if x.ndim == 2 else x, params['layers']
  )
  model = transformer.Transformer(config)
  tokens = jnp.arange(rows)[:, None] % 64
  as_usual = compute._apply(model, params, tokens).logits
  transposed = compute._apply_transposed(model, turned, tokens).logits
  np.testing.assert_allclose(transposed, as_usual, rtol=1e-5, atol=1e-5)


def test_scores_are_those_of_a_full_pass(dense):
  config, params = _model()
  rows = _prompts(5, 17, 1, 30)
  scores = dense.score(rows)
  assert [len(score) for score in scores] == [4, 16, 0, 29]
  model = transformer.Transformer(config)
  padded = np.zeros((4, 30), np.int32)
  for place, row in zip(padded, rows, strict=True):
    place[: len(row)] = row
  logits = jax.jit(lambda x: model.apply({'params': params}, x).logits)(padded)
  whole = np.asarray(jax.nn.log_softmax(logits))
  for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
    expected = [whole[i, j, token] for j, token in enumerate(row[1:])]
    np.testing.assert_allclose(score, expected, rtol=0, atol=1e-4)
  assert dense.score([[]])[0].shape == (0,)
  with pytest.raises(ValueError, match='the model knows 0 to 66'):
    dense.score([[1, 3, 99]])
