"""Weights as rows of inputs and outputs, and as blocks, against `Moment.arrange`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag

import ssvq_jax as ssvq
from ssvq_jax.calibration import Moment, Role
from ssvq_jax.calibration.layout import Layout
from tests import reference

I, O, G, GO = Role.INPUT, Role.OUTPUT, Role.GROUP, Role.GROUPED  # noqa: E741
CASES = {  # shape, roles, groups, axis
    "dense": ((7, 5), (I, O), (), 0),
    "one input": ((1, 5), (I, O), (), 1),
    "one output": ((7, 1), (I, O), (), 0),
    "conv": ((3, 2, 5, 4), (I, I, I, O), (), 2),
    "rows of a conv": ((3, 2, 5, 4), (I, I, I, O), (), 0),
    "torch's conv": ((4, 5, 3, 2), (O, I, I, I), (), 1),
    "depthwise": ((3, 2, 1, 7), (I, I, I, GO), (7,), 3),
    "conv of 2 groups": ((3, 2, 5, 4), (I, I, I, GO), (2,), 2),
    "attention": ((7, 2, 5), (I, O, O), (), 0),
    "attention, out": ((2, 7, 5), (I, I, O), (), 1),
    "embedding": ((7, 5), (I, O), (), 1),
    "stacked": ((2, 7, 5), (G, I, O), (2,), 1),
    "stacked convs": ((2, 3, 1, 4, 6), (G, I, I, I, GO), (2, 2), 3),
    "stacked on another axis": ((7, 2, 5), (I, G, O), (2,), 2),
    "vector": ((7,), (I,), (), 0),
}


@pytest.fixture(params=CASES)
def case(request, rng):
    shape, roles, groups, axis = CASES[request.param]
    inputs = np.prod([n for n, role in zip(shape, roles, strict=True) if role == I])
    x = rng.normal(size=(*groups, 4 * inputs, inputs)).astype("f4")
    moment = Moment(
        second=np.swapaxes(x, -1, -2) @ x,
        mean=x.mean(-2),
        count=np.full(groups, len(x), np.float32),
        roles=np.array(roles, np.int32),
    )
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Layout(shape, roles, groups, axis, 3), moment, weight


def test_rows_are_those_of_the_moments(case):
    layout, moment, weight = case
    rows = np.asarray(layout.rows(weight))
    matrix = np.asarray(moment.arrange(weight)).reshape(
        rows.shape[0], -1, rows.shape[2]
    )
    real = layout.inputs >= 0
    assert sorted(layout.inputs[real]) == list(range(matrix.shape[1]))
    np.testing.assert_array_equal(rows[:, real], matrix[:, layout.inputs[real]])
    assert not rows[:, ~real].any()
    np.testing.assert_array_equal(layout.weight(layout.rows(weight)), weight)

    # The error of the outputs is the same, whatever form the moments have.
    second = np.asarray(layout.second(moment))
    full = moment.second.reshape(rows.shape[0], *moment.second.shape[-2:])
    np.testing.assert_allclose(
        np.einsum("gio,gij,gjo->", rows, second, rows),
        np.einsum("gio,gij,gjo->", matrix, full, matrix),
        rtol=1e-5,
    )
    diagonal = dataclasses.replace(moment, second=np.asarray(moment.diagonal()))
    np.testing.assert_allclose(
        layout.second(diagonal), np.diagonal(second, axis1=1, axis2=2), rtol=1e-6
    )


def test_moments_in_blocks(case):
    layout, moment, _ = case
    inputs = moment.mean.shape[-1]
    padded = -(-inputs // 4) * 4
    rest = [(0, 0)] * len(layout.groups) + [(0, padded - inputs)] * 2
    second = np.pad(moment.second, rest).reshape(*layout.groups, padded, padded)
    parts = [second[..., i : i + 4, i : i + 4] for i in range(0, padded, 4)]
    blocks = np.stack(parts, axis=-3)
    found = layout.second(dataclasses.replace(moment, second=blocks))
    flat = blocks.reshape(-1, padded // 4, 4, 4)
    full = np.stack([block_diag(*x)[:inputs, :inputs] for x in flat])
    full = full.reshape(moment.second.shape)
    expected = layout.second(dataclasses.replace(moment, second=full))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("unchecked_types")  # `Node` is no `Compressed`
def test_blocks_of_steps_are_those_of_the_weight(case):
    layout, _, weight = case

    class Node:  # what `Layout.put` gives to a node
        def put(self, codes, factors):
            return codes, factors

    rows = layout.rows(weight)
    groups, inputs, outputs = rows.shape
    slabs = rows.reshape(groups, -1, layout.step, outputs).swapaxes(0, 1)
    assert len(slabs) == inputs // layout.step
    blocks = jax.vmap(layout.blocks)(slabs)
    np.testing.assert_array_equal(jax.vmap(layout.slab)(blocks), slabs)
    # First entries for codes: the grid of blocks is that of the codecs.
    codes, factors = layout.put(Node(), (blocks[..., 0], blocks))
    expected = reference.to_blocks(np.asarray(weight), 3, layout.axis)
    np.testing.assert_array_equal(codes, expected[..., 0])
    np.testing.assert_array_equal(factors, weight)
    codes, none = layout.put(Node(), (blocks[..., 0], None))
    np.testing.assert_array_equal(codes, expected[..., 0])
    assert none is None


def test_importance_is_the_diagonal_of_every_weight(case):
    layout, moment, weight = case
    importance = moment.importance(layout.shape)
    assert importance.shape == layout.shape
    expected = np.diagonal(layout.second(moment), axis1=1, axis2=2)
    rows = np.asarray(layout.rows(importance))
    np.testing.assert_allclose(
        rows, np.broadcast_to(expected[:, :, None], rows.shape), rtol=1e-6
    )
    with pytest.raises(ValueError, match="expected"):
        moment.importance((*layout.shape, 2))
    with pytest.raises(ValueError, match="expected groups and inputs"):
        moment.importance(tuple(n + 1 for n in layout.shape))


def test_of_a_node(key):
    node = ssvq.encode(ssvq.VQ(4, 3), jnp.ones((3, 2, 5, 4)), key=key)
    moment = Moment(
        second=jnp.ones((2, 30)),
        mean=jnp.ones((2, 30)),
        count=jnp.ones(2),
        roles=jnp.array([I, I, I, GO], jnp.int32),
    )
    expected = Layout((3, 2, 5, 4), (I, I, I, GO), (2,), 2, 3)
    layout = Layout.of(node, moment)
    assert layout == expected and hash(layout) == hash(expected)
    assert layout.along_inputs and layout.step == 3
