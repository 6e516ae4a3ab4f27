"""Ends of turns: which prompts are asked, and what counts as an end."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from yi_jax.models import config as config_lib
from yi_jax.models import transformer
from yi_jax.serving import turns

_END, _OTHER = 7, 9
_MODEL = config_lib.get_preset(
  'tiny',
  vocab_size=16,
  hidden_size=8,
  intermediate_size=8,
  num_hidden_layers=1,
  num_attention_heads=1,
  num_key_value_heads=1,
  head_dim=8,
)
_WORDS = types.SimpleNamespace(special_ids={'<|im_end|>': _END}, size=16)
_CONFIG = types.SimpleNamespace(
  data=types.SimpleNamespace(chat=types.SimpleNamespace(template='chatml')),
  sample=types.SimpleNamespace(heldout=3, tokens=20),
  seed=0,
)


def _row(*chats):
  """Returns a row of (prompt ids, answer ids), each a conversation."""
  row = {'tokens': [], 'segment_ids': [], 'loss_weights': []}
  for number, (prompt, answer) in enumerate(chats, 1):
    size = len(prompt) + len(answer)
    row['tokens'] += [*prompt, *answer]
    row['segment_ids'] += [number] * size
    row['loss_weights'] += [*[0] * (len(prompt) - 1), *[1] * len(answer), 0]
  return {
    name: np.array([*values, *[0] * (12 - len(values))])
    for name, values in row.items()
  }


_ROWS = [
  _row(([1, 2, 3], [4, _END]), ([5, 6], [_END, 8])),
  _row(([10, 11], [12])),
]


def _heldout(**abilities):
  readers = dict.fromkeys(abilities, _ROWS)
  return types.SimpleNamespace(readers=readers, abilities=abilities)


def _says(token):
  """Returns parameters of a model that always says one token."""
  shapes = transformer.abstract_params(_MODEL)
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  params['embed_tokens']['embedding'] += 1.0
  params['norm']['scale'] += 1.0
  kernel = params['lm_head']['kernel']
  params['lm_head']['kernel'] = kernel.at[:, token].set(9.0)
  return params


def test_prompts_are_what_stands_before_the_first_answer():
  assert turns.prompts(_ROWS, 9) == [[1, 2, 3], [5, 6], [10, 11]]
  assert turns.prompts(_ROWS, 2) == [[1, 2, 3], [5, 6]]


def test_the_share_of_answers_with_an_end_is_told_by_ability():
  heldout = _heldout(en_math_x='en_math', zh_code_y='zh_code')
  for token, share in ((_END, 1.0), (_OTHER, 0.0)):
    found = turns.ended(_CONFIG, _MODEL, _says(token), _WORDS, heldout)
    assert found == {'en_math': share, 'zh_code': share}


class _EndsAfterOne:
  """Ends its answers to prompts that begin with id 1, and no others."""

  def __init__(self, *unused, **unused_too):
    pass

  def generate(self, prompts, tokens, **unused):
    return [[0] * (1 if ids[0] == 1 else tokens) for ids in prompts]


def test_tasks_of_one_ability_count_together(monkeypatch):
  monkeypatch.setattr(turns.generation, 'Generator', _EndsAfterOne)
  # Of text, of two tasks of one ability, and of a task without held-out rows.
  heldout = types.SimpleNamespace(
    readers={'en_web': _ROWS, 'en_math_x': _ROWS, 'en_math_y': _ROWS[1:]},
    abilities={'en_math_x': 'a', 'en_math_y': 'a', 'zh_code_z': 'b'},
  )
  found = turns.ended(_CONFIG, _MODEL, {}, _WORDS, heldout)
  assert found == {'a': 1 / 4}


def test_text_has_no_turns():
  assert turns.ended(_CONFIG, _MODEL, {}, _WORDS, _heldout()) == {}
