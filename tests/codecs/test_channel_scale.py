"""One scale an output channel, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from tests import reference
from tests.codecs.weights import encoded, normal

LAYOUTS = {  # shape, axis, shape that a scale for every channel has
    "dense": ((27, 13), None, (1, 13)),
    "conv": ((3, 3, 5, 12), None, (1, 1, 1, 12)),
    "depthwise": ((3, 3, 1, 41), None, (1, 1, 1, 41)),
    "attention": ((24, 3, 8), 0, (1, 1, 8)),
    "embedding": ((50, 20), -1, (50, 1)),
    "vector": ((101,), None, (1,)),
    "one channel": ((37, 1), 0, (1, 1)),
}
CODECS = [
    ssvq.SSVQ(5, 3, channel_scale="float32"),
    ssvq.SSVQ(5, 3, learn_signs=False, channel_scale="float16"),
    ssvq.VQ(5, 3, channel_scale="float16"),
    ssvq.MVQ(5, 3, (1, 3), channel_scale="bfloat16"),
]


def _uneven(shape, channels):
    """Weights whose channels differ in size by up to a factor of 100."""
    size = np.geomspace(0.01, 1, np.prod(channels)).reshape(channels)
    return np.asarray(normal(shape)) * size.astype("f4")


def _rms(weight, importance, channels):
    """Of every channel; without regard to importance where there is none in it."""
    others = tuple(i for i, n in enumerate(channels) if n == 1)
    weight, importance = weight.astype("f8"), importance.astype("f8")
    mass = importance.sum(axis=others, keepdims=True)
    importance = np.where(mass > 0, importance, 1.0)
    total = (importance * weight**2).sum(axis=others, keepdims=True)
    return np.sqrt(total / importance.sum(axis=others, keepdims=True))


def _kept(node):
    """What of the weight is clustered: all, or MVQ's mask."""
    if not isinstance(node.codec, ssvq.MVQ):
        return np.ones(node.shape)
    return np.asarray(ssvq.decode(node)) != 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
@pytest.mark.parametrize("weighted", [False, True])
def test_encode_and_decode(codec, layout, weighted, rng, key):
    shape, axis, channels = LAYOUTS[layout]
    weight = _uneven(shape, channels)
    importance = rng.uniform(0.1, 2, shape).astype("f4") if weighted else None
    node = ssvq.encode(codec, weight, key=key, axis=axis, importance=importance)
    kept = _kept(node)
    counted = kept if importance is None else kept * importance
    scale = _rms(weight, counted, channels)
    np.testing.assert_allclose(node.channel_scale, scale.ravel(), rtol=1e-5)

    codebook, codes = np.asarray(node.codebook), np.asarray(node.codes)
    signs = np.ones(shape)
    if isinstance(codec, ssvq.SSVQ):
        signs = np.where(weight >= 0, 1, -1)
        if node.latent is not None:
            np.testing.assert_array_equal(node.latent, weight)
    factors = signs * kept * np.asarray(node.channel_scale).reshape(channels)
    decoded = reference.lookup(codebook, codes, shape, node.axis) * factors
    np.testing.assert_allclose(ssvq.decode(node), decoded, rtol=1e-6)

    # Codes and codebook are those of least error of the weights themselves.
    def blocks(x):
        return reference.to_blocks(x, codec.block, node.axis).reshape(-1, codec.block)

    points = blocks(weight * signs / scale)
    distance = reference.distances(points, codebook, blocks(counted * scale**2))
    chosen = distance[np.arange(codes.size), codes.ravel()]
    np.testing.assert_allclose(chosen, distance.min(axis=1), rtol=1e-3, atol=1e-5)
    mass = reference.codebook_gradient(
        counted * scale**2, codes, codec.codewords, codec.block, node.axis
    )
    total = reference.codebook_gradient(
        counted * scale * weight * signs, codes, codec.codewords, codec.block, node.axis
    )
    # Sums of float32 of weights that differ by a factor of 10,000.
    means = total[mass > 0] / mass[mass > 0]
    np.testing.assert_allclose(codebook[mass > 0], means, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_inference_form(codec, layout):
    shape, axis, channels = LAYOUTS[layout]
    node = encoded(codec, shape, axis)
    final = ssvq.finalize(node)
    chex.assert_trees_all_equal(ssvq.finalize(final), final)
    dtype = jnp.dtype(codec.channel_scale)
    stored = np.asarray(node.channel_scale.astype(dtype))
    assert final.channel_scale.dtype == dtype
    np.testing.assert_array_equal(final.channel_scale, stored)
    values = np.asarray(final.codebook, "f4")
    if final.scale is not None:
        values = values * np.asarray(final.scale)
    weight = reference.lookup(values, np.asarray(final.codes), shape, final.axis)
    weight = weight.astype("f4") * stored.astype("f4").reshape(channels)
    signs = np.sign(np.asarray(ssvq.decode(node)))
    np.testing.assert_array_equal(np.abs(ssvq.decode(final)), np.abs(weight * signs))


def test_channels_of_different_size_are_told_apart(key):
    weight = _uneven((64, 32), (1, 32))
    size = np.sqrt(np.mean(weight**2, axis=0))
    for kind in (ssvq.SSVQ, ssvq.VQ):
        errors = []
        for channel_scale in (None, "float16"):
            codec = kind(16, 4, channel_scale=channel_scale)
            node = ssvq.finalize(ssvq.encode(codec, weight, key=key))
            error = np.sqrt(np.mean((ssvq.decode(node) - weight) ** 2, axis=0))
            errors.append(error / size)
        plain, scaled = errors
        assert (scaled[:4] < 0.7 * plain[:4]).all()


def test_bits_are_those_of_the_codec_and_the_scales():
    for dtype, bits in (("float32", 32), ("float16", 16), ("bfloat16", 16)):
        for shape, axis, channels in LAYOUTS.values():
            node, plain = (
                encoded(ssvq.VQ(5, 3, channel_scale=option), shape, axis)
                for option in (dtype, None)
            )
            assert node.bits == plain.bits + bits * np.prod(channels)
    # 8 x 32 codes of 4 bits, signs, 16 codewords of 8 in int8, scale, 32 of float16.
    codec = ssvq.SSVQ(16, 8, codebook_dtype="int8", channel_scale="float16")
    expected = 256 * 4 + 2048 + 16 * 8 * 8 + 32 + 32 * 16
    assert encoded(codec, (64, 32)).bits == expected


def test_channels_of_zeros_and_without_importance(key):
    weight = 0.01 * normal((24, 4)).at[:, 1].set(0.0)
    importance = jnp.ones((24, 4)).at[:, 2].set(0.0)
    size = jnp.sqrt(jnp.mean(jnp.square(weight[:, 2])))
    for codec in CODECS:
        node = ssvq.encode(codec, weight, key=key, importance=importance)
        assert node.channel_scale[1] == 1
        np.testing.assert_allclose(node.channel_scale[2], size, rtol=1e-5)
        chex.assert_tree_all_finite(node)
    zero = ssvq.encode(CODECS[0], 0 * weight, key=key)
    assert not ssvq.decode(ssvq.finalize(zero)).any()


def test_huge_and_tiny_channels_and_importance(key):
    weight = normal((48, 3)) * jnp.array([[1e30, 1.0, 1e-30]])
    importance = jnp.full((48, 3), 1e30).at[:24].set(0.0)
    for codec in (CODECS[0], ssvq.VQ(4, 4, channel_scale="float32")):
        node = ssvq.encode(codec, weight, key=key, importance=importance)
        np.testing.assert_allclose(
            node.channel_scale / jnp.array([1e30, 1.0, 1e-30]),
            _rms(np.asarray(normal((48, 3)))[24:], np.ones((24, 3)), (1, 3))[0],
            rtol=1e-5,
        )
        assert 0.1 < float(jnp.max(jnp.abs(node.codebook))) < 10


def test_scales_that_leave_their_range_are_refused(key):
    codec = ssvq.VQ(4, 8, channel_scale="float16")
    weight = normal((32, 8))
    for factor, problem in ((1e6, "overflows"), (1e-6, "underflows")):
        node = ssvq.encode(codec, weight, key=key)
        node = node.replace(channel_scale=factor * node.channel_scale)
        with pytest.raises(
            ValueError,
            match=f"a: channel_scale: its largest.*{problem}.*'float16'; use 'bfl",
        ):
            ssvq.finalize({"a": node})
    # A dead channel beside others may underflow: it is nearly 0 anyway.
    node = ssvq.encode(codec, weight.at[:, 3].multiply(1e-9), key=key)
    final = ssvq.finalize(node)
    assert final.channel_scale[3] == 0 and not ssvq.decode(final)[:, 3].any()
    node = ssvq.encode(codec, weight, key=key)
    broken = node.replace(channel_scale=node.channel_scale.at[1].set(jnp.nan))
    with pytest.raises(ValueError, match="a: channel_scale.*1 NaN or infinite of 8"):
        ssvq.finalize({"a": broken})
    missing = node.replace(channel_scale=None)
    with pytest.raises(ValueError, match="a: channel_scale: missing"):
        ssvq.decode({"a": missing})
    # In the weight's own dtype the largest codeword has to be finite in all channels.
    node = ssvq.encode(codec, (1e4 * weight).astype(jnp.float16), key=key)
    large = node.replace(codebook=100 * node.codebook)
    with pytest.raises(ValueError, match="a: channel_scale.*8 NaN or infinite of 8"):
        ssvq.finalize({"a": large})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_gradients(codec, layout, rng):
    shape, axis, channels = LAYOUTS[layout]
    node = encoded(codec, shape, axis)
    upstream = rng.normal(size=shape).astype("f4")
    trainable, static = ssvq.partition(node)

    @jax.grad
    def gradient_of(trainable):
        return jnp.sum(ssvq.decode(ssvq.combine(trainable, static)) * upstream)

    gradient = gradient_of(trainable)
    codes = np.asarray(node.codes)
    values = reference.lookup(np.asarray(node.codebook), codes, shape, node.axis)
    factor = _kept(node)
    if isinstance(codec, ssvq.SSVQ):
        factor = np.where(np.asarray(normal(shape)) >= 0, 1, -1)
    others = tuple(i for i, n in enumerate(channels) if n == 1)
    expected = np.sum(upstream * values * factor, axis=others)
    np.testing.assert_allclose(
        gradient.channel_scale, expected.ravel(), rtol=1e-4, atol=1e-4
    )
    scale = np.asarray(node.channel_scale).reshape(channels)
    expected = reference.codebook_gradient(
        upstream * factor * scale, codes, codec.codewords, codec.block, node.axis
    )
    np.testing.assert_allclose(gradient.codebook, expected, rtol=1e-4, atol=1e-4)
    if getattr(node, "latent", None) is not None:
        np.testing.assert_allclose(
            gradient.latent, upstream * values * scale, rtol=1e-5, atol=1e-6
        )
