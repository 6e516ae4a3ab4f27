"""The form of answers, and what their kind mostly does."""

import pytest

from yi_jax.alignment import rows
from yi_jax.alignment.checks import outliers, stop, style

_FORM = """Here is how to do it.

1. Mix.
2. Bake.

Enjoy your bread."""


@pytest.mark.parametrize(
  ('answer', 'wanted'),
  [
    (
      _FORM,
      {
        'introduction': 'introduction',
        'body': 'numbers',
        'conclusion': 'conclusion',
      },
    ),
    (
      '- one\n- two',
      {'introduction': 'no introduction', 'body': 'bullets'},
    ),
    (
      '步骤如下：\n一、和面\n二、烘烤',
      {'introduction': 'introduction', 'conclusion': 'no conclusion'},
    ),
    ('One.\n\nTwo.\n\nThree.', {'body': 'prose', 'conclusion': 'conclusion'}),
    ('Just this.', {'body': 'prose', 'conclusion': 'no conclusion'}),
    ('# T\n\ntext', {'headings': 'headings', 'ends': 'no mark'}),
    ('{"a": [1]}', {'form': 'data'}),
    ('```\nx\n```', {'code': 'with code'}),
  ],
)
def test_the_form_of_an_answer(answer, wanted):
  found = style.features(answer, False)
  assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
  ('answer', 'form'),
  [
    ('先算 3+4=7。\n答案：7', 'steps, equations, result'),
    ('3 + 4 = 7', 'equations'),
    ('Step 1: look. So the answer is clear.', 'steps'),
    ('It is clear.', 'no reasoning'),
  ],
)
def test_the_form_of_a_thought(answer, form):
  found = style.thought(answer)
  assert found.startswith(form.split(',')[0])
  assert style.features(answer, True)['thought'] == found


def _rows(*answers):
  return [
    rows.Row(
      str(k),
      'en_math_x',
      'en',
      'math',
      (
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'content': answer},
      ),
    )
    for k, answer in enumerate(answers)
  ]


def test_drift_is_the_bits_of_what_the_others_do_not_do():
  group = style.Group(_rows(*['It is so.'] * 15, '- a\n- b.'), style.defaults())
  drift = group.drift()
  assert not drift[:15].any()
  # One in 16 has a list: 4 bits.
  assert group.departures(15)[0] == ('body', 'bullets', 1 / 16)
  assert drift[15] == pytest.approx(4 * len(group.departures(15)))


def test_shares_tell_how_many_long_answers_have_the_form():
  long = _FORM.replace('Mix.', 'Mix ' + 'and stir ' * 60 + 'well.')
  facts = style.Group(_rows(long, long, 'So.'), style.defaults()).facts()
  assert facts['long answers'] == 2
  assert facts['with introduction, body, conclusion'] == 1
  assert facts['with a list for a body'] == 1
  assert facts['shares']['body'] == {'numbers': 0.6667, 'prose': 0.3333}


def test_scores_are_the_modified_z_of_logarithms():
  import numpy as np

  values = np.array([1, 3, 7, 15, 31, 63, 127.0])
  logs = np.log2(values + 1)
  wanted = 0.6745 * (logs - 4) / np.median(np.abs(logs - 4))
  np.testing.assert_allclose(outliers.scores(values), wanted, rtol=1e-3)
  assert not outliers.scores(np.ones(5)).any()
  assert outliers.scores(np.array([1.0] * 9 + [50]))[-1] > 3.5


@pytest.mark.parametrize(
  ('answer', 'sign'),
  [
    ('All (of it) is [here].', ''),
    ('1) one\n2) two', ''),
    ('a :( b :-( c', ''),
    ('It has (an open end', "'('"),
    ('他说“好', "'“'"),
    ('```\nx\n```', ''),
    ('```\nx', 'fence'),
    ('We like tea in the evening, and', 'ends'),
    ('我们喜欢喝茶，因为', 'ends'),
    ('all because', ''),
    ('(a]', ''),  # a slip, no cut
  ],
)
def test_signs_of_a_cut(answer, sign):
  assert sign in stop.hard(answer)
  assert bool(stop.hard(answer)) == bool(sign)
