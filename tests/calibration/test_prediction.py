"""The expected share of the output's variance against loops, and against feedback."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ssvq_jax as ssvq
from ssvq_jax.calibration import Moment, Role
from ssvq_jax.calibration.prediction import output_cost

ROWS = 9.0


def reference(second, weights, errors, rows=ROWS):
    """Over groups of `(in, in)`, `(in, out)` and `(in, out)`."""
    error = variance = 0.0
    for h, w, e in zip(second, weights, errors, strict=True):
        h = np.asarray(h, np.float64)
        damping = 0.1 + len(h) / (2 * rows)
        h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
        values = np.maximum(np.linalg.eigvalsh(h), 0)
        error += np.sum(e**2) * np.prod(values ** (1 / len(h)))
        variance += np.trace(w.T @ h @ w)
    return error / variance if variance else 0.0


def moment(second, form, roles=(Role.INPUT, Role.OUTPUT)):
    """`second` is `(*groups, in, in)`; cut to the form."""
    *groups, inputs, _ = second.shape
    if form == "diagonal":
        kept = np.diagonal(second, axis1=-2, axis2=-1)
    elif form == "full":
        kept = second
    else:
        count = -(-inputs // form)
        wide = np.zeros((*groups, count * form, count * form))
        wide[..., :inputs, :inputs] = second
        parts = (slice(i * form, (i + 1) * form) for i in range(count))
        kept = np.stack([wide[..., part, part] for part in parts], axis=-3)
    return Moment(
        second=jnp.asarray(kept, jnp.float32),
        mean=jnp.zeros((*groups, inputs)),
        count=jnp.full(groups, ROWS),
        roles=jnp.array(roles, jnp.int32),
    )


def masked(second, form):
    """`second` with zeros outside of the form."""
    place = np.arange(second.shape[-1]) // {"diagonal": 1, "full": 99}.get(form, form)
    return np.where(place[:, None] == place, second, 0)


def inputs(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x + 0.8 * np.roll(x, 1, axis=-1)


@pytest.mark.parametrize("form", ["full", "diagonal", 1, 2, 3, 7, 8])
@pytest.mark.parametrize("rows", [1, 3, 40])  # fewer than inputs: rank-deficient
def test_dense(form, rows, rng):
    x = inputs(rng, rows, 7)
    x[:, 2] = 0  # a dead input
    second = x.T @ x
    weight, error = rng.normal(size=(2, 7, 5))
    cost = output_cost(moment(second, form), weight)(error)
    expected = reference([masked(second, form)], [weight], [error])
    assert cost == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("form", ["full", "diagonal", 2])
def test_groups_are_summed(form, rng):
    x = inputs(rng, 3, 20, 5)
    x[1] = 0  # a layer that nothing reaches
    second = np.einsum("gni,gnj->gij", x, x)
    weight, error = rng.normal(size=(2, 5, 3, 4))
    roles = (Role.INPUT, Role.GROUP, Role.OUTPUT)
    cost = output_cost(moment(second, form, roles), weight)(error)
    expected = reference(
        masked(second, form), weight.swapaxes(0, 1), error.swapaxes(0, 1)
    )
    assert cost == pytest.approx(expected, rel=1e-4)


def test_a_depthwise_convolution(rng):
    images = rng.normal(size=(4, 6, 6, 3)).astype(np.float32)
    weight, error = rng.normal(size=(2, 3, 3, 1, 3))

    def apply(params, x):
        return lax.conv_general_dilated(
            x,
            params["kernel"],
            (1, 1),
            "VALID",
            feature_group_count=3,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    params = {"kernel": jnp.asarray(weight, jnp.float32)}
    moments = ssvq.calibrate(apply, params, [images])
    second, weights, errors = [], [], []
    for channel in range(3):
        windows = np.lib.stride_tricks.sliding_window_view(
            images[..., channel], (3, 3), axis=(1, 2)
        ).reshape(-1, 9)
        second.append(windows.T @ windows)
        weights.append(weight[..., channel].reshape(9, 1))
        errors.append(error[..., channel].reshape(9, 1))
    cost = output_cost(moments["kernel"], weight)(error)
    expected = reference(second, weights, errors, len(windows))
    assert cost == pytest.approx(expected, rel=1e-4)


def test_one_input_and_one_output(rng):
    cost = output_cost(moment(np.array([[4.0]]), "full"), np.array([[3.0]]))
    assert cost(np.array([[0.3]])) == pytest.approx(0.01)


@pytest.mark.parametrize("groups", [(), (3,)], ids=["one", "three"])
def test_factors_of_the_fisher_information(groups, rng):
    gradients = rng.normal(size=(*groups, 20, 5, 3)) * np.geomspace(0.2, 2, 3)
    weight, error = rng.normal(size=(2, *groups, 5, 3))
    roles = (*(Role.GROUP for _ in groups), Role.INPUT, Role.OUTPUT)
    second = np.einsum("...nio,...njo->...ij", gradients, gradients)
    outputs = np.einsum("...nio,...nip->...op", gradients, gradients)
    factors = dataclasses.replace(
        moment(second, "full", roles), outputs=jnp.asarray(outputs, jnp.float32)
    )

    def mean(x):
        share = 0.1 + 5 / (2 * ROWS)
        x = x + share * np.trace(x) / len(x) * np.eye(len(x))
        return np.linalg.det(x) ** (1 / len(x))

    triples = zip(
        second.reshape(-1, 5, 5),
        outputs.reshape(-1, 3, 3),
        error.reshape(-1, 5, 3),
        strict=True,
    )
    expected = sum(
        np.sum(e**2) * mean(h) * mean(g) / np.trace(g) for h, g, e in triples
    )
    assert output_cost(factors, weight)(error) == pytest.approx(expected, rel=1e-4)
    silent = dataclasses.replace(factors, outputs=0 * factors.outputs)
    assert output_cost(silent, weight)(error) == 0


def test_inputs_or_weights_that_are_all_zero(rng):
    weight = rng.normal(size=(4, 3))
    for form in ("full", "diagonal", 3):
        silent = moment(np.zeros((4, 4)), form)
        assert output_cost(silent, weight)(weight) == 0
        assert output_cost(moment(np.eye(4), form), 0 * weight)(weight) == 0


def test_what_error_feedback_attains(rng):
    """Rounding row by row, each row's error compensated by the rows to come."""
    size, outputs, step = 64, 200, 0.25
    place = np.arange(size)
    second = 100 * 0.98 ** np.abs(place[:, None] - place)
    weight = rng.normal(size=(size, outputs))
    damped = second + 10 * np.eye(size)  # a tenth of the mean, of many rows
    inverse, left = np.linalg.inv(damped), weight.copy()
    chosen = np.zeros_like(weight)
    for i in range(size):
        chosen[i] = step * np.round(left[i] / step)
        left[i:] -= np.outer(inverse[i:, i], (left[i] - chosen[i]) / inverse[i, i])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    plain = weight - step * np.round(weight / step)

    def share(error):
        return np.trace(error.T @ damped @ error) / np.trace(weight.T @ damped @ weight)

    many = dataclasses.replace(moment(second, "full"), count=jnp.float32(1e9))
    expected = output_cost(many, weight)(plain)
    assert share(weight - chosen) == pytest.approx(expected, rel=0.1)
    assert share(plain) > 4 * expected


def test_moments_of_something_else(rng):
    with pytest.raises(ValueError, match=r"moments: .*inputs \(5,\), got \(3,\) of"):
        output_cost(moment(np.eye(5), "full"), rng.normal(size=(3, 5)))
    with pytest.raises(ValueError, match=r"moments: .*2 axes, got \(5, 4, 4\)"):
        output_cost(moment(np.eye(5), "full"), rng.normal(size=(5, 4, 4)))
    stack = moment(np.zeros((2, 5, 5)), "full", (Role.GROUP, Role.INPUT, Role.OUTPUT))
    with pytest.raises(
        ValueError, match=r"\(2, 5\), got \(1, 5\) of shape \(1, 5, 4\)"
    ):
        output_cost(stack, rng.normal(size=(1, 5, 4)))
    with pytest.raises(ValueError, match="moments: expected finite"):
        output_cost(moment(np.full((4, 4), np.nan), "full"), rng.normal(size=(4, 3)))
