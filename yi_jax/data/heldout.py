"""Which documents are kept away from training, decided by their text.

A document is held out if the hash of its text lies below a limit, so copies of
one text are on the same side, and adding documents moves none of the others
unless the limit moves. The limit is one number a language: the share of
documents asked for or, where that is too little text, the smallest that holds
out the bytes asked for. So a document that one mixture holds out may be
training text of another one with more text in that language: compare runs on
the same mixture, or keep `data.heldout_fraction` above what the bytes need.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

# Documents may have any 64-bit hash; limits are Python integers up to 2**64.
_SPACE = 1 << 64


def document_hash(text: str) -> int:
  """Returns an unsigned 64-bit hash of a text, the same everywhere."""
  digest = hashlib.blake2b(text.encode('utf-8'), digest_size=8).digest()
  return int.from_bytes(digest, 'big')


def limits(
  surveys: Mapping[str, tuple[np.ndarray, np.ndarray]],
  languages: Mapping[str, str],
  fraction: float,
  minimum_bytes: int,
) -> dict[str, int]:
  """Returns the limit of each language: a smaller hash is held out.

  Args:
    surveys: task -> uint64 hashes and int64 UTF-8 bytes of its documents.
    languages: task -> language.
    fraction: of the documents, at least.
    minimum_bytes: of text in a language, at least.

  Returns:
    Language -> limit in 1..2**64.

  Raises:
    ValueError: for a fraction that is none, or where more than half of a
      language would be held out.
  """
  if not 0 <= fraction < 1:
    raise ValueError(f'data.heldout_fraction is 0 to 1, not {fraction}')
  found = {}
  for language in sorted(set(languages.values())):
    tasks = [task for task in surveys if languages[task] == language]
    hashes = np.concatenate([surveys[task][0] for task in tasks])
    sizes = np.concatenate([surveys[task][1] for task in tasks])
    total = int(sizes.sum())
    order = np.argsort(hashes, kind='stable')
    held = np.cumsum(sizes[order])
    limit = round(fraction * _SPACE)
    last = int(np.searchsorted(held, minimum_bytes))
    if minimum_bytes and last < len(held):
      limit = max(limit, int(hashes[order[last]]) + 1)
    held_bytes = int(sizes[hashes < np.uint64(min(limit, _SPACE - 1))].sum())
    if last == len(held) or held_bytes > total / 2:
      raise ValueError(
        f'{language} has {total:,} bytes of text: too little to hold out '
        f'{fraction:.2%} of the documents and {minimum_bytes:,} bytes, and to '
        'train on the rest; lower data.heldout_bytes or data.heldout_fraction'
      )
    found[language] = limit
  return found


def sample_limits(
  surveys: Mapping[str, tuple[np.ndarray, np.ndarray]],
  languages: Mapping[str, str],
  heldout: Mapping[str, int],
  most_bytes: int,
) -> dict[str, int]:
  """Chooses a sample of the training text, as much of each language.

  What one language cannot fill goes to the others.

  Args:
    surveys: see `limits`.
    languages: see `limits`.
    heldout: result of `limits`.
    most_bytes: size of the sample.

  Returns:
    Language -> limit: the sample are documents with a hash from the held-out
    limit up to this one.
  """
  texts = {}
  for language, first in heldout.items():
    tasks = [task for task in surveys if languages[task] == language]
    hashes = np.concatenate([surveys[task][0] for task in tasks])
    sizes = np.concatenate([surveys[task][1] for task in tasks])
    order = np.argsort(hashes, kind='stable')
    order = order[hashes[order] >= np.uint64(first)]
    texts[language] = hashes[order], np.cumsum(sizes[order])
  found, left = {}, most_bytes
  smallest_first = sorted(texts, key=lambda key: texts[key][1][-1])
  for index, language in enumerate(smallest_first):
    hashes, sums = texts[language]
    share = left / (len(smallest_first) - index)
    last = min(int(np.searchsorted(sums, share)), len(sums) - 1)
    found[language] = int(hashes[last]) + 1
    left -= int(sums[last])
  return found
