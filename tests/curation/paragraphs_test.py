"""Paragraphs: the best document keeps the copy, the others lose only that."""

import numpy as np
import pytest

from yi_jax.curation import documents, paragraphs, tables

_NOTICE = 'All rights reserved. No part of this page may be copied by anyone.'
_OTHER_NOTICE = (
  'ALL RIGHTS RESERVED -- no part of this page may be copied by anyone'
)
_CHINESE = '本网站所有内容未经许可不得转载，违者必究。'


def _own(number, words=30):
  return ' '.join(f'word{number}x{k}' for k in range(words))


def _texts():
  return [
    f'{_own(0)}\n{_NOTICE}\n{_own(1)}',
    f'{_own(2)}\n\n{_OTHER_NOTICE}\n\n{_own(3)}\nYes.',
    f'{_own(4)}\n{_CHINESE}\n{_NOTICE}\nYes.',
    f'{_CHINESE}\n{_own(5)}\n{_own(5)}',
    f'{_NOTICE}\n{_own(6, 8)}',
    _own(7),
  ]


def _run(through_beam, cut, config=None):
  whole = documents.Batch(ids=[f's/{i}' for i in range(6)], texts=_texts())
  whole.score('quality')[:] = [0.1, 0.9, 0.2, 0.1, 0.5, 0.5]
  batches = [whole.select(range(k, min(k + cut, 6))) for k in range(0, 6, cut)]
  for number, batch in enumerate(batches):
    batch.place = (0, number)
  config = {'partitions': 2, **(config or {})}
  done = through_beam(paragraphs.Paragraphs(config), batches)
  return documents.concatenate(done)


@pytest.mark.parametrize('cut', [1, 6])
def test_one_copy_stays_in_the_best_document(through_beam, cut):
  texts = _texts()
  done = _run(through_beam, cut)
  assert done.texts[0] == f'{_own(0)}\n{_own(1)}'
  assert done.texts[1] == texts[1]  # the best of those with the notice
  assert done.texts[2] == f'{_own(4)}\n{_CHINESE}\nYes.'
  assert done.texts[3] == _own(5)  # of its own two lines the first
  assert done.removed == ['', '', '', '', 'paragraphs.least_left', '']
  assert done.trails[1] == done.trails[5] == []
  assert done.trails[0][0][1].startswith('cut 1 paragraphs, ')
  assert '8 units < 20 are left' in done.trails[4][0][1]


def test_short_paragraphs_stay(through_beam):
  done = _run(through_beam, 6, {'least_units': 200, 'least_left': 0})
  assert done.texts == _texts()


def test_a_paragraph_is_known_by_its_words():
  lines = [_NOTICE, _OTHER_NOTICE, f'{_NOTICE} x', _NOTICE[1:], _CHINESE]
  batch = documents.Batch(ids=list('abcde'), texts=lines)
  rows = paragraphs.hashes(batch, 5)
  found = rows['paragraph'][np.argsort(rows['number'])]
  order = np.argsort(tables.numbers(batch.ids))
  by_line = dict(zip((lines[i] for i in order), found, strict=True))
  assert by_line[_NOTICE] == by_line[_OTHER_NOTICE]
  assert len(set(by_line.values())) == 4


@pytest.mark.parametrize(
  ('text', 'lines', 'wanted'),
  [
    ('a\nb\nc', {1}, 'a\nc'),
    ('a\n\nb\n\nc', {1}, 'a\n\nc'),
    ('a\nb', {0, 1}, ''),
    ('a\nb\n', {1}, 'a'),
    ('\n\na\nb', {0}, 'b'),
  ],
)
def test_lines_are_cut_with_their_ends(text, lines, wanted):
  assert paragraphs.cut(text, lines) == wanted
