import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq

# `ssvq_jax.codecs.matmul` is the function.
matmul = importlib.import_module("ssvq_jax.codecs.matmul")

CODECS = [
    ssvq.SSVQ(16, 8),
    ssvq.SSVQ(5, 3),
    ssvq.SSVQ(64, 12, codebook_dtype="int8"),
    ssvq.SSVQ(16, 8, sign_code="hamming"),
    ssvq.SSVQ(2, 1),
    ssvq.VQ(30, 7),
    ssvq.MVQ(16, 8, keep=(2, 4)),
    ssvq.SSVQ(16, 8, channel_scale="float16"),
    ssvq.VQ(30, 7, codebook_dtype="int8", channel_scale="float32"),
]


def _node(codec, shape, rng, key, dtype=jnp.float32):
    weight = jnp.asarray(rng.normal(size=shape), dtype)
    return ssvq.finalize(ssvq.encode(codec, weight, key=key, axis=0))


@pytest.mark.parametrize("form", ["tables", "slabs", "whole"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(1, 64, 1), (67, 31, 3)])
def test_every_form_is_the_product(form, codec, inputs, outputs, rows, rng, key):
    codec_fits = codec.codewords <= -(-inputs // codec.block) * outputs
    if not codec_fits:
        pytest.skip("more codewords than blocks")
    node = _node(codec, (inputs, outputs), rng, key)
    if form == "tables" and matmul._table_width(node) is None:
        pytest.skip("the codebook is too large for tables")
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    expected = x.astype(np.float64) @ np.asarray(ssvq.decode(node), np.float64)
    result = matmul._matmul(jnp.asarray(x), node, form)
    chex.assert_shape(result, (rows, outputs))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_slabs_with_a_rest(rng, key, monkeypatch):
    node = _node(ssvq.SSVQ(4, 4), (45, 10), rng, key)
    x = jnp.asarray(rng.normal(size=(6, 45)), jnp.float32)
    monkeypatch.setattr(matmul, "_SLAB", 4 * 4 * 10)
    result = matmul._by_slabs(x, node)
    np.testing.assert_allclose(result, x @ ssvq.decode(node), rtol=1e-4, atol=1e-4)


def test_few_rows_use_tables_and_many_slabs(rng, key):
    node = _node(ssvq.SSVQ(16, 8), (1024, 4096), rng, key)
    forms = [matmul._form(rows, node) for rows in (0, 1, 3, 16)]
    assert forms == ["whole", "tables", "tables", "slabs"]
    small = _node(ssvq.SSVQ(16, 8), (64, 64), rng, key)
    assert matmul._form(1, small) == "whole"
    training = ssvq.encode(ssvq.SSVQ(16, 8), jnp.ones((1024, 4096)), key=key)
    assert matmul._form(1, training) == "whole"
    for rows in (0, 1, 16):
        x = jnp.asarray(rng.normal(size=(rows, 1024)), jnp.float32)
        expected = x @ ssvq.decode(node)
        np.testing.assert_allclose(ssvq.matmul(x, node), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_batch_axes_and_jit(batch, rng, key):
    node = _node(ssvq.SSVQ(8, 4), (20, 3000), rng, key)
    x = jnp.asarray(rng.normal(size=(*batch, 20)), jnp.float32)
    result = ssvq.matmul(x, node)
    chex.assert_shape(result, (*batch, 3000))
    np.testing.assert_allclose(result, x @ ssvq.decode(node), rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(jax.jit(ssvq.matmul)(x, node), result, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 8])
def test_dtypes_are_promoted(rows, rng, key):
    codec = ssvq.SSVQ(8, 4, channel_scale="float16")
    node = _node(codec, (512, 4200), rng, key, jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(rows, 512)), jnp.bfloat16)
    result = ssvq.matmul(x, node)
    chex.assert_type(result, jnp.bfloat16)
    weight = np.asarray(ssvq.decode(node), np.float32)
    expected = np.asarray(x, np.float32) @ weight
    np.testing.assert_allclose(np.asarray(result, "f4"), expected, rtol=2e-2, atol=0.2)
    with jax.numpy_dtype_promotion("standard"):
        assert ssvq.matmul(x.astype(jnp.float32), node).dtype == jnp.float32


@pytest.mark.parametrize("form", ["tables", "slabs", "whole"])
def test_gradient_of_x(form, rng, key):
    node = _node(ssvq.SSVQ(8, 4), (24, 40), rng, key)
    x = jnp.asarray(rng.normal(size=(2, 24)), jnp.float32)
    upstream = jnp.asarray(rng.normal(size=(2, 40)), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(matmul._matmul(x, node, form) * upstream))(x)
    np.testing.assert_allclose(gradient, upstream @ ssvq.decode(node).T, atol=1e-4)


@pytest.mark.parametrize("form", ["tables", "slabs", "whole"])
def test_gradient_of_the_codebook_and_of_scales(form, rng, key):
    codec = ssvq.SSVQ(8, 4, learn_signs=False, channel_scale="float16")
    weight = jnp.asarray(rng.normal(size=(24, 40)), jnp.float32)
    node = ssvq.encode(codec, weight, key=key)
    x = jnp.asarray(rng.normal(size=(2, 24)), jnp.float32)
    trainable, static = ssvq.partition(node)

    def loss(product):
        return lambda part: jnp.sum(jnp.square(product(ssvq.combine(part, static))))

    expected = jax.grad(loss(lambda node: x @ ssvq.decode(node)))(trainable)
    gradient = jax.grad(loss(lambda node: matmul._matmul(x, node, form)))(trainable)
    np.testing.assert_allclose(gradient.codebook, expected.codebook, rtol=1e-3)
    np.testing.assert_allclose(
        gradient.channel_scale, expected.channel_scale, rtol=1e-3, atol=1e-3
    )


def test_other_weights_are_decoded(rng, key):
    x = jnp.asarray(rng.normal(size=(2, 24)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(24, 16)), jnp.float32)
    for codec, axis in [(ssvq.Uniform(2), 0), (ssvq.SSVQ(4, 4), 1)]:
        node = ssvq.encode(codec, weight, key=key, axis=axis)
        expected = x @ ssvq.decode(node)
        np.testing.assert_allclose(ssvq.matmul(x, node), expected, rtol=1e-5, atol=1e-5)


def test_bad_input(rng, key):
    node = _node(ssvq.SSVQ(4, 4), (24, 16), rng, key)
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 24\), got"):
        ssvq.matmul(jnp.ones((2, 3)), node)
    with pytest.raises(TypeError, match="x: expected a floating"):
        ssvq.matmul(jnp.ones((2, 24), jnp.int32), node)
    kernel = _node(ssvq.SSVQ(4, 4), (24, 2, 8), rng, key)
    with pytest.raises(ValueError, match=r"\(in, out\), got shape \(24, 2, 8\)"):
        ssvq.matmul(jnp.ones((2, 24)), kernel)


def test_no_node(unchecked_types):
    with pytest.raises(TypeError, match="compressed: expected a node"):
        ssvq.matmul(jnp.ones((2, 24)), jnp.ones((24, 16)))
