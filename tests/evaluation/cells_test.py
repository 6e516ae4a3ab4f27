"""Cells have exact lengths, needles between sentences, and shared prefixes."""

import dataclasses
import re

import numpy as np
import pytest

from yi_jax.data import chatml
from yi_jax.evaluation import cells, documents, needles
from yi_jax.serving import reading

_LENGTHS, _DEPTHS = (600, 900, 1200), (0, 25, 50, 75, 100)


@pytest.fixture(scope='module', params=['base', 'chat'])
def subject(request, base):
  template = chatml.get('chatml') if request.param == 'chat' else None
  return dataclasses.replace(base, template=template)


@pytest.fixture(scope='module')
def streams(texts, words):
  return {
    language: documents.stream([text], words, 1200)
    for language, text in texts.items()
  }


def _plan(subject, streams, language, found=None, **changes):
  wanted = {'lengths': _LENGTHS, 'depths': _DEPTHS, **changes}
  found = found or needles.facts(language, 2, seed=0)
  return cells.plan(subject, found, streams[language], **wanted)


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_a_row_and_its_answer_have_the_length_asked_for(
  subject, streams, language
):
  found = _plan(subject, streams, language)
  assert len(found) == 2 * len(_LENGTHS) * len(_DEPTHS)
  for cell in found:
    assert len(cell.row()) + cell.room == cell.length
    right, wrong = cell.answers(subject.words)
    assert max(map(len, [*right, *wrong])) <= cell.room


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_the_needle_stands_between_two_sentences(subject, streams, language):
  text = streams[language].text
  for cell in _plan(subject, streams, language):
    shown = subject.words.decode(cell.row().tolist())
    before, after = shown.split(cell.needle.sentence)
    if cell.depth == 0:
      assert before.endswith(needles.WORDINGS[language].before)
      assert after.startswith('\n' + text[:20])
    else:
      assert re.search(r'[.。] ?$', before)
    assert cell.needle.question in after
    assert shown.endswith(cell.needle.opening)
    # The rest of the document is the documents' own, nothing is lost.
    plain = subject.words.decode(cell.stream.ids[: cell.document].tolist())
    head = subject.words.decode(list(cell.head))
    ids, tail = cell.hidden[0][1], subject.words.decode(list(cell.tail))
    hidden = subject.words.decode(list(ids))
    assert shown.replace(hidden, '', 1) == head + plain + tail


def test_depth_is_where_it_was_asked_for(subject, streams):
  sentence = np.max(np.diff(streams['en'].ends))
  for cell in _plan(subject, streams, 'en'):
    target = cell.depth / 100 * cell.document
    assert abs(cell.place - target) <= max(sentence, 0.01 * cell.document)
    assert cell.place in streams['en'].ends


def test_rows_of_all_lengths_and_depths_share_their_beginnings(
  subject, streams
):
  found = cells.in_order(_plan(subject, streams, 'en'))
  read, held = 0, np.zeros(0, np.int32)
  seen = set()  # every prefix, by the hash of its end and length
  for cell in found:
    row = cell.row()
    shared = reading.common_prefix(held, row)
    read += len(row) - shared
    held = row
    # Nothing is computed twice: what follows the shared part is new.
    keys = [hash(row[: i + 1].tobytes()) for i in range(len(row))]
    assert not seen & set(keys[shared:])
    seen.update(keys)
  whole = sum(len(cell.row()) for cell in found)
  assert read == len(seen) < 0.7 * whole


def test_a_shorter_cell_takes_the_place_of_a_longer_one_that_is_near(
  subject, streams, monkeypatch
):
  monkeypatch.setattr(cells, '_SAME_PLACE', 0.3)  # rows are short here
  found = _plan(subject, streams, 'en', lengths=(600, 1200))
  place = {(c.needle.name, c.length, c.depth): c.place for c in found}
  for name in ('en-1', 'en-2'):
    assert place[name, 600, 50] == place[name, 1200, 25]
    assert len({place[name, 1200, depth] for depth in _DEPTHS}) == len(_DEPTHS)


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_many_keys_are_hidden_and_one_is_asked_for(subject, streams, language):
  [needle] = needles.keys(language, 1, num_keys=4, num_values=2, seed=3)
  found = _plan(subject, streams, language, [needle], lengths=(900, 1200))
  for cell in found:
    row = cell.row()
    assert len(row) + cell.room == cell.length
    shown = subject.words.decode(row.tolist())
    for text in (needle.sentence, *(text for _, text in needle.others)):
      assert shown.count(text) == 1
    assert len(cell.hidden) == 5
    question = shown.index(needle.question)
    for number in needle.right:
      assert shown.index(number) < question  # only in the document
      assert shown.count(number) == 1
  ordered = cells.in_order(found)
  shared = [
    reading.common_prefix(a.row(), b.row())
    for a, b in zip(ordered, ordered[1:], strict=False)
  ]
  assert sum(shared) > 0.2 * sum(len(cell.row()) for cell in ordered)


def test_a_needle_that_is_in_the_documents_is_refused(subject, streams, words):
  [needle] = needles.facts('en', 1, seed=0)
  text = streams['en'].text
  planted = f'{text[:900]} {needle.sentence} {text[900:]}'
  stream = documents.stream([planted], words, 1200)
  with pytest.raises(ValueError, match=r'needle en-1 hides.*Port Ellery'):
    _plan(subject, {'en': stream}, 'en', [needle])
  late = documents.stream([f'{text} {needle.sentence}'], words, 1240)
  assert _plan(subject, {'en': late}, 'en', [needle])  # beyond every row


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(lengths=(60,)), 'a length of 60 is too short'),
  ],
)
def test_what_cannot_be_built_is_refused(subject, streams, changes, message):
  with pytest.raises(ValueError, match=message):
    _plan(subject, streams, 'en', **changes)


def test_text_without_sentences_is_refused(subject, words):
  stream = documents.stream(['storm sea ' * 900], words, 1200)
  with pytest.raises(ValueError, match=r'no sentence .* ends near depth'):
    _plan(subject, {'en': stream}, 'en')
  keys = needles.keys('en', 1, num_keys=4, num_values=1, seed=0)
  with pytest.raises(ValueError, match=r'no sentence .* ends near depth'):
    _plan(subject, {'en': stream}, 'en', keys, depths=(0,))
