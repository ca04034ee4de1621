import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssvq_jax.core.bits import pack_bits, unpack_bits
from ssvq_jax.core.blocks import (
    channel_axis,
    channel_shape,
    contracted_axis,
    from_blocks,
    grid_shape,
    to_blocks,
    valid_blocks,
    valid_positions,
)
from tests import reference


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((7,), 0),  # vector
        ((192, 768), 0),  # dense (in, out)
        ((1, 768), 1),  # dense with one input
        ((3, 3, 16, 32), 2),  # convolution HWIO
        ((3, 3, 1, 32), 3),  # depthwise
        ((5, 16, 32), 1),  # one-dimensional convolution, or a stack of kernels
    ],
)
def test_contracted_axis(shape, axis):
    assert contracted_axis(shape) == axis


@pytest.mark.parametrize(
    ("shape", "axis", "channel"),
    [
        ((7,), 0, None),  # vector
        ((192, 768), 0, 1),  # dense (in, out)
        ((1, 768), 1, 1),  # dense with one input
        ((768, 192), 1, 0),  # embedding, or dense (out, in)
        ((3, 3, 16, 32), 2, 3),  # convolution HWIO
        ((3, 3, 1, 32), 3, 3),  # depthwise
        ((192, 3, 64), 0, 2),  # attention (in, heads, size)
    ],
)
def test_channel_axis(shape, axis, channel):
    assert channel_axis(shape, axis) == channel
    expected = tuple(n if i == channel else 1 for i, n in enumerate(shape))
    assert channel_shape(shape, axis) == expected


@given(st.data())
def test_blocks_against_the_reference_and_back(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    block = data.draw(st.integers(1, 9))
    x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    blocks = to_blocks(jnp.asarray(x), block, axis)
    expected = reference.to_blocks(x, block, axis)
    np.testing.assert_array_equal(blocks, expected)
    assert blocks.shape == (*grid_shape(shape, block, axis), block)
    np.testing.assert_array_equal(from_blocks(blocks, shape, axis), x)
    valid = np.broadcast_to(valid_positions(shape, block, axis), expected.shape)
    np.testing.assert_array_equal(valid, expected > 0)
    found = valid_blocks(shape, block, axis)
    assert (found is None) == (shape[axis] % block == 0)
    if found is not None:
        np.testing.assert_array_equal(found, valid.reshape(-1, block))


@given(st.integers(1, 3), st.integers(1, 19), st.integers(0, 2**32 - 1))
def test_bits_round_trip_lowest_first(rows, length, seed):
    bits = np.random.default_rng(seed).random((rows, length)) < 0.5
    packed = pack_bits(jnp.asarray(bits))
    np.testing.assert_array_equal(packed, np.packbits(bits, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(
        unpack_bits(packed[:, None], length, bits.shape, 1), bits
    )


@pytest.mark.parametrize("block", [1, 3, 8, 11, 16])
@pytest.mark.parametrize(("shape", "axis"), [((37,), 0), ((37, 3), 0), ((2, 37, 3), 1)])
def test_bits_come_back_to_their_places(shape, axis, block, rng):
    bits = jnp.asarray(rng.random(shape) < 0.5)
    packed = pack_bits(to_blocks(bits, block, axis))
    np.testing.assert_array_equal(unpack_bits(packed, block, shape, axis), bits)
