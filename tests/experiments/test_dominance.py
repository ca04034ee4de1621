"""Gradients of blocks and of their codewords."""

import numpy as np
import pytest

from experiments.measurements import dominance


def test_cosines_of_the_largest_and_smallest_blocks():
    own = np.zeros((100, 2))
    own[:, 0] = np.arange(100)  # the first wants nothing and does not count
    moved = np.tile([1.0, 0.0], (100, 1))
    moved[:50] = [0.0, 1.0]
    one = np.zeros(100, int)
    top, bottom = dominance.cosines(own, moved, one)
    assert top == 1.0
    assert bottom == pytest.approx(10 / 59)  # of 59 blocks, 50 to 59 agree
    # By halves: all of the first disagree, all of the second agree.
    top, bottom = dominance.cosines(own, moved, np.arange(100) // 50)
    assert top == pytest.approx(1 / 2) and bottom == pytest.approx(30 / 59)


def test_blocks_agree_with_their_codeword_even_by_chance():
    # n independent blocks of one size: each is 1/sqrt(n) of their sum.
    own = np.random.default_rng(1).normal(size=(6400, 8))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    groups = np.arange(6400) // 64
    np.testing.assert_allclose(dominance.chance(own, groups), 1 / 8, atol=0.02)
    # One large block decides alone.
    own[::64] *= 1000
    top, bottom = dominance.chance(own, groups)
    assert top == pytest.approx(1 / 4, abs=0.05)  # of 4 that are the top 5 % of 64
    assert bottom == pytest.approx(0, abs=0.02)
