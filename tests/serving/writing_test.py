"""Text of a generator: whole characters, and nothing after a stop."""

import hypothesis
import pytest
from hypothesis import strategies as st

from yi_jax.data import vocabulary
from yi_jax.serving import writing


class _Script:
  """In place of a Generator: gives each row the same ids, one at a time."""

  compile_seconds = 0.0

  def __init__(self, ids):
    self._ids = ids

  def stream(self, rows, max_new_tokens, **settings):
    self.asked = rows, max_new_tokens, settings
    return ([[i]] * len(rows) for i in self._ids)


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  folder = tmp_path_factory.mktemp('words') / 'small'
  return vocabulary.train(['the king said 国家'] * 50, 300, folder)


def test_half_a_character_is_never_shown(words):
  text = '国 é 𠮷🙂!'  # the rare ones are spelled in bytes
  ids = words.encode(text)
  assert len(ids) > len(text) + 5
  parts = list(writing.Writer(_Script(ids), words, {}).write([2], 99))
  assert ''.join(parts) == text
  assert '\ufffd' not in ''.join(parts)
  assert '' in parts
  # What never becomes whole is shown as such.
  parts = list(writing.Writer(_Script(ids[:-3]), words, {}).write([2], 99))
  assert ''.join(parts) == '国 é 𠮷\ufffd'


def test_settings_reach_the_generator_and_tokens_are_counted(words, capsys):
  script = _Script([7, 8, 9])
  writer = writing.Writer(script, words, dict(top_k=3, seed=1))
  list(writer.write([2, 5], 10))
  assert script.asked == ([[2, 5]], 10, dict(top_k=3, seed=1))
  texts = writer.write_all([[2], [3]], 4, seeds=[5, 6])
  assert texts == [words.decode([7, 8, 9])] * 2
  changed = dict(top_k=3, seed=[5, 6], steps=16)
  assert script.asked == ([[2], [3]], 4, changed)
  assert writer.tokens == 9
  writer.report()
  assert capsys.readouterr().err.startswith('9 tokens, ')


_letters = st.text('ab#', max_size=12)


@hypothesis.given(
  parts=st.lists(_letters), stops=st.lists(_letters.filter(len), max_size=3)
)
@hypothesis.example(parts=['a\n#', '#', '#b'], stops=['###'])
@hypothesis.example(parts=['##', '##'], stops=['###'])
def test_a_stop_ends_the_text_wherever_it_is_cut(parts, stops):
  whole = ''.join(parts)
  places = [whole.find(stop) for stop in stops if stop in whole]
  expected = whole[: min(places, default=len(whole))]
  assert ''.join(writing.until(parts, stops)) == expected


def test_only_what_may_become_a_stop_is_held_back():
  shown = writing.until(['a#', 'b##', '##'], ['###'])
  assert list(shown) == ['a', '#b', '']
