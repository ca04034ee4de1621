"""Moments of products of all kinds against NumPy's `x.T @ x`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ssvq_jax as ssvq
from ssvq_jax.calibration import Role
from ssvq_jax.calibration.views import Factor, split


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def moment(apply, weight, x, **options):
    """The moment of a function's only parameter, nothing else being said of it."""
    moments = ssvq.calibrate(apply, weight, [x], **options)
    assert not moments.missing
    return moments[""]


def assert_moments(found, rows):
    """Of inputs `(*groups, rows, in)`."""
    rows = np.asarray(rows, np.float64)
    second = np.swapaxes(rows, -1, -2) @ rows
    np.testing.assert_allclose(found.second, second, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(found.mean, rows.mean(-2), rtol=1e-5, atol=1e-5)
    count = np.full(rows.shape[:-2], rows.shape[-2], np.float32)
    np.testing.assert_array_equal(found.count, count)
    assert found.second.dtype == found.mean.dtype == found.count.dtype == np.float32


def assert_arranged(found, weight, rows, y):
    """`arrange` gives the matrices that the inputs meet, `restore` the weight."""
    matrix = found.arrange(weight)
    result = np.einsum("...ni,...io->...no", rows, matrix)
    np.testing.assert_allclose(result, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.restore(matrix, weight.shape), weight)


@pytest.mark.parametrize("rows", [1, 7])
def test_dense(rows, rng):
    w, x = floats(rng, 5, 3), floats(rng, rows, 5)
    x[:, 2] = 0  # a dead input
    found = moment(lambda w, x: x @ w, w, x)
    assert_moments(found, x)
    assert not np.asarray(found.second)[2].any()
    assert list(found.roles) == [Role.INPUT, Role.OUTPUT]
    assert_arranged(found, w, x, x @ w)


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: w.T @ x.T,
        lambda w, x: jnp.einsum("bi,io->ob", x, w),
        lambda w, x: x @ w.reshape(2, 3, 4).reshape(6, 2, 2).reshape(6, 4),
        lambda w, x: x @ w.T.reshape(4, 2, 3).transpose(1, 2, 0).reshape(6, 4),
        lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
        lambda w, x: jax.jit(lambda w: x @ w)(w),
        lambda w, x: jax.checkpoint(lambda w, x: x @ w)(w, x),
        lambda w, x: jax.vmap(lambda x: x @ w)(x),
        lambda w, x: jax.vmap(lambda x, w: x @ w)(x, jnp.broadcast_to(w, (7, 6, 4))),
        lambda w, x: lax.cond(x[0, 0] > 9, lambda: (x @ w) * 2, lambda: x @ w),
        lambda w, x: lax.cond(x[0, 0] > 9, lambda: 0.0, lambda: (x @ w).sum()),
        lambda w, x: x @ lax.stop_gradient(w),
        lambda w, x: lax.optimization_barrier((x, w))[0] @ w[None].squeeze(0),
    ],
)
def test_views_of_a_dense_kernel(apply, rng):
    w = floats(rng, 6, 4)
    x = np.asarray(jnp.asarray(floats(rng, 7, 6), jnp.bfloat16).astype(np.float32))
    assert_moments(moment(apply, w, x), x)


def test_custom_derivatives(rng):
    w, x = floats(rng, 6, 4), floats(rng, 7, 6)

    def product(w, x):
        return x @ w

    jvp = jax.custom_jvp(product)
    jvp.defjvp(lambda primals, tangents: (jvp(*primals), tangents[1] @ primals[0]))
    vjp = jax.custom_vjp(product)
    vjp.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: saved)
    assert_moments(moment(jvp, w, x), x)
    assert_moments(moment(vjp, w, x), x)


def test_bfloat16_is_added_up_in_float32(rng):
    w, x = floats(rng, 5, 3), jnp.asarray(floats(rng, 3000, 5) + 1, jnp.bfloat16)
    found = moment(lambda w, x: x @ w, jnp.asarray(w, jnp.bfloat16), x)
    assert_moments(found, np.asarray(x, np.float32))


def test_attention(rng):
    x = floats(rng, 2, 7, 6)
    w = floats(rng, 6, 2, 4)  # (in, heads, size)
    found = moment(lambda w, x: jnp.einsum("bni,ihd->bhnd", x, w), w, x)
    assert_moments(found, x.reshape(-1, 6))
    w, x = floats(rng, 2, 4, 5), floats(rng, 2, 7, 2, 4)  # (heads, size, out)
    found = moment(lambda w, x: jnp.einsum("bnhd,hdo->bno", x, w), w, x)
    assert_moments(found, x.reshape(-1, 8))
    y = np.einsum("bnhd,hdo->bno", x, w).reshape(14, 5)
    assert_arranged(found, w, x.reshape(-1, 8), y)
    # Contracted with another order of the axes than the parameter's own.
    v = floats(rng, 5, 4, 2)
    found = moment(lambda v, x: jnp.einsum("bnhd,odh->bno", x, v), v, x)
    assert_moments(found, x.swapaxes(2, 3).reshape(-1, 8))


def test_batched_products_are_groups(rng):
    w, x = floats(rng, 5, 3, 6), floats(rng, 7, 3, 5)  # (in, experts, out)
    found = moment(lambda w, x: jnp.einsum("nei,ieo->neo", x, w), w, x)
    rows = x.swapaxes(0, 1)
    assert_moments(found, rows)
    assert list(found.roles) == [Role.INPUT, Role.GROUP, Role.OUTPUT]
    assert_arranged(found, w, rows, np.einsum("eni,ieo->eno", rows, w))
    # Heads that are a part of the outputs' axis, and see inputs of their own.
    w = floats(rng, 5, 6)
    found = moment(lambda w, x: jnp.einsum("nhi,ihd->nhd", x, w.reshape(5, 3, 2)), w, x)
    assert_moments(found, rows)
    assert list(found.roles) == [Role.INPUT, Role.GROUPED]
    y = np.einsum("hni,ihd->hnd", rows, w.reshape(5, 3, 2))
    assert_arranged(found, w, rows, y)


def test_scan(rng):
    w, x = floats(rng, 4, 5, 5), floats(rng, 7, 5)
    inputs = [x]
    for own in w:
        inputs.append(np.tanh(inputs[-1] @ own))

    def stacked(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), w), x, w)

    found = moment(stacked, w, x)
    assert_moments(found, np.stack(inputs[:-1]))
    assert list(found.roles) == [Role.GROUP, Role.INPUT, Role.OUTPUT]

    def backwards(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), 0), x, w[::1], reverse=True)

    reverse = moment(backwards, w[::-1].copy(), x)
    np.testing.assert_allclose(reverse.second, found.second[::-1], rtol=1e-5)

    def nested(w, x):  # two by two, and layers of it sliced
        def two(x, pair):
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), 0), x, pair)

        return lax.scan(two, x, w.reshape(2, 2, 5, 5))

    np.testing.assert_allclose(moment(nested, w, x).second, found.second, rtol=1e-5)

    def sliced(w, x):
        for i in range(2):
            x = jnp.tanh(x @ w[i])
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), 0), x, w[2:])

    np.testing.assert_allclose(moment(sliced, w, x).second, found.second, rtol=1e-5)


def test_scan_adds_up_what_is_constant(rng):
    w, x = floats(rng, 5, 5), floats(rng, 3, 7, 5)
    found = moment(lambda w, x: lax.scan(lambda c, x: (c, x @ w), 0, x), w, x)
    assert_moments(found, x.reshape(-1, 5))
    found = moment(lambda w, x: lax.scan(lambda w, x: (w, x @ w), w, x), w, x)
    assert_moments(found, x.reshape(-1, 5))


def test_switch_counts_the_branch_taken(rng):
    w, x = floats(rng, 3, 5, 4), floats(rng, 7, 5)

    def experts(w, x):
        branches = [lambda x, i=i: x @ w[i] for i in range(3)]
        return lax.switch(jnp.argmax(x[0, :3]), branches, x)

    found = moment(experts, w, x)
    taken = int(np.argmax(x[0, :3]))
    np.testing.assert_array_equal(found.count, 7 * np.eye(3)[taken])
    np.testing.assert_allclose(found.second[taken], x.T @ x, rtol=1e-5)
    assert not np.delete(np.asarray(found.second), taken, 0).any()


def patches(x, size, strides, pads, dilation=(1, 1)):
    """`(n, h, w, c)` to `(n, h, w, taps, c)`, written for clarity."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    sides = [
        (n - r) // s + 1 for n, r, s in zip(x.shape[1:3], reach, strides, strict=True)
    ]
    result = np.zeros((len(x), *sides, size[0] * size[1], x.shape[3]), x.dtype)
    for i, j in np.ndindex(*sides):
        for tap, (k, m) in enumerate(itertools.product(*map(range, size))):
            row = i * strides[0] + k * dilation[0]
            result[:, i, j, tap] = x[:, row, j * strides[1] + m * dilation[1]]
    return result


@pytest.mark.parametrize(
    "size, strides, padding, dilation, groups, outputs",
    [
        ((1, 1), (1, 1), "VALID", (1, 1), 1, 5),
        ((3, 2), (1, 1), "SAME", (1, 1), 1, 5),
        ((3, 3), (2, 3), "SAME", (1, 1), 1, 5),
        ((3, 3), (2, 1), [(2, 0), (1, 3)], (2, 1), 1, 5),
        ((3, 3), (1, 2), "VALID", (1, 1), 2, 6),
        ((3, 3), (2, 2), "SAME", (1, 2), 4, 4),
        ((2, 2), (1, 1), "SAME", (1, 1), 4, 8),
        ((4, 4), (4, 4), "VALID", (1, 1), 1, 3),
        ((9, 9), (1, 1), "VALID", (1, 1), 1, 2),  # one position
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_convolution(
    size, strides, padding, dilation, groups, outputs, chunked, rng, monkeypatch
):
    if chunked:
        monkeypatch.setattr("ssvq_jax.calibration.products._PATCH_BYTES", 1)
    x, w = floats(rng, 2, 9, 9, 4), floats(rng, *size, 4 // groups, outputs)

    def apply(w, x):
        return lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    found = moment(apply, w, x)
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads((9, 9), reach, strides, padding)
    rows = patches(x, size, strides, pads, dilation)
    rows = rows.reshape(-1, *rows.shape[3:4], groups, 4 // groups)
    rows = rows.transpose(2, 0, 1, 3).reshape(groups, len(rows), -1)
    y = np.asarray(apply(w, x)).reshape(-1, groups, outputs // groups).swapaxes(0, 1)
    if groups == 1:
        rows, y = rows[0], y[0]
    assert_moments(found, rows)
    assert_arranged(found, w, rows, y)


def test_convolution_in_another_layout(rng):
    x, w = floats(rng, 2, 3, 5, 5), floats(rng, 6, 3, 2, 2)

    def apply(w, x):  # transposed: images are spread
        return lax.conv_general_dilated(
            x, w, (1, 1), [(0, 0), (0, 0)], lhs_dilation=(2, 2)
        )

    found = moment(apply, w, x)
    spread = np.zeros((2, 9, 9, 3), np.float32)
    spread[:, ::2, ::2] = x.transpose(0, 2, 3, 1)
    rows = patches(spread, (2, 2), (1, 1), ((0, 0), (0, 0)))  # taps, channels
    assert_moments(found, rows.swapaxes(3, 4).reshape(-1, 12))  # as the parameter is


def test_lookup(rng):
    w, ids = floats(rng, 6, 3), np.array([[0, 5, 5], [2, 5, 0]])
    counts = np.bincount(ids.ravel(), minlength=6)
    for apply in (lambda w, i: w[i], lambda w, i: jnp.take(w, i, axis=0)):
        for form in ("full", "diagonal", 2):
            found = moment(apply, w, ids, form=form)
            np.testing.assert_array_equal(found.second, counts)
            np.testing.assert_allclose(found.mean, counts / 6)
            assert float(found.count) == 6
    assert list(found.roles) == [Role.INPUT, Role.OUTPUT]


def test_forms(rng):
    w, x = floats(rng, 3, 5, 2), floats(rng, 3, 7, 5)
    forms = [
        moment(lambda w, x: x @ w, w, x, form=form)
        for form in ("full", "diagonal", 2, 9)
    ]
    whole, diagonal, blocks, one = forms
    for found in forms:
        np.testing.assert_allclose(found.diagonal(), np.sum(x**2, 1), rtol=1e-5)
    assert diagonal.second.shape == (3, 5) and blocks.second.shape == (3, 3, 2, 2)
    np.testing.assert_allclose(
        blocks.second[:, 1], whole.second[:, 2:4, 2:4], rtol=1e-5
    )
    assert not np.asarray(blocks.second)[:, 2, 1].any()  # padding
    np.testing.assert_allclose(one.second[:, 0, :5, :5], whole.second, rtol=1e-5)


def test_split():
    factors = [Factor(0, 4, 3), Factor(0, 1, 4), Factor(1, 1, 2)]
    assert split(factors, (8, 1, 3)) is None
    assert split(factors, (5, 5)) is None
    assert split(factors, (6, 4)) == (
        (Factor(0, 2, 6),),
        (Factor(0, 1, 2), Factor(1, 1, 2)),
    )
