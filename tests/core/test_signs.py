import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssvq_jax import sign_ste, split_signs

FLOATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=5, min_side=0),
    elements=st.floats(width=32, allow_nan=False, allow_subnormal=False),
)


@given(FLOATS)
def test_split_signs_is_exact(weight):
    magnitude, sign = split_signs(jnp.asarray(weight))
    np.testing.assert_array_equal(magnitude, np.abs(weight))
    np.testing.assert_array_equal(sign, np.where(weight >= 0, 1, -1))
    np.testing.assert_array_equal(magnitude * sign, weight)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_split_signs_keeps_dtype_and_takes_zero_as_plus(dtype):
    weight = jnp.array([-0.0, 0.0, -1.5, 2.0], dtype)
    magnitude, sign = split_signs(weight)
    chex.assert_type([magnitude, sign], dtype)
    chex.assert_trees_all_equal(sign, jnp.array([1, 1, -1, 1], dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sign_ste_is_sign_forward_and_identity_backward(dtype, rng):
    latent = jnp.asarray(rng.normal(size=(3, 5)), dtype)
    cotangent = jnp.asarray(rng.normal(size=(3, 5)), dtype)
    value, vjp = jax.vjp(sign_ste, latent)
    chex.assert_trees_all_equal(value, jnp.where(latent >= 0, 1, -1).astype(dtype))
    chex.assert_trees_all_equal(vjp(cotangent)[0], cotangent)
    _, tangent = jax.jvp(sign_ste, (latent,), (cotangent,))
    chex.assert_trees_all_equal(tangent, cotangent)
    chex.assert_trees_all_equal(jax.vmap(jax.jit(sign_ste))(latent), value)
