"""`allocate`: budgets, what is counted, what costs count for, what fits."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

import ssvq_jax as ssvq
import ssvq_jax.linen
import ssvq_jax.nnx
from ssvq_jax.calibration import Moment, Role
from ssvq_jax.codecs import is_compressed

CODECS = [
    ssvq.SSVQ(4, 8),
    ssvq.SSVQ(16, 4, codebook_dtype="int8"),
    ssvq.VQ(8, 4),
    ssvq.MVQ(8, 8, (2, 4)),
    ssvq.Uniform(2),
    ssvq.Uniform(4),
]
CANDIDATES = [ssvq.Rule(".*kernel", codec) for codec in (*CODECS, None)]


@pytest.fixture
def params(rng):
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "first": {"kernel": normal(48, 32), "bias": normal(32)},
        "second": {"kernel": 3 * normal(31, 37), "bias": normal(37)},
        "conv": {"kernel": normal(3, 3, 8, 16).astype(jnp.bfloat16)},
        "steps": jnp.int32(3),
    }


def payload(path):
    """Stored bits of a packed file without its header and hashes."""
    tensors = load_file(path)
    return 8 * sum(x.nbytes for name, x in tensors.items() if "hashes" not in name)


def codecs(allocation):
    return {rule.pattern: rule.codec for rule in allocation}


def kernels(rng, **scales):
    return {
        name: jnp.asarray(scale * rng.normal(size=(32, 32)), jnp.float32)
        for name, scale in scales.items()
    }


UNIFORM = [ssvq.Rule(".*", ssvq.Uniform(bits)) for bits in (2, 3, 4)]


@pytest.mark.parametrize("bits", [2, 2.7, 3.5, 6.0, 40.0])
def test_bits_are_those_of_the_report_and_of_the_file(bits, params, key, tmp_path):
    allocation = ssvq.allocate(params, CANDIDATES, bits=bits, key=key)
    assert allocation.bits <= bits
    assert allocation.at(2.2).at(bits) == allocation
    compressed = ssvq.compress(params, allocation, key=key)
    report = ssvq.report(ssvq.finalize(compressed), params)
    assert allocation.bits == report.model.bits_per_weight
    ssvq.save(tmp_path / "x.safetensors", compressed)
    assert payload(tmp_path / "x.safetensors") == report.model.bits
    for own, row in zip(allocation.rows, report.rows, strict=True):
        assert (own.path, own.shape, own.weights) == (row.path, row.shape, row.weights)
        assert (own.rule, own.bits) == (row.rule, row.bits)
        assert (own.error is None) == (row.error is None)
        if row.error is not None:
            assert own.error == pytest.approx(row.error, rel=1e-4)
            expected = row.error * squares(params, row.path)
            assert own.cost == pytest.approx(expected, rel=1e-4)
    total = sum(row.cost for row in allocation.rows)
    for row in allocation.rows:
        assert row.share == pytest.approx(row.cost / total if total else 0)


def test_stacks_are_allocated_whole(rng, key, tmp_path):
    """By number and by name; every slice has a codebook, which is counted."""
    layers = nnx.Param(
        jnp.asarray(rng.normal(size=(3, 32, 24)), jnp.float32),
        out_sharding=("layers", None, None),
        eager_sharding=False,
    )
    params = {"layers": layers, "experts": {"kernel": 3 * layers[...]}}
    rules = [
        *(ssvq.Rule("layers", codec, stack="layers") for codec in CODECS),
        *(ssvq.Rule("experts/kernel", codec, stack=1) for codec in CODECS),
        ssvq.Rule(".*", None),
    ]
    x = jnp.asarray(rng.normal(size=(3, 9, 32)), jnp.float32)

    def apply(params, x):
        return jnp.matmul(x, params["layers"]), jnp.matmul(x, params["experts/kernel"])

    flat = {"layers": layers[...], "experts/kernel": params["experts"]["kernel"]}
    moments = ssvq.calibrate(apply, flat, [x])
    allocation = ssvq.allocate(params, rules, bits=3, key=key, moments=moments)
    assert {row.stack for row in allocation.rows} == {1} and 2 < allocation.bits <= 3
    compressed = ssvq.compress(params, allocation, key=key)
    report = ssvq.report(ssvq.finalize(compressed), flat)
    assert allocation.bits == report.model.bits_per_weight
    ssvq.save(tmp_path / "x.safetensors", compressed)
    assert payload(tmp_path / "x.safetensors") == report.model.bits
    with pytest.raises(ValueError, match="no parameter of 'experts/kernel' has a lead"):
        ssvq.allocate(
            params,
            [ssvq.Rule("experts/kernel", CODECS[0], stack="layers")],
            bits=3,
            key=key,
        )


@pytest.mark.parametrize("known", [True, False])
def test_a_layer_costs_in_a_stack_what_it_costs_alone(known, rng, key):
    """With moments and, where it has none, by its relative error."""
    layers = jnp.asarray(rng.normal(size=(2, 2, 32, 24)), jnp.float32)
    layers *= jnp.array([1.0, 0.01, 30.0, 0.3]).reshape(2, 2, 1, 1)
    alone = {f"w{i}{j}": layers[i, j] for i in (0, 1) for j in (0, 1)}
    x = jnp.asarray(rng.normal(size=(2, 2, 9, 32)), jnp.float32)

    def of_stack(params, x):
        return jnp.matmul(x, params["w"]), x[0, 0] @ params["x"]

    def of_parts(params, x):
        rows = [x[i, j] @ params[f"w{i}{j}"] for i in (0, 1) for j in (0, 1)]
        return rows, x[0, 0] @ params["x"]

    costs = []
    for params, stack, apply in (({"w": layers}, 2, of_stack), (alone, 0, of_parts)):
        params = {**params, "x": jnp.ones((32, 4))}
        moments = ssvq.calibrate(apply, params, [x])
        if not known:
            moments = {"x": moments["x"]}
        rules = [ssvq.Rule("w.*", ssvq.Uniform(3), stack=stack), ssvq.Rule("x", None)]
        found = ssvq.allocate(params, rules, bits=6, key=key, moments=moments)
        costs.append(sum(row.cost for row in found.rows))
    assert costs[0] == pytest.approx(costs[1], rel=1e-4)


def squares(params, path):
    for name in path.split("/"):
        params = params[name]
    return np.sum(np.square(np.asarray(params, np.float64)))


def test_more_bits_cost_less(params, key):
    costs, found = [], set()
    for bits in (2.0, 2.5, 3.0, 4.0, 8.0, 40.0):
        allocation = ssvq.allocate(params, CANDIDATES, bits=bits, key=key)
        costs.append(sum(row.cost for row in allocation.rows))
        found.update(type(rule.codec) for rule in allocation)
    assert costs == sorted(costs, reverse=True) and len(set(costs)) > 3
    assert costs[-1] == 0 and len(allocation) == 0  # all as it is
    assert len(found) > 2
    assert ssvq.compress(params, allocation, key=key) is not params


def test_the_whole_budget_is_reachable_from_its_own_bits(params, key):
    first = ssvq.allocate(params, CANDIDATES, bits=3.1, key=key)
    again = ssvq.allocate(params, CANDIDATES, bits=first.bits, key=key)
    assert again == first  # and the same every time


def test_too_few_bits(params, key):
    report = ssvq.report(params)
    kept = sum(row.bits for row in report.rows if "kernel" not in row.path)
    message = rf"at least (.*), of which {kept / report.model.weights:.4f} are.*got 1"
    with pytest.raises(ValueError, match=message) as error:
        ssvq.allocate(params, CANDIDATES, bits=1, key=key)
    least = float(str(error.value).split("at least ")[1].split(",")[0])
    assert ssvq.allocate(params, CANDIDATES, bits=least, key=key).bits <= least
    with pytest.raises(ValueError, match="bits: expected at least"):
        ssvq.allocate(params, CANDIDATES, bits=least - 0.01, key=key)


def test_larger_weights_get_more_bits(rng, key):
    params = kernels(rng, large=3.0, small=1.0)
    allocation = ssvq.allocate(params, UNIFORM, bits=3.6, key=key)
    chosen = codecs(allocation)
    assert chosen["large"].bits > chosen["small"].bits


def test_larger_divergences_get_more_bits(rng, key):
    params = kernels(rng, large=3.0, small=1.0)
    seen = []

    def divergence(tree):
        [path] = [path for path, leaf in tree.items() if is_compressed(leaf)]
        assert {path: tree[path].codec} == {path: ssvq.Uniform(3)}  # nearest to 3.6
        decoded = ssvq.decode(tree)
        for other in set(params) - {path}:
            assert tree[other] is params[other]
        change = sum(jnp.sum(jnp.square(decoded[p] - params[p])) for p in params)
        assert change > 0
        seen.append(path)
        return jnp.float32({"large": 0.5, "small": 4.0}[path])

    allocation = ssvq.allocate(
        params, UNIFORM, bits=3.6, key=key, divergence=divergence
    )
    assert seen == ["large", "small"]
    chosen = codecs(allocation)
    assert chosen["large"].bits < chosen["small"].bits
    # Costs of the others are in proportion to their errors.
    for row in allocation.rows:
        measured = ssvq.encode(ssvq.Uniform(3), params[row.path], key=key)
        tree = {row.path: measured}
        [reference] = ssvq.report(tree, {row.path: params[row.path]}).rows
        at_three = {"large": 0.5, "small": 4.0}[row.path]
        expected = at_three * row.error / reference.error
        assert row.cost == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_divergences_that_are_none(value, rng, key):
    with pytest.raises(ValueError, match=r"divergence: .*for only .*Uniform.*got -?\w"):
        ssvq.allocate(
            kernels(rng, only=1.0),
            UNIFORM,
            bits=3.0,
            key=key,
            divergence=lambda _: value,
        )


def moment(second):
    return Moment(
        second=jnp.asarray(second, jnp.float32),
        mean=jnp.zeros(32),
        count=jnp.float32(9e4),  # of few rows little is believed: see `damping`
        roles=jnp.array([Role.INPUT, Role.OUTPUT], jnp.int32),
    )


def test_moments(rng, key):
    params = kernels(rng, correlated=3.0, plain=1.0, missing=1.0)
    # A dead input, and nearly all in one direction.
    x = rng.normal(size=(1, 32)) * np.linspace(0, 3, 32)
    moments = {"correlated": moment(x.T @ x), "plain": moment(np.eye(32))}
    allocation = ssvq.allocate(params, UNIFORM, bits=3.6, key=key, moments=moments)
    chosen = codecs(allocation)
    assert chosen["correlated"].bits < min(chosen["plain"].bits, chosen["missing"].bits)
    for row in allocation.rows:
        if row.path != "correlated":  # inputs without correlation, or so taken
            assert row.cost == pytest.approx(row.error, rel=1e-4)
        else:
            assert row.cost < row.error


def test_factors_of_outputs_are_of_all_or_of_none(rng, key):
    params = {name: jnp.asarray(rng.normal(size=(32, 8)), jnp.float32) for name in "ab"}
    moments = {name: moment(np.eye(32)) for name in "ab"}
    factor = dataclasses.replace(moments["a"], outputs=2 * jnp.eye(8))
    rules = [ssvq.Rule(".", ssvq.Uniform(bits)) for bits in (2, 4)]

    def chosen(factors, **options):
        found = ssvq.allocate(
            params, rules, bits=4, key=key, moments={**moments, **factors}, **options
        )
        return {rule.pattern: rule.codec.bits for rule in found}

    with pytest.raises(ValueError, match="moments: a has outputs and b has none"):
        chosen({"a": factor})
    assert chosen({"a": factor}, divergence=lambda _: 1.0)
    loud = jax.tree.map(lambda x: 100 * x, factor)
    loud = dataclasses.replace(factor, second=loud.second, outputs=loud.outputs)
    assert chosen({"a": factor, "b": loud}) == {"a": 2, "b": 4}
    assert chosen({"a": loud, "b": factor}) == {"a": 4, "b": 2}


def test_an_input_that_is_always_zero(rng, key):
    params = kernels(rng, silent=9.0, other=1.0)
    moments = {"silent": moment(np.zeros((32, 32))), "other": moment(np.eye(32))}
    allocation = ssvq.allocate(
        params, UNIFORM, bits=3.6, key=key, moments=moments, divergence=lambda _: 1.0
    )
    chosen = codecs(allocation)
    assert (chosen["silent"].bits, chosen["other"].bits) == (2, 4)
    assert [row.cost for row in allocation.rows if row.path == "silent"] == [0]


def test_moments_of_other_parameters(rng, key):
    params = kernels(rng, a=1.0)
    with pytest.raises(ValueError, match="moments: .*such as 'a'.*such as 'b'"):
        ssvq.allocate(
            params, UNIFORM, bits=4, key=key, moments={"b": moment(np.eye(32))}
        )
    with pytest.raises(ValueError, match=r"a: moments: .*\(32,\), got \(7,\)"):
        ssvq.allocate(
            {"a": jnp.ones((7, 32))},
            UNIFORM,
            bits=9,
            key=key,
            moments={"a": moment(np.eye(32))},
        )


def test_candidates_that_do_not_fit_are_left_out(rng, key):
    params = {
        "tiny": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
        "wide": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32),
        "count": jnp.arange(5),
    }
    rules = [
        ssvq.Rule("tiny|wide", ssvq.VQ(64, 8)),  # 2 blocks in `tiny`; the cheapest
        ssvq.Rule("tiny|wide", ssvq.Uniform(4), axis=-2),
        ssvq.Rule("tiny|wide", ssvq.Uniform(2), axis=2),  # out of range for both
    ]
    allocation = ssvq.allocate(params, rules, bits=3.0, key=key)
    assert codecs(allocation) == {"tiny": ssvq.Uniform(4), "wide": ssvq.VQ(64, 8)}
    assert [rule.axis for rule in allocation] == [-2, None]
    with pytest.raises(
        ValueError, match=r"tiny: expected a candidate.*float32.*\(8, 2\).*VQ\(64, 8\)"
    ):
        ssvq.allocate(params, rules[:1], bits=9, key=key)
    with pytest.raises(ValueError, match="count: expected a candidate.*int32"):
        ssvq.allocate(params, UNIFORM, bits=9, key=key)
    # As it is, is a candidate that always fits.
    stay = [*UNIFORM, ssvq.Rule("count", None)]
    assert "count" not in codecs(ssvq.allocate(params, stay, bits=9, key=key))


@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (1, 1), (7, 5)])
def test_shapes(shape, rng, key):
    params = {"x": jnp.asarray(rng.normal(size=shape), jnp.float32), "y": jnp.ones(2)}
    rules = [ssvq.Rule("x", ssvq.VQ(2, 4)), ssvq.Rule("x", None)]
    allocation = ssvq.allocate(params, rules, bits=32, key=key)
    compressed = ssvq.compress(params, allocation, key=key)
    assert ssvq.report(compressed).model.bits_per_weight == allocation.bits <= 32


def test_what_is_compressed_already(rng, key):
    params = kernels(rng, a=1.0, b=1.0)
    params = ssvq.compress(params, [ssvq.Rule("a", ssvq.VQ(4, 4))], key=key)
    allocation = ssvq.allocate(params, [ssvq.Rule("b", ssvq.VQ(4, 4))], bits=3, key=key)
    a, b = allocation.rows
    assert a.rule == b.rule == "VQ(4, 4)" and list(codecs(allocation)) == ["b"]
    assert a.bits == b.bits and a.cost == 0
    with pytest.raises(ValueError, match=r"a: .*what VQ\(4, 4\) gave of shape"):
        ssvq.allocate(params, UNIFORM, bits=9, key=key)


def test_errors(rng, key):
    params = kernels(rng, a=1.0)
    for bits in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="bits: expected a positive number"):
            ssvq.allocate(params, UNIFORM, bits=bits, key=key)
    with pytest.raises(ValueError, match="'b' matches no parameter; near it: a"):
        ssvq.allocate(params, [ssvq.Rule("b", None)], bits=9, key=key)
    with pytest.raises(ValueError, match="a: weight: .*1 NaN"):
        broken = {"a": params["a"].at[3, 4].set(jnp.nan)}
        ssvq.allocate(broken, UNIFORM, bits=9, key=key)
    with pytest.raises(ValueError, match="params: expected at least one weight"):
        ssvq.allocate({}, [], bits=9, key=key)


def test_a_sequence_of_rules_and_a_table(params, key):
    candidates = [ssvq.Rule(".*(kernel|\\])", codec) for codec in CODECS]
    params = {**params, "odd.name[0]": params["first"]["kernel"]}
    allocation = ssvq.allocate(params, candidates, bits=4.5, key=key)
    assert len(allocation) == 4 and list(allocation)[1:] == list(allocation[1:])
    assert allocation[0] in allocation
    [odd] = [rule for rule in allocation if rule.matches("odd.name[0]")]
    assert not odd.matches("odd-name[0]")
    text = str(allocation)
    # A long rule takes two lines, broken between words.
    rule = odd.codec.describe().split()
    for word in ("odd.name[0]", *rule, "cost", "share", "whole model"):
        assert word in text
    assert "used" not in text
    rows = json.loads(json.dumps([dataclasses.asdict(row) for row in allocation.rows]))
    assert rows[0]["shape"] == [3, 3, 8, 16] and isinstance(rows[0]["cost"], float)


def test_the_rules_are_for_calibrate_too(params, key):
    allocation = ssvq.allocate(params, CANDIDATES, bits=4.0, key=key)

    def apply(params, x):
        return x @ params["first"]["kernel"]

    moments = ssvq.calibrate(apply, params, [jnp.ones((2, 48))], rules=allocation)
    assert "first/kernel" in moments


@pytest.mark.usefixtures("standard_promotion")
def test_an_nnx_module(rng, key):
    module = nnx.Sequential(
        nnx.Linear(32, 24, rngs=nnx.Rngs(0)), nnx.Linear(24, 16, rngs=nnx.Rngs(1))
    )
    state = nnx.state(module, nnx.Param)
    x = rng.normal(size=(9, 32)).astype(np.float32)
    expected = module(x)

    def divergence(state):
        return jnp.mean(
            jnp.square(ssvq.nnx.CompressedModule(module, state)(x) - expected)
        )

    rules = [ssvq.Rule(".*kernel", ssvq.Uniform(bits)) for bits in (2, 4)]
    moments = ssvq.nnx.calibrate(module, [x])
    allocation = ssvq.allocate(
        state, rules, bits=7, key=key, moments=moments, divergence=divergence
    )
    compressed = ssvq.nnx.compress(module, allocation, key=key)
    assert ssvq.report(compressed.params).model.bits_per_weight == allocation.bits <= 7
    as_dict = ssvq.allocate(
        nnx.to_pure_dict(state), rules, bits=7, key=key, moments=moments
    )
    variables = ssvq.linen.compress(
        {"params": nnx.to_pure_dict(state)}, as_dict, key=key
    )
    stored = ssvq.report(ssvq.linen.params(variables)).model
    assert stored.bits_per_weight == as_dict.bits


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_weights(kind, rng, key):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
    params = kernels(rng, a=2.0, b=1.0)
    moments = {"a": moment(np.eye(32))}
    sharded = jax.device_put(params, NamedSharding(mesh, P("x", "y")))
    rules = [ssvq.Rule(".*", codec) for codec in (CODECS[0], *CODECS[-2:])]
    one, four = (
        ssvq.allocate(
            tree,
            rules,
            bits=3.3,
            key=key,
            moments=moments,
            divergence=lambda tree: jnp.sum(jnp.square(ssvq.decode(tree)["a"])),
        )
        for tree in (params, sharded)
    )
    assert one.rules == four.rules
    chex.assert_trees_all_close(
        [row.cost for row in one.rows], [row.cost for row in four.rows], rtol=1e-5
    )
