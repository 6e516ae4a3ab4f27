"""Logits of transformers on a checkpoint, and how far ours are from them.

PyTorch and transformers are no requirement of ours: they run as another
process, in .venv-peer or wherever they are found.
"""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from yi_jax import paths
from yi_jax.checkpoints import lazy
from yi_jax.models import config as model_config
from yi_jax.models import transformer

# Long enough that a wrong RoPE shows: its error grows with the position.
_LENGTH = 600
# Of the largest logit. Two correct programs in float32 differ by 1e-5 or less.
_TOLERANCE = 1e-3

_PROGRAM = """
import sys, numpy, torch, transformers
folder, tokens, written = sys.argv[1:]
model = transformers.LlamaForCausalLM.from_pretrained(
  folder, dtype=torch.float32, attn_implementation='eager')
with torch.no_grad():
  logits = model(torch.tensor(numpy.load(tokens))).logits
numpy.save(written, logits.numpy())
"""


def find_python() -> str:
  """Returns a Python that has transformers.

  Raises:
    OSError: if there is none.
  """
  peer = paths.REPOSITORY / '.venv-peer' / 'bin' / 'python'
  if peer.exists():
    return str(peer)
  if all(importlib.util.find_spec(x) for x in ('torch', 'transformers')):
    return sys.executable
  raise OSError(
    'no transformers to compare with; `launch/local.sh peer true` installs it'
  )


def difference(
  folder: pathlib.Path,
  config: model_config.ModelConfig,
  tree: lazy.LazyTree,
) -> float:
  """Compares logits at every position of a row of random tokens.

  Args:
    folder: of Hugging Face's kind, for transformers.
    config: our model of the same weights.
    tree: its parameters.

  Returns:
    Largest absolute difference, both computed in float32.

  Raises:
    OSError: if transformers is not there, or cannot read the folder.
    ValueError: if the logits are not the same.
  """
  length = min(_LENGTH, config.max_position_embeddings)
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
  wanted = _of_transformers(folder, tokens)
  config = config.replace(dtype='float32')
  params = lazy.load(lazy.astype(tree, 'float32'))
  model = transformer.Transformer(config)
  logits = jax.jit(lambda p, t: model.apply({'params': p}, t).logits)(
    params, tokens
  )
  found = float(np.abs(np.asarray(logits) - wanted).max())
  if not found <= _TOLERANCE * max(1.0, float(np.abs(wanted).max())):
    raise ValueError(
      f'verifying failed: logits differ from those of transformers by {found:g} '
      f'(largest logit {np.abs(wanted).max():g})'
    )
  return found


def _of_transformers(folder: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
  with tempfile.TemporaryDirectory() as place:
    given, written = f'{place}/tokens.npy', f'{place}/logits.npy'
    np.save(given, tokens)
    done = subprocess.run(
      [find_python(), '-c', _PROGRAM, str(folder), given, written],
      capture_output=True,
      text=True,
    )
    if done.returncode:
      last = done.stderr.strip().splitlines()[-1:] or ['no message']
      raise OSError(f'transformers cannot read {folder}: {last[0]}')
    return np.load(written)
