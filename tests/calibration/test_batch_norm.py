"""Batch norms taken anew: NNX and Linen networks, compressed or not, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
import ssvq_jax.linen
import ssvq_jax.nnx
from experiments.data.images import open_split
from experiments.data.pixels import crop
from experiments.models.checkpoint import load_network
from experiments.models.zoo import NETWORKS
from tests.shared import shared

pytestmark = pytest.mark.usefixtures("standard_promotion")
RULES = [ssvq.Rule(r".*/kernel", ssvq.Uniform(2))]
EPSILON = 1e-5


class Net(nnx.Module):
    """Two batch norms of other momenta, dropout between them."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(5, 7, rngs=rngs)
        self.norm1 = nnx.BatchNorm(7, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(7, 3, rngs=rngs)
        self.norm2 = nnx.BatchNorm(3, momentum=0.999, rngs=rngs)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        x = nnx.relu(self.norm1(self.first(x)))
        return self.norm2(self.second(self.dropout(x)))


class LinenNet(nn.Module):
    """The same in Linen."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train):
        norm = {"use_running_average": not train}
        x = nn.Dense(7, name="first")(x)
        x = nn.BatchNorm(momentum=self.momentum, name="norm1", **norm)(x)
        x = nn.Dense(3, name="second")(nn.relu(x))
        return nn.BatchNorm(momentum=0.99, name="norm2", **norm)(x)

    def update(self, variables, x):
        return self.apply(variables, x, True, mutable=["batch_stats"])


def _batches(rng):
    return [rng.normal(i, 1 + i, (4 + i, 5)).astype(np.float32) for i in range(3)]


def _total(inputs):
    """Mean and variance of batches that count the same, float64."""
    means = [x.mean(axis=0) for x in inputs]
    squares = [np.mean(x**2, axis=0) for x in inputs]
    mean = np.mean(means, axis=0)
    return mean, np.mean(squares, axis=0) - mean**2


def _expected(params, batches):
    """Of the first and of the second batch norm of a network."""

    def dense(name, x):
        kernel, bias = (np.asarray(params[name][n], np.float64) for n in LEAVES)
        return x @ kernel + bias

    first = [dense("first", x.astype(np.float64)) for x in batches]
    normed = [(x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + EPSILON) for x in first]
    second = [dense("second", np.maximum(x, 0)) for x in normed]
    return _total(first), _total(second)


LEAVES = ("kernel", "bias")


def _assert_close(found, expected):
    for statistic, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(statistic, value, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("compressed", [False, True])
def test_nnx_against_numpy(compressed, rng, key):
    model, batches = Net(), _batches(rng)
    model.norm1.mean[...] = jnp.full(7, jnp.nan)  # what was there does not matter
    if compressed:
        model = ssvq_jax.nnx.compress(model, RULES, key=key)
    net = model.module if compressed else model
    others = nnx.state(model, nnx.Not(nnx.BatchStat))
    params = ssvq.decode(model.params) if compressed else nnx.to_pure_dict(others)
    graph = nnx.graphdef(model)
    ssvq_jax.nnx.update_batch_norm(model, iter(batches))
    for norm, expected in zip(
        (net.norm1, net.norm2), _expected(params, batches), strict=True
    ):
        _assert_close((norm.mean[...], norm.var[...]), expected)
    assert nnx.graphdef(model) == graph  # modes, momenta and `calls`, too
    same = nnx.state(model, nnx.Not(nnx.BatchStat))
    chex.assert_trees_all_equal(others, same)
    assert isinstance(net.norm1.mean, nnx.BatchStat)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("compressed", [False, True])
def test_linen_against_numpy(momentum, compressed, rng, key):
    model, batches = LinenNet(momentum), _batches(rng)
    variables = model.init(key, batches[0], True)
    params = variables["params"]
    if compressed:
        variables = ssvq_jax.linen.compress(variables, RULES, key=key)
        params = ssvq.decode(ssvq_jax.linen.params(variables))
    stats = ssvq_jax.linen.update_batch_stats(model.update, variables, iter(batches))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    for layer, expected in zip(
        ("norm1", "norm2"), _expected(params, batches), strict=True
    ):
        _assert_close((stats[layer]["mean"], stats[layer]["var"]), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_of_half_precision(dtype, rng, key):
    x = rng.normal(2, 3, size=(64, 5)).astype(np.float32)
    model = nn.BatchNorm(use_running_average=False, momentum=0.99)
    variables = model.init(key, x)
    half = jax.tree.map(lambda s: s.astype(dtype), variables["batch_stats"])

    def apply(variables, x):
        return model.apply(variables, x, mutable=["batch_stats"])

    found = ssvq_jax.linen.update_batch_stats(
        apply, {**variables, "batch_stats": half}, [x]
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(found["mean"].astype("f4"), x.mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(found["var"].astype("f4"), x.var(axis=0), rtol=0.02)


def test_means_far_from_zero(rng):
    """Squares of float32 would leave nothing of the variance between batches."""
    x = rng.normal(size=(64, 3)).astype(np.float32)
    model = nnx.BatchNorm(3, use_fast_variance=False, rngs=nnx.Rngs(0))
    batches = [x + 1e3, x + 1e3 + 1]
    ssvq_jax.nnx.update_batch_norm(model, batches)
    _assert_close(
        (model.mean[...] - 1e3, model.var[...]),
        (x.mean(axis=0) + 0.5, x.var(axis=0) + 0.25),
    )


def test_other_collections_and_stacked_layers(rng, key):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            count = self.variable("batch_stats", "count", lambda: jnp.zeros(2))
            count.value += 1
            x = nn.Dense(4)(x)
            return nn.BatchNorm(use_running_average=False)(x), None

    layers = nn.scan(
        Layer, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
    )()
    x = rng.normal(size=(6, 4)).astype(np.float32)
    variables = layers.init(key, x, None)

    def apply(variables, x):
        return layers.apply(variables, x, None, mutable=["batch_stats"])

    stats = ssvq_jax.linen.update_batch_stats(apply, variables, [x])
    old = variables["batch_stats"]
    np.testing.assert_array_equal(stats["count"], old["count"])
    norm, dense = stats["BatchNorm_0"], variables["params"]["Dense_0"]
    for i in range(3):
        x = x @ np.asarray(dense["kernel"][i]) + np.asarray(dense["bias"][i])
        _assert_close((norm["mean"][i], norm["var"][i]), (x.mean(0), x.var(0)))
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)


def test_one_program(rng):
    traces = []

    class Counted(Net):
        def __call__(self, x):
            traces.append(x.shape)
            return super().__call__(x)

    x = rng.normal(size=(4, 5)).astype(np.float32)
    ssvq_jax.nnx.update_batch_norm(Counted(), [x, x + 1, x + 2])
    assert len(traces) == 1


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_batches(kind, rng):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    batches = [rng.normal(i, 1, (8, 5)).astype(np.float32) for i in range(2)]
    one, four = Net(), Net()
    ssvq_jax.nnx.update_batch_norm(one, batches)
    sharded = [jax.device_put(x, NamedSharding(mesh, P("x"))) for x in batches]
    ssvq_jax.nnx.update_batch_norm(four, sharded)
    for a, b in ((one.norm1, four.norm1), (one.norm2, four.norm2)):
        _assert_close((a.mean[...], a.var[...]), (b.mean[...], b.var[...]))
    assert len(four.norm1.mean[...].devices()) == 1  # with the rest of the network
    where = NamedSharding(mesh, P())
    nnx.update(four, jax.device_put(nnx.state(four), where))
    ssvq_jax.nnx.update_batch_norm(four, sharded)
    assert four.norm1.mean[...].sharding == where


def test_errors_leave_the_module(rng, key):
    x = rng.normal(size=(4, 5)).astype(np.float32)
    model = Net()
    before, graph = nnx.state(model), nnx.graphdef(model)
    update = ssvq_jax.nnx.update_batch_norm
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        update(model, [])
    with pytest.raises(ValueError, match="^norm1: expected finite.*in batch 1"):
        update(model, [x, np.full_like(x, np.nan)])
    with pytest.raises(TypeError, match="dot_general|shape"):
        update(model, [x, x[:, :3]])
    chex.assert_trees_all_equal(before, nnx.state(model))
    assert nnx.graphdef(model) == graph
    with pytest.raises(ValueError, match="nnx.BatchNorm, got none in.*Linear"):
        update(model.first, [x])

    class Frozen(Net):
        def __call__(self, x):
            return self.norm1(self.first(x), use_running_average=True)

    with pytest.raises(ValueError, match="^norm1: expected statistics that a call"):
        update(Frozen(), [x])
    linen = LinenNet()
    variables = linen.init(key, x, True)

    def evaluate(variables, x):
        return linen.apply(variables, x, False, mutable=["batch_stats"])

    with pytest.raises(ValueError, match="^norm1: expected statistics that a call"):
        ssvq_jax.linen.update_batch_stats(evaluate, variables, [x])
    with pytest.raises(ValueError, match="in the collection 'batch_stats', got none"):
        params = {"params": variables["params"]}
        ssvq_jax.linen.update_batch_stats(linen.update, params, [x])


def test_efficientnet_with_rounded_weights():
    network = NETWORKS["efficientnet_lite0"]
    path = shared("models/efficientnet_lite0.safetensors")
    model = load_network(network, path)
    for module in (m for _, m in nnx.iter_modules(model) if hasattr(m, "kernel")):
        step = jnp.abs(module.kernel[...]).max() / 12
        module.kernel[...] = jnp.round(module.kernel[...] / step) * step

    split = open_split("imagenet_sample", "validation", shared("tfds"))
    examples = [split[i] for i in range(64)]
    photos = np.stack([crop(example["image"], 160) for example in examples])
    images = np.asarray(network.inputs({"image": photos}))
    labels = np.array([example["label"] for example in examples[32:]])
    predict = nnx.jit(lambda model, x: jnp.argmax(model(x), axis=1))
    before = np.mean(predict(model, images[32:]) == labels)
    ssvq_jax.nnx.update_batch_norm(model, [images[:32]])
    after = np.mean(predict(model, images[32:]) == labels)
    assert before < 0.2 and after > before + 0.3
    stem = np.asarray(model.conv_stem(images[:32]), np.float64).reshape(-1, 32)
    _assert_close(
        (model.bn1.mean[...], model.bn1.var[...]), (stem.mean(0), stem.var(0))
    )
