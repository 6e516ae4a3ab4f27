"""datatrove's side of the rules in `curation.py`; runs in .venv-peer.

Filters are called document by document, without the pipeline's own counting and
writing, which makes them faster than in use. The language model is the .ftz
that both sides have; datatrove would download its larger form.
"""

import argparse
import functools
import json
import pathlib
import re

import pairs
from datatrove.data import Document
from datatrove.pipeline.filters import (
  C4QualityFilter,
  GopherQualityFilter,
  GopherRepetitionFilter,
  LanguageFilter,
  c4_filters,
  gopher_quality_filter,
  gopher_repetition_filter,
)
from fasttext.FastText import _FastText
from loguru import logger

_RULES = pathlib.Path(__file__).parents[2] / 'yi_jax/curation/rules_english.py'


def _with_our_words() -> None:
  """Lets datatrove split words and sentences as we do.

  Our module needs packages that are not here: its patterns are cut out.
  """
  code = _RULES.read_text()
  found = {'re': re}
  for first, last in (
    ('_WORD = ', '_STOP_WORDS = '),
    ('_SENTENCE = ', '_KNOWN = '),
    ('def _sentences', 'def _lost_marks'),
  ):
    exec(code[code.index(first) : code.index(last)], found)
  words = functools.lru_cache(5)(lambda text, _: found['_WORD'].findall(text))
  gopher_quality_filter.split_into_words = words
  gopher_repetition_filter.split_into_words = words
  c4_filters.split_into_sentences = lambda text, _: (
    [''] * found['_sentences'](text)
  )


def main() -> None:
  """Writes the verdicts, then works on demand."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', type=pathlib.Path)
  parser.add_argument('--model')
  parser.add_argument('--words', choices=['spacy', 'ours'])
  flags = parser.parse_args()
  logger.remove()
  if flags.words == 'ours':
    _with_our_words()
  language = LanguageFilter(languages=['en'])
  language.model._model = _FastText(flags.model)
  filters = (
    language,
    GopherRepetitionFilter(),
    GopherQualityFilter(),
    C4QualityFilter(),
  )
  texts = json.loads((flags.folder / 'texts.json').read_text())

  def judge(text: str) -> tuple[str, str]:
    document = Document(text=text, id='')
    for step in filters:
      verdict = step.filter(document)
      if isinstance(verdict, tuple):
        return verdict[1], text
      if not verdict:
        return 'language', text
    return '', document.text

  name = 'datatrove' + ('_our_words' if flags.words == 'ours' else '')
  verdicts = [judge(text) for text in texts]
  (flags.folder / f'{name}.json').write_text(json.dumps(verdicts))
  pairs.serve(lambda: [judge(text) for text in texts] and None, warm_up=1)


if __name__ == '__main__':
  main()
