"""Stacks of weights: layers under a scan, experts; each slice has its codebook."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import ssvq_jax as ssvq
import ssvq_jax.linen
import ssvq_jax.nnx
from ssvq_jax.codecs import is_compressed
from tests.export.rewriting import rewrite

CODECS = [
    ssvq.SSVQ(4, 8),
    ssvq.VQ(4, 4, codebook_dtype="int8", channel_scale="float16"),
    ssvq.MVQ(4, 4, (2, 4)),
    ssvq.Uniform(3),
]
SCALES = (1, 0.3, 0.1, 0.03, 0.01)


@pytest.fixture
def weight(rng):
    """Five layers of different scale."""
    layers = [scale * rng.normal(size=(32, 16)) for scale in SCALES]
    return jnp.asarray(np.stack(layers), jnp.float32)


def compressed(codec, weight, key, **options):
    rules = [ssvq.Rule("w", codec, stack=1, **options)]
    return ssvq.compress({"w": weight}, rules, key=key)


def errors(weight, decoded):
    axes = tuple(range(1, weight.ndim))
    return jnp.sum((weight - decoded) ** 2, axes) / jnp.sum(weight**2, axes)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_slice_is_as_good_as_alone(codec, weight, key, tmp_path):
    tree = compressed(codec, weight, key)
    node = tree["w"]
    assert (node.stack, node.shape, node.array_shape) == ((5,), (32, 16), (5, 32, 16))
    final = ssvq.finalize(tree)
    decoded = ssvq.decode(final)["w"]
    alone = [ssvq.encode(codec, x, key=key) for x in weight]
    expected = [
        errors(w[None], ssvq.decode(ssvq.finalize(x))[None])[0]
        for w, x in zip(weight, alone, strict=True)
    ]
    np.testing.assert_allclose(errors(weight, decoded), expected, rtol=0.2)
    (row,) = ssvq.report(tree, {"w": weight}).rows
    assert row.shape == weight.shape and row.weights == weight.size
    assert row.shape_text == "5x(32x16)"
    assert row.bits == node.bits == sum(x.bits for x in alone)
    worst = errors(weight, ssvq.decode(tree)["w"]).max()
    np.testing.assert_allclose(row.worst, worst, rtol=1e-5)

    ssvq.save(tmp_path / "x", {"a": tree, "b": jnp.ones(2)})
    loaded = ssvq.load(tmp_path / "x")
    chex.assert_trees_all_equal(loaded, {"a": final, "b": jnp.ones(2)})
    np.testing.assert_array_equal(ssvq.decode(loaded)["a"]["w"], decoded)
    assert list(ssvq.load(tmp_path / "x", lazy=True))[1:] == [
        f"a/w/{i}" for i in range(5)
    ]


def test_what_vmap_stacks_is_saved(weight, key, tmp_path):
    keys = jax.random.split(key, 5)
    node = jax.vmap(lambda w, k: ssvq.encode(ssvq.SSVQ(4, 8), w, key=k))(weight, keys)
    deep = jax.tree.map(lambda x: x.reshape(5, 1, *x.shape[1:]), node)
    assert (node.stack, deep.stack) == ((5,), (5, 1))
    ssvq.save(tmp_path / "x", {"experts": node, "deep": deep})
    loaded = ssvq.load(tmp_path / "x")
    chex.assert_trees_all_equal(loaded, ssvq.finalize({"experts": node, "deep": deep}))
    np.testing.assert_array_equal(
        ssvq.decode(loaded["deep"])[:, 0], ssvq.decode(loaded["experts"])
    )


def test_two_axes_names_and_axes(rng, key):
    params = {
        "attention/query/kernel": rng.normal(size=(2, 3, 16, 4, 8)).astype("f4"),
        "table/embedding": rng.normal(size=(2, 3, 10, 16)).astype("f4"),
        "w": rng.normal(size=(2, 3, 16, 10)).astype("f4"),
    }
    rules = [ssvq.Rule("w", ssvq.VQ(4, 4), stack=2, axis=1)]
    rules += [ssvq.Rule(".*", ssvq.VQ(4, 4), stack=2)]
    tree = ssvq.compress(params, rules, key=key)
    axes = {name: (node.stack, node.axis) for name, node in tree.items()}
    assert axes == {
        "attention/query/kernel": ((2, 3), 0),
        "table/embedding": ((2, 3), 1),
        "w": ((2, 3), 1),
    }
    chex.assert_trees_all_equal_shapes(ssvq.decode(tree), params)


def test_trains_under_a_scan_and_beside_an_optimizer(weight, key):
    tree = compressed(ssvq.SSVQ(4, 8), weight, key)
    trainable, static = ssvq.partition(tree)
    x = jnp.ones((3, 32))

    def whole(trainable):
        kernels = ssvq.decode(ssvq.combine(trainable, static))["w"]
        return jnp.sum(jnp.stack([x @ kernel for kernel in kernels]) ** 2)

    def scanned(trainable):
        node = ssvq.combine(trainable, static)["w"]

        def step(total, part):
            return total + jnp.sum((x @ ssvq.decode(part)) ** 2), None

        return jax.lax.scan(step, 0.0, node)[0]

    one, other = (jax.grad(jax.jit(f))(trainable) for f in (whole, scanned))
    chex.assert_trees_all_close(one, other, rtol=1e-4)
    assert ssvq.label_tree(trainable)["w"].latent == "sign"
    freeze = ssvq.freeze_signs(interval=1, threshold=0.0)
    updates, _ = freeze.update(one, freeze.init(trainable), trainable)
    chex.assert_trees_all_equal_shapes(updates, trainable)


def test_in_a_module(weight, key):
    class Layers(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(weight)

        def __call__(self, x):
            for kernel in self.kernel[...]:
                x = jnp.tanh(x @ kernel @ kernel.T)
            return x

    rules = [ssvq.Rule("kernel", ssvq.SSVQ(4, 8), stack=1)]
    model = ssvq.nnx.compress(Layers(), rules, key=key)
    assert model.params["kernel"].stack == (5,)
    x = jnp.ones((2, 32))
    expected = Layers()
    expected.kernel[...] = ssvq.decode(model.params)["kernel"]
    np.testing.assert_allclose(model(x), expected(x), rtol=1e-6)


def test_stacked_axes_by_their_names(rng, key):
    """As `nnx.vmap` and Linen's `nn.scan` call them."""
    kernel, head = rng.normal(size=(3, 16, 8)), rng.normal(size=(16, 8))
    rules = [ssvq.Rule(".*", ssvq.VQ(4, 4), stack=("layers", "experts"))]
    boxes = (
        lambda x, names: nnx.Param(
            jnp.asarray(x, "f4"), out_sharding=names, eager_sharding=False
        ),
        lambda x, names: nn.Partitioned(jnp.asarray(x, "f4"), names),
    )
    for box in boxes:
        params = {
            "deep": box(kernel[None], ("experts", "layers", "in", "out")),
            "layers": box(kernel, ("layers", "in", None)),
            "inner": box(head, ("in", "layers")),
            "head": jnp.asarray(head, "f4"),
        }
        tree = ssvq.compress(params, rules, key=key)
        nodes = jax.tree.leaves(tree, is_leaf=is_compressed)
        assert [node.stack for node in nodes] == [(1, 3), (), (), (3,)]
        with pytest.raises(ValueError, match=r"named layer; .* {'layers': \('layers'"):
            rule = ssvq.Rule("layers", ssvq.VQ(4, 4), stack="layer")
            ssvq.compress(params, [rule], key=key)
    with pytest.raises(ValueError, match="stack: .*; Flax's metadata tell no names"):
        ssvq.compress({"w": kernel}, rules, key=key)


_INITIAL = nn.initializers.normal(0.3)


class _NnxLayers(nnx.Module):
    def __init__(self, rngs):
        kernel = nnx.with_partitioning(_INITIAL, (None, "model"), eager_sharding=False)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "layers"})
        def make(rngs):
            return nnx.Linear(16, 16, use_bias=False, kernel_init=kernel, rngs=rngs)

        self.dense = make(rngs)

    def __call__(self, x):
        names = {nnx.PARTITION_NAME: "layers"}
        carried = {"in_axes": (0, nnx.Carry), "out_axes": nnx.Carry}

        @nnx.scan(**carried, transform_metadata=names)
        def apply(layer, x):
            return jnp.tanh(layer(x))

        return apply(self.dense, x)


class _LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        kernel = nn.with_partitioning(_INITIAL, (None, "model"))
        dense = nn.Dense(16, use_bias=False, kernel_init=kernel, name="dense")
        return jnp.tanh(dense(x)), None


def test_layers_under_the_scans_of_flax(key):
    """Their stacked axis is known by its name, and every layer is one of its own."""
    x = jax.random.normal(key, (2, 16))
    rules = [ssvq.Rule(".*/kernel", ssvq.SSVQ(4, 4), stack="layers")]

    def expected(node, x):
        for kernel in ssvq.decode(node):
            x = jnp.tanh(x @ kernel)
        return x

    model = ssvq.nnx.compress(_NnxLayers(nnx.Rngs(0)), rules, key=key)
    node = model.params["dense"]["kernel"]
    assert node.stack == (3,)
    for found in (model(x), nnx.jit(lambda model, x: model(x))(model, x)):
        np.testing.assert_allclose(found, expected(node, x), rtol=1e-5)

    module = nn.scan(
        _LinenLayer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()
    variables = module.init(key, x, None)
    variables = ssvq.linen.compress(variables, rules, key=key)
    params = ssvq.linen.params(variables)
    (node,) = jax.tree.leaves(params, is_leaf=is_compressed)
    assert node.stack == (3,)
    found, _ = ssvq.linen.apply(module, variables, x, None)
    np.testing.assert_allclose(found, expected(node, x), rtol=1e-5)


def test_what_float16_cannot_hold_and_importance(rng, key):
    weight = rng.normal(size=(2, 16, 8)).astype("f4") * np.float32([[[1]], [[1e-9]]])
    tree = compressed(ssvq.VQ(4, 4), weight, key)
    assert tree["w"].codec == ssvq.VQ(4, 4, codebook_dtype="bfloat16")
    decoded = ssvq.decode(ssvq.finalize(tree))["w"]
    assert errors(weight, decoded).max() < 0.5
    importance = {"w": rng.uniform(size=weight.shape)}
    rules = [ssvq.Rule("w", ssvq.VQ(4, 4), stack=1)]
    node = ssvq.compress({"w": weight}, rules, key=key, importance=importance)["w"]
    own = ssvq.compress({"w": weight}, rules, key=key)["w"]
    assert not np.array_equal(node.codes, own.codes)
    with pytest.raises(ValueError, match="w: importance: expected the weight's shape"):
        ssvq.compress({"w": weight}, rules, key=key, importance={"w": np.ones((16, 8))})


def test_what_is_refused(weight, key, tmp_path):
    node = compressed(ssvq.SSVQ(4, 8), weight, key)["w"]
    with pytest.raises(ValueError, match=r"a stack of \(5,\): apply jax.vmap"):
        ssvq.matmul(jnp.ones((3, 32)), node)
    product = jax.vmap(ssvq.matmul, (None, 0))(jnp.ones((3, 32)), node)
    assert product.shape == (5, 3, 16)
    for stack in ((), ""):
        with pytest.raises(TypeError, match="stack: expected an integer, a name"):
            ssvq.Rule("w", ssvq.SSVQ(4, 8), stack=stack)
    with pytest.raises(ValueError, match="stack: expected at least 0"):
        ssvq.Rule("w", ssvq.SSVQ(4, 8), stack=-1)
    for shape in ((32,), (0, 32, 16)):
        with pytest.raises(ValueError, match="w: stack: expected more than 1 axes"):
            compressed(ssvq.SSVQ(4, 8), np.ones(shape, "f4"), key)
    broken = node.replace(codebook=node.codebook[:4])
    with pytest.raises(ValueError, match=r"codebook: expected shape \(5, 4, 8\)"):
        ssvq.finalize({"w": broken})
    with pytest.raises(ValueError, match="expected shape"):
        ssvq.report({"w": node}, {"w": weight[0]})


def test_files_with_what_is_no_stack(weight, key, tmp_path):
    parts = [ssvq.encode(ssvq.SSVQ(4, 8), x, key=key) for x in (weight[0], weight[0].T)]
    for tree in (
        {"s": parts},
        {"s": [jnp.ones(2), jnp.ones(2)]},
        {"s": [], "b": jnp.ones(1)},
    ):
        ssvq.save(tmp_path / "x", tree)
        rewrite(tmp_path / "x", lambda spec, _: spec["containers"].update(s="stack"))
        with pytest.raises(ssvq.FormatError, match="s: no stack: expected compressed"):
            ssvq.load(tmp_path / "x", lazy=True)
