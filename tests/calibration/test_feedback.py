"""Targets and metrics of error feedback, against dense solves in NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssvq_jax.calibration import Role, feedback
from ssvq_jax.calibration.feedback import Walks
from ssvq_jax.calibration.layout import Layout
from ssvq_jax.codecs.nearest import Choice


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounding:
    """In place of a node: rounds in units of its scales, and keeps the targets."""

    scales: Any = None

    def choose(self, targets, *, metric=None, importance=None, valid=None):
        return Choice(jnp.zeros(targets.shape[:-1], jnp.int32), targets)

    def chosen(self, choice):
        return jnp.round(2 * choice.factors) / 2

    def put(self, codes, factors):
        return factors if self.scales is None else factors * self.scales


def moments(rng, groups, inputs):
    x = rng.normal(size=(groups, 3 * inputs, inputs)) * np.geomspace(0.2, 3, inputs)
    return np.einsum("gni,gnj->gij", x, x)


# `Rounding` is no `Compressed`.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CASES = {  # shape, roles, groups, axis, block
    "dense": ((12, 5), (Role.INPUT, Role.OUTPUT), (), 0, 4),
    "padded": ((7, 5), (Role.INPUT, Role.OUTPUT), (), 0, 3),
    "one by one": ((5, 4), (Role.INPUT, Role.OUTPUT), (), 0, 1),
    "one block": ((3, 4), (Role.INPUT, Role.OUTPUT), (), 0, 8),
    "along outputs": ((5, 6), (Role.INPUT, Role.OUTPUT), (), 1, 4),
    "stacked": ((2, 6, 3), (Role.GROUP, Role.INPUT, Role.OUTPUT), (2,), 1, 4),
    "depthwise": ((2, 3, 1, 4), (Role.INPUT,) * 3 + (Role.GROUPED,), (4,), 3, 3),
    "conv": ((2, 2, 3, 4), (Role.INPUT,) * 3 + (Role.OUTPUT,), (), 2, 2),
    "rows of a conv": ((3, 2, 2, 4), (Role.INPUT,) * 3 + (Role.OUTPUT,), (), 0, 2),
}


@pytest.fixture(params=CASES)
def case(request, rng):
    return make(request.param, rng)


def make(name, rng):
    """A layout, its second moments with padding apart, a weight, its scales."""
    layout = Layout(*CASES[name])
    groups = int(np.prod(layout.groups))
    real = layout.inputs >= 0
    second = np.eye(len(real))[None].repeat(groups, 0)
    inside = moments(rng, groups, real.sum())
    second[:, real[:, None] & real] = inside.reshape(groups, -1)
    weight = jnp.asarray(rng.normal(size=layout.shape), jnp.float32)
    scales = np.ones_like(layout.shape)
    scales[-1] = layout.shape[-1]
    scales = jnp.asarray(rng.uniform(0.5, 2, scales), jnp.float32)
    return layout, second, weight, scales


def steps_of(layout, second, order):
    """Real inputs of every step, in their order, and those of largest moments first."""
    steps = np.arange(len(layout.inputs)).reshape(-1, layout.step)
    real = layout.inputs >= 0
    diagonal = np.where(real, np.diagonal(second, axis1=1, axis2=2), 0).sum(0)
    totals = diagonal[steps[np.asarray(order)]].sum(1)
    assert (np.diff(totals) <= 1e-4 * totals[0]).all()
    return [step[real[step]] for step in steps[np.asarray(order)]]


def walked(case, error=None, outputs=None):
    """The walks; targets, what is chosen for them, the weight, as rows in float64."""
    layout, second, weight, scales = case
    second, outputs = jax.tree.map(jnp.float32, (second, outputs))
    walks = Walks.plan(second, outputs, layout)
    rows = layout.rows(weight)
    is_first = error is None
    error = jnp.zeros_like(rows) if is_first else error
    take = jax.jit(
        lambda walks, rows, error: walks.take(
            is_first, Rounding(scales), layout, rows, error
        )
    )
    targets = take(walks, rows, error)
    chosen = jnp.round(2 * targets / scales) / 2 * scales
    arrays = (np.asarray(layout.rows(x), "f8") for x in (targets, chosen, weight))
    return walks, *arrays


def test_first_pass(case):
    layout, second, *_ = case
    (walk, _), targets, chosen, weight = walked(case)
    steps = steps_of(layout, second, walk.order)
    for group, matrix in enumerate(second):
        error = np.zeros_like(weight[group])
        left = layout.inputs >= 0
        for i, step in enumerate(steps):
            # The errors of all inputs that are left which are best for those before.
            before, rest = np.flatnonzero(~left), np.flatnonzero(left)
            inside = matrix[np.ix_(rest, rest)]
            best = -np.linalg.solve(
                inside, matrix[np.ix_(rest, before)] @ error[before]
            )
            wanted = (weight[group][rest] - best)[np.isin(rest, step)]
            np.testing.assert_allclose(
                targets[group][step], wanted, rtol=1e-3, atol=1e-3
            )
            # What an error costs after the rest has made up for it.
            left[step] = False
            rest = np.flatnonzero(left)
            across = matrix[np.ix_(step, rest)]
            gain = across @ np.linalg.solve(matrix[np.ix_(rest, rest)], across.T)
            metric = np.asarray(walk.first.metric[i, group])
            used = np.flatnonzero(np.diagonal(metric))
            np.testing.assert_allclose(
                metric[np.ix_(used, used)],
                matrix[np.ix_(step, step)] - gain,
                rtol=1e-3,
                atol=1e-4 * matrix.max(),
            )
            error[step] = weight[group][step] - chosen[group][step]


def test_sweep(case, rng):
    layout, second, _, _ = case
    start = layout.rows(jnp.asarray(rng.normal(size=layout.shape), jnp.float32))
    (walk, _), targets, chosen, weight = walked(case, start)
    steps = steps_of(layout, second, walk.order)
    for group, matrix in enumerate(second):
        error = np.asarray(start[group], "f8")
        for i, step in enumerate(steps):
            others = np.setdiff1d(np.arange(len(matrix)), step)
            own = matrix[np.ix_(step, step)]
            best = -np.linalg.solve(own, matrix[np.ix_(step, others)] @ error[others])
            np.testing.assert_allclose(
                targets[group][step], weight[group][step] - best, rtol=1e-3, atol=1e-3
            )
            metric = np.asarray(walk.sweep.metric[i, group])
            used = np.flatnonzero(np.diagonal(metric))
            np.testing.assert_allclose(metric[np.ix_(used, used)], own, rtol=1e-5)
            error[step] = weight[group][step] - chosen[group][step]


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "sweep"])
@pytest.mark.parametrize("name", ["dense", "padded", "stacked", "conv"])
def test_both_sides(name, is_first, rng, monkeypatch):
    """Against the whole Kronecker product; 5, 3 and 4 outputs are cut into twos."""
    monkeypatch.setattr(feedback, "CHUNK", 2)
    layout, second, weight, scales = case = make(name, rng)
    groups, size = len(second), layout.rows(weight).shape[-1]
    outputs = moments(rng, groups, size)
    start = np.asarray(layout.rows(rng.normal(size=layout.shape)), "f4")
    found = walked(case, None if is_first else jnp.asarray(start), outputs)
    (inputs, across), targets, chosen, weight = found
    steps = steps_of(layout, second, inputs.order)
    chunks = [np.arange(2 * i, min(2 * i + 2, size)) for i in np.asarray(across.order)]
    for group in range(groups):
        matrix = np.kron(second[group], outputs[group])
        error = np.zeros(matrix.shape[0]) if is_first else start[group].ravel() * 1.0
        left = np.repeat(layout.inputs >= 0, size)
        for chunk in chunks:
            for step in steps:
                own = (step[:, None] * size + chunk).ravel()
                # In a first pass all that is left makes up for what was; else all else
                # is given.
                free = np.flatnonzero(left) if is_first else own
                given = (
                    np.flatnonzero(~left)
                    if is_first
                    else (np.setdiff1d(np.arange(len(error)), own))
                )
                best = -np.linalg.solve(
                    matrix[np.ix_(free, free)],
                    matrix[np.ix_(free, given)] @ error[given],
                )
                wanted = weight[group].ravel()[free] - best
                np.testing.assert_allclose(
                    targets[group].ravel()[own],
                    wanted[np.isin(free, own)],
                    rtol=2e-3,
                    atol=2e-3,
                )
                left[own] = False
                error[own] = (weight[group] - chosen[group]).ravel()[own]


def test_feedback_lowers_the_error_of_rounding(rng):
    layout = Layout(*CASES["dense"])
    x = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 12))
    second = (x.T @ x + 0.05 * np.eye(12))[None]
    case = (
        layout,
        second,
        jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
        jnp.ones((1, 5)),
    )
    _, _, chosen, weight = walked(case)

    def cost(values):
        return np.einsum("gio,gij,gjo->", weight - values, second, weight - values)

    assert cost(chosen) < 0.5 * cost(np.round(2 * weight) / 2)
