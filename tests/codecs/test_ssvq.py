import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
from tests import reference
from tests.codecs.weights import SHAPES, encoded, normal


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_ssvq_decodes_codeword_times_sign(shape, axis):
    for codec in (ssvq.SSVQ(5, 3), ssvq.SSVQ(5, 3, learn_signs=False)):
        node = encoded(codec, shape, axis)
        magnitude = reference.lookup(
            np.asarray(node.codebook), np.asarray(node.codes), shape, node.axis
        )
        assert (magnitude >= 0).all()
        sign = np.where(np.asarray(normal(shape)) >= 0, 1, -1)
        np.testing.assert_array_equal(ssvq.decode(node), magnitude * sign)


def test_ssvq_codes_are_the_nearest_magnitudes():
    weight = np.asarray(normal((27, 13)))
    node = encoded(ssvq.SSVQ(5, 8), (27, 13))
    blocks = reference.to_blocks(np.abs(weight), 8, 0).reshape(-1, 8)
    valid = reference.to_blocks(np.ones_like(weight), 8, 0).reshape(-1, 8)
    distance = reference.distances(blocks, node.codebook, valid)
    codes = np.asarray(node.codes).ravel()
    np.testing.assert_allclose(
        distance[np.arange(len(codes)), codes], distance.min(axis=1), atol=1e-5
    )


def test_zero_weights_are_plus():
    node = ssvq.encode(ssvq.SSVQ(2, 4), jnp.zeros((8, 4)), key=jax.random.key(0))
    final = ssvq.finalize(node)
    np.testing.assert_array_equal(final.signs, 0)
    np.testing.assert_array_equal(ssvq.decode(final), 0.0)


def test_latent_scale():
    node = encoded(ssvq.SSVQ(4, 8, latent_scale=3.0), (16, 8))
    np.testing.assert_allclose(node.latent, 3 * normal((16, 8)), rtol=1e-6)


@pytest.mark.parametrize("sign_code", ["free", "parity"])
def test_latents_that_are_not_finite_are_refused(sign_code, rng, key):
    weight = jnp.asarray(rng.normal(size=(16, 16)), "f4")
    node = ssvq.encode(ssvq.SSVQ(4, 4, sign_code=sign_code), weight, key=key)
    node = node.replace(latent=node.latent.at[3, 5].set(jnp.nan))
    with pytest.raises(ValueError, match="k: latent: .* 1 NaN or infinite of 256"):
        ssvq.finalize({"k": node})
