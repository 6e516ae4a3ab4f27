"""KenLM's log10 probabilities of lines, by a given ARPA file."""

import sys

# Not from this folder, where this file has that name.
sys.path.pop(0)

import kenlm  # noqa: E402
import numpy as np  # noqa: E402

given = np.load(sys.argv[1])
model = kenlm.Model(str(given['arpa']))
np.savez(
  sys.argv[2],
  logs=np.array([model.score(line) for line in given['lines'].tolist()]),
)
