"""Tables of embeddings, read and multiplied without decoding all of them."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq

embedding = importlib.import_module("ssvq_jax.codecs.embedding")

CODECS = [
    ssvq.Uniform(8),
    ssvq.SSVQ(4, 8),
    ssvq.SSVQ(4, 8, sign_code="hamming", channel_scale="float16"),
    ssvq.VQ(4, 4, codebook_dtype="int8", channel_scale="bfloat16"),
    ssvq.MVQ(4, 4, (2, 4)),
]


def node_of(codec, shape, rng, key, dtype="f4"):
    return ssvq.encode(codec, rng.normal(size=shape).astype(dtype), key=key, axis=1)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_rows_and_logits(codec, final, rng, key, monkeypatch):
    node = node_of(codec, (23, 18), rng, key)
    node = ssvq.finalize(node) if final else node
    table = ssvq.decode(node)
    for indices in ([[3, 22], [0, 3]], [5], 7, np.zeros((0, 2), int), [-1, 99]):
        clipped = np.clip(np.asarray(indices, np.int32), 0, 22)
        found = ssvq.take(node, np.asarray(indices, np.int32))
        np.testing.assert_array_equal(found, np.asarray(table)[clipped])
    x = rng.normal(size=(2, 3, 18)).astype(np.float32)
    monkeypatch.setattr(embedding, "_SLAB", 18 * 5)  # four slabs and three rows
    for rows in (x, x[0, 0], x[:0]):
        np.testing.assert_allclose(
            ssvq.attend(rows, node), rows @ np.asarray(table).T, rtol=1e-5, atol=1e-5
        )


def test_one_row_and_other_dtypes(rng, key):
    node = ssvq.finalize(node_of(ssvq.Uniform(4), (1, 8), rng, key, jnp.bfloat16))
    table = ssvq.decode(node)
    found = ssvq.take(node, jnp.array([0, 0]))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.repeat(table, 2, axis=0))
    logits = ssvq.attend(jnp.ones((2, 8), jnp.bfloat16), node)
    assert logits.shape == (2, 1) and logits.dtype == jnp.bfloat16


def test_gradients_are_those_of_the_whole_table(rng, key):
    node = node_of(ssvq.SSVQ(4, 8, channel_scale="float16"), (12, 16), rng, key)
    trainable, static = ssvq.partition(node)
    tokens = jnp.array([1, 3, 3, 11])

    def loss(read, write):
        def of(trainable):
            node = ssvq.combine(trainable, static)
            return jnp.sum(jnp.tanh(write(read(node, tokens), node)))

        return of

    found = jax.grad(loss(ssvq.take, ssvq.attend))(trainable)
    expected = jax.grad(
        loss(
            lambda node, tokens: ssvq.decode(node)[tokens],
            lambda x, node: x @ ssvq.decode(node).T,
        )
    )(trainable)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_bad_input(rng, key):
    node = node_of(ssvq.Uniform(8), (12, 16), rng, key)
    with pytest.raises(TypeError, match="indices: expected integers, got float32"):
        ssvq.take(node, jnp.ones(2))
    with pytest.raises(TypeError, match="x: expected a floating dtype"):
        ssvq.attend(jnp.ones(16, int), node)
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 16\)"):
        ssvq.attend(jnp.ones(12), node)
    kernel = ssvq.encode(ssvq.Uniform(8), jnp.ones((12, 16)), key=key)
    with pytest.raises(ValueError, match="got shape .* with blocks along axis 0"):
        ssvq.attend(jnp.ones(16), kernel)
    keys = jax.random.split(key, 2)
    stack = jax.vmap(lambda w, k: ssvq.encode(ssvq.Uniform(8), w, key=k, axis=1))(
        jnp.ones((2, 12, 16)), keys
    )
    with pytest.raises(ValueError, match=r"a stack of \(2,\): apply jax.vmap"):
        ssvq.take(stack, jnp.array([1]))
