"""`assign`: new codes for a weight, with the codebook and the scales as they are."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
from tests import reference
from tests.codecs.weights import encoded, normal

SHAPES = [((27, 13), None), ((50, 20), -1)]

CODECS = [
    ssvq.SSVQ(4, 8),
    ssvq.SSVQ(5, 3, learn_signs=False, channel_scale="float16"),
    ssvq.VQ(8, 4, codebook_dtype="int8"),
    ssvq.VQ(5, 3, channel_scale="float32"),
    ssvq.MVQ(4, 8, (2, 4)),
    ssvq.MVQ(5, 3, (1, 3), channel_scale="bfloat16"),
    ssvq.Uniform(3),
    ssvq.SSVQ(4, 8, sign_code="hamming"),
    ssvq.SSVQ(5, 3, sign_code="parity", channel_scale="float16"),
]
by_name = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())


def error(node, weight, importance=1.0):
    difference = np.asarray(weight, "f8") - np.asarray(ssvq.decode(node), "f8")
    return float(np.sum(importance * difference**2))


@by_name
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_codes_are_never_farther_than_before(codec, shape, axis, rng):
    node, weight = encoded(codec, shape, axis), normal(shape)
    importance = rng.uniform(0, 2, shape).astype("f4")
    importance[..., ::3] = 0.0
    for old, weights in ((node, importance), (ssvq.finalize(node), None)):
        new = old.assign(weight, weights)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
        for name in old.linear_leaves:
            if getattr(old, name) is not None:
                same = getattr(new, name), getattr(old, name)
                np.testing.assert_array_equal(*same)
        counted = 1.0 if weights is None else weights
        before = error(old, weight, counted)
        assert error(new, weight, counted) <= before * (1 + 1e-5) + 1e-6
    other = jnp.flip(weight)
    assert error(old.assign(other), other) < error(old, other)


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_codes_of_vq_are_those_of_its_kmeans(shape, axis, rng):
    for importance in (None, rng.uniform(0.1, 2, shape).astype("f4")):
        node = encoded(ssvq.VQ(5, 3), shape, axis, importance=importance)
        assigned = node.assign(normal(shape), importance)
        np.testing.assert_array_equal(assigned.codes, node.codes)


def test_channels_have_their_scales():
    node = encoded(ssvq.VQ(5, 3, channel_scale="float32"), (27, 13))
    weight = normal((27, 13)) * jnp.geomspace(0.1, 10, 13)[None]
    node = node.replace(channel_scale=jnp.geomspace(0.1, 10, 13))
    points = reference.to_blocks(np.asarray(weight / node.scales), 3, 0)
    distances = reference.distances(
        points.reshape(-1, 3), node.codebook, np.ones((9 * 13, 3))
    )
    found = distances[np.arange(9 * 13), node.assign(weight).codes.ravel()]
    np.testing.assert_allclose(found, distances.min(axis=1), rtol=1e-4, atol=1e-6)


def test_latents_are_those_of_the_new_weight():
    node = encoded(ssvq.SSVQ(4, 8, latent_scale=3.0), (27, 13))
    weight = -2 * normal((27, 13)).at[0, 0].set(0.0)
    new = node.assign(weight)
    assert new.signs is None and float(new.latent[0, 0]) != 0
    np.testing.assert_allclose(
        jnp.abs(new.latent),
        jnp.maximum(3 * jnp.abs(weight), jnp.finfo(jnp.float32).tiny),
        rtol=1e-6,
    )
    final = node.assign(weight, training=False)
    assert final.latent is None and final.codebook.dtype == jnp.float32
    np.testing.assert_array_equal(ssvq.decode(final), ssvq.decode(new))


def test_steps_below_zero_are_used_by_their_magnitude():
    node = encoded(ssvq.Uniform(3), (48, 16))
    node = node.replace(scale=node.scale.at[3].multiply(-1))
    weight = normal((48, 16))
    for training in (True, False):
        new = node.assign(weight, training=training)
        assert (new.scale > 0).all()
        np.testing.assert_allclose(ssvq.decode(new), ssvq.decode(node), rtol=1e-5)


@by_name
def test_without_importance_anywhere_and_under_jit(codec):
    node, weight = encoded(codec, (27, 13)), normal((27, 13))
    eager = node.assign(weight, jnp.zeros((27, 13)))
    assert jnp.isfinite(ssvq.decode(eager)).all()
    jitted = jax.jit(lambda *x: x[0].assign(*x[1:]))(node, weight, jnp.zeros((27, 13)))
    chex.assert_trees_all_equal(jitted, eager)


@pytest.mark.parametrize("codec", CODECS[::2], ids=lambda codec: codec.describe())
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded(codec, kind, key):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
    weight = normal((48, 16))
    sharding = NamedSharding(mesh, P("x", "y"))
    alone = ssvq.encode(codec, weight, key=key)
    one = alone.assign(-weight)
    four = ssvq.encode(codec, jax.device_put(weight, sharding), key=key)
    four = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), alone, four)
    other = jax.device_put(-weight, sharding)
    found = four.assign(other)
    chex.assert_trees_all_equal(found, one)
    for old, new in zip(jax.tree.leaves(four), jax.tree.leaves(found), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)
    jitted = jax.jit(lambda node, weight: node.assign(weight))(four, other)
    chex.assert_trees_all_equal(jitted, one)


def test_what_does_not_fit():
    node, weight = encoded(ssvq.SSVQ(4, 8), (27, 13)), normal((27, 13))
    with pytest.raises(ValueError, match=r"weight: expected shape \(27, 13\), got"):
        node.assign(weight.T)
    with pytest.raises(ValueError, match="weight: expected finite.*1 NaN"):
        node.assign(weight.at[1, 2].set(jnp.nan))
    with pytest.raises(ValueError, match=r"importance: expected the weight's shape"):
        node.assign(weight, weight[0])
    with pytest.raises(ValueError, match="importance: expected values >= 0"):
        node.assign(weight, weight)
