import itertools

import chex
import jax
import numpy as np
import pytest

import ssvq_jax as ssvq
from tests import reference
from tests.codecs.weights import encoded, normal


@pytest.mark.parametrize("keep", [(1, 2), (2, 4), (4, 4), (3, 8)])
def test_mvq_keeps_the_largest(keep):
    kept, group = keep
    weight = np.asarray(normal((24, 5)))
    node = encoded(ssvq.MVQ(4, 8, keep, codebook_dtype="float32"), (24, 5))
    mask = np.zeros((24, 5), bool)
    for start, column in itertools.product(range(0, 24, group), range(5)):
        order = np.argsort(-np.abs(weight[start : start + group, column]))
        mask[start + order[:kept], column] = True
    codebook, codes = np.asarray(node.codebook), np.asarray(node.codes)
    expected = reference.lookup(codebook, codes, (24, 5), 0) * mask
    np.testing.assert_array_equal(ssvq.decode(node), expected)
    assert np.count_nonzero(ssvq.decode(node)) <= 24 * 5 * kept / group


def test_mvq_clusters_kept_positions_only():
    weight = np.asarray(normal((24, 5)))
    node = encoded(ssvq.MVQ(4, 8, (2, 4)), (24, 5))
    kept = np.asarray(ssvq.decode(node)) != 0
    noisy = np.where(kept, weight, 0.0)  # pruned values do not matter
    again = ssvq.encode(node.codec, noisy, key=jax.random.key(0))
    chex.assert_trees_all_close(ssvq.decode(again), ssvq.decode(node), atol=1e-6)


@pytest.mark.parametrize("rows", [8, 9, 12])
@pytest.mark.parametrize("block", [6, 12])
def test_any_mask_of_a_group_with_padding_is_stored(block, rows, tmp_path):
    """A mask that `put` is given need not be that of the largest weights."""
    codec = ssvq.MVQ(4, block, (4, 6), codebook_dtype="float32")
    node = encoded(codec, (rows, 15))
    patterns = list(itertools.combinations(range(6), 4))
    factors = np.zeros((12, 15), np.float32)
    for column, kept in enumerate(patterns):
        for start in (0, 6):
            factors[[start + i for i in kept], column] = 1
    node = node.put(node.codes, factors[:rows])
    ssvq.save(tmp_path / "x", node)
    expected = np.asarray(ssvq.decode(node))
    np.testing.assert_array_equal(expected != 0, factors[:rows] != 0)
    np.testing.assert_array_equal(ssvq.decode(ssvq.load(tmp_path / "x")), expected)
