"""Characters: what kind each is."""

import unicodedata

import pytest

from yi_jax.curation import characters


@pytest.mark.parametrize(
  ('text', 'kind'),
  [
    ('汉字々〇𠀀', characters.HAN),
    ('ひらカナｱ', characters.KANA),
    ('azAZéßＡｚ', characters.LATIN),
    ('09０９', characters.DIGIT),
    (' \t\n\u3000\xa0', characters.SPACE),
    ('.,!#$+<~', characters.HALF_PUNCTUATION),
    ('，。！？：；（）、「」《》“”‘’…—＋', characters.FULL_PUNCTUATION),
    ('€→★😀©', characters.SYMBOL),
    ('\ufffd\x00\x07\x9f\ue000\ud800\U00050000'[:6], characters.GARBLED),
    ('яαبกa\u0301'[:4] + '한', characters.OTHER),
  ],
)
def test_every_character_has_its_kind(text, kind):
  assert set(characters.kinds(characters.codes(text))) == {kind}


def test_counts_add_up_to_the_text():
  text = '你好, world 123！\n'
  counts = characters.counts(characters.codes(text))
  assert counts.sum() == len(text)
  assert counts[characters.HAN] == 2
  assert counts[characters.LATIN] == 5
  assert counts[characters.SPACE] == 3


def test_unassigned_characters_are_garbage_even_among_letters():
  holes = [
    chr(point)
    for point in range(0x250, 0x10000)
    if unicodedata.category(chr(point)) == 'Cn'
    and not 0xF900 <= point <= 0xFAFF
    and not 0x4DC0 > point >= 0x3400
  ]
  assert len(holes) > 100
  kinds = characters.kinds(characters.codes(''.join(holes)))
  assert (kinds == characters.GARBLED).mean() > 0.99
