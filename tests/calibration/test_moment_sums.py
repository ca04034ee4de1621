"""Sums of moments, and how few rows are told from many."""

import chex
import jax
import jax.numpy as jnp
import pytest

import ssvq_jax as ssvq


def test_moments_of_two_parts_add_up_to_those_of_all():
    x = jax.random.normal(jax.random.key(0), (12, 5))
    weight = jnp.ones((5, 3))

    def moments(x):
        return ssvq.calibrate(lambda w, x: x @ w, weight, [x])

    whole, sums = moments(x)[""], (moments(x[:8]) + moments(x[8:]))[""]
    chex.assert_trees_all_close(sums, whole, rtol=1e-5)
    with pytest.raises(ValueError, match="same parameters, in one form"):
        moments(x) + ssvq.calibrate(lambda w, x: x @ w, weight, [x], form="diagonal")


def test_few_rows_are_damped_more():
    weight = jnp.ones((5, 3))
    moments = ssvq.calibrate(lambda w, x: x @ w, weight, [jnp.ones((10, 5))])
    assert float(moments[""].damping(0.1)) == pytest.approx(0.1 + 5 / 20)
