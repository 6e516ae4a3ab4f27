"""N-gram models with modified Kneser-Ney smoothing, in NumPy, as ARPA files.

What KenLM's lmplz does (Heafield et al. 2013), for models that fit in memory:
interpolated probabilities, three discounts an order (Chen and Goodman 1998),
pruning by count. The files are read by KenLM, and models of lmplz are read
here; `Model` asks for a whole batch at once.

An n-gram is known by its number in the table of its order. It is found by the
number of the n-gram before its last token, and that token: one 64-bit key.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from yi_jax.curation import tables

UNKNOWN, BEGIN, END = '<unk>', '<s>', '</s>'
SPECIAL = (UNKNOWN, BEGIN, END)  # ids 0, 1, 2
_NEVER = -99.0  # log10 of the probability of <s>, as KenLM writes it


@dataclasses.dataclass(frozen=True)
class Order:
  """The n-grams of one length, sorted by key.

  Attributes:
    keys: int64[G], number of the n-gram without its last token, times tokens
      of the model, plus that token; of single tokens, their id.
    logs: float32[G], log10 of the probability of the last token.
    backoffs: float32[G], log10 of what is multiplied where a longer n-gram is
      missing; zeros for the longest.
  """

  keys: np.ndarray
  logs: np.ndarray
  backoffs: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Counted:
  """The n-grams of one length in a corpus.

  Attributes:
    keys: int64[G], see Order; nothing is pruned yet.
    counts: int64[G], how often each stands there.
    at: int64[tokens], number of the n-gram that ends at a token, or -1.
    suffix: int64[G], number of it without the first token, an order below.
    opening: bool[G], whether it begins with <s>.
  """

  keys: np.ndarray
  counts: np.ndarray
  at: np.ndarray
  suffix: np.ndarray
  opening: np.ndarray


def train(corpus: np.ndarray, size: int, prune: Sequence[int]) -> list[Order]:
  """Returns the model of a corpus.

  Args:
    corpus: int[tokens]: 1 (<s>), tokens of a line, 2 (</s>), and again.
    size: different tokens, special ones too; ids are below it.
    prune: for each length, n-grams that stand there so often or less are left
      out; 0 for single tokens, and never less than for a shorter length.

  Raises:
    ValueError: for a corpus without tokens, or another kind of `prune`.
  """
  prune = list(prune)
  if not prune or prune[0] or prune != sorted(prune):
    raise ValueError(
      f'prune is {prune}: it wants a count for each length, 0 first, and none '
      'below the one before'
    )
  if not len(corpus):
    raise ValueError('there is no text to count n-grams in')
  counted = _count(corpus.astype(np.int64), size, len(prune))
  orders: list[Order] = []
  # Of the order below: probabilities, which n-grams are kept, their new number.
  lower = np.full(size, 1 / (size - 1))  # any token but <s>
  kept = place = np.zeros(0, np.int64)
  for n, here in enumerate(counted):
    adjusted = _adjusted(here, counted[n + 1] if n + 1 < len(counted) else None)
    parents = here.keys // size
    if not n:
      adjusted[1] = 0  # <s> is never predicted
      parents[:] = 0
    staying = here.counts > prune[n] if n else np.ones(size, bool)
    total = np.bincount(parents, adjusted)
    share = np.where(staying, adjusted - _discounts(adjusted), 0)
    share /= np.maximum(total[parents], 1)
    used = np.bincount(parents, share, minlength=len(lower) if n else 1)
    rest = np.maximum(1 - used, 1e-12)  # what shorter n-grams share
    found = share + rest[parents] * lower[here.suffix]
    if n:
      orders[-1] = dataclasses.replace(orders[-1], backoffs=_log(rest[kept]))
      parents = place[parents]
    keys = (parents * size + here.keys % size)[staying]
    logs = _log(found[staying])
    orders.append(Order(keys, logs, np.zeros(len(keys), np.float32)))
    lower, kept, place = found, staying, np.cumsum(staying) - 1
  orders[0].logs[1] = _NEVER
  return orders


def _count(corpus: np.ndarray, size: int, longest: int) -> list[_Counted]:
  """Returns the n-grams of a corpus, from single tokens to the longest."""
  single = np.arange(size)
  found = [
    _Counted(
      single, np.bincount(corpus, minlength=size), corpus, single, single == 1
    )
  ]
  for _ in range(1, longest):
    below = found[-1]
    ends = np.flatnonzero((below.at[:-1] >= 0) & (corpus[1:] != 1)) + 1
    keys, first, inverse, counts = np.unique(
      below.at[ends - 1] * size + corpus[ends],
      return_index=True,
      return_inverse=True,
      return_counts=True,
    )
    at = np.full(len(corpus), -1)
    at[ends] = inverse
    suffix = below.at[ends[first]]
    found.append(
      _Counted(keys, counts, at, suffix, below.opening[keys // size])
    )
  return found


def _adjusted(here: _Counted, longer: _Counted | None) -> np.ndarray:
  """Returns what Kneser and Ney count: the different tokens before an n-gram.

  The longest ones, and those at the beginning of a line, count as they are.
  """
  if longer is None:
    return here.counts.copy()
  kinds = np.bincount(longer.suffix, minlength=len(here.keys))
  return np.where(here.opening, here.counts, kinds)


def _discounts(adjusted: np.ndarray) -> np.ndarray:
  """Returns what is taken from each count, for counts of 1, 2, and 3 or more.

  Where a corpus is so small that the estimate fails, they are 0.5, 1 and 1.5.
  """
  ones = [np.count_nonzero(adjusted == k) for k in range(5)]
  taken = np.array([0, 0.5, 1, 1.5])
  if all(ones[1:]):
    share = ones[1] / (ones[1] + 2 * ones[2])
    estimate = [k - (k + 1) * share * ones[k + 1] / ones[k] for k in (1, 2, 3)]
    if all(0 <= value <= k for k, value in enumerate(estimate, 1)):
      taken[1:] = estimate
  return taken[np.minimum(adjusted, 3)]


def _log(values: np.ndarray) -> np.ndarray:
  return np.log10(values).astype(np.float32)


class Model:
  """Asks a model for the probabilities of many tokens at once.

  Attributes:
    names: tokens by id, SPECIAL first.
    orders: from single tokens to the longest n-grams.
  """

  def __init__(self, names: Sequence[str], orders: Sequence[Order]) -> None:
    """Makes the tables in which n-grams are looked up."""
    self.names, self.orders = list(names), list(orders)
    self._indices = [_Index(order.keys) for order in self.orders[1:]]

  def logs(self, tokens: np.ndarray) -> np.ndarray:
    """Returns log10 of the probability of each token, after those before it.

    Args:
      tokens: int[tokens], lines of <s> ... </s> as in `train`.

    Returns:
      float64[tokens]; that of <s> means nothing.
    """
    at = tokens.astype(np.int64)
    found = self.orders[0].logs[at].astype(np.float64)
    size = len(self.names)
    for below, order, index in zip(
      self.orders, self.orders[1:], self._indices, strict=False
    ):
      before = np.concatenate([[-1], at[:-1]])
      seen = np.flatnonzero((before >= 0) & (tokens != 1))
      found[seen] += below.backoffs[before[seen]]
      at = np.full(len(tokens), -1)
      at[seen] = index.find(before[seen] * size + tokens[seen])
      whole = at >= 0
      found[whole] = order.logs[at[whole]]
    return found

  def save(self, path: pathlib.Path) -> None:
    """Writes what `load` reads."""
    arrays = {'names': np.frombuffer('\n'.join(self.names).encode(), np.uint8)}
    for n, order in enumerate(self.orders, 1):
      for field, column in vars(order).items():
        arrays[f'{field}{n}'] = column
    np.savez(path, **arrays)

  def write_arpa(self, path: pathlib.Path) -> None:
    """Writes the model as ARPA, as KenLM reads it."""
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
      file.write('\\data\\\n')
      for n, order in enumerate(self.orders, 1):
        file.write(f'ngram {n}={len(order.keys)}\n')
      texts = self.names
      for n, order in enumerate(self.orders, 1):
        if n > 1:
          parents, last = np.divmod(order.keys, len(self.names))
          texts = [
            f'{texts[parent]} {self.names[token]}'
            for parent, token in zip(
              parents.tolist(), last.tolist(), strict=True
            )
          ]
        file.write(f'\n\\{n}-grams:\n')
        rows = zip(
          order.logs.tolist(), texts, order.backoffs.tolist(), strict=True
        )
        mark = n < len(self.orders)
        file.writelines(
          f'{log:.7g}\t{text}\t{rest:.7g}\n' if mark else f'{log:.7g}\t{text}\n'
          for log, text, rest in rows
        )
      file.write('\n\\end\\\n')


def load(path: pathlib.Path) -> Model:
  """Returns what `Model.save` wrote."""
  with np.load(path) as file:
    names = file['names'].tobytes().decode().split('\n')
    count = sum(name.startswith('keys') for name in file.files)
    orders = [
      Order(*(file[f'{field}{n}'] for field in ('keys', 'logs', 'backoffs')))
      for n in range(1, count + 1)
    ]
  return Model(names, orders)


def read_arpa(path: pathlib.Path) -> Model:
  """Returns the model of an ARPA file, of lmplz say.

  Raises:
    ValueError: if it is none, or lacks the beginning of an n-gram.
  """
  sections: list[list[list[str]]] = []
  with open(path, encoding='utf-8', newline='\n') as file:
    for line in file:
      line = line.rstrip('\n')
      if line.endswith('-grams:'):
        sections.append([])
      elif line == '\\end\\':
        break
      elif sections and line:
        sections[-1].append(line.split('\t'))
  if not sections:
    raise ValueError(f'{path} has no n-grams: it is no ARPA file')
  names = [*SPECIAL]
  names += [row[1] for row in sections[0] if row[1] not in SPECIAL]
  ids = {name: number for number, name in enumerate(names)}
  orders: list[Order] = []
  indices: list[_Index] = []
  for n, rows in enumerate(sections):
    tokens = np.array([[ids[t] for t in row[1].split(' ')] for row in rows])
    keys = tokens[:, 0].astype(np.int64)
    for column, index in zip(tokens.T[1:], [*indices, None], strict=False):
      key = keys * len(names) + column
      keys = index.find(key) if index else key
      if keys.min(initial=0) < 0:
        raise ValueError(f'{path} has n-grams of {n + 1} whose beginning lacks')
    order = np.argsort(keys)
    keys = keys[order]
    logs = np.array([float(row[0]) for row in rows], np.float32)[order]
    rest = [float(row[2]) if len(row) > 2 else 0.0 for row in rows]
    rest = np.array(rest, np.float32)[order]
    if not n:  # a table by id
      whole = np.full((2, len(names)), _NEVER, np.float32)
      whole[:, keys] = logs, rest
      keys, logs, rest = np.arange(len(names)), whole[0], whole[1]
    else:
      indices.append(_Index(keys))
    orders.append(Order(keys, logs, rest))
  return Model(names, orders)


class _Index:
  """Where keys stand in an array: a hash table with open addresses."""

  def __init__(self, keys: np.ndarray) -> None:
    self._keys = keys
    self._mask = np.uint64((1 << max(4, (2 * len(keys)).bit_length())) - 1)
    self._slots = np.full(int(self._mask) + 1, -1, np.int32)
    waiting, slots = np.arange(len(keys)), self._first(keys)
    while len(waiting):
      free = self._slots[slots] < 0
      self._slots[slots[free]] = waiting[free]  # of several, the last one
      left = self._slots[slots] != waiting
      waiting = waiting[left]
      slots = (slots[left] + np.uint64(1)) & self._mask

  def _first(self, keys: np.ndarray) -> np.ndarray:
    return tables.mix(keys.astype(np.uint64)) & self._mask

  def find(self, wanted: np.ndarray) -> np.ndarray:
    """Returns the place of each key, int64, or -1."""
    found = np.full(len(wanted), -1)
    waiting, slots = np.arange(len(wanted)), self._first(wanted)
    while len(waiting):
      places = self._slots[slots]
      same = (places >= 0) & (self._keys[places] == wanted[waiting])
      found[waiting[same]] = places[same]
      left = (places >= 0) & ~same
      waiting = waiting[left]
      slots = (slots[left] + np.uint64(1)) & self._mask
    return found
