"""Checks of single turns: the language of an answer, and what it repeats."""

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding, texts
from yi_jax.curation import language, rules_chinese, rules_english
from yi_jax.data import progress

# A user who names a language may want the answer in it.
_ASKS_LANGUAGE = re.compile(
  r'translat|翻译|译成|译为|[英中汉法德日韩俄]语|[英中日韩法德俄]文|西班牙语|'
  r'\b(?:english|chinese|mandarin|french|spanish|german|japanese|korean|'
  r'italian|russian|latin|portuguese|arabic|hindi)\b',
  re.IGNORECASE,
)
_HAN = re.compile('[\u3400-\u9fff]')
_LATIN = re.compile('[A-Za-z]{2}')
_SHORT = 24  # characters, in which nothing comes three times
_LETTER = re.compile(r'[^\W\d_]')


def language_defaults() -> dict[str, Any]:
  """Returns the section of the check of languages."""
  return {
    'model': language.defaults()['model'],
    # Of both: what an identifier says of less is a guess (ours).
    'probability': 0.8,
    'letters': 30,
    'han': 8,
    # What a chat of two languages may be taken for: others have to be surer.
    'languages': ('en', 'zh'),
    'others': 0.95,
    'exempt': ('translation',),  # abilities
  }


class Identifier:
  """Tells the language of texts that are long enough to tell."""

  def __init__(self, settings: Mapping[str, Any]) -> None:
    """Loads the model; FileNotFoundError names the command that fetches it."""
    self._settings = settings
    self._model = language.load(settings['model'])

  def __call__(self, text: str) -> str:
    """Returns a code such as 'en'; '' for code, data, and what is unsure."""
    if texts.is_data(text):
      return ''
    text = texts.prose(text)
    letters, han = len(_LETTER.findall(text)), len(_HAN.findall(text))
    if letters < self._settings['letters'] and han < self._settings['han']:
      return ''
    if texts.is_code(text):
      return ''
    found, score = language.identify(self._model, text, 2_000)
    known = found in self._settings['languages']
    least = self._settings['probability' if known else 'others']
    return found if score >= least else ''


def languages(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields rows where an answer is in another language than its question.

  Translations are exempt: by their ability, or because the question, or the
  system message, names a language, speaks of translating, or quotes words of
  the other script.
  """
  identify = Identifier(settings)
  bar = progress.Progress('check', 'language')
  for i, row in enumerate(found):
    bar.add(len(row.answers))
    if row.ability in settings['exempt'] or _ASKS_LANGUAGE.search(row.system):
      continue
    for turn, (question, answer) in enumerate(row.exchanges, 1):
      if _ASKS_LANGUAGE.search(question):
        break  # it may be meant for all that follows
      asked = identify(question)
      told = identify(answer) if asked else ''
      if asked and told and asked != told and not _quotes(question, told):
        yield finding.Finding(
          i, 'language', f'turn {turn}: asked in {asked}, answered in {told}'
        )
        break


def _quotes(question: str, told: str) -> bool:
  """Returns whether a question quotes words that may be of this language."""
  script = _HAN if told == 'zh' else _LATIN
  return any(script.search(part) for part in texts.slots(question)[2])


def repetition_defaults() -> dict[str, Any]:
  """Returns the section of the check of repetition."""
  return {
    # Shares of repeated n-grams, lines and paragraphs (Gopher, table A1, see
    # curation/repetition.py); empty takes the thresholds of curation.
    'english': {},
    'chinese': {},
    # Words, or Chinese characters, of an answer that shares say something of
    # (ours): in a shorter one a term that comes twice is a large share.
    'least': {'en': 100, 'zh': 200},
    # A sentence of at least so many words that comes so often in a row, or more
    # often anywhere (ours); lists and code aside, as for the shares.
    'sentence': 6,
    'times': 3,
    # Share of an answer's 5-grams that an earlier answer of the conversation
    # has, if it has at least `least_across` words (ours).
    'across': 0.8,
    'least_across': 12,
  }


def _judges(
  settings: Mapping[str, Any],
) -> dict[str, Callable[[str], tuple[str, str]]]:
  """Returns what the rules of curation on repetition say, by language.

  Of Chinese and, in the end, of everything written with spaces.
  """
  judges = {}
  for code, key, module in (
    ('zh', 'chinese', rules_chinese),
    ('en', 'english', rules_english),
  ):
    wanted = {
      family: dict.fromkeys(ranges, (None, None))
      for family, ranges in module.defaults().items()
      if family not in ('options', 'repetition')
    }
    wanted['repetition'] = dict(settings[key])
    judge = module.make(wanted).judge
    judges[code] = lambda text, judge=judge: judge(text)[:2]
  return judges


def repetitions(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields rows whose answers repeat themselves, each other, or the question."""
  judges = _judges(settings)
  bar = progress.Progress('check', 'repetition')
  for i, row in enumerate(found):
    bar.add(len(row.answers))
    code = 'zh' if row.language == 'zh' else 'en'
    least, judge = settings['least'][code], judges[code]
    for turn, (question, answer) in enumerate(row.exchanges, 1):
      why = _inside(answer, settings, least, judge)
      if not why and row.ability != 'dialogue':  # there hello answers hello
        why = _echo(question, answer)
      if why:
        yield finding.Finding(i, 'repetition', f'turn {turn}: {why}')
        break
    why = _across(row, settings)
    if why:
      yield finding.Finding(i, 'repetition', why)


def _inside(
  answer: str,
  settings: Mapping[str, Any],
  least: int,
  judge: Callable[[str], tuple[str, str]],
) -> str:
  """Returns how an answer repeats itself, or ''."""
  if len(answer) < _SHORT or texts.is_data(answer):
    return ''
  written = texts.written(answer)
  if len(texts.words(written)) >= least:
    rule, why = judge(written)
    if rule:
      return f'{rule} {why}'
  last, run, times = None, 0, collections.Counter()
  for sentence in texts.sentences(written):
    key = tuple(texts.words(sentence))
    if len(key) < settings['sentence']:
      continue
    times[key] += 1
    last, run = key, run + 1 if key == last else 1
    if run >= settings['times'] or times[key] > settings['times']:
      return f'{sentence[:60]!r} comes {times[key]} times'
  return ''


def _echo(question: str, answer: str) -> str:
  """Returns that an answer only says the question again, or ''."""
  words = texts.words(answer)
  if len(words) >= 3 and words == texts.words(question):
    return 'the answer is the question'
  return ''


def _across(row: rows.Row, settings: Mapping[str, Any]) -> str:
  """Returns which answer of a conversation says an earlier one again, or ''."""
  seen: dict[tuple[str, ...], int] = {}
  for turn, (_, answer) in enumerate(row.exchanges, 1):
    if texts.is_data(answer):
      continue
    words = texts.words(answer)
    grams = set(zip(*(words[k:] for k in range(5)), strict=False))
    if len(words) >= settings['least_across']:
      known = [seen[gram] for gram in grams if gram in seen]
      if len(known) >= settings['across'] * len(grams):
        share = len(known) / len(grams)
        return (
          f'turn {turn} says turn {max(set(known), key=known.count)} again '
          f'({share:.0%} of its 5-grams)'
        )
    for gram in grams:
      seen.setdefault(gram, turn)
  return ''
