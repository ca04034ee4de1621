"""`refine`: never worse for the outputs, for any codec, kernel and moments."""

import dataclasses
import importlib

import chex
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
from ssvq_jax.calibration import Moment, Role
from ssvq_jax.calibration.layout import Layout

module = importlib.import_module("ssvq_jax.calibration.refine")
promoting = pytest.mark.usefixtures("standard_promotion")


def floats(rng, *shape):
    """Inputs, or weights, of which the first axis but one is correlated."""
    mixing = rng.normal(size=(shape[-1], shape[-1]))
    return (rng.normal(size=shape) @ mixing).astype(np.float32)


def convolution(groups):
    def apply(w, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    return apply


def product(rule):
    return lambda w, x: jnp.einsum(rule, x, w)


CASES = {  # codec, function, shapes of weight and inputs, axis
    "dense": (ssvq.SSVQ(4, 8), product("ni,io->no"), (27, 12), (40, 27), 0),
    "conv": (
        ssvq.VQ(8, 3, codebook_dtype="int8"),
        convolution(1),
        (2, 2, 5, 6),
        (2, 4, 4, 5),
        2,
    ),
    "rows of a conv": (
        ssvq.SSVQ(4, 2, codebook_dtype="bfloat16"),
        convolution(1),
        (3, 2, 3, 6),
        (2, 4, 4, 3),
        0,
    ),
    "depthwise": (
        ssvq.SSVQ(4, 4, channel_scale="float16"),
        convolution(10),
        (3, 3, 1, 10),
        (2, 4, 4, 10),
        3,
    ),
    "conv of 2 groups": (
        ssvq.MVQ(6, 4, (2, 4)),
        convolution(2),
        (2, 2, 5, 6),
        (2, 4, 4, 10),
        2,
    ),
    "attention": (
        ssvq.VQ(6, 4, channel_scale="bfloat16"),
        product("ni,ihs->nhs"),
        (13, 2, 6),
        (40, 13),
        0,
    ),
    "attention, out": (
        ssvq.Uniform(2),
        product("nhs,hso->no"),
        (2, 6, 7),
        (40, 2, 6),
        1,
    ),
    "stacked": (
        ssvq.MVQ(5, 3, (1, 3), channel_scale="float32"),
        product("gni,gio->gno"),
        (2, 7, 9),
        (2, 40, 7),
        1,
    ),
    "one input": (ssvq.SSVQ(2, 4), product("ni,io->no"), (1, 13), (9, 1), 1),
    "one output": (ssvq.VQ(2, 4), product("ni,io->no"), (13, 1), (40, 13), 0),
    "lookups": (ssvq.SSVQ(4, 4), lambda w, ids: w[ids], (11, 10), None, 1),
}


def output_error(apply, weight, node, x):
    """Of what a file would store."""
    stored = ssvq.decode(ssvq.finalize(node))
    difference = np.asarray(weight - stored.astype(weight.dtype), np.float64)
    outputs = apply(jnp.asarray(difference, jnp.float32), x)
    return float(np.sum(np.square(np.asarray(outputs, np.float64))))


@promoting
@pytest.mark.parametrize("case", CASES)
def test_never_worse_and_mostly_much_better(case, rng, key):
    codec, apply, shape, inputs, axis = CASES[case]
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = rng.integers(5, size=60) if inputs is None else floats(rng, *inputs)
    rules = [ssvq.Rule("w", codec, axis=axis)]
    params = {"w": weight}
    moments = ssvq.calibrate(lambda p, x: apply(p["w"], x), params, [x])
    assert not moments.missing
    plain = ssvq.compress(params, rules, key=key)
    refined = ssvq.refine(plain, params, moments)
    chex.assert_trees_all_equal_shapes_and_dtypes(refined, plain)
    assert jax.tree.structure(refined) == jax.tree.structure(plain)
    assert refined["w"].bits == plain["w"].bits
    before, after = (output_error(apply, weight, t["w"], x) for t in (plain, refined))
    assert after <= before * (1 + 1e-4)
    assert after < 0.9 * before or case in ("one input", "lookups")
    # Fields can be written and read.
    final = ssvq.finalize(refined["w"])
    read = codec.restore(shape, weight.dtype, axis, final.stored())
    np.testing.assert_array_equal(ssvq.decode(read), ssvq.decode(final))


CODEC = ssvq.SSVQ(4, 8)


def moment(second, inputs=27):
    return Moment(
        second=jnp.asarray(second, jnp.float32),
        mean=jnp.zeros(inputs),
        count=jnp.float32(9),
        roles=jnp.array([Role.INPUT, Role.OUTPUT], jnp.int32),
    )


def quadratic(tree, params, second):
    """Of what is stored, in float64."""
    stored = ssvq.decode(ssvq.finalize(tree))["w"]
    error = np.asarray(params["w"], "f8") - np.asarray(stored, "f8")
    return np.einsum("io,ij,jo->", error, second, error)


@pytest.fixture
def params(rng):
    return {"w": jnp.asarray(rng.normal(size=(27, 12)), jnp.float32)}


@pytest.fixture
def plain(params, key):
    return ssvq.compress(params, [ssvq.Rule("w", CODEC)], key=key)


@pytest.fixture
def x(rng):
    return floats(rng, 40, 27).astype("f8")


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
@pytest.mark.parametrize("kind", ["full", "dead inputs", "low rank", "of one row"])
def test_moments_of_any_kind(kind, scale, params, plain, x):
    x = np.sqrt(scale) * x
    if kind == "dead inputs":
        x[:, [0, 3, 26]] = 0
    rows = {"low rank": 5, "of one row": 1}.get(kind, 40)
    second = x[:rows].T @ x[:rows]
    refined = ssvq.refine(plain, params, {"w": moment(second)})
    chex.assert_tree_all_finite(refined)
    before, after = (quadratic(tree, params, second) for tree in (plain, refined))
    assert after < 0.7 * before
    # What no input has seen is no worse than a small multiple of what it was.
    unseen = np.diag((np.diagonal(second) == 0).astype("f8"))
    assert quadratic(refined, params, unseen) <= 3 * quadratic(plain, params, unseen)


def test_moments_of_zeros_leave_the_plain_error(params, plain, key):
    zeros = {"w": moment(np.zeros((27, 27)))}
    refined = ssvq.refine(plain, params, zeros)
    blind = ssvq.compress(params, [ssvq.Rule("w", CODEC)], key=key, moments=zeros)
    error = quadratic(plain, params, np.eye(27))
    assert quadratic(refined, params, np.eye(27)) <= 1.01 * error
    assert quadratic(blind, params, np.eye(27)) <= 1.01 * error


def test_forms_of_the_moments(params, plain, x):
    full = x.T @ x
    blocks = np.pad(full, (0, 1)).reshape(7, 4, 7, 4)
    blocks = np.stack([blocks[i, :, i] for i in range(7)])
    on_blocks = np.kron(np.eye(7), np.ones((4, 4)))[:27, :27]
    for second, matrix in (
        (blocks, full * on_blocks),
        (np.diagonal(full), np.diag(np.diagonal(full))),
    ):
        refined = ssvq.refine(plain, params, {"w": moment(second)})
        before, after = (quadratic(tree, params, matrix) for tree in (plain, refined))
        assert after < before


def test_the_more_is_done_the_better(params, plain, x):
    second = x.T @ x
    moments = {"w": moment(second)}
    once, often = (
        quadratic(ssvq.refine(plain, params, moments, sweeps=n), params, second)
        for n in (0, 3)
    )
    assert often < once < quadratic(plain, params, second)
    # With all damping and no data it is what k-means would do.
    damped = ssvq.refine(plain, params, moments, damping=1e6)
    eye = np.eye(27)
    assert quadratic(damped, params, eye) <= 1.05 * quadratic(plain, params, eye)


def test_training_goes_on_and_the_rest_stays(params, plain, x, key):
    params = {**params, "b": jnp.ones(3), "v": params["w"]}
    rules = [ssvq.Rule("w|v", CODEC)]
    tree = ssvq.compress(params, rules, key=key)
    moments = {"w": moment(x.T @ x), "elsewhere": moment(np.eye(27))}
    refined = ssvq.refine(tree, params, moments)
    chex.assert_trees_all_equal(refined, ssvq.refine(tree, params, moments))
    assert refined["v"] is tree["v"] and refined["b"] is tree["b"]
    node = refined["w"]
    assert node.signs is None and node.codebook.dtype == jnp.float32
    changed = np.mean((node.latent < 0) != (params["w"] < 0))
    assert 0 < changed < 0.5
    np.testing.assert_allclose(jnp.abs(node.latent), jnp.abs(params["w"]), rtol=1e-6)
    trainable, static = ssvq.partition(refined)
    gradient = jax.grad(
        lambda t: jnp.sum(jnp.square(ssvq.decode(ssvq.combine(t, static))["w"]))
    )(trainable)
    assert jnp.any(gradient["w"].latent != 0)
    # Once more, from there.
    again = ssvq.refine(refined, params, moments)
    second = x.T @ x
    assert quadratic(again, params, second) <= quadratic(refined, params, second)
    params16 = {"w": params["w"].astype(jnp.bfloat16)}
    tree = ssvq.compress(params16, [ssvq.Rule("w", CODEC)], key=key)
    half = ssvq.refine(tree, params16, {"w": moments["w"]})
    assert half["w"].dtype == jnp.bfloat16
    assert quadratic(half, params, second) < 0.7 * quadratic(tree, params, second)


def test_steps_that_training_took_below_zero(params, x, key):
    tree = ssvq.compress(params, [ssvq.Rule("w", ssvq.Uniform(2))], key=key)
    node = tree["w"].replace(scale=tree["w"].scale.at[::2].multiply(-1))
    second = x.T @ x
    refined = ssvq.refine({"w": node}, params, {"w": moment(second)})
    assert quadratic(refined, params, second) < 0.7 * quadratic(tree, params, second)


def test_compress_with_moments(params, x, key):
    moments = {"w": moment(x.T @ x)}
    rules = [ssvq.Rule("w", CODEC)]
    found = ssvq.compress(params, rules, key=key, moments=moments)
    importance = {"w": moments["w"].importance((27, 12))}
    tree = ssvq.compress(params, rules, key=key, importance=importance)
    chex.assert_trees_all_equal(found, ssvq.refine(tree, params, moments))
    # Importance that is given goes before that of the moments.
    given = {"w": jnp.ones((27, 12))}
    found = ssvq.compress(params, rules, key=key, importance=given, moments=moments)
    tree = ssvq.compress(params, rules, key=key, importance=given)
    chex.assert_trees_all_equal(found, ssvq.refine(tree, params, moments))


@pytest.mark.parametrize(
    "kind, diagonal",
    [(AxisType.Auto, False), (AxisType.Explicit, False), (AxisType.Explicit, True)],
)
def test_sharded_weights(kind, diagonal, rng, key):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
    codec = ssvq.SSVQ(4, 4, channel_scale="float16")
    weight = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    x = floats(rng, 40, 16)
    second = moment(np.sum(x * x, axis=0) if diagonal else x.T @ x, 16)
    params, rules = {"w": weight}, [ssvq.Rule("w", codec)]
    one = ssvq.compress(params, rules, key=key, moments={"w": second})
    params = jax.device_put(params, NamedSharding(mesh, P("x", "y")))
    plain = ssvq.compress(params, rules, key=key)
    four = ssvq.compress(params, rules, key=key, moments={"w": second})
    chex.assert_trees_all_close(ssvq.decode(one), ssvq.decode(four), rtol=1e-4)
    for old, new in zip(jax.tree.leaves(plain), jax.tree.leaves(four), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)


def test_codebook_and_scales_are_those_of_least_squares(rng, key, monkeypatch):
    monkeypatch.setattr(module, "_ITERATIONS", 60)
    codec = ssvq.VQ(3, 4, channel_scale="float32")
    weight = jnp.asarray(rng.normal(size=(14, 6)), jnp.float32)
    x = floats(rng, 40, 14)
    second = moment(x.T @ x + np.eye(14), 14)
    node = ssvq.encode(codec, weight, key=key)
    layout = Layout.of(node, second)
    rows = layout.rows(weight)

    def error(node):
        return rows - layout.rows(node.values(jnp.dtype("float32")))

    root = np.linalg.cholesky(np.asarray(second.second, "f8"))

    def expected(node, name):
        """Of the error weighted with a root of the moments, all in float64."""
        values = jax.jacobian(
            lambda x: node.replace(**{name: x}).values(jnp.dtype("float32"))
        )
        basis = np.asarray(values(getattr(node, name)), "f8").reshape(14, 6, -1)
        basis = np.einsum("ij,iop->jop", root, basis).reshape(14 * 6, -1)
        target = np.einsum("ij,io->jo", root, np.asarray(weight, "f8")).ravel()
        return np.linalg.lstsq(basis, target)[0]

    fitted = module._fit(node, error, layout.second(second))
    codebook = expected(node, "codebook").reshape(3, 4)
    np.testing.assert_allclose(fitted.codebook, codebook, rtol=2e-3, atol=2e-3)
    scale = expected(node.replace(codebook=fitted.codebook), "channel_scale")
    positive = scale > 0
    assert positive.sum() >= 4
    np.testing.assert_allclose(
        fitted.channel_scale[positive], scale[positive], rtol=2e-3, atol=2e-3
    )
    kept = node.channel_scale[~positive]
    np.testing.assert_array_equal(fitted.channel_scale[~positive], kept)


def test_errors(params, plain, x, key):
    good = moment(x.T @ x)
    with pytest.raises(ValueError, match="damping: expected a number above 0"):
        ssvq.refine(plain, params, {"w": good}, damping=0.0)
    with pytest.raises(ValueError, match="sweeps: expected 0 or more"):
        ssvq.refine(plain, params, {"w": good}, sweeps=-1)
    with pytest.raises(ValueError, match="moments: .*such as 'w'.*such as 'other'"):
        ssvq.refine(plain, params, {"other": good})
    with pytest.raises(ValueError, match="w: in compressed, but not in params"):
        ssvq.refine(plain, {"v": params["w"]}, {"w": good})
    with pytest.raises(ValueError, match=r"w: weight: expected shape \(27, 12\)"):
        ssvq.refine(plain, {"w": params["w"].T}, {"w": good})
    with pytest.raises(ValueError, match="w: weight: expected finite.*1 NaN"):
        ssvq.refine(plain, {"w": params["w"].at[1, 1].set(jnp.nan)}, {"w": good})
    for bad, problem in ((jnp.inf, "finite"), (-1.0, "values >= 0")):
        broken = dataclasses.replace(good, second=good.second.at[2, 2].set(bad))
        with pytest.raises(ValueError, match=f"w: second moments: expected {problem}"):
            ssvq.refine(plain, params, {"w": broken})
    with pytest.raises(ValueError, match="w: damping: expected more than 0.1 "):
        ssvq.refine(plain, params, {"w": moment(np.eye(27) - 0.9)})
    with pytest.raises(ValueError, match="w: expected groups and inputs"):
        ssvq.refine(plain, params, {"w": moment(np.eye(26), 26)})
    with pytest.raises(ValueError, match="w: expected what compress gives.*finalized"):
        ssvq.refine(ssvq.finalize(plain), params, {"w": good})
    with pytest.raises(ValueError, match="w: codebook: missing"):
        ssvq.refine(ssvq.partition(plain)[1], params, {"w": good})
    with pytest.raises(ValueError, match="moments: .*such as 'w'.*such as 'other'"):
        rules = [ssvq.Rule("w", CODEC)]
        ssvq.compress(params, rules, key=key, moments={"other": good})
    with pytest.raises(ValueError, match="w: expected groups and inputs"):
        wrong = {"w": moment(np.eye(26), 26)}
        ssvq.compress(params, rules, key=key, moments=wrong)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(9)(x)), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scan(name="layers")(x, None)[0]


RULES = [ssvq.Rule(r".*kernel", ssvq.VQ(8, 2))]


@promoting
def test_linen_with_scan(rng, key):
    model, x = Stack(), floats(rng, 50, 9)
    variables = model.init(key, x)
    moments = ssvq_jax.linen.calibrate(model, variables, [x])
    assert moments["layers/Dense_0/kernel"].second.shape == (3, 9, 9)
    plain, found = (
        ssvq_jax.linen.compress(variables, RULES, key=key, moments=data)
        for data in (None, moments)
    )
    params = ssvq_jax.linen.params(plain)
    expected = ssvq.compress(variables["params"], RULES, key=key, moments=moments)
    chex.assert_trees_all_equal(
        ssvq.decode(ssvq_jax.linen.params(found)), ssvq.decode(expected)
    )
    outputs = model.apply(variables, x)
    errors = [
        np.sum((outputs - ssvq_jax.linen.apply(model, v, x)) ** 2)
        for v in (plain, found)
    ]
    assert errors[1] < errors[0]
    assert jax.tree.structure(params) == jax.tree.structure(expected)


@promoting
def test_nnx(rng, key):
    model, x = nnx.Linear(27, 12, rngs=nnx.Rngs(0)), floats(rng, 50, 27)
    moments = ssvq_jax.nnx.calibrate(model, [x])
    rules = [ssvq.Rule("kernel", CODEC)]
    plain, found = (
        ssvq_jax.nnx.compress(model, rules, key=key, moments=data)
        for data in (None, moments)
    )
    errors = [np.sum(np.square(model(x) - other(x))) for other in (plain, found)]
    assert errors[1] < 0.7 * errors[0]
    state = nnx.state(model, nnx.Param)
    refined = ssvq.refine(ssvq.compress(state, rules, key=key), state, moments)
    assert ssvq.report(refined).model.bits == ssvq.report(found.params).model.bits
