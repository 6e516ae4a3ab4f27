"""The cascade against datatrove 0.10.1: documents a second and core.

  launch/local.sh peer true
  launch/local.sh python -m yi_jax.data.raw --group=text
  launch/local.sh python experiments/benchmarks/curation.py
  launch/local.sh python experiments/benchmarks/curation.py --half=rules

Two halves, each the same documents and the same rules in one run, one process
each, in turns:

* rules: language id (lid.176 on the whole text), Gopher's quality and
  repetition rules and C4's lines with the published thresholds, on pages of
  real English sources. datatrove runs twice: as it is, splitting words with
  spaCy, and with our words, so that only the rules differ. Verdicts are compared
  document by document: with our words they must be the same.
* dedup: `curation_dedup.py`.

The last line is JSON: `ratio` is our documents/s over datatrove's as it is, the
smaller of the two halves; 2 or more is wanted of each.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
from typing import Any

import pairs
from absl import flags

from yi_jax import app, paths

FLAGS = flags.FlagValues()
_HALF = flags.DEFINE_enum(
  'half', 'both', ['rules', 'dedup', 'both'], 'What to run.', flag_values=FLAGS
)
_DOCUMENTS = flags.DEFINE_integer(
  'documents', 600, 'Documents of the rules.', flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds.', flag_values=FLAGS)
_FOLDER = flags.DEFINE_string(
  'folder', '', 'For the script itself: of the documents.', flag_values=FLAGS
)

_HERE = pathlib.Path(__file__).parent
_RAW = paths.REPOSITORY / 'data/raw'
# Sources and their share of the documents.
_SOURCES = {'en_news': 4, 'web_c4': 3, 'web_wiki': 1, 'en_chat': 2,
            'en_docs_django': 1, 'en_tweets': 1}  # fmt: skip
_THRESHOLD = 0.65  # datatrove's, of the language


def main() -> None:
  """Runs the halves and prints."""
  if FLAGS.folder:
    _serve(pathlib.Path(FLAGS.folder))
    return
  figures: dict[str, Any] = {'benchmark': 'curation'}
  if FLAGS.half != 'dedup':
    with tempfile.TemporaryDirectory() as folder:
      figures['rules'] = _rules(pathlib.Path(folder))
  if FLAGS.half != 'rules':
    figures['dedup'] = _dedup()
  halves = [figures[half] for half in ('rules', 'dedup') if half in figures]
  figures['ratio'] = min(half['ratio'] for half in halves)
  print(json.dumps(figures))


def _dedup() -> dict[str, Any]:
  """Returns the figures of the other script."""
  command = [sys.executable, str(_HERE / 'curation_dedup.py')]
  result = subprocess.run(
    command, stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(result.stdout.splitlines()[-1])


def _rules(folder: pathlib.Path) -> dict[str, Any]:
  """Measures the rules and compares the verdicts."""
  texts = _documents(FLAGS.documents)
  (folder / 'texts.json').write_text(json.dumps(texts))
  peer = [
    str(paths.REPOSITORY / '.venv-peer/bin/python'),
    str(_HERE / 'curation_rules_peer.py'),
    f'--folder={folder}',
    f'--model={_RAW / "lid.176.ftz"}',
  ]
  commands = {
    'ours': [sys.executable, str(_HERE / 'curation.py'), f'--folder={folder}'],
    'datatrove': [*peer, '--words=spacy'],
    'datatrove_our_words': [*peer, '--words=ours'],
  }
  seconds = pairs.medians(pairs.measure(commands, FLAGS.rounds))
  speed = {name: len(texts) / took for name, took in seconds.items()}
  verdicts = {
    name: json.loads((folder / f'{name}.json').read_text()) for name in commands
  }
  differ = {
    name: sum(
      bool(a[0]) != bool(b[0]) or (not a[0] and a[1] != b[1])
      for a, b in zip(verdicts['ours'], verdicts[name], strict=True)
    )
    for name in list(commands)[1:]
  }
  removed = sum(bool(rule) for rule, _ in verdicts['ours'])
  print(
    f'{len(texts)} documents, {sum(map(len, texts)):,} characters, {removed} '
    'removed; documents/s: '
    + ', '.join(f'{name} {value:.0f}' for name, value in speed.items())
    + '; verdicts or texts that differ from ours: '
    + ', '.join(f'{name} {count}' for name, count in differ.items())
  )
  for number, (ours, theirs) in enumerate(
    zip(verdicts['ours'], verdicts['datatrove'], strict=True)
  ):
    if bool(ours[0]) != bool(theirs[0]):
      beginning = ' '.join(texts[number][:60].split())
      print(f'  ours {ours[0]!r}, datatrove {theirs[0]!r}: {beginning}')
  return {
    'documents': len(texts),
    'documents_per_second': {k: round(v, 1) for k, v in speed.items()},
    'differ': differ,
    'ratio': round(speed['ours'] / speed['datatrove'], 2),
    'ratio_our_words': round(speed['ours'] / speed['datatrove_our_words'], 2),
  }


def _documents(count: int) -> list[str]:
  """Returns pages of the real sources, always the same."""
  from yi_jax.data import sources

  texts, total = [], sum(_SOURCES.values())
  for name, share in _SOURCES.items():
    found = [d['text'].strip() for d in sources.read(name, _RAW)]
    random.Random(0).shuffle(found)
    texts += found[: count * share // total]
  return texts


def _serve(folder: pathlib.Path) -> None:
  """Our side: the stages language and rules, as datatrove has them."""
  from yi_jax.curation import documents, language, rules, rules_english

  texts = json.loads((folder / 'texts.json').read_text())
  identify = language.Language(
    {
      'languages': ('en',),
      'threshold': _THRESHOLD,
      'characters': 0,
      'strip_addresses': False,
    }
  )
  identify.setup()
  # What datatrove has no rules for.
  off = dict.fromkeys(rules_english.defaults()['document'], (None, None))
  judge = rules.Rules({'english': {'document': off}})

  def work() -> list[tuple[str, str]]:
    batch = documents.Batch(
      ids=[str(number) for number in range(len(texts))], texts=texts[:]
    )
    judge.process(identify.process(batch))
    return list(zip(batch.removed, batch.texts, strict=True))

  (folder / 'ours.json').write_text(json.dumps(work()))
  pairs.serve(lambda: work() and None, warm_up=1)


if __name__ == '__main__':
  sys.exit(app.run(main, FLAGS, example='--half=rules', needs_config=False))
