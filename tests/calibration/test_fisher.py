"""`fisher_factors`: sums over gradients, what they are good for, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def apply(params, x):
    """A convolution, a depthwise one, a product of heads, a lookup."""
    for name, groups in (("conv", 1), ("depthwise", 6)):
        x = lax.conv_general_dilated(
            x,
            params[name],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
    x = jnp.einsum("bhwc,cnd->bhwnd", x, params["heads"])
    return x, params["table"][jnp.array([0, 2, 2])]


@pytest.fixture
def params(rng):
    return {
        "conv": floats(rng, 3, 3, 2, 6),
        "depthwise": floats(rng, 3, 3, 1, 6),
        "heads": floats(rng, 6, 2, 5),
        "table": floats(rng, 4, 3),
    }


def matrices(path, gradient):
    """`(groups, in, out)`, by hand."""
    match path:
        case "conv":
            return gradient.reshape(1, 18, 6)
        case "depthwise":
            return gradient.reshape(9, 6).T[:, :, None]
        case "heads":
            return gradient.reshape(1, 6, 10)
    return gradient[None]


@pytest.mark.parametrize("form", ["full", "diagonal", 4])
def test_products_of_gradients(form, params, rng):
    x = floats(rng, 2, 4, 4, 2)
    moments = ssvq.calibrate(apply, params, [x], form=form)
    gradients = [jax.tree.map(lambda w: floats(rng, *w.shape), params) for _ in "abc"]
    factors = ssvq.fisher_factors(moments, iter(gradients))
    assert list(factors) == list(moments) == list(params)
    for path, moment in factors.items():
        rows = [matrices(path, tree[path].astype("f8")) for tree in gradients]
        full = sum(g @ g.transpose(0, 2, 1) for g in rows)
        if form == "diagonal" or path == "table":
            expected = np.diagonal(full, axis1=1, axis2=2)
        elif form == "full":
            expected = full
        else:
            size = full.shape[-1]
            full = np.pad(full, ((0, 0), (0, -size % 4), (0, -size % 4)))
            places = range(0, size, 4)
            expected = np.stack([full[:, i : i + 4, i : i + 4] for i in places], axis=1)
        expected = expected.reshape(moments[path].second.shape)
        np.testing.assert_allclose(moment.second, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(moment.mean, moments[path].mean)
        np.testing.assert_array_equal(moment.count, moments[path].count)


@pytest.mark.parametrize("form", ["full", "diagonal", 4])
def test_factors_of_outputs(form, params, rng):
    moments = ssvq.calibrate(apply, params, [floats(rng, 2, 4, 4, 2)], form=form)
    gradients = [jax.tree.map(lambda w: floats(rng, *w.shape), params) for _ in "abc"]
    alone = ssvq.fisher_factors(moments, gradients)
    factors = ssvq.fisher_factors(moments, gradients, outputs=True)
    for path, moment in factors.items():
        np.testing.assert_array_equal(moment.second, alone[path].second)
        rows = [matrices(path, tree[path].astype("f8")) for tree in gradients]
        expected = sum(g.transpose(0, 2, 1) @ g for g in rows)
        expected = expected.reshape(*moment.mean.shape[:-1], *expected.shape[1:])
        np.testing.assert_allclose(moment.outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_gradients(kind, params, rng):
    moments = ssvq.calibrate(apply, params, [floats(rng, 2, 4, 4, 2)])
    gradient = jax.tree.map(lambda w: floats(rng, *w.shape), params)
    one = ssvq.fisher_factors(moments, [gradient], outputs=True)
    mesh = jax.make_mesh((2,), ("across",), axis_types=(kind,))
    split = NamedSharding(mesh, P(None, None, None, "across"))
    sharded = {**gradient, "conv": jax.device_put(gradient["conv"], split)}
    four = ssvq.fisher_factors(moments, [sharded], outputs=True)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), one, four
    )


def test_64_bits_change_nothing(params, rng):
    moments = ssvq.calibrate(apply, params, [floats(rng, 2, 4, 4, 2)])
    gradient = jax.tree.map(lambda w: floats(rng, *w.shape), params)
    expected = ssvq.fisher_factors(moments, [gradient], outputs=True)
    with jax.enable_x64(True):
        found = ssvq.fisher_factors(moments, [gradient], outputs=True)
    assert {
        x.dtype.name
        for m in found.values()
        for x in (m.second, m.outputs)
        if x is not None
    } == {"float32"}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_outputs_of_the_network_are_nearer_than_by_inputs(rng, key):
    """Half of the inputs are large and lead to what is certain anyway."""
    first = floats(rng, 32, 64)
    last = floats(rng, 64, 8)
    certain, unsure = (floats(rng, 64, 8) @ floats(rng, 8, 32) for _ in "ab")
    x = np.concatenate([certain, 0.1 * unsure])
    offset = np.where(np.arange(128)[:, None] < 64, 300.0, 0.0) * np.eye(8)[0]

    def logits(params, x):
        x, offset = x
        return jnp.tanh(x @ params["w"]) @ last + offset.astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(params, x, key):
        outputs = logits(params, x)
        drawn = jax.random.categorical(key, lax.stop_gradient(outputs))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), drawn[:, None], 1)
        return -jnp.mean(chosen)

    params = {"w": jnp.asarray(first)}
    batch = x, offset
    moments = ssvq.calibrate(logits, params, [batch])
    keys = jax.random.split(key, 32)
    factors = ssvq.fisher_factors(moments, (gradient(params, batch, k) for k in keys))
    rules = [ssvq.Rule("w", ssvq.SSVQ(8, 4))]
    expected = jax.nn.log_softmax(logits(params, batch))

    def divergence(moments):
        compressed = ssvq.compress(params, rules, key=key, moments=moments)
        found = jax.nn.log_softmax(logits(ssvq.decode(compressed), batch))
        return float(jnp.mean(jnp.sum(jnp.exp(expected) * (expected - found), -1)))

    assert divergence(factors) < 0.5 * divergence(moments)


def test_what_gradients_have_to_be(rng):
    params = {"a": floats(rng, 4, 3), "b": floats(rng, 3, 2)}
    moments = ssvq.calibrate(
        lambda p, x: x @ p["a"] @ p["b"], params, [floats(rng, 5, 4)]
    )
    with pytest.raises(ValueError, match="gradients: expected at least one"):
        ssvq.fisher_factors(moments, [])
    with pytest.raises(ValueError, match="^b: in moments, but not in gradients"):
        ssvq.fisher_factors(moments, [{"a": params["a"]}])
    with pytest.raises(ValueError, match="^b: gradient: expected groups and inputs"):
        ssvq.fisher_factors(moments, [{**params, "b": floats(rng, 2, 2)}])
    with pytest.raises(ValueError, match="^b: expected finite gradients"):
        ssvq.fisher_factors(moments, [params, {**params, "b": np.full((3, 2), 1e30)}])
    large = np.full((3, 2), 1.2e19, np.float32)  # outputs add up three, inputs two
    with pytest.raises(ValueError, match="^b: expected finite gradients"):
        ssvq.fisher_factors(moments, [{**params, "b": large}], outputs=True)
