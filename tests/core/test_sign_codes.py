"""Signs that are words of a code, against all words in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax.core.sign_codes import (
    complete,
    nearest_word,
    stored_count,
    stored_positions,
    word_ste,
    words,
)
from tests import reference

CODES = [("parity", 2), ("parity", 5), ("parity", 8), ("hamming", 8), ("hamming", 16)]
SHAPES = [((16, 3), 0), ((21, 2), 0), ((5,), 0), ((2, 3, 11, 2), 2), ((3, 19), 1)]
CHECKS = [(0, 1, 2, 4), (0, 1, 3, 5), (0, 2, 3, 6), (1, 2, 3, 7)]


def is_word(signs, code):
    """Whether rows of signs are words, from the definition."""
    if code == "parity":
        return np.prod(signs, axis=-1) > 0
    groups = signs.reshape(len(signs), signs.shape[1] // 8, 8)
    products = [np.prod(groups[:, :, list(check)], axis=-1) > 0 for check in CHECKS]
    return np.all(products, axis=(0, 2))


def all_words(code, block):
    size = block if code == "parity" else 8
    signs = np.array(list(itertools.product((1, -1), repeat=size)))
    return signs[is_word(signs, code)]


@pytest.mark.parametrize("code, block", CODES)
def test_words_are_all_there_are(code, block):
    found, expected = words(code, block), all_words(code, block)
    assert found.shape == expected.shape and (found[0] == 1).all()
    assert set(map(tuple, found)) == set(map(tuple, expected))
    if code == "hamming":  # of any two words at least four signs differ
        differ = (found[:, None] != found[None]).sum(axis=-1)
        assert differ[~np.eye(len(found), dtype=bool)].min() == 4
    stored = stored_positions(code, block)
    assert 2 ** stored.sum() == len(found) ** (block // found.shape[1])


@pytest.mark.parametrize("shape, axis", SHAPES)
@pytest.mark.parametrize("code, block", CODES)
def test_the_nearest_word(code, block, shape, axis, rng):
    latent = rng.normal(size=shape).astype("f4")
    signs = np.asarray(nearest_word(jnp.asarray(latent), code, block, axis))
    assert signs.shape == shape and signs.dtype == np.float32
    table = all_words(code, block)
    size = table.shape[1]
    blocks = reference.to_blocks(latent, size, axis).reshape(-1, size)
    best = (blocks @ table.T).max(axis=1)
    found = reference.to_blocks(signs, size, axis).reshape(-1, size)
    np.testing.assert_allclose((blocks * found).sum(axis=1), best, rtol=1e-5)
    whole = (found != 0).all(axis=1)
    assert is_word(found[whole], code).all()


def test_a_word_stays_and_of_equals_the_first_is_taken():
    latent = jnp.array([[0.0, 0.0, 0.0, 0.0]])
    assert nearest_word(latent, "parity", 4, 1).tolist() == [[1, 1, 1, 1]]
    latent = jnp.array([[-1.0, 0.5, 0.5, -0.1], [-1.0, 0.5, 0.5, 0.6]])
    expected = [[-1, 1, 1, -1], [-1, -1, 1, 1]]
    assert nearest_word(latent, "parity", 4, 1).tolist() == expected
    for word in all_words("hamming", 8):
        found = nearest_word(jnp.asarray(word[:, None], jnp.bfloat16), "hamming", 8, 0)
        np.testing.assert_array_equal(np.asarray(found[:, 0], "f4"), word)


@pytest.mark.parametrize("code", ["free", "parity", "hamming"])
def test_the_gradient_is_that_of_the_identity(code, rng):
    latent, upstream = (jnp.asarray(rng.normal(size=(16, 3)), "f4") for _ in range(2))
    value, vjp = jax.vjp(lambda x: word_ste(x, code, 8, 0), latent)
    np.testing.assert_array_equal(value, nearest_word(latent, code, 8, 0))
    np.testing.assert_array_equal(vjp(upstream)[0], upstream)


@pytest.mark.parametrize("code, block", CODES)
def test_what_is_not_stored_follows(code, block, rng):
    signs = nearest_word(jnp.asarray(rng.normal(size=(50, block))), code, block, 1)
    bits = (np.asarray(signs) < 0).astype(np.uint8)
    given = np.where(stored_positions(code, block), bits, 0).astype(np.uint8)
    np.testing.assert_array_equal(complete(given, code), bits)


@pytest.mark.parametrize("code, block", [*CODES, ("free", 5)])
def test_what_is_stored_is_counted_without_an_array(code, block):
    positions = stored_positions(code, block)
    for weights in range(block + 1):
        assert stored_count(code, weights, block) == positions[:weights].sum()
    assert stored_count(code, 9, 1 << 40) == {"hamming": 5}.get(code, 9)


@pytest.mark.parametrize("shape, axis", SHAPES[:4])
@pytest.mark.parametrize("code, block", [("parity", 5), ("hamming", 8)])
def test_a_node_through_its_stored_form(code, block, shape, axis, rng, key):
    weight = rng.normal(size=shape).astype("f4")
    blocks = math.ceil(shape[axis] / block) * math.prod(shape) // shape[axis]
    if blocks < 2:
        pytest.skip("one block has no two codewords")
    codec = ssvq.SSVQ(2, block, sign_code=code)
    node = ssvq.encode(codec, weight, key=key, axis=axis)
    final = ssvq.finalize(node)
    np.testing.assert_allclose(ssvq.decode(final), ssvq.decode(node), rtol=1e-3)
    stored = final.stored()
    sizes = {field.name: field.count for field in codec.fields(shape, axis)}
    assert {name: x.size for name, x in stored.items()} == sizes
    restored = codec.restore(shape, final.dtype, axis, stored)
    np.testing.assert_array_equal(restored.signs, final.signs)


@pytest.mark.parametrize(
    "code, codewords, most", [("parity", 32, 0.93), ("hamming", 256, 0.75)]
)
def test_bits_are_saved_and_the_error_falls(code, codewords, most, rng, key):
    weight = rng.laplace(size=(256, 256)).astype("f4")
    coded = ssvq.SSVQ(codewords, 8, sign_code=code)
    errors, bits = [], []
    for codec in (ssvq.SSVQ(16, 8), coded):
        node = ssvq.encode(codec, weight, key=key)
        errors.append(float(np.square(ssvq.decode(node) - weight).sum()))
        codebook = 16 * codec.codewords * codec.block
        bits.append((node.bits - codebook) / weight.size)
    assert bits == [1.5, 1.5]
    assert errors[1] < most * errors[0]


def test_gradients_of_a_node_are_those_of_free_signs(rng, key):
    weight, upstream = (rng.normal(size=(16, 6)).astype("f4") for _ in range(2))
    node = ssvq.encode(ssvq.SSVQ(4, 8, sign_code="hamming"), weight, key=key)
    trainable, static = ssvq.partition(node)

    def loss(trainable):
        return jnp.sum(upstream * ssvq.decode(ssvq.combine(trainable, static)))

    gradient = jax.jit(jax.grad(loss))(trainable)
    codewords = reference.lookup(
        np.asarray(node.codebook), np.asarray(node.codes), (16, 6), 0
    )
    np.testing.assert_allclose(gradient.latent, upstream * codewords, rtol=1e-5)
    word = np.asarray(nearest_word(node.latent, "hamming", 8, 0))
    np.testing.assert_allclose(
        gradient.codebook,
        reference.codebook_gradient(upstream * word, np.asarray(node.codes), 4, 8, 0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_what_does_not_fit_says_so():
    with pytest.raises(ValueError, match="sign_code: expected one of free, .*'even'"):
        ssvq.SSVQ(16, 8, sign_code="even")
    with pytest.raises(ValueError, match="block: expected 2 to 12 .*got 16"):
        ssvq.SSVQ(16, 16, sign_code="parity")
    with pytest.raises(ValueError, match="block: expected a multiple of 8 .*got 12"):
        ssvq.SSVQ(16, 12, sign_code="hamming")
