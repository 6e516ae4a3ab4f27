"""Which base RoPE needs for a longer context ("RoPE ABF", Xiong et al. 2023).

Yi lengthens its context by raising the base alone (Yi report 2.3 and 7.1), and
tells no rule for it. Two are known, and `raised_base` takes what satisfies both:

stretch  The slowest plane shall turn over the new length as far as it did over
         the old one, the fastest shall stay: theta' = theta * s**(H / (H - 2)),
         s = new / old length. That is what "NTK-aware" scaling does (Peng et
         al. 2023, section 3.1, of a post by bloc97).
bound    Equal tokens shall attract each other more than others at every
         distance below the length: the sum over planes of cos(distance * speed)
         stays above 0. Below that base perplexity may look fine while retrieval
         fails (Men et al. 2024, arXiv:2405.14591).

The published bases are 5e6 (4K and 200K models of 6B and 34B) and 1e7 (9B-200K,
and 34B-200K of March 2024).
"""

import math

import numpy as np

_STEP = 1.02  # between two bases that are tried
_CHUNK = 1 << 12  # distances looked at together


def raised_base(
  theta: float, head_dim: int, old_length: int, new_length: int
) -> float:
  """Returns a base for a longer context, rounded up to two digits.

  Example: raised_base(1e4, 128, 4_096, 8_192) -> 91_000.0

  Args:
    theta: base the model was trained with.
    head_dim: H, even and above 2.
    old_length: tokens it was trained for.
    new_length: tokens wanted.

  Raises:
    ValueError: if the new length is not longer, or a number makes no sense.
  """
  if new_length <= old_length:
    raise ValueError(
      f'{new_length:,} tokens are no more than the {old_length:,} that the model '
      'was trained for: there is nothing to extend'
    )
  base = stretched_base(theta, head_dim, old_length, new_length)
  # A larger one may fail again, with few planes: the first good one is taken.
  while True:
    digits = 10.0 ** (math.floor(math.log10(base)) - 1)
    base = float(f'{math.ceil(base / digits - 1e-9) * digits:.1e}')
    if keeps_order(base, head_dim, new_length):
      return base
    base *= _STEP


def stretched_base(
  theta: float, head_dim: int, old_length: int, new_length: int
) -> float:
  """Returns the base of the rule `stretch`; arguments as `raised_base`."""
  _check(head_dim, old_length)
  if not theta > 1:
    raise ValueError(f'a base is above 1, not {theta:g}')
  scale = new_length / old_length
  return theta * scale ** (head_dim / (head_dim - 2))


def least_base(head_dim: int, length: int) -> float:
  """Returns the base of the rule `bound`: the smallest that keeps it.

  Args:
    head_dim: H.
    length: tokens.
  """
  _check(head_dim, length)
  base = 100.0
  while not keeps_order(base, head_dim, length):
    base *= _STEP
  return base


def keeps_order(theta: float, head_dim: int, length: int) -> bool:
  """Returns whether equal tokens attract most at every distance of a context.

  Args:
    theta: base.
    head_dim: H.
    length: tokens.
  """
  speeds = theta ** -(np.arange(0, head_dim, 2) / head_dim)
  # From far to near: that is where it fails first.
  for end in range(length, 0, -_CHUNK):
    distances = np.arange(max(0, end - _CHUNK), end)
    if (np.cos(np.outer(distances, speeds)).sum(1) < 0).any():
      return False
  return True


def _check(head_dim: int, length: int) -> None:
  if head_dim % 2 or head_dim < 4:
    raise ValueError(f'head_dim is even and above 2, not {head_dim}')
  if length < 1:
    raise ValueError(f'a context has at least one token, not {length}')
