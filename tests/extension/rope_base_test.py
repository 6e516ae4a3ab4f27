"""The base of RoPE for a longer context, against the papers' numbers."""

import math

import numpy as np
import pytest

from yi_jax.extension import rope_base
from yi_jax.models import rope


@pytest.mark.parametrize('length', [1024, 4096, 16_384])
def test_the_bound_lies_on_the_curve_of_its_paper(length):
  # Figure 1 of arXiv:2405.14591, drawn through its points: 0.0424 x**1.628.
  fit = 0.0424 * length**1.628
  assert math.log2(rope_base.least_base(128, length) / fit) == pytest.approx(
    0, abs=1
  )


def test_llamas_base_is_below_the_bound_of_its_own_length():
  # Section 5 of the same paper: 1e4 reaches less than 4K.
  assert not rope_base.keeps_order(1e4, 128, 4096)
  assert rope_base.keeps_order(5e6, 128, 65_536)


def test_stretching_turns_the_slowest_plane_as_far_and_keeps_the_fastest():
  old, new = 4096, 65_536
  base = rope_base.stretched_base(1e4, 128, old, new)
  before, after = (
    np.asarray(rope.rotation_speeds(128, theta)) for theta in (1e4, base)
  )
  assert after[-1] * new == pytest.approx(before[-1] * old, rel=1e-4)
  assert after[0] == before[0] == 1


def test_the_raised_base_satisfies_both_rules():
  for old, new in ((4096, 8192), (2048, 16_384)):
    base = rope_base.raised_base(1e4, 64, old, new)
    assert base >= rope_base.stretched_base(1e4, 64, old, new)
    assert rope_base.keeps_order(base, 64, new)
    assert float(f'{base:.1e}') == base


def test_what_cannot_be_extended_is_refused():
  with pytest.raises(
    ValueError, match='4,096 tokens are no more than the 4,096'
  ):
    rope_base.raised_base(1e4, 128, 4096, 4096)
  with pytest.raises(ValueError, match='head_dim is even'):
    rope_base.least_base(2, 100)
  with pytest.raises(ValueError, match='at least one token'):
    rope_base.stretched_base(1e4, 128, 0, 100)
