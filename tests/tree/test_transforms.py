import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ssvq_jax as ssvq


@pytest.fixture
def compressed(rng, key):
    params = {
        "a": {
            "kernel": jnp.asarray(rng.normal(size=(16, 8)), "f4"),
            "bias": jnp.ones(8),
        },
        "b": (jnp.asarray(rng.normal(size=(16, 4)), "f4"), None),
        "c": jnp.asarray(rng.normal(size=(16, 4)), "f4"),
        "count": jnp.int32(3),
    }
    rules = [
        ssvq.Rule("a/kernel", ssvq.SSVQ(4, 4)),
        ssvq.Rule("b/0", ssvq.Uniform(2)),
        ssvq.Rule("c", ssvq.MVQ(4, 4, (1, 2))),
    ]
    return ssvq.compress(params, rules, key=key)


def test_partition_and_combine(compressed):
    trainable, static = ssvq.partition(compressed)
    floats = {leaf.dtype.name for leaf in jax.tree.leaves(trainable)}
    others = {leaf.dtype.name for leaf in jax.tree.leaves(static)}
    assert floats == {"float32"}
    assert others == {"uint8", "int32"}
    chex.assert_trees_all_equal(ssvq.combine(trainable, static), compressed)
    with pytest.raises(ValueError, match="a"):
        ssvq.combine(trainable, {"a": static["a"]})


def test_label_tree(compressed):
    labels = ssvq.label_tree(compressed)
    chex.assert_trees_all_equal_structs(labels, jax.tree.map(lambda _: "", compressed))
    assert labels["a"]["kernel"].latent == "sign"
    assert labels["a"]["kernel"].codebook == "codebook"
    assert labels["a"]["kernel"].codes == "other"
    assert labels["a"]["bias"] == "other"
    assert labels["b"][0].weight == labels["b"][0].scale == "other"
    assert labels["c"].codebook == "codebook"
    scaled = ssvq.VQ(2, 4, channel_scale="float16")
    node = ssvq.encode(scaled, jnp.ones((8, 2)), key=jax.random.key(0))
    assert ssvq.label_tree(node).channel_scale == "codebook"
    # A parameter of the user's that happens to be called so is none of ours.
    assert ssvq.label_tree({"x": {"latent": 1.0, "codebook": 2.0}}) == {
        "x": {"latent": "other", "codebook": "other"}
    }


def test_label_tree_drives_optax_partition(compressed):
    trainable, static = ssvq.partition(compressed)
    rates = {"sign": 0.1, "codebook": 0.01, "other": 0.0}
    tx = optax.partition({k: optax.sgd(v) for k, v in rates.items()}, ssvq.label_tree)

    def loss(trainable):
        decoded = ssvq.decode(ssvq.combine(trainable, static))
        return sum(
            jnp.sum(x) for x in jax.tree.leaves(decoded) if x.dtype == jnp.float32
        )

    gradient = jax.grad(loss)(trainable)
    updates, _ = tx.update(gradient, tx.init(trainable), trainable)
    expected = jax.tree.map(
        lambda label, g: -rates[label] * g, ssvq.label_tree(trainable), gradient
    )
    chex.assert_trees_all_close(updates, expected)


def test_decode_and_finalize_leave_the_rest_alone(compressed):
    for function in (ssvq.decode, ssvq.finalize):
        result = function(compressed)
        assert result["count"] is compressed["count"]
        assert result["b"][1] is None
        assert result["a"]["bias"] is compressed["a"]["bias"]
    final = ssvq.finalize(compressed)
    assert final["a"]["kernel"].latent is None
    assert final["a"]["kernel"].codebook.dtype == jnp.float16
    assert final["b"][0].weight is None
    chex.assert_trees_all_equal(ssvq.finalize(final), final)


def test_finalized_values_are_the_trained_ones_up_to_the_codebook_dtype(rng, key):
    weight = rng.normal(size=(32, 16)).astype(np.float32)
    exact = ssvq.encode(ssvq.SSVQ(8, 4, codebook_dtype="float32"), weight, key=key)
    chex.assert_trees_all_equal(ssvq.decode(ssvq.finalize(exact)), ssvq.decode(exact))
    half = ssvq.encode(ssvq.SSVQ(8, 4), weight, key=key)
    chex.assert_trees_all_close(
        ssvq.decode(ssvq.finalize(half)), ssvq.decode(half), rtol=2**-11
    )


def test_decode_error_names_the_path(compressed):
    node = compressed["a"]["kernel"]
    compressed["a"]["kernel"] = node.replace(latent=node.latent[:3])
    with pytest.raises(ValueError, match=r"a/kernel: latent.*\(16, 8\), got \(3, 8\)"):
        ssvq.decode(compressed)


def test_report(compressed, rng):
    text = str(ssvq.report(compressed))
    assert "a/kernel" in text
    assert "not compressed" in text
    report = ssvq.report(compressed)
    rows = {row.path: row for row in report.rows}
    assert rows["a/kernel"].shape == (16, 8)
    assert rows["a/kernel"].bits == compressed["a"]["kernel"].bits
    assert rows["a/kernel"].error is None
    assert rows["a/bias"].bits == 8 * 32
    assert report.compressed.weights == 16 * 8 + 16 * 4 + 16 * 4
    assert report.compressed.bits == sum(rows[p].bits for p in ("a/kernel", "b/0", "c"))
    assert report.model.bits == sum(row.bits for row in report.rows)
    assert report.model.ratio == 32 * report.model.weights / report.model.bits


def test_report_tells_the_worst_slice_of_a_stack(rng, key):
    scales = np.array([1, 0.3, 0.01])[:, None, None]
    params = {"layers": (scales * rng.normal(size=(3, 32, 16))).astype("f4")}
    params["flat"] = params["layers"][0]
    tree = ssvq.compress(params, [ssvq.Rule(".*", ssvq.SSVQ(4, 8))], key=key)
    stack, decoded = params["layers"], np.asarray(ssvq.decode(tree)["layers"])
    errors = np.sum((stack - decoded) ** 2, (1, 2)) / np.sum(stack**2, (1, 2))
    found = ssvq.report(tree, params)
    (row,) = (row for row in found.rows if row.path == "layers")
    np.testing.assert_allclose(row.worst, errors.max(), rtol=1e-5)
    assert row.worst > 10 * row.error
    assert next(row for row in found.rows if row.path == "flat").worst is None
    assert "worst" in str(found) and f"{row.worst:.4f}" in str(found)
    assert "worst" not in str(ssvq.report(tree))


def test_report_errors_against_a_reference(rng, key):
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    params = {"a": weight, "b": np.zeros((8, 2), np.float32)}
    compressed = ssvq.compress(params, [ssvq.Rule(".*", ssvq.VQ(4, 4))], key=key)
    [a, b] = ssvq.report(compressed, params).rows
    decoded = np.asarray(ssvq.decode(compressed)["a"])
    expected = np.sum((weight - decoded) ** 2) / np.sum(weight**2)
    np.testing.assert_allclose(a.error, expected, rtol=1e-5)
    assert a.codewords_used == 1.0
    assert (b.error, b.codewords_used) == (0.0, 0.25)
    with pytest.raises(ValueError, match="a: expected shape.*nothing"):
        ssvq.report(compressed, {"b": params["b"]})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_decode_to_another_dtype_is_the_rounded_weight(dtype, rng, key):
    weight = jnp.asarray(rng.normal(size=(33, 20)), jnp.float32)
    scaled = ssvq.SSVQ(8, 4, channel_scale="float16")
    for codec in (ssvq.SSVQ(8, 4), ssvq.VQ(8, 4), ssvq.MVQ(8, 4, (2, 4)), scaled):
        training = ssvq.encode(codec, weight, key=key)
        for node in (training, ssvq.finalize(training)):
            decoded = ssvq.decode({"w": node}, dtype=dtype)["w"]
            chex.assert_trees_all_equal(decoded, ssvq.decode(node).astype(dtype))


@pytest.mark.parametrize(
    "codec",
    [
        ssvq.SSVQ(8, 4, codebook_dtype="int8"),
        ssvq.SSVQ(8, 4, learn_signs=False, codebook_dtype="int8"),
        ssvq.VQ(8, 4, codebook_dtype="int8"),
        ssvq.MVQ(8, 4, (2, 4)),
        ssvq.Uniform(3),
        ssvq.VQ(8, 4, codebook_dtype="int8", channel_scale="float16"),
        ssvq.SSVQ(8, 4, codebook_dtype="int8", channel_scale="float32"),
    ],
    ids=lambda codec: codec.describe(),
)
def test_integers_times_their_scale_are_the_weight(codec, rng, key):
    weight = jnp.asarray(rng.normal(size=(33, 20)), jnp.float32)
    node = ssvq.encode(codec, weight, key=key)
    with pytest.raises(ValueError, match="w: dtype: int8 needs a finalized"):
        ssvq.decode({"w": node}, dtype="int8")
    node = ssvq.finalize(node)
    integers = ssvq.decode(node, dtype="int8")
    chex.assert_type(integers, jnp.int8)
    scale = np.asarray(node.scale, np.float32)
    expected = np.asarray(integers, np.float32) * scale
    if "channel_scale" in node.leaves():
        expected = expected * np.asarray(node.channel_scale, np.float32)
    np.testing.assert_array_equal(ssvq.decode(node), expected)


def test_finalize_on_the_host(rng, key):
    for codec in (ssvq.SSVQ(8, 4), ssvq.Uniform(2)):
        weight = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
        node = ssvq.encode(codec, weight, key=key)
        chex.assert_trees_all_equal(
            ssvq.finalize(jax.device_get(node)), ssvq.finalize(node)
        )


def test_decode_to_an_unknown_dtype(key):
    node = ssvq.encode(ssvq.SSVQ(2, 4), jnp.ones((8, 8)), key=key)
    with pytest.raises(ValueError, match="dtype: expected one of .*, got int32"):
        ssvq.decode(node, dtype="int32")
