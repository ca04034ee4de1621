import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from tests.codecs.weights import encoded, normal


@pytest.mark.parametrize(
    ("shape", "axis", "channels"),
    [
        ((16, 6), None, (1, 6)),
        ((3, 3, 4, 6), None, (1, 1, 1, 6)),
        ((3, 3, 1, 6), None, (1, 1, 1, 6)),
        ((16, 6), -1, (16, 1)),  # rows of an embedding
        ((9,), None, (1,)),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_uniform_against_numpy(shape, axis, channels, bits):
    weight = np.asarray(normal(shape))
    node = encoded(ssvq.Uniform(bits, scale_dtype="float32"), shape, axis)
    others = tuple(i for i, n in enumerate(channels) if n == 1)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = 2 * np.abs(weight).mean(axis=others, keepdims=True) / math.sqrt(high)
    codes = np.round(np.clip(weight / step, low, high))
    np.testing.assert_allclose(ssvq.decode(node), codes * step, rtol=1e-5)
    final = ssvq.finalize(node)
    np.testing.assert_array_equal(final.codes, codes)
    np.testing.assert_array_equal(ssvq.decode(final), ssvq.decode(node))


@pytest.mark.parametrize("bits", [2, 4])
def test_uniform_gradients_are_those_of_lsq(bits, rng):
    weight = np.asarray(normal((16, 6)))
    node = encoded(ssvq.Uniform(bits), (16, 6))
    cotangent = rng.normal(size=(16, 6)).astype(np.float32)
    gradient = jax.grad(lambda node: jnp.sum(ssvq.decode(node) * cotangent))(node)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    position = weight / np.asarray(node.scale)
    inside = (position > low) & (position < high)
    np.testing.assert_allclose(gradient.weight, cotangent * inside, rtol=1e-5)
    local = np.where(
        inside, np.round(position) - position, np.clip(position, low, high)
    )
    expected = (cotangent * local).sum(axis=0) / math.sqrt(16 * high)
    np.testing.assert_allclose(gradient.scale, expected, rtol=1e-4, atol=1e-5)


def test_uniform_survives_a_zero_channel():
    weight = normal((8, 3)).at[:, 1].set(0.0)
    node = ssvq.encode(ssvq.Uniform(2), weight, key=jax.random.key(0))
    np.testing.assert_array_equal(ssvq.decode(ssvq.finalize(node))[:, 1], 0.0)
