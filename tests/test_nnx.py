import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
import ssvq_jax.nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")
RULES = [ssvq.Rule(r".*/(kernel|embedding)", ssvq.SSVQ(4, 4))]
TOKENS = np.arange(20).reshape(2, 10)


class Net(nnx.Module):
    """One of everything: embedding, convolution, dense, attention, state, noise."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 8, rngs=rngs)
        self.conv = nnx.Conv(8, 16, (3,), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, tokens):
        x = self.conv(self.embed(tokens))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.dropout(self.norm(self.attention(x)))


def _compress(key, rules=RULES):
    model = Net(nnx.Rngs(0))
    return model, ssvq_jax.nnx.compress(model, rules, key=key)


def _loss(model):
    return jnp.mean(jnp.square(model(TOKENS) - 1.0))


def test_calls_like_the_module_with_decoded_parameters(key):
    model, compressed = _compress(key)
    expected = ssvq.decode(ssvq.compress(nnx.state(model, nnx.Param), RULES, key=key))
    reference = nnx.clone(model)
    nnx.update(reference, expected)
    for module in (compressed, reference, model):
        module.eval()
    np.testing.assert_array_equal(compressed(TOKENS), reference(TOKENS))
    np.testing.assert_array_equal(compressed.decode()(TOKENS), reference(TOKENS))
    chex.assert_trees_all_equal(
        nnx.to_pure_dict(nnx.state(compressed.decode(), nnx.Param)),
        nnx.to_pure_dict(expected),
    )
    assert not np.array_equal(compressed(TOKENS), model(TOKENS))


def test_state_and_randomness_advance_and_the_original_stays(key):
    model, compressed = _compress(key)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    first, second = compressed(TOKENS), compressed(TOKENS)
    assert not np.array_equal(first, second)  # dropout drew anew
    assert np.abs(compressed.module.norm.mean[...]).max() > 0
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    chex.assert_trees_all_equal(before, after)


@pytest.mark.parametrize("partitioned", [False, True])
def test_trains_with_nnx_optimizer(partitioned, key):
    _, model = _compress(key)
    freezing = optax.chain(
        optax.adamw(0.01), ssvq.freeze_signs(interval=3, threshold=0.001)
    )
    tx = freezing
    if partitioned:
        labels = {
            "sign": freezing,
            "codebook": optax.adam(1e-3),
            "other": optax.sgd(0.1),
        }
        tx = optax.partition(labels, ssvq.label_tree)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(_loss)(model)
        optimizer.update(model, gradient)
        return loss

    before = jax.tree.map(np.asarray, model.params)
    losses = [float(step(model, optimizer)) for _ in range(12)]
    after = jax.tree.map(np.asarray, model.params)
    assert losses[-1] < 0.9 * losses[0]
    node, start = after["layers"][0]["kernel"], before["layers"][0]["kernel"]
    np.testing.assert_array_equal(node.codes, start.codes)
    assert not np.array_equal(node.latent, start.latent)
    assert not np.array_equal(node.codebook, start.codebook)
    assert not np.array_equal(after["layers"][0]["bias"], before["layers"][0]["bias"])
    states = jax.tree.leaves(
        nnx.as_pure(optimizer.opt_state),
        is_leaf=lambda x: isinstance(x, ssvq.FreezeSignsState),
    )
    states = [x for x in states if isinstance(x, ssvq.FreezeSignsState)]
    masks = jax.tree.leaves([state.frozen for state in states])
    assert len(masks) == 8  # one for every kernel and the embedding
    assert 0 < sum(int(mask.sum()) for mask in masks) < sum(mask.size for mask in masks)


def test_nnx_optimizer_gives_what_plain_jax_gives(key):
    """The same three steps through the adapter and on the bare tree."""
    float_model, model = _compress(key)
    tx = optax.chain(
        optax.sgd(0.1, momentum=0.9), ssvq.freeze_signs(interval=2, threshold=0.001)
    )
    for module in (float_model, model):
        module.eval()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graphdef, params, rest = nnx.split(float_model, nnx.Param, ...)
    trainable, static = ssvq.partition(ssvq.compress(params, RULES, key=key))
    state = tx.init(trainable)

    @jax.jit
    def plain_step(trainable, state):
        def loss(trainable):
            decoded = ssvq.decode(ssvq.combine(trainable, static))
            return _loss(nnx.merge(graphdef, decoded, rest))

        gradient = jax.grad(loss)(trainable)
        updates, state = tx.update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state

    for _ in range(3):
        optimizer.update(model, nnx.grad(_loss)(model))
        trainable, state = plain_step(trainable, state)
    expected = nnx.to_pure_dict(ssvq.combine(trainable, static))
    chex.assert_trees_all_close(model.params, expected, rtol=2e-3, atol=1e-5)


def test_plain_jax_transformations(key):
    _, model = _compress(key)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return _loss(nnx.merge(graphdef, params, rest, copy=True))

    gradient = jax.jit(jax.grad(loss))(params)
    chex.assert_trees_all_equal_shapes(gradient, params)
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)]
    assert sum(norm > 0 for norm in norms) > 0.9 * len(norms)
    model.eval()
    np.testing.assert_allclose(
        jax.jit(lambda model: model(TOKENS))(model), model(TOKENS), atol=1e-5
    )


def test_save_load_and_rebuild(tmp_path, key):
    float_model, model = _compress(key)
    path = tmp_path / "model.ssvq.safetensors"
    ssvq.save(path, model.params)
    loaded = ssvq_jax.nnx.CompressedModule(float_model, ssvq.load(path))
    final = ssvq_jax.nnx.CompressedModule(float_model, ssvq.finalize(model.params))
    for module in (loaded, final):
        module.eval()
    np.testing.assert_array_equal(loaded(TOKENS), final(TOKENS))
    chex.assert_trees_all_equal(loaded.params, ssvq.load(path))


@pytest.mark.parametrize(
    "codec", [ssvq.VQ(4, 4), ssvq.Uniform(3), ssvq.MVQ(4, 4, (1, 2))], ids=str
)
def test_the_baselines_train_too(codec, key):
    _, model = _compress(key, [ssvq.Rule("layers/.*/kernel", codec)])
    model.eval()
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    first = _loss(model)
    for _ in range(5):
        optimizer.update(model, nnx.grad(_loss)(model))
    assert _loss(model) < first


def test_tied_parameters_are_compressed_once(key):
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(20, 8, rngs=rngs)
            self.head = self.embed

        def __call__(self, tokens):
            return self.head.attend(self.embed(tokens))

    model = ssvq_jax.nnx.compress(Tied(nnx.Rngs(0)), RULES, key=key)
    assert model(TOKENS).shape == (2, 10, 20)
    assert len(model.fixed.get_value()) == 1
    decoded = model.decode()
    assert decoded.embed is decoded.head


def test_parameters_that_do_not_fit_the_module(key):
    model, compressed = _compress(key)
    params = compressed.params
    missing = {name: value for name, value in params.items() if name != "conv"}
    with pytest.raises(ValueError, match="conv/bias: parameter of the module"):
        ssvq_jax.nnx.CompressedModule(model, missing)
    with pytest.raises(ValueError, match="other: in params, but no parameter"):
        ssvq_jax.nnx.CompressedModule(model, {**params, "other": jnp.ones(2)})
    wrong = {**params, "embed": {"embedding": jnp.ones((3, 8))}}
    with pytest.raises(ValueError, match=r"embed/embedding.*\(20, 8\), got \(3, 8\)"):
        ssvq_jax.nnx.CompressedModule(model, wrong)
    with pytest.raises(ValueError, match="'.*/kernal' matches no"):
        ssvq_jax.nnx.compress(model, [ssvq.Rule(".*/kernal", None)], key=key)


def test_sharding_metadata_needs_no_mesh_where_the_module_needs_none(key):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        model = nnx.Linear(16, 8, kernel_init=init, rngs=nnx.Rngs(0))
    rules = [ssvq.Rule("kernel", ssvq.SSVQ(16, 8))]
    compressed = ssvq_jax.nnx.compress(model, rules, key=key)
    x = jnp.ones((2, 16))
    assert compressed(x).shape == model(x).shape
    decoded = compressed.decode()
    metadata = model.kernel.get_metadata()
    assert decoded.kernel.get_metadata() == metadata
    leaves = compressed.compressed["kernel"]["SSVQWeight"]
    assert leaves["latent"].get_metadata() == metadata  # names of the axes
    assert nnx.get_partition_spec(leaves["latent"]).get_value() == P(None, "model")
    assert leaves["codebook"].shape == model.kernel.shape  # by chance
    assert leaves["codebook"].get_metadata() != metadata
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(compressed, x), decoded(x))


def test_latents_of_stacks_keep_the_names_of_axes(key):
    class Stack(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(
                jax.random.normal(key, (3, 16, 8)), names=("layers", None, "model")
            )

    rules = [ssvq.Rule("kernel", ssvq.SSVQ(4, 4), stack=1)]
    compressed = ssvq_jax.nnx.compress(Stack(), rules, key=key)
    leaves = compressed.compressed["kernel"]["SSVQWeight"]
    assert leaves["latent"].get_metadata()["names"] == ("layers", None, "model")
    assert "names" not in leaves["codebook"].get_metadata()


def test_donated_buffers_are_not_those_of_the_float_module(key):
    module = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    model = ssvq.nnx.CompressedModule(module, nnx.state(module, nnx.Param))
    graphdef, state = nnx.split(model)
    jax.block_until_ready(
        jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    )
    leaves = jax.tree.leaves(nnx.state(module))
    assert leaves and not any(leaf.is_deleted() for leaf in leaves)


class _Sowing(nnx.Module):
    def __init__(self):
        self.gate = nnx.Linear(32, 32, rngs=nnx.Rngs(0))

    def __call__(self, x):
        y = self.gate(x)
        self.sow(nnx.Intermediate, "balance", jnp.mean(y**2))
        return y


@pytest.mark.filterwarnings("ignore:Using .Module.sow:DeprecationWarning")
def test_sown_values_are_kept(key):
    rules = [ssvq.Rule(".*kernel", ssvq.SSVQ())]
    model = ssvq.nnx.compress(_Sowing(), rules, key=key)
    x = jnp.ones((2, 32))
    outputs = [model(x * scale) for scale in (1.0, 2.0)]
    sown = jax.tree.leaves(nnx.pop(model, nnx.Intermediate))
    np.testing.assert_allclose(sown, [jnp.mean(y**2) for y in outputs], rtol=1e-6)
    assert jax.tree.leaves(nnx.state(model, nnx.Intermediate)) == []
