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
    step = np.asarray(node.scale).reshape(channels)
    error = _error(weight, 1.0, step, bits, others)
    # Many more steps find little that is better, where coincidences of few are rare.
    largest = np.abs(weight).max(axis=others, keepdims=True)
    least = np.min(
        [
            _error(weight, 1.0, r * largest / high, bits, others)
            for r in np.geomspace(0.01, 1.2, 400)
        ],
        axis=0,
    )
    np.testing.assert_array_less(error, (1.15 if bits < 8 else 6.0) * least)
    codes = np.round(np.clip(weight / step, low, high))
    np.testing.assert_allclose(ssvq.decode(node), codes * step, rtol=1e-5)
    final = ssvq.finalize(node)
    np.testing.assert_array_equal(final.codes, codes)
    np.testing.assert_array_equal(ssvq.decode(final), ssvq.decode(node))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_large_weights_get_the_steps_of_their_channels(axis, weighted):
    # Channels are searched some at a time, here 373 or 391 of about a thousand.
    weight = normal((701, 1009)) * jnp.linspace(0.1, 10, 1009)[None]
    importance = jnp.square(normal((701, 1009))) if weighted else None
    codec = ssvq.Uniform(3, scale_dtype="float32")

    def scales(part):
        part, masses = weight[part], None if importance is None else importance[part]
        options = {"key": jax.random.key(0), "axis": axis, "importance": masses}
        return np.asarray(ssvq.encode(codec, part, **options).scale)

    first, last = slice(None, 100), slice(-100, None)
    parts = [(slice(None), x) if axis == 0 else (x,) for x in (first, last)]
    found = scales(slice(None))
    # Sums of other shapes are rounded otherwise, and another step may be the best.
    np.testing.assert_allclose(found[:100], scales(parts[0]), rtol=1e-4)
    np.testing.assert_allclose(found[-100:], scales(parts[1]), rtol=1e-4)


def _error(weight, importance, step, bits, others):
    """Squared error of every channel, float64."""
    weight, step = np.asarray(weight, np.float64), np.asarray(step, np.float64)
    codes = np.round(np.clip(weight / step, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    return np.sum(importance * (weight - codes * step) ** 2, axis=others, keepdims=True)


def _search(weight, importance, bits):
    """The least errors and their steps among those that are tried, channel by channel.

    Args:
      weight: `(n, channels)`, positive importance alike.
    """
    high = 2 ** (bits - 1) - 1
    errors, steps = [], []
    for w, v in zip(weight.T, importance.T, strict=True):
        w, v = w.astype(np.float64), v.astype(np.float64)

        def error(step, w=w, v=v):
            return float(_error(w, v, step, bits, 0)[0])

        tried = [2 * np.sum(v * abs(w)) / np.sum(v) / math.sqrt(high)]
        tried += [ratio * max(abs(w)) / high for ratio in np.linspace(1.04, 0.01, 96)]
        best = min([*tried, max(abs(w)) / high], key=error)
        for _ in range(2):
            codes = np.round(np.clip(w / best, -high - 1, high))
            refit = np.sum(v * codes * w) / np.sum(v * codes**2)
            best = min(best, refit, key=error)
        errors.append(error(best))
        steps.append(best)
    return np.array(errors), np.array(steps)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("shape", [(1, 3), (7, 2), (200, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_first_step_against_numpy(bits, shape, weighted, rng):
    weight = rng.standard_t(3, size=shape).astype(np.float32)
    importance = np.ones(shape, np.float32)
    if weighted:
        importance = rng.exponential(size=shape).astype(np.float32)
    codec = ssvq.Uniform(bits, scale_dtype="float32")
    node = ssvq.encode(codec, weight, key=jax.random.key(0), importance=importance)
    expected, steps = _search(weight, importance, bits)
    found = _error(weight, importance, node.scale, bits, 0)[0]
    size = np.sum(importance * weight.astype(np.float64) ** 2, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-12 * size.max())
    if len(weight) > 100:  # of few weights many steps may err alike
        np.testing.assert_allclose(node.scale, steps, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("scale_dtype", ["float32", "float16", "bfloat16"])
def test_first_step_is_no_worse_than_simple_ones(bits, scale_dtype, rng):
    weight = rng.laplace(size=(23, 40)).astype(np.float32)
    weight[:, 7] = 0.0
    weight[:, 8] = -np.abs(weight[:, 8])
    importance = rng.exponential(size=weight.shape).astype(np.float32) ** 3
    importance[:, 9] = 0.0
    weight[0, 10], importance[0, 10] = 1e4, 0.0
    codec = ssvq.Uniform(bits, scale_dtype=scale_dtype)
    node = ssvq.finalize(
        ssvq.encode(codec, weight, key=jax.random.key(0), importance=importance)
    )
    assert node.scale[7] == 1.0 and node.scale[9] != 1.0
    decoded = np.asarray(ssvq.decode(node), np.float64)
    found = np.sum(importance * (weight - decoded) ** 2, axis=0)
    high = 2 ** (bits - 1) - 1
    mean = np.sum(importance * np.abs(weight), axis=0)
    mean = mean / np.maximum(importance.sum(axis=0), 1e-9)
    for step in (2 * mean / math.sqrt(high), np.abs(weight).max(axis=0) / high):
        step = np.where(step > 0, step, 1.0)
        stored = np.asarray(jnp.asarray(step, scale_dtype), np.float64)
        other = _error(weight, importance, stored, bits, 0)[0]
        assert np.all(found <= other * (1 + 1e-5) + 1e-12)
    # What counts nothing bends nothing.
    assert float(node.scale[10]) * high < 20


@pytest.mark.parametrize("bits", [2, 8])
def test_first_step_of_one_weight_reproduces_it(bits):
    weight = jnp.array([[3.25, -0.7, 0.0, 1e-30, -1e30]])
    codec = ssvq.Uniform(bits, scale_dtype="float32")
    node = ssvq.encode(codec, weight, key=jax.random.key(0))
    np.testing.assert_allclose(ssvq.decode(ssvq.finalize(node)), weight, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e8, 1e-8])
def test_first_step_that_its_dtype_cannot_hold(factor):
    weight = normal((16, 3)) * factor
    node = ssvq.encode(ssvq.Uniform(3), weight, key=jax.random.key(0))
    error = jnp.sum(jnp.square(ssvq.decode(ssvq.finalize(node)) - weight))
    assert error < 0.05 * jnp.sum(jnp.square(weight))
    with pytest.raises(ValueError, match="scale: expected finite"):
        ssvq.finalize(node.replace(codec=ssvq.Uniform(3), scale=1e6 * node.scale + 1e6))


def test_first_step_under_jit():
    weight, codec, key = normal((27, 13)), ssvq.Uniform(4), jax.random.key(0)
    node = ssvq.encode(codec, weight, key=key)
    jitted = jax.jit(lambda weight: ssvq.encode(codec, weight, key=key))(weight)
    np.testing.assert_array_equal(jitted.scale, node.scale)
    again = ssvq.encode(codec, weight, key=jax.random.key(1))
    np.testing.assert_array_equal(again.scale, node.scale)


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
