"""Weights, and how they are encoded, for the tests of all codecs."""

import jax
import jax.numpy as jnp
import numpy as np

import ssvq_jax as ssvq

SHAPES = [
    ((64, 32), None),
    ((27, 13), None),
    ((3, 3, 5, 12), None),
    ((3, 3, 1, 41), None),
    ((50, 20), -1),
    ((101,), None),
    ((4, 6, 16), 0),
]


def normal(shape, dtype=jnp.float32):
    """Normal weights; the same for the same shape."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


def encoded(codec, shape, axis=None, dtype=jnp.float32, **options):
    """Those weights, encoded."""
    key = jax.random.key(0)
    return ssvq.encode(codec, normal(shape, dtype), key=key, axis=axis, **options)
