"""Weights sharded over four CPU devices: the same results as on one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq

CODECS = [
    ssvq.SSVQ(8, 8),
    ssvq.SSVQ(8, 8, learn_signs=False, codebook_dtype="int8"),
    ssvq.SSVQ(8, 8, channel_scale="float16"),
    ssvq.SSVQ(8, 8, sign_code="hamming"),
    ssvq.VQ(8, 4),
    ssvq.Uniform(3),
    ssvq.MVQ(8, 8, (2, 4)),
]


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=str)
def mesh(request):
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(request.param,) * 2)


def _padded(spec, ndim):
    return (*spec, *(None,) * (ndim - len(spec)))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
@pytest.mark.parametrize("spec", [P("x", "y"), P(None, ("x", "y")), P(("x", "y"))])
def test_same_as_on_one_device(codec, spec, mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, spec))
    one = ssvq.encode(codec, weight, key=key)
    four = ssvq.encode(codec, sharded, key=key)
    chex.assert_trees_all_equal(one, four)

    for decode in (ssvq.decode, jax.jit(ssvq.decode)):
        decoded = decode(four)
        chex.assert_trees_all_equal(decode(one), decoded)
        assert _padded(decoded.sharding.spec, 2) == _padded(spec, 2)
    finals = ssvq.finalize(one), ssvq.finalize(four)
    chex.assert_trees_all_equal(*map(ssvq.decode, finals))

    def loss(trainable, static):
        return jnp.sum(jnp.square(ssvq.decode(ssvq.combine(trainable, static))))

    gradients = [jax.jit(jax.grad(loss))(*ssvq.partition(n)) for n in (one, four)]
    chex.assert_trees_all_close(*gradients, rtol=1e-5)


@pytest.mark.parametrize("codec", CODECS[:4], ids=lambda codec: codec.describe())
def test_encode_under_jit(codec, mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x", "y")))
    jitted = jax.jit(lambda weight: ssvq.encode(codec, weight, key=key))(sharded)
    np.testing.assert_allclose(
        ssvq.decode(jitted), ssvq.decode(ssvq.encode(codec, weight, key=key)), rtol=1e-4
    )


def test_matmul(mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, P(None, "y")))
    for codec in (ssvq.SSVQ(8, 8), ssvq.SSVQ(8, 8, channel_scale="float16")):
        node = ssvq.finalize(ssvq.encode(codec, sharded, key=key))
        expected = x @ np.asarray(ssvq.decode(node))
        np.testing.assert_allclose(ssvq.matmul(x, node), expected, rtol=1e-4, atol=1e-4)


def test_sharding_that_does_not_divide_the_blocks(mesh, rng, key):
    weight = rng.normal(size=(12, 6)).astype(np.float32)  # 3 blocks of 4 over 2 devices
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x", "y")))
    codec = ssvq.SSVQ(4, 4)
    one, four = (ssvq.encode(codec, w, key=key) for w in (weight, sharded))
    chex.assert_trees_all_equal(ssvq.decode(one), ssvq.decode(four))
    chex.assert_trees_all_equal(
        ssvq.decode(ssvq.finalize(one)), ssvq.decode(ssvq.finalize(four))
    )


@pytest.mark.usefixtures("standard_promotion")
def test_training_steps(mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    x = rng.normal(size=(8, 64)).astype(np.float32)
    tx = optax.chain(optax.adamw(0.1), ssvq.freeze_signs(interval=2, threshold=0.001))

    def train(weight, x):
        node = ssvq.encode(ssvq.SSVQ(8, 8), weight, key=key)
        trainable, static = ssvq.partition(node)
        state = tx.init(trainable)

        @jax.jit
        def step(trainable, state):
            def loss(trainable):
                y = x @ ssvq.decode(ssvq.combine(trainable, static))
                return jnp.mean(jnp.square(y - 1))

            value, gradient = jax.value_and_grad(loss)(trainable)
            updates, state = tx.update(gradient, state, trainable)
            return value, optax.apply_updates(trainable, updates), state

        losses = []
        for _ in range(6):
            value, trainable, state = step(trainable, state)
            losses.append(value)
        return jnp.stack(losses), state[-1].frozen.latent

    one = train(weight, x)
    four = train(
        jax.device_put(weight, NamedSharding(mesh, P(None, "y"))),
        jax.device_put(x, NamedSharding(mesh, P("x"))),
    )
    np.testing.assert_allclose(one[0], four[0], rtol=1e-4)
    assert np.mean(np.asarray(one[1]) == np.asarray(four[1])) > 0.999
    assert np.asarray(one[1]).any()
