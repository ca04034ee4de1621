"""Corrected biases, and centred moments, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
import ssvq_jax.linen
import ssvq_jax.nnx

promoting = pytest.mark.usefixtures("standard_promotion")
RULES = [ssvq.Rule(r"(.*/)?kernel", ssvq.Uniform(2))]


def floats(rng, *shape):
    return rng.normal(0.5, 1.0, shape).astype(np.float32)


def dense(params, x):
    return jnp.einsum("...i,io->...o", x, params["kernel"]) + params["bias"]


def several(inputs, outputs):
    """A layer of several axes of inputs and of outputs, as in attention."""
    letters = "ab"[:inputs] + "yz"[:outputs]

    def apply(params, x):
        rule = f"n{letters[:inputs]},{letters}->n{letters[inputs:]}"
        return jnp.einsum(rule, x, params["kernel"]) + params["bias"]

    return apply


def convolution(groups):
    def apply(params, x):
        return params["bias"] + lax.conv_general_dilated(
            x,
            params["kernel"],
            (2, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return apply


def stacked(params, x):
    return jnp.einsum("lni,lio->nlo", x, params["kernel"]) + params["bias"]


@promoting
@pytest.mark.parametrize(
    ("apply", "kernel", "bias", "x"),
    [
        (dense, (5, 3), (3,), (7, 5)),
        (dense, (5, 1), (1,), (7, 5)),
        (dense, (1, 3), (3,), (7, 1)),
        (several(1, 2), (5, 2, 3), (2, 3), (7, 5)),
        (several(2, 1), (5, 2, 3), (3,), (7, 5, 2)),
        (convolution(1), (3, 3, 5, 2), (2,), (2, 5, 4, 5)),
        (convolution(2), (3, 1, 3, 4), (4,), (2, 5, 4, 6)),
        (convolution(6), (3, 3, 1, 6), (6,), (2, 5, 4, 6)),
        (stacked, (4, 5, 3), (4, 3), (4, 7, 5)),
    ],
)
@pytest.mark.parametrize("final", [False, True])
def test_mean_outputs_are_given_back(apply, kernel, bias, x, final, rng, key):
    params = {"kernel": floats(rng, *kernel), "bias": floats(rng, *bias)}
    x = floats(rng, *x)
    moments = ssvq.calibrate(apply, params, [x])
    compressed = ssvq.compress(params, RULES, key=key)
    if final:
        compressed = ssvq.finalize(compressed)
    result = ssvq.correct_biases(compressed, params, moments)
    assert result["kernel"] is compressed["kernel"]
    assert result["bias"].shape == bias and result["bias"].dtype == jnp.float32
    expected, found = apply(params, x), apply(ssvq.decode(result), x)
    rows = tuple(range(found.ndim - len(bias)))
    np.testing.assert_allclose(
        np.mean(found, axis=rows), np.mean(expected, axis=rows), atol=1e-5
    )
    before = apply(ssvq.decode(compressed), x)
    least = 1e-3 if kernel[0] > 1 else 1e-6  # a step fits one weight well
    assert np.abs(np.mean(before - expected, axis=rows)).max() > least
    if kernel == (5, 3):
        lost = params["kernel"] - np.asarray(ssvq.decode(compressed)["kernel"])
        np.testing.assert_allclose(
            result["bias"], params["bias"] + x.mean(axis=0) @ lost, rtol=1e-4, atol=1e-5
        )


def test_what_stays_as_it_is(rng, key):
    params = {
        "first": {"kernel": floats(rng, 4, 4), "bias": floats(rng, 4)},
        "second": {"kernel": floats(rng, 4, 4)},
        "third": {"kernel": floats(rng, 4, 4), "bias": floats(rng, 4)},
    }

    def apply(params, x):
        for name in ("first", "second"):
            x = x @ params[name]["kernel"]
        return x

    moments = ssvq.calibrate(apply, params, [floats(rng, 7, 4)])
    rules = [ssvq.Rule("first/.*", None), *RULES]
    compressed = ssvq.compress(params, rules, key=key)
    result = ssvq.correct_biases(compressed, params, moments)
    assert jax.tree.structure(result) == jax.tree.structure(compressed)
    jax.tree.map(np.testing.assert_array_equal, result, compressed)


def test_slices_of_a_stack(rng, key):
    params = {"kernel": rng.normal(size=(3, 16, 8)).astype(np.float32)}
    params["bias"] = jnp.zeros((3, 8))
    x = rng.normal(size=(3, 40, 16)).astype(np.float32) + 1

    def apply(params, x):
        return x @ params["kernel"] + params["bias"][:, None]

    moments = ssvq.calibrate(apply, params, [x])
    rules = [ssvq.Rule("kernel", ssvq.SSVQ(4, 4), stack=1)]
    plain = ssvq.compress(params, rules, key=key)
    found = ssvq.correct_biases(plain, params, moments)
    means = [apply(ssvq.decode(tree), x).mean(axis=1) for tree in (params, found)]
    np.testing.assert_allclose(means[0], means[1], atol=1e-4)


def test_half_precision_keeps_its_dtype(rng, key):
    params = {"kernel": floats(rng, 5, 3), "bias": floats(rng, 3)}
    moments = ssvq.calibrate(lambda p, x: x @ p["kernel"], params, [floats(rng, 7, 5)])
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    result = ssvq.correct_biases(ssvq.compress(half, RULES, key=key), half, moments)
    assert result["bias"].dtype == jnp.bfloat16
    assert not np.array_equal(result["bias"], half["bias"])


def test_errors_name_the_path(rng, key):
    params = {"a": {"kernel": floats(rng, 6, 4), "bias": floats(rng, 4)}}

    def moments_of(inputs):
        other = {"a": {"kernel": floats(rng, inputs, 4)}}
        x = [floats(rng, 7, inputs)]
        return ssvq.calibrate(lambda p, x: x @ p["a"]["kernel"], other, x)

    compressed, moments = ssvq.compress(params, RULES, key=key), moments_of(6)
    for inputs in (4, 3, 7):
        with pytest.raises(ValueError, match=r"^a/kernel: expected groups .*\(6, 4\)"):
            ssvq.correct_biases(compressed, params, moments_of(inputs))
    with pytest.raises(ValueError, match=r"^a/kernel: expected.*\(6, 4\).*got nothing"):
        ssvq.correct_biases(compressed, {}, moments)
    other = {"a": {"kernel": floats(rng, 4, 6)}}
    with pytest.raises(ValueError, match=r"^a/kernel: .*\(6, 4\) in params.*\(4, 6\)"):
        ssvq.correct_biases(compressed, other, moments)
    compressed["a"]["bias"] = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=r"^a/bias: expected shape \(4,\), got \(2, 2"):
        ssvq.correct_biases(compressed, params, moments)
    both = ssvq.compress(params, [ssvq.Rule(".*", ssvq.Uniform(2))], key=key)
    with pytest.raises(ValueError, match="^a/bias: .* not compressed"):
        ssvq.correct_biases(both, params, moments)


@promoting
def test_nnx_and_linen(rng, key):
    x = floats(rng, 7, 5)
    module = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    params = nnx.state(module, nnx.Param)
    moments = ssvq_jax.nnx.calibrate(module, [x])
    tree = ssvq.compress(params, RULES, key=key)
    state = ssvq.correct_biases(tree, params, moments)
    assert isinstance(state, nnx.State) and isinstance(state["bias"], nnx.Param)
    model = ssvq_jax.nnx.CompressedModule(module, state)
    np.testing.assert_allclose(model(x).mean(0), module(x).mean(0), atol=1e-5)
    again = ssvq.correct_biases(
        ssvq_jax.nnx.compress(module, RULES, key=key).params, params, moments
    )
    np.testing.assert_array_equal(again["bias"], state["bias"][...])

    dense = nn.Dense(3)
    variables = dense.init(key, x)
    compressed = ssvq_jax.linen.compress(variables, RULES, key=key)
    tree = ssvq.correct_biases(
        ssvq_jax.linen.params(compressed),
        variables["params"],
        ssvq_jax.linen.calibrate(dense, variables, [x]),
    )
    found = ssvq_jax.linen.apply(dense, ssvq_jax.linen.split(tree), x)
    np.testing.assert_allclose(
        found.mean(0), dense.apply(variables, x).mean(0), atol=1e-5
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_parameters(kind, rng, key):
    params = {"kernel": floats(rng, 3, 1, 6, 8), "bias": floats(rng, 8)}
    apply = convolution(1)
    with jax.numpy_rank_promotion("allow"):
        moments = ssvq.calibrate(apply, params, [floats(rng, 2, 5, 4, 6)])
    one = ssvq.correct_biases(ssvq.compress(params, RULES, key=key), params, moments)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    where = {"kernel": P(None, None, None, "x"), "bias": P("x")}
    params = {
        name: jax.device_put(value, NamedSharding(mesh, where[name]))
        for name, value in params.items()
    }
    four = ssvq.correct_biases(ssvq.compress(params, RULES, key=key), params, moments)
    assert four["bias"].sharding == params["bias"].sharding
    np.testing.assert_allclose(four["bias"], one["bias"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["full", "diagonal", 1, 3, 5])
@pytest.mark.parametrize("groups", [1, 5])
def test_centered_moments(form, groups, rng):
    kernel = floats(rng, 3, 2, 5 // groups, 10)
    x = floats(rng, 2, 4, 5, 5)
    x[..., 1] = 3.7  # constant: no more than rounding stays of it inside
    params = {"kernel": kernel, "bias": np.zeros(10, np.float32)}
    with jax.numpy_rank_promotion("allow"):
        apply = convolution(groups)
        full = ssvq.calibrate(apply, params, [x], rules=RULES)["kernel"]
        moments = ssvq.calibrate(apply, params, [x], rules=RULES, form=form)
    found = moments.centered()["kernel"]
    mean, count = np.float64(full.mean), np.float64(full.count)[..., None, None]
    expected = np.float64(full.second) - count * mean[..., :, None] * mean[..., None, :]
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * np.abs(full.second).max()}
    second = np.asarray(found.second)
    assert second.shape == moments["kernel"].second.shape
    if form == "full":
        np.testing.assert_allclose(second, expected, **tolerance)
    elif form != "diagonal":
        size = expected.shape[-1]
        padded = np.zeros((*expected.shape[:-2], *[second.shape[-3] * form] * 2))
        padded[..., :size, :size] = expected
        for i in range(second.shape[-3]):
            part = slice(i * form, (i + 1) * form)
            block = padded[..., part, part]
            np.testing.assert_allclose(second[..., i, :, :], block, **tolerance)
            assert not np.any(second[..., i, :, :][block == 0])
    diagonal = np.diagonal(expected, axis1=-2, axis2=-1)
    np.testing.assert_allclose(found.diagonal(), diagonal, **tolerance)
    assert np.all(np.asarray(found.diagonal()) >= 0)
    np.testing.assert_array_equal(found.mean, moments["kernel"].mean)


def test_centered_keeps_what_is_missing(rng):
    params = {"w": floats(rng, 4, 3), "b": floats(rng, 3)}

    def apply(params, x):
        return x @ params["w"] + params["b"][None]

    moments = ssvq.calibrate(apply, params, [floats(rng, 1, 4)])
    centered = moments.centered()
    assert centered.missing == moments.missing and list(centered) == ["w"]
    # One row is its own mean.
    np.testing.assert_allclose(centered["w"].second, 0, atol=1e-5)
