"""Prompts that are asked twice, and answers that contradict each other.

Near copies are found as documents are (`curation/minhash`): n-grams of words or
Chinese characters, candidates by MinHash, verified by the exact Jaccard. The
same wording with another number or quotation is another question (a template),
and no copy.
"""

import collections
import fractions
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from yi_jax.alignment import rows
from yi_jax.alignment.checks import finding, texts
from yi_jax.curation import documents, embedding, minhash, tables

# What may be said or left out without asking anything else.
_FILLERS = frozenset(
  (
    *('a', 'an', 'the', 'please', 'kindly', 'can', 'could', 'would', 'will'),
    *('you', 'me', 'i', 'just', 'tell', 'give'),
    *'请问您你的了吗呢呀啊能可以帮我下',
  )
)
_YES = re.compile(
  r'\s*(?:(?:oh|well|ah|why)\b[, ]*)?(?:(?:yes|yeah|yep|sure|certainly|absolutely|correct|true)\b|of course|'
  r'是的|对的?[，。,！]|对$|当然|可以|能[，。,]|会[，。,]|正确|没错)',
  re.IGNORECASE,
)
_NO = re.compile(
  r'\s*(?:(?:oh|well|ah|why)\b[, ]*)?(?:(?:no|nope|not|never|incorrect|false|'
  r"i don['’]?t|i do not)\b|不|否|没有|并非|错误)",
  re.IGNORECASE,
)
_RESULT = re.compile(
  r'(?:答案|answer(?: is)?|result(?: is)?|结果)\s*(?:是|为|[:：=])?\s*(.{1,40})$',
  re.IGNORECASE | re.MULTILINE,
)
# A question of fact: one that asks neither for more of a kind (a joke, a name)
# nor the one who answers about itself.
_CLOSED = re.compile(
  r'(?s)^(?!.*\b(?:you|your)\b)(?!.*[你您])(?!\W*(?:嗨|怎么了|hi\b|hello))'
  r'(?:\W*(?:who|what|when|where|which|how (?:many|much|long|far|old|tall|big)|'
  r'is|are|was|were|does|did)\b|.*[?？]|.*(?:什么|谁|哪|多少|几|吗|是不是|怎么说))',
  re.IGNORECASE,
)
_MOST = 8  # rows of one question of which each pair is compared


def defaults() -> dict[str, dict[str, Any]]:
  """Returns the sections of the three checks."""
  return {
    'duplicates': {
      'ngram': 3,  # units; prompts are short, so fewer than the 5 of documents
      # Pairs at a Jaccard of 0.8 are found with a probability of 0.9996.
      'bands': 20,
      'rows': 5,
      'jaccard': 0.8,
      # Abilities in which any other word asks something else; and words of a
      # prompt below which it does in any: the subject may be one of ten (ours).
      'exact': ('math', 'translation', 'tools'),
      'least': 20,
    },
    # Rows of one wording, other numbers or quotations, that stay.
    'templates': {'keep': 100},
    'contradictions': {
      # Abilities in which a question has many good answers.
      'free': ('dialogue', 'writing'),
      # TF-IDF cosine, below which answers to one question share nothing.
      'overlap': 0.02,
      'least': 4,  # units of an answer that overlap is asked of
    },
  }


def similar(
  prompts: Sequence[str], settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pairs of prompts that are near copies.

  Args:
    prompts: any texts.
    settings: ngram, bands, rows, jaccard.

  Returns:
    Indices, int64[pairs, 2], and similarities, float64[pairs].
  """
  none = np.zeros((0, 2), np.int64), np.zeros(0)
  batch = documents.Batch(
    ids=[str(i) for i in range(len(prompts))], texts=list(prompts)
  )
  found = minhash.bands_of(batch, settings)
  if not found:
    return none
  pairs = minhash.candidates(found)
  numbers = tables.numbers(batch.ids)
  order = np.argsort(numbers)
  ends = [
    order[np.searchsorted(numbers, pairs[end], sorter=order)]
    for end in ('node', 'other')
  ]
  values, sizes = [], np.zeros(len(prompts), np.int64)
  for indices, part, counts in minhash.document_sets(
    batch, batch.alive(), settings['ngram']
  ):
    values.append(part)
    sizes[indices] = counts
  similarity = minhash.jaccards(np.concatenate(values), sizes, *ends)
  kept = similarity >= settings['jaccard']
  return np.stack(ends, 1)[kept], similarity[kept]


def _groups(count: int, pairs: np.ndarray) -> list[list[int]]:
  """Returns the connected groups of two or more, in order."""
  graph = sparse.coo_matrix(
    (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count)
  )
  _, labels = csgraph.connected_components(graph, directed=False)
  groups = collections.defaultdict(list)
  for index in np.unique(pairs):
    groups[labels[index]].append(int(index))
  return list(groups.values())


def duplicates(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields near copies of prompts, the one with the longest answers left out,
  and what templates have made.

  Args:
    found: the rows.
    settings: the sections `duplicates` and `templates`.
  """
  prompts = [f'{row.system}\n{row.questions}' for row in found]
  pairs, similarity = similar(
    [texts.template(prompt) for prompt in prompts], settings['duplicates']
  )
  least, exact = (settings['duplicates'][key] for key in ('least', 'exact'))
  sizes = texts.sizes(prompts)
  asks = [
    _wording(prompt, size < least or row.ability in exact)
    for prompt, size, row in zip(prompts, sizes, found, strict=True)
  ]
  same = np.array([asks[a] == asks[b] for a, b in pairs], bool)
  nearest = collections.defaultdict(float)
  for (a, b), value in zip(pairs[same].tolist(), similarity[same], strict=True):
    nearest[a], nearest[b] = max(nearest[a], value), max(nearest[b], value)
  for group in _groups(len(found), pairs[same]):
    best = min(group, key=lambda i: (-len(found[i].answers), found[i].id))
    for i in group:
      if i != best:
        yield finding.Finding(
          i,
          'duplicates',
          f'the prompt is a near copy (Jaccard {nearest[i]:.2f}) of one whose '
          'answer is kept',
          (found[best].id,),
        )
  keep = settings['templates']['keep']
  for group in _groups(len(found), pairs[~same]):
    # By hash of their turns: no choice of anyone, and the same in every run.
    ordered = sorted(group, key=lambda i: found[i].id)
    for i in ordered[keep:]:
      yield finding.Finding(
        i,
        'templates',
        f'one of {len(group)} prompts of the same wording with other numbers '
        'or quotations',
        tuple(found[k].id for k in ordered[:keep]),
      )


def _wording(text: str, exact: bool) -> tuple[Any, ...]:
  """Returns what two prompts of one wording must have in common to be one.

  Args:
    text: a prompt.
    exact: all words but fillers, not only numbers and quotations.
  """
  kept = ()
  if exact:
    kept = tuple(w for w in texts.words(text) if w not in _FILLERS)
  return *texts.slots(text), kept


def _question(row: rows.Row) -> tuple[Any, ...]:
  """Returns the first question, without case, marks and filler words."""
  question = row.exchanges[0][0]
  *slots, kept = _wording(question, True)
  return row.system, *slots, kept or question


def contradictions(
  found: Sequence[rows.Row], settings: Mapping[str, Any]
) -> Iterator[finding.Finding]:
  """Yields rows whose first answer contradicts that of another row.

  The question is the same but for case, marks and filler words; the answers
  differ in substance, see `differ`.

  Args:
    found: the rows.
    settings: the section `contradictions`.
  """
  groups = collections.defaultdict(list)
  for i, row in enumerate(found):
    if row.ability not in settings['free']:
      groups[_question(row)].append(i)
  answers = [row.exchanges[0][1] for row in found]
  terms = embedding.terms(answers)
  weights = embedding.weighing(terms).weights(terms)
  sizes = texts.sizes(answers)
  against: dict[int, dict[int, str]] = collections.defaultdict(dict)
  for group in groups.values():
    closed = _CLOSED.search(found[group[0]].exchanges[0][0])
    pairs = itertools.combinations(group[:_MOST], 2)
    for a, b in itertools.chain(pairs, ((group[0], i) for i in group[_MOST:])):
      overlap = None
      if closed and min(sizes[a], sizes[b]) >= settings['least']:
        overlap = float(weights[a].multiply(weights[b]).sum())
      why = differ(answers[a], answers[b], overlap, settings['overlap'])
      if why:
        against[a][b] = against[b][a] = why
  for i, others in sorted(against.items()):
    reasons = ', '.join(dict.fromkeys(others.values()))
    yield finding.Finding(
      i,
      'contradictions',
      f'the same question has another answer: {reasons}',
      tuple(found[k].id for k in sorted(others)),
    )


def differ(one: str, other: str, overlap: float | None, least: float) -> str:
  """Returns how two answers to one question differ in substance, or ''.

  In this order: one begins with yes and the other with no; both name a result,
  another one; both have numbers, and none in common; their words have nothing
  in common. What agrees in yes or no, or in its result, is no contradiction.

  Args:
    one: an answer.
    other: another.
    overlap: cosine of their TF-IDF rows, None where it may be anything.
    least: overlap, below which they have nothing in common.
  """
  says = _says(one), _says(other)
  if all(says):
    return '' if says[0] == says[1] else 'yes against no'
  results = _result(one), _result(other)
  if all(results):
    same = _value(results[0]) == _value(results[1])
    return '' if same else f'{results[0]} against {results[1]}'
  numbers = texts.numbers(one), texts.numbers(other)
  if all(numbers) and not set(numbers[0]) & set(numbers[1]):
    return f'{numbers[0][-1]} against {numbers[1][-1]}'
  if overlap is not None and overlap < least:
    return f'nothing in common (overlap {overlap:.2f})'
  return ''


def _says(answer: str) -> int:
  """Returns 1 for an answer that begins with yes, -1 for no, else 0."""
  return bool(_YES.match(answer)) - bool(_NO.match(answer))


def _result(answer: str) -> str:
  """Returns the number that an answer names as its result, or ''."""
  named = _RESULT.findall(answer)
  found = texts.numbers(named[-1]) if named else ()
  return found[-1] if found else ''


def _value(number: str) -> fractions.Fraction | str:
  """Returns the value of a number, so that 1/2 is 0.5."""
  try:
    return fractions.Fraction(number)
  except (ZeroDivisionError, ValueError):  # 1/0; thousands of digits
    return number
