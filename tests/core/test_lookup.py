import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from ssvq_jax.core import lookup


@pytest.mark.parametrize("form", ["scatter", "product"])
@pytest.mark.parametrize(("n", "c", "k"), [(1, 1, 1), (0, 2, 3), (1031, 8, 16)])
def test_sums_by_code(form, n, c, k, rng):
    summands = rng.normal(size=(n, c)).astype(np.float32)
    codes = rng.integers(k, size=n).astype(np.uint8)
    expected = np.zeros((k, c))
    np.add.at(expected, codes, summands)
    result = lookup.sum_by_code(jnp.asarray(summands), jnp.asarray(codes), k, form)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_sums_by_code_in_chunks(rng, monkeypatch):
    monkeypatch.setattr(lookup, "_ONE_HOT", 64)
    summands = rng.normal(size=(101, 3)).astype(np.float32)
    codes = rng.integers(7, size=101)
    expected = np.zeros((7, 3))
    np.add.at(expected, codes, summands)
    result = lookup.sum_by_code(
        jnp.asarray(summands), jnp.asarray(codes, jnp.int32), 7, "product"
    )
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("take", [lookup._take, lookup._take_with_product])
def test_gradient_of_the_codebook_is_the_sum_over_its_blocks(take, rng):
    codebook = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    codes = jnp.asarray(rng.integers(5, size=(4, 6)), jnp.uint8)
    upstream = rng.normal(size=(4, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(take(codebook, codes), np.asarray(codebook)[codes])
    gradient = jax.grad(lambda c: jnp.sum(take(c, codes) * upstream))(codebook)
    expected = np.zeros((5, 3))
    np.add.at(expected, np.asarray(codes).ravel(), upstream.reshape(-1, 3))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_decode_as_on_an_accelerator(dtype, rng, key, monkeypatch):
    weight = jnp.asarray(rng.normal(size=(24, 10)), jnp.float32)
    training = ssvq.encode(ssvq.SSVQ(4, 4, codebook_dtype=dtype), weight, key=key)

    def decoded(node, codebook):
        return type(node).values(node.replace(codebook=codebook), jnp.dtype("float32"))

    for node in (training, ssvq.finalize(training)):
        expected = decoded(node, node.codebook)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        np.testing.assert_array_equal(decoded(node, node.codebook), expected)
        monkeypatch.undo()
    gradient = jax.grad(lambda c: jnp.sum(decoded(training, c) ** 2))
    expected = gradient(training.codebook)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(gradient(training.codebook), expected, rtol=1e-5)
