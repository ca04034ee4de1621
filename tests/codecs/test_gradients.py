"""The straight-through gradients against a NumPy derivation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from tests import reference


def _loss_gradients(node, gradient_of_weight):
    def loss(node):
        return jnp.sum(ssvq.decode(node) * gradient_of_weight)

    trainable, static = ssvq.partition(node)
    return jax.jit(jax.grad(lambda t: loss(ssvq.combine(t, static))))(trainable)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((32, 12), None), ((27, 5), None), ((3, 3, 10, 4), None), ((3, 3, 1, 21), None)],
)
def test_ssvq(shape, axis, rng, key):
    weight = rng.normal(size=shape).astype(np.float32)
    upstream = rng.normal(size=shape).astype(np.float32)
    node = ssvq.encode(ssvq.SSVQ(4, 8), weight, key=key, axis=axis)
    gradient = _loss_gradients(node, upstream)
    codes, sign = np.asarray(node.codes), np.where(weight >= 0, 1, -1)
    np.testing.assert_allclose(
        gradient.codebook,
        reference.codebook_gradient(upstream * sign, codes, 4, 8, node.axis),
        rtol=1e-4,
        atol=1e-5,
    )
    magnitude = reference.lookup(np.asarray(node.codebook), codes, shape, node.axis)
    np.testing.assert_allclose(gradient.latent, upstream * magnitude, rtol=1e-6)
    assert gradient.codes is None


@pytest.mark.parametrize("codec", [ssvq.SSVQ(4, 8, learn_signs=False), ssvq.VQ(4, 8)])
def test_codebook_alone(codec, rng, key):
    weight = rng.normal(size=(32, 12)).astype(np.float32)
    upstream = rng.normal(size=(32, 12)).astype(np.float32)
    node = ssvq.encode(codec, weight, key=key)
    gradient = _loss_gradients(node, upstream)
    sign = np.where(weight >= 0, 1, -1) if isinstance(codec, ssvq.SSVQ) else 1
    np.testing.assert_allclose(
        gradient.codebook,
        reference.codebook_gradient(upstream * sign, np.asarray(node.codes), 4, 8, 0),
        rtol=1e-4,
        atol=1e-5,
    )
    assert len(jax.tree.leaves(gradient)) == 1


def test_mvq_trains_kept_positions_only(rng, key):
    weight = rng.normal(size=(32, 12)).astype(np.float32)
    upstream = rng.normal(size=(32, 12)).astype(np.float32)
    node = ssvq.encode(ssvq.MVQ(4, 8, (2, 4)), weight, key=key)
    mask = np.asarray(ssvq.decode(node)) != 0
    np.testing.assert_allclose(
        _loss_gradients(node, upstream).codebook,
        reference.codebook_gradient(upstream * mask, np.asarray(node.codes), 4, 8, 0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_through_dense_and_convolution(rng, key):
    """The chain rule through real layers: upstream is what autodiff gives there."""
    x = rng.normal(size=(2, 6, 6, 10)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 10, 4)).astype(np.float32)
    dense = rng.normal(size=(4, 8)).astype(np.float32)

    def model(params):
        y = jax.lax.conv_general_dilated(
            x,
            params["conv"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(jnp.tanh(jnp.tanh(y) @ params["dense"]) ** 2)

    params = {"conv": kernel, "dense": dense}
    rules = [ssvq.Rule(".*", ssvq.SSVQ(4, 4))]
    compressed = ssvq.compress(params, rules, key=key)
    trainable, static = ssvq.partition(compressed)
    gradient = jax.grad(lambda t: model(ssvq.decode(ssvq.combine(t, static))))(
        trainable
    )
    upstream = jax.grad(model)(ssvq.decode(compressed))
    for name, node in compressed.items():
        weight, codes = params[name], np.asarray(node.codes)
        sign = np.where(weight >= 0, 1, -1)
        np.testing.assert_allclose(
            gradient[name].codebook,
            reference.codebook_gradient(
                np.asarray(upstream[name]) * sign, codes, 4, 4, node.axis
            ),
            rtol=1e-3,
            atol=1e-4,
        )
        magnitude = reference.lookup(
            np.asarray(node.codebook), codes, weight.shape, node.axis
        )
        expected = np.asarray(upstream[name]) * magnitude
        np.testing.assert_allclose(
            gradient[name].latent, expected, rtol=1e-4, atol=1e-5
        )


def test_allow_int_gives_the_same(rng, key):
    node = ssvq.encode(ssvq.SSVQ(4, 8), rng.normal(size=(16, 8)).astype("f4"), key=key)

    def loss(node):
        return jnp.sum(jnp.square(ssvq.decode(node)))

    trainable, static = ssvq.partition(node)
    whole = jax.grad(loss, allow_int=True)(node)
    half = jax.grad(lambda t: loss(ssvq.combine(t, static)))(trainable)
    chex.assert_trees_all_equal(whole.codebook, half.codebook)
    chex.assert_trees_all_equal(whole.latent, half.latent)
