"""How well the hallucination check tells true answers from planted false ones.

Two sets. `facts`: well-known facts and the same sentences with a wrong word,
written here ("The capital of France is Lyon."). `chatterbot`: short questions of
a real set with their answers, and with the answer to another question of the
kind. The figure is the area under the ROC curve of each of the check's figures,
0.5 for chance.

A model of 135 million parameters knows little: an answer that it does not
support may well be true. So this tells how far words and likelihoods follow
truth on a small model, and is no bound for a larger one.

  python -m yi_jax.data.raw --group=model,tuning
  python experiments/benchmarks/knowledge.py

A run that was stopped goes on where it was.
"""

import argparse
import collections
import json
import pathlib
import re

import ml_collections
import numpy as np

from yi_jax import compilation_cache, paths
from yi_jax.alignment import rows
from yi_jax.alignment.knowledge import knowledge_run
from yi_jax.curation import linear
from yi_jax.data import chat_sources, conversations, journal

# Question, answer, the true word in it, a false one.
_FACTS = (
  (
    'What is the capital of France?',
    'The capital of France is {}.',
    'Paris',
    'Lyon',
  ),
  (
    'What is the capital of Japan?',
    'The capital of Japan is {}.',
    'Tokyo',
    'Osaka',
  ),
  (
    'What is the capital of Germany?',
    'The capital of Germany is {}.',
    'Berlin',
    'Hamburg',
  ),
  (
    'Who wrote Romeo and Juliet?',
    'Romeo and Juliet was written by {}.',
    'William Shakespeare',
    'Charles Dickens',
  ),
  (
    'Which planet is the largest in our solar system?',
    'The largest planet in our solar system is {}.',
    'Jupiter',
    'Mars',
  ),
  (
    'Which planet is closest to the Sun?',
    'The planet closest to the Sun is {}.',
    'Mercury',
    'Neptune',
  ),
  (
    'At what temperature does water boil at sea level, in Celsius?',
    'At sea level water boils, in degrees Celsius, at {}.',
    '100',
    '60',
  ),
  (
    'How many legs does a spider have?',
    'The legs of a spider are {}.',
    'eight',
    'ten',
  ),
  (
    'How many continents are there?',
    'The number of continents is {}.',
    'seven',
    'ten',
  ),
  (
    'Who painted the Mona Lisa?',
    'The Mona Lisa was painted by {}.',
    'Leonardo da Vinci',
    'Vincent van Gogh',
  ),
  (
    'What is the chemical symbol of gold?',
    'The chemical symbol of gold is {}.',
    'Au',
    'Pb',
  ),
  (
    'Which gas do plants take in from the air?',
    'The gas that plants take in from the air is {}.',
    'carbon dioxide',
    'helium',
  ),
  (
    'Which ocean is the largest?',
    'The largest ocean is the {}.',
    'Pacific',
    'Arctic',
  ),
  (
    'Who was the first president of the United States?',
    'The first president of the United States was {}.',
    'George Washington',
    'Abraham Lincoln',
  ),
  (
    'In which year did the Second World War end?',
    'The Second World War ended in {}.',
    '1945',
    '1961',
  ),
  (
    'What is the tallest mountain on Earth?',
    'The tallest mountain on Earth is {}.',
    'Mount Everest',
    'Mont Blanc',
  ),
  (
    'Which language is spoken in Brazil?',
    'The language spoken in Brazil is {}.',
    'Portuguese',
    'Swedish',
  ),
  (
    'Who developed the theory of relativity?',
    'The theory of relativity was developed by {}.',
    'Albert Einstein',
    'Louis Pasteur',
  ),
  (
    'How many days are there in a leap year?',
    'The days in a leap year are {}.',
    '366',
    '340',
  ),
  (
    'What is the currency of Japan?',
    'The currency of Japan is the {}.',
    'yen',
    'peso',
  ),
  (
    'Which organ pumps blood through the body?',
    'The organ that pumps blood through the body is the {}.',
    'heart',
    'liver',
  ),
  ('What is the square root of 64?', 'The square root of 64 is {}.', '8', '12'),
  (
    'Which animal is the tallest?',
    'The tallest animal is the {}.',
    'giraffe',
    'cow',
  ),
  (
    'Which metal is liquid at room temperature?',
    'The metal that is liquid at room temperature is {}.',
    'mercury',
    'copper',
  ),
)
_QUESTION = re.compile(r'(Who|Which|What|How many|When|Where)\b.*\?$')
_PERSONAL = re.compile(r'\b(?:you|your|my|I)\b', re.IGNORECASE)
_EVERY = 5  # of the questions of the real set


def facts() -> list[tuple[str, str, str]]:
  """Returns (question, true answer, false answer)."""
  return [(q, a.format(true), a.format(false)) for q, a, true, false in _FACTS]


def chatterbot(directory: pathlib.Path) -> list[tuple[str, str, str]]:
  """Returns questions of a real set with their answers and those of others."""
  kinds = collections.defaultdict(list)
  for messages in chat_sources.read('en_chatterbot', directory):
    question, answer = messages[0]['content'], messages[1]['content']
    kind = _QUESTION.match(question)
    is_short = len(messages) == 2 and len(answer.split()) <= 4
    if kind and is_short and not _PERSONAL.search(f'{question} {answer}'):
      kinds[kind[1]].append((question, answer))
  found = []
  for pairs in kinds.values():
    pairs = pairs[::_EVERY]
    for i, (question, answer) in enumerate(pairs):
      false = pairs[(i + 1) % len(pairs)][1]
      if false.lower() != answer.lower():
        found.append((question, answer, false))
  return found


def main() -> None:
  """Looks all answers up and prints the areas."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--checkpoint', default='data/raw/SmolLM2-135M-Instruct.Q4_1.gguf'
  )
  parser.add_argument('--temperature', type=float, default=0.7)
  parser.add_argument('--workdir', default='runs/benchmark_knowledge')
  options = parser.parse_args()
  compilation_cache.enable()
  labels = {}  # id -> (set, whether it is true)
  found = []
  root = pathlib.Path(paths.in_repository('data/raw'))
  for name, triples in (('facts', facts()), ('chatterbot', chatterbot(root))):
    for question, *answers in triples:
      for answer, is_true in zip(answers, (True, False), strict=True):
        messages = (
          {'role': 'user', 'content': question},
          {'role': 'assistant', 'content': answer},
        )
        key = conversations.identity(messages)
        labels[key] = name, is_true
        found.append(rows.Row(key, name, 'en', 'knowledge', messages))
  config = ml_collections.ConfigDict(
    {
      **knowledge_run.defaults(),
      'checkpoint': options.checkpoint,
      'temperature': options.temperature,
      'max_new_tokens': 32,
      'batch_size': 16,
    }
  )
  workdir = pathlib.Path(paths.in_caller(options.workdir))
  knowledge_run.run(config, found, workdir)
  lines = [
    line for _, line in journal.Journal(workdir / knowledge_run.FILE).rows
  ]
  result = {}
  for name in ('facts', 'chatterbot'):
    mine = [line for line in lines if labels[line['id']][0] == name]
    truth = np.array([labels[line['id']][1] for line in mine])
    result[name] = {'answers': len(mine)}
    for figure in ('log_probability', 'gap', 'support'):
      values = np.array([line[figure] for line in mine])
      result[name][f'auc {figure}'] = round(linear.area(values, truth), 3)
    flagged = np.array([bool(line['why']) for line in mine])
    result[name]['false ones flagged'] = round(float(flagged[~truth].mean()), 3)
    result[name]['true ones flagged'] = round(float(flagged[truth].mean()), 3)
  print(json.dumps(result))


if __name__ == '__main__':
  main()
