"""`refine`: never worse for the outputs, for any codec, layer, mesh and module."""

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


@pytest.mark.parametrize(
    "kind, diagonal",
    [(AxisType.Auto, False), (AxisType.Explicit, False), (AxisType.Explicit, True)],
)
def test_sharded_weights(kind, diagonal, rng, key):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
    codec = ssvq.SSVQ(4, 4, channel_scale="float16")
    weight = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    x = floats(rng, 40, 16)
    moments = ssvq.calibrate(
        lambda w, x: x @ w["w"],
        {"w": weight},
        [x],
        form="diagonal" if diagonal else "full",
    )
    params, rules = {"w": weight}, [ssvq.Rule("w", codec)]
    one = ssvq.compress(params, rules, key=key, moments=moments)
    params = jax.device_put(params, NamedSharding(mesh, P("x", "y")))
    plain = ssvq.compress(params, rules, key=key)
    four = ssvq.compress(params, rules, key=key, moments=moments)
    chex.assert_trees_all_close(ssvq.decode(one), ssvq.decode(four), rtol=1e-4)
    for old, new in zip(jax.tree.leaves(plain), jax.tree.leaves(four), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)


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


SPECS = [
    None,
    *((kind, P("x", None, "y")) for kind in (AxisType.Auto, AxisType.Explicit)),
]


@pytest.mark.parametrize("placed", SPECS, ids=str)
def test_slices_of_a_stack_are_refined_by_their_own_moments(placed, rng, key):
    weight = floats(rng, 2, 16, 8) * np.array([1, 30], np.float32)[:, None, None]
    params, x = {"w": weight, "bias": jnp.zeros((2, 8))}, floats(rng, 2, 40, 16)
    moments = ssvq.calibrate(lambda p, x: jnp.matmul(x, p["w"]), params, [x])
    moment = moments["w"]
    if placed is not None:
        kind, spec = placed
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
        params["w"] = jax.device_put(weight, NamedSharding(mesh, spec))
    rules = [ssvq.Rule("w", ssvq.SSVQ(4, 4, channel_scale="float16"), stack=1)]
    plain = ssvq.compress(params, rules, key=key)
    found = ssvq.refine(plain, params, moments)
    assert found["w"].stack == (2,) and found["w"].codec == plain["w"].codec
    for i, (node, start) in enumerate(
        zip(found["w"].slices(), plain["w"].slices(), strict=True)
    ):
        own = {"w": moment.slice(i, 2)}
        alone = ssvq.refine({"w": start}, {"w": weight[i]}, own)
        chex.assert_trees_all_close(
            ssvq.decode(node), ssvq.decode(alone["w"]), rtol=1e-3
        )
        errors = [
            jnp.vdot(rest, moment.second[i] @ rest)
            for rest in (weight[i] - np.asarray(ssvq.decode(x)) for x in (node, start))
        ]
        assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "shape, rule", [((1, 16, 8), "bi,eio->ebo"), ((3, 16, 8), "bi,eio->ebo")], ids=str
)
def test_slices_that_have_the_same_inputs(shape, rule, rng, key):
    params, x = {"w": floats(rng, *shape)}, floats(rng, 40, 16)
    moments = ssvq.calibrate(lambda p, x: jnp.einsum(rule, x, p["w"]), params, [x])
    rules = [ssvq.Rule("w", ssvq.VQ(8, 4), stack=1)]
    plain, found = (
        ssvq.decode(ssvq.compress(params, rules, key=key, moments=data))["w"]
        for data in (None, moments)
    )
    for i in range(shape[0]):
        errors = [np.linalg.norm(x @ (params["w"][i] - y[i])) for y in (found, plain)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "codec", [ssvq.SSVQ(4, 4, channel_scale="float16"), ssvq.VQ(8, 4)], ids=str
)
def test_as_on_an_accelerator(codec, rng, key, monkeypatch):
    # A shape of its own: programs of another test would be those of a CPU.
    params, x = {"w": floats(rng, 20, 11)}, floats(rng, 40, 20)
    moments = ssvq.calibrate(lambda p, x: x @ p["w"], params, [x])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plain, found = (
        ssvq.compress(params, [ssvq.Rule("w", codec)], key=key, moments=data)
        for data in (None, moments)
    )
    errors = [
        np.linalg.norm(x @ (params["w"] - ssvq.decode(tree)["w"]))
        for tree in (found, plain)
    ]
    assert errors[0] < errors[1]


def test_what_a_stack_has_to_have(rng, key):
    params = {"w": floats(rng, 2, 16, 8)}
    rules = [ssvq.Rule("w", ssvq.SSVQ(4, 4), stack=1)]
    x = floats(rng, 40, 32)
    together = ssvq.calibrate(lambda p, x: x @ p["w"].reshape(32, 8), params, [x])
    with pytest.raises(ValueError, match="w: expected moments of every slice"):
        ssvq.compress(params, rules, key=key, moments=together)
    node = ssvq.compress(params, rules, key=key)["w"]
    with pytest.raises(ValueError, match="got a stack of .*: apply jax.vmap"):
        node.assign(params["w"])
    anew = jax.vmap(lambda node, weight: node.assign(weight))(node, params["w"])
    chex.assert_trees_all_equal(ssvq.decode(anew), ssvq.decode(node))


@promoting
def test_nnx(rng, key):
    model, x = nnx.Linear(27, 12, rngs=nnx.Rngs(0)), floats(rng, 50, 27)
    moments = ssvq_jax.nnx.calibrate(model, [x])
    rules = [ssvq.Rule("kernel", ssvq.SSVQ(4, 8))]
    plain, found = (
        ssvq_jax.nnx.compress(model, rules, key=key, moments=data)
        for data in (None, moments)
    )
    errors = [np.sum(np.square(model(x) - other(x))) for other in (plain, found)]
    assert errors[1] < 0.7 * errors[0]
    state = nnx.state(model, nnx.Param)
    refined = ssvq.refine(ssvq.compress(state, rules, key=key), state, moments)
    assert ssvq.report(refined).model.bits == ssvq.report(found.params).model.bits
