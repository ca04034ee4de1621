"""Weights sharded over CPU devices: the same results as on one, nowhere whole."""

import functools
import math
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
from ssvq_jax.codecs import codec as protocol

CODECS = [
    ssvq.SSVQ(8, 8),
    ssvq.SSVQ(8, 8, learn_signs=False, codebook_dtype="int8"),
    ssvq.SSVQ(8, 8, channel_scale="float16"),
    ssvq.SSVQ(8, 8, sign_code="hamming"),
    ssvq.VQ(8, 4),
    ssvq.Uniform(3),
    ssvq.MVQ(8, 8, (2, 4)),
]


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=str)
def kind(request):
    return request.param


@pytest.fixture
def mesh(kind):
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)


def assert_same(actual, expected):
    """Integers are equal; sums are added in another order."""

    def check(x, y):
        exact = jnp.issubdtype(x.dtype, jnp.integer)
        np.testing.assert_allclose(x, y, rtol=0 if exact else 1e-5, atol=1e-7)

    jax.tree.map(check, actual, expected)


def _padded(spec, ndim):
    return (*spec, *(None,) * (ndim - len(spec)))


WAYS = [(codec, P("x", "y")) for codec in CODECS]
WAYS += [(CODECS[0], P(None, ("x", "y"))), (CODECS[0], P(("x", "y")))]


@pytest.mark.parametrize(
    ("codec", "spec"), WAYS, ids=[f"{codec.describe()} {spec}" for codec, spec in WAYS]
)
def test_same_as_on_one_device(codec, spec, mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, spec))
    one = ssvq.encode(codec, weight, key=key)
    four = ssvq.encode(codec, sharded, key=key)
    assert_same(four, one)

    for decode in (ssvq.decode, jax.jit(ssvq.decode)):
        decoded = decode(four)
        assert_same(decoded, decode(one))
        assert _padded(decoded.sharding.spec, 2) == _padded(spec, 2)
    assert_same(ssvq.decode(ssvq.finalize(four)), ssvq.decode(ssvq.finalize(one)))

    def loss(trainable, static):
        return jnp.sum(jnp.square(ssvq.decode(ssvq.combine(trainable, static))))

    gradients = [jax.jit(jax.grad(loss))(*ssvq.partition(n)) for n in (one, four)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *gradients)


@pytest.mark.parametrize(
    ("devices", "kind"),
    [(1, AxisType.Auto), (2, AxisType.Explicit), (8, AxisType.Auto)],
)
def test_any_number_of_devices(devices, kind, rng, key):
    """More points than are drawn to begin with; many codewords are seeded anew."""
    points = rng.normal(size=(20480, 8)).astype(np.float32)
    start = np.full((64, 8), 9, np.float32)
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(kind,))

    def fit(points, axis_name=(), **options):
        return ssvq.fit_codebook(points, 64, key=key, axis_name=axis_name, **options)

    for options in ({"iterations": 1}, {"init": start, "iterations": 2}, {}):
        parts = jax.shard_map(
            functools.partial(fit, axis_name="x", **options),
            mesh=mesh,
            in_specs=P("x"),
            out_specs=(P(), P("x"), P()),
        )
        found = parts(jax.device_put(points, NamedSharding(mesh, P("x"))))
        expected = fit(points, **options)
        if options:  # sums are rounded otherwise: in the end codes are not the same
            same = np.asarray(found[1]) == np.asarray(expected[1])
            assert np.mean(same) > 0.999
        np.testing.assert_allclose(found[2], expected[2], rtol=5e-3)


def _exchanged(program):
    """Types of what passes between devices."""
    return re.findall(
        r"= (.*) (?:all-gather|all-reduce|all-to-all|collective-permute)[(]",
        program.as_text(),
    )


PROGRAMS = [(codec, P(None, "x"), AxisType.Auto) for codec in CODECS]
PROGRAMS += [(CODECS[i], P("x"), AxisType.Explicit) for i in (2, 5, 6)]


@pytest.mark.parametrize(("codec", "spec", "kind"), PROGRAMS, ids=str)
def test_no_device_holds_a_whole_weight(codec, spec, kind, key):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    weight = jax.ShapeDtypeStruct(
        (32768, 1024), jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    encode = jax.jit(lambda weight: ssvq.encode(codec, weight, key=key))
    program = encode.lower(weight).compile()
    shapes = [
        shape
        for part in _exchanged(program)
        for shape in re.findall(r"\[([\d,]+)\]", part)
    ]
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    # A sample to begin with, or a part for another.
    assert max(sizes, default=0) <= math.prod(weight.shape) / 8
    memory = program.memory_analysis()  # of one device
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert held + memory.temp_size_in_bytes < 4 * math.prod(weight.shape)


def test_points_in_shard_map(kind, rng, key):
    points = rng.normal(size=(1000, 4)).astype(np.float32)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    for names in ("x", ("x", "y")):
        fit = jax.shard_map(
            functools.partial(
                ssvq.fit_codebook, codewords=32, key=key, axis_name=names
            ),
            mesh=mesh,
            in_specs=P(names),
            out_specs=(P(), P(names), P()),
        )
        found = jax.jit(fit)(jax.device_put(points, NamedSharding(mesh, P(names))))
        assert_same(found, ssvq.fit_codebook(points, 32, key=key))


def test_points_that_are_sharded(kind, rng, key):
    points = rng.normal(size=(1000, 4)).astype(np.float32)
    importance = rng.uniform(size=1000).astype(np.float32)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    sharded, weights = (
        jax.device_put(x, NamedSharding(mesh, P(("x", "y"))))
        for x in (points, importance)
    )
    expected = ssvq.fit_codebook(points, 32, key=key, importance=importance)
    # Under `jit` the importance is a constant on several devices.
    fit = functools.partial(ssvq.fit_codebook, codewords=32, key=key)
    fit = jax.jit(functools.partial(fit, importance=weights))
    found = fit(sharded)
    assert_same(found, expected)
    assert found[1].sharding.spec == P(("x", "y"))
    assert "all-gather(" not in fit.lower(sharded).compile().as_text()
    start = {"init": points[:32], "iterations": 2}
    found = ssvq.fit_codebook(sharded, 32, key=key, **start)
    assert_same(found, ssvq.fit_codebook(points, 32, key=key, **start))
    # Rows that devices do not divide: all have all.
    odd = jax.device_put(points[:999], NamedSharding(mesh, P(None, "y")))
    found = ssvq.fit_codebook(odd, 32, key=key, **start)
    assert_same(found, ssvq.fit_codebook(points[:999], 32, key=key, **start))
    broken = weights / 0
    with pytest.raises(ValueError, match="importance: expected finite values"):
        jax.jit(lambda: ssvq.fit_codebook(points, 8, key=key, importance=broken))()


def test_a_codebook_a_device_in_shard_map(kind, rng, key):
    weight = rng.normal(size=(4, 16, 8)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    encode = functools.partial(ssvq.encode, ssvq.SSVQ(4, 4), key=key)
    nodes = jax.shard_map(
        jax.vmap(encode), mesh=mesh, in_specs=P("x"), out_specs=P("x")
    )(jax.device_put(weight, NamedSharding(mesh, P("x"))))
    assert nodes.stack == (4,)
    for node, part in zip(nodes.slices(), weight, strict=True):
        assert_same(ssvq.decode(node), ssvq.decode(encode(part)))


def _experts(rng, key, own):
    """What an expert's codes come from, of which one kind is its own."""
    given = {
        "points": rng.normal(size=(1, 64, 8)).astype(np.float32),
        "importance": rng.uniform(size=(2, 64, 8)).astype(np.float32),
        "key": jax.random.split(key),
    }
    return {name: x if name == own else x[:1] for name, x in given.items()}


def test_experts_of_an_importance_have_points_in_common(rng, key):
    """In `jax.shard_map`, where types tell over which axes an array differs."""
    given = _experts(rng, key, "importance")
    mesh = jax.make_mesh((2, 4), ("experts", "rows"))

    def fit(points, importance, key):
        codebook, codes, _ = ssvq.fit_codebook(
            points[0], 4, key=key[0], importance=importance[0], axis_name="rows"
        )
        return codebook[None], codes[None]

    specs = P(None, "rows"), P("experts", "rows"), P()
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(given.values(), specs, strict=True)
    ]
    outputs = P("experts"), P("experts", "rows")
    fit = jax.shard_map(fit, mesh=mesh, in_specs=specs, out_specs=outputs)
    found = [np.asarray(x) for x in fit(*placed)]
    for i, importance in enumerate(given["importance"]):
        expected = ssvq.fit_codebook(
            given["points"][0], 4, key=given["key"][0], importance=importance
        )
        assert_same([x[i] for x in found], list(expected[:2]))


def test_experts_of_a_key_have_a_weight_in_common(rng, key):
    given = _experts(rng, key, "key")
    mesh = jax.make_mesh((2,), ("experts",))
    # Words and codewords are too many to try all of them.
    codec = ssvq.SSVQ(64, 8, sign_code="parity")

    def encode(weight, importance, key):
        node = ssvq.encode(codec, weight[0], importance=importance[0], key=key[0])
        return ssvq.decode(node)[None]

    specs = P(), P(), P("experts")
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(given.values(), specs, strict=True)
    ]
    found = jax.shard_map(encode, mesh=mesh, in_specs=specs, out_specs=P("experts"))(
        *placed
    )
    for i, own in enumerate(given["key"]):
        expected = encode(given["points"], given["importance"], own[None])
        assert_same(np.asarray(found)[i], np.asarray(expected)[0])


@pytest.mark.parametrize("spec", [P("x", None, "y"), P(None, "x", "y")], ids=str)
def test_stacks(spec, mesh, rng, key):
    weight = rng.normal(size=(4, 64, 32)).astype(np.float32)
    rules = [ssvq.Rule("w", ssvq.SSVQ(4, 8), stack=1)]
    one = ssvq.compress({"w": weight}, rules, key=key)
    sharded = jax.device_put(weight, NamedSharding(mesh, spec))
    four = ssvq.compress({"w": sharded}, rules, key=key)
    assert_same(four, one)
    for leaf in (four["w"].codes, four["w"].latent, ssvq.decode(four["w"])):
        assert _padded(leaf.sharding.spec, 3) == tuple(spec)
    assert_same(ssvq.decode(ssvq.finalize(four)), ssvq.decode(ssvq.finalize(one)))


EXPERTS = [CODECS[2], CODECS[6], ssvq.Uniform(3, scale_dtype="float32")]


@pytest.mark.parametrize("codec", EXPERTS, ids=lambda codec: codec.describe())
def test_experts_are_encoded_where_they_lie(codec, kind, rng, key):
    """Nothing passes between devices, and the codes are those of one device."""
    weight = rng.normal(size=(8, 2, 16, 24)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("experts",), axis_types=(kind,))
    sharded = jax.device_put(weight, NamedSharding(mesh, P("experts")))
    rules = [ssvq.Rule("w", codec, stack=2)]
    compress = functools.partial(ssvq.compress, rules=rules, key=key)
    program = jax.jit(compress).lower({"w": sharded}).compile()
    assert _exchanged(program) == []
    expected = compress({"w": weight})
    for found in (program({"w": sharded}), compress({"w": sharded})):
        assert_same(found, expected)
        for leaf in jax.tree.leaves(found):
            assert leaf.addressable_shards[0].data.shape == (1, *leaf.shape[1:])


def test_stacks_where_an_axis_of_the_mesh_is_one_device(kind, rng, key):
    weight = rng.normal(size=(4, 16, 8)).astype(np.float32)
    rules = [ssvq.Rule("w", ssvq.VQ(4, 4), stack=1)]
    one = ssvq.compress({"w": weight}, rules, key=key)
    for shape in ((1, 1), (4, 1)):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
        for spec in (P(None, None, "model"), P("data", None, "model")):
            sharded = jax.device_put(weight, NamedSharding(mesh, spec))
            assert_same(ssvq.compress({"w": sharded}, rules, key=key), one)


def test_a_slice_that_float16_cannot_hold(kind, rng, key):
    weight = rng.normal(size=(2, 16, 8)).astype("f4") * np.float32([[[1]], [[1e-9]]])
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x")))
    for codec, option in (
        (ssvq.VQ(4, 4, channel_scale="float16"), "channel_scale"),
        (ssvq.Uniform(4), "scale_dtype"),
    ):
        rules = [ssvq.Rule("w", codec, stack=1)]
        one, two = (ssvq.compress({"w": w}, rules, key=key) for w in (weight, sharded))
        assert getattr(two["w"].codec, option) == "bfloat16"
        assert two["w"].codec == one["w"].codec
        assert_same(two, one)


@pytest.mark.parametrize("codec", CODECS[:4], ids=lambda codec: codec.describe())
def test_encode_under_jit(codec, mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x", "y")))
    jitted = jax.jit(lambda weight: ssvq.encode(codec, weight, key=key))(sharded)
    np.testing.assert_allclose(
        ssvq.decode(jitted), ssvq.decode(ssvq.encode(codec, weight, key=key)), rtol=1e-4
    )


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.describe())
def test_what_no_device_can_have_a_part_of(codec, kind, rng, key):
    """Sharded along blocks that may not be cut, and no other axis divides."""
    weight = rng.normal(size=(36, 3)).astype(np.float32)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x")))
    one, two = (ssvq.encode(codec, w, key=key) for w in (weight, sharded))
    assert_same(ssvq.decode(two), ssvq.decode(one))
    assert_same(two.assign(-sharded), one.assign(-weight))


def test_where_keys_and_other_axes_lie(rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    kinds = (AxisType.Auto, AxisType.Explicit)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=kinds)
    one = ssvq.decode(ssvq.encode(CODECS[0], weight, key=key))
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x", "y")))
    here = jax.device_put(key, jax.devices()[0])
    assert_same(ssvq.decode(ssvq.encode(CODECS[0], sharded, key=here)), one)
    encode = jax.jit(functools.partial(ssvq.encode, CODECS[0], key=key))
    assert_same(ssvq.decode(encode(sharded)), one)


@pytest.mark.parametrize("spec", [P(), P("x", None, "y")], ids=str)
def test_under_vmap(spec, rng, key):
    """Of Explicit axes `encode` itself has to know: `Rule(..., stack=1)`."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    weight = rng.normal(size=(4, 64, 16)).astype(np.float32)
    encode = functools.partial(ssvq.encode, CODECS[0], key=key)
    sharded = jax.device_put(weight, NamedSharding(mesh, spec))
    nodes = jax.vmap(encode)(sharded)
    for node, part in zip(nodes.slices(), weight, strict=True):
        assert_same(ssvq.decode(node), ssvq.decode(encode(part)))


def test_matmul(mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, P(None, "y")))
    for codec in (ssvq.SSVQ(8, 8), ssvq.SSVQ(8, 8, channel_scale="float16")):
        node = ssvq.finalize(ssvq.encode(codec, sharded, key=key))
        expected = x @ np.asarray(ssvq.decode(node))
        np.testing.assert_allclose(ssvq.matmul(x, node), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [P("x", "y"), P(None, "y"), P()], ids=str)
def test_tables_of_embeddings(spec, kind, mesh, rng, key):
    table = rng.normal(size=(64, 16)).astype(np.float32)
    sharded = jax.device_put(table, NamedSharding(mesh, spec))
    tokens = np.array([[1, 5], [63, 0]])
    split = jax.device_put(tokens, NamedSharding(mesh, P("x")))
    x = rng.normal(size=(3, 16)).astype(np.float32)
    for codec in (ssvq.Uniform(8), ssvq.SSVQ(4, 4, channel_scale="float16")):
        node = ssvq.encode(codec, sharded, key=key, axis=1)
        decoded = np.asarray(ssvq.decode(node))
        for indices in (tokens, split):
            np.testing.assert_allclose(
                ssvq.take(node, indices), decoded[tokens], rtol=1e-6
            )
        if kind == AxisType.Explicit:  # as the tokens and, along its rows, the table
            width = spec[1] if len(spec) > 1 else None
            taken = ssvq.take(node, split).sharding.spec
            assert tuple(taken) == ("x", None, width)
        for rows in (x, ssvq.take(node, tokens)):
            expected = np.asarray(rows) @ decoded.T
            np.testing.assert_allclose(
                ssvq.attend(rows, node), expected, rtol=1e-4, atol=1e-5
            )


def test_sharding_that_does_not_divide_the_blocks(mesh, rng, key):
    weight = rng.normal(size=(12, 6)).astype(np.float32)  # 3 blocks of 4 over 2 devices
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x", "y")))
    codec = ssvq.SSVQ(4, 4)
    one, four = (ssvq.encode(codec, w, key=key) for w in (weight, sharded))
    assert_same(ssvq.decode(four), ssvq.decode(one))
    assert_same(ssvq.decode(ssvq.finalize(four)), ssvq.decode(ssvq.finalize(one)))


@pytest.mark.usefixtures("standard_promotion")
def test_a_report_beside_a_weight_on_one_device(mesh, rng, key, monkeypatch):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    sharded = jax.device_put(weight, NamedSharding(mesh, P("x", "y")))
    expected = ssvq.report(ssvq.encode(CODECS[4], weight, key=key), weight)
    monkeypatch.setattr(protocol, "_SLAB", 150)
    node = ssvq.encode(CODECS[4], sharded, key=key)
    for original in (weight, sharded):
        error = ssvq.report(node, original).rows[0].error
        assert error == pytest.approx(expected.rows[0].error, rel=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_training_steps(mesh, rng, key):
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    x = rng.normal(size=(8, 64)).astype(np.float32)
    tx = optax.chain(optax.adamw(0.1), ssvq.freeze_signs(interval=2, threshold=0.001))

    def train(weight, x):
        node = ssvq.encode(ssvq.SSVQ(8, 8), weight, key=key)
        trainable, static = ssvq.partition(node)
        state = tx.init(trainable)

        @jax.jit
        def step(trainable, state):
            def loss(trainable):
                y = x @ ssvq.decode(ssvq.combine(trainable, static))
                return jnp.mean(jnp.square(y - 1))

            value, gradient = jax.value_and_grad(loss)(trainable)
            updates, state = tx.update(gradient, state, trainable)
            return value, optax.apply_updates(trainable, updates), state

        losses = []
        for _ in range(6):
            value, trainable, state = step(trainable, state)
            losses.append(value)
        return jnp.stack(losses), state[-1].frozen.latent

    one = train(weight, x)
    four = train(
        jax.device_put(weight, NamedSharding(mesh, P(None, "y"))),
        jax.device_put(x, NamedSharding(mesh, P("x"))),
    )
    np.testing.assert_allclose(one[0], four[0], rtol=1e-4)
    assert np.mean(np.asarray(one[1]) == np.asarray(four[1])) > 0.999
    assert np.asarray(one[1]).any()


_PROCESS = """
import functools, pathlib, sys
import jax
number, address, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(address, 2, number)
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import ssvq_jax as ssvq

rng, key = np.random.default_rng(0), jax.random.key(0)
weights = {"w": rng.normal(size=(64, 48)), "experts": rng.normal(size=(8, 16, 24))}
weights = {name: x.astype("f4") for name, x in weights.items()}
weights["masked"] = weights["w"]
specs = {"w": P(None, "x"), "masked": P(None, "x"), "experts": P("x")}
rules = [
    ssvq.Rule("experts", ssvq.VQ(4, 4), stack=1),
    ssvq.Rule("w", ssvq.SSVQ(8, 8)),
    ssvq.Rule("masked", ssvq.MVQ(8, 8, (2, 4))),
]
importance = {name: np.abs(x[::-1]) for name, x in weights.items()}
# One of NumPy; the others, and the key, on a device of this process.
local = functools.partial(jax.device_put, device=jax.local_devices()[0])
importance |= {name: local(importance[name]) for name in ("experts", "masked")}
compress = functools.partial(ssvq.compress, rules=rules)
weighted = functools.partial(compress, importance=importance, key=local(key))
plain = jax.jit(functools.partial(compress, key=key))
one = weighted(weights), plain(weights)

def check(found, expected):
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        exact = np.issubdtype(y.dtype, np.integer)
        assert len(x.addressable_shards) == 4 and not x.is_fully_addressable
        for part in x.addressable_shards:
            expected = np.asarray(y)[part.index]
            np.testing.assert_allclose(part.data, expected, 0 if exact else 1e-5, 1e-6)

for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    sharded = {
        name: jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, specs[name]), lambda index, x=x: x[index]
        )
        for name, x in weights.items()
    }
    two = weighted(sharded), plain(sharded)
    check(two, one)
    assert two[0]["w"].codes.sharding.spec == specs["w"]
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "tree", two[0])
    checkpointer.wait_until_finished()
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, two[0])
    check(checkpointer.restore(folder / "tree", like), one[0])
final = multihost_utils.process_allgather(ssvq.finalize(two[1]), tiled=True)
if number == 0:
    ssvq.save(folder / "packed", final)
"""


@pytest.mark.usefixtures("standard_promotion")
def test_two_processes_compress_what_both_hold(tmp_path, key):
    """Arrays of all processes, of which each holds, saves and restores its parts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(i), address, str(tmp_path)],
            env={**os.environ, "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        texts = [process.communicate(timeout=300)[0] for process in processes]
        assert not any(process.returncode for process in processes), "".join(texts)
    finally:
        for process in processes:
            process.kill()
    shards = (tmp_path / "tree").glob("ocdbt.process_*")
    assert {x.name[-1] for x in shards} == {"0", "1"}
    rules = [ssvq.Rule("w", ssvq.SSVQ(8, 8))]
    weight = np.random.default_rng(0).normal(size=(64, 48)).astype("f4")
    alone = ssvq.finalize(ssvq.compress({"w": weight}, rules, key=key))
    stored = ssvq.load(tmp_path / "packed")
    assert_same(ssvq.decode(stored)["w"], ssvq.decode(alone)["w"])
