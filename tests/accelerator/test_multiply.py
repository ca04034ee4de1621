"""What the machine computes: the integers of JAX's decode and product, bit for bit."""

import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax import accelerator as acc

CODECS = [
    ssvq.SSVQ(7, 8, codebook_dtype="int8"),
    ssvq.SSVQ(4, 12, learn_signs=False, codebook_dtype="int8"),
    ssvq.VQ(9, 4, codebook_dtype="int8"),
    ssvq.MVQ(6, 8, (2, 4)),
    ssvq.Uniform(4),
    ssvq.SSVQ(7, 8, codebook_dtype="int8", channel_scale="float16"),
    ssvq.MVQ(6, 8, (2, 4), channel_scale="bfloat16"),
]
CONFIG = acc.Config(rows=16, cols=8)
LAYOUTS = {  # weight's shape, axis of the inputs, its matrix (count, k, n)
    "in out": ((45, 21), 0, lambda w: w[None]),
    "out in": ((21, 45), 1, lambda w: w.T[None]),
    "HWIO": ((3, 2, 13, 9), 2, lambda w: w.reshape(1, -1, 9)),
    "OIHW": ((9, 13, 3, 2), 1, lambda w: w.reshape(1, 9, -1).transpose(0, 2, 1)),
    "depthwise HWIO": ((3, 3, 1, 64), 3, lambda w: w.reshape(9, 64).T[..., None]),
    "depthwise OIHW": ((64, 1, 3, 3), 0, lambda w: w.reshape(64, 9, 1)),
    "vector": ((70,), 0, lambda w: w.reshape(1, -1, 1)),
}


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_those_of_decode_and_product(codec, layout, tmp_path, rng, key):
    shape, axis, matrix = LAYOUTS[layout]
    weight = jnp.asarray(rng.normal(size=shape), "f4")
    ssvq.save(tmp_path / "x", ssvq.encode(codec, weight, key=key, axis=axis))
    node = ssvq.load(tmp_path / "x")
    integers = matrix(np.asarray(ssvq.decode(node, dtype="int8"), np.int32))
    count, k, n = integers.shape
    for m in (1, 5):
        x = rng.integers(-128, 128, (count, m, k)).astype(np.int8)
        expected = jnp.matmul(
            jnp.asarray(x, jnp.int32), integers, preferred_element_type=jnp.int32
        )
        if count == 1:
            x, expected = x[0], expected[0]
        result = acc.multiply(x, node, CONFIG)
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, expected)
        batch = np.stack([x, x[..., ::-1, :]])
        result = acc.multiply(batch, node, CONFIG)
        np.testing.assert_array_equal(
            result, np.stack([expected, expected[..., ::-1, :]])
        )


@pytest.mark.parametrize("layout", ["in out", "out in", "HWIO", "depthwise HWIO"])
def test_scales_of_channels_are_factors_of_outputs(layout, rng, key):
    shape, axis, matrix = LAYOUTS[layout]
    weight = jnp.asarray(rng.normal(size=shape), "f4")
    codec = ssvq.VQ(9, 4, codebook_dtype="int8", channel_scale="float16")
    node = ssvq.finalize(ssvq.encode(codec, weight, key=key, axis=axis))
    whole = matrix(np.asarray(ssvq.decode(node)))
    count, k, _ = whole.shape
    x = rng.integers(-128, 128, (count, 5, k)).astype(np.int8)
    outputs = acc.multiply(x[0] if count == 1 else x, node, CONFIG)
    factors = np.asarray(node.scale) * np.asarray(node.channel_scale, "f4")
    factors = factors.reshape(count, 1, -1)
    np.testing.assert_allclose(
        outputs * factors, x.astype("f4") @ whole, rtol=1e-4, atol=1e-2
    )


@pytest.mark.usefixtures("unchecked_types")
def test_products_that_cannot_be(rng, key):
    weight = jnp.asarray(rng.normal(size=(16, 8)), "f4")
    node = ssvq.encode(ssvq.VQ(2, 4), weight, key=key)
    x = np.zeros((2, 16), np.int8)
    with pytest.raises(ValueError, match="codebook_dtype='int8', got float16"):
        acc.multiply(x, node, CONFIG)
    node = ssvq.encode(ssvq.VQ(2, 4, codebook_dtype="int8"), weight, key=key)
    with pytest.raises(ValueError, match=r"x: expected \(..., m, 16\)"):
        acc.multiply(x[:, :8], node, CONFIG)
    with pytest.raises(TypeError, match="x: expected int8, got float32"):
        acc.multiply(x.astype("f4"), node, CONFIG)
