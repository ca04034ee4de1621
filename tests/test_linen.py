import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ssvq_jax as ssvq
import ssvq_jax.linen

pytestmark = pytest.mark.usefixtures("standard_promotion")
RULES = [ssvq.Rule(r".*/kernel", ssvq.SSVQ(4, 4))]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(8)(x.reshape(x.shape[0], -1))


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.normal(size=(4, 6, 6, 4)), jnp.float32)


def test_apply_decodes_and_collections_are_kept(images, key):
    model = Net()
    variables = model.init(key, images)
    compressed = ssvq_jax.linen.compress(variables, RULES, key=key)
    assert set(compressed) == {"params", "batch_stats", "compressed"}
    tree = ssvq.compress(variables["params"], RULES, key=key)
    chex.assert_trees_all_equal(ssvq_jax.linen.params(compressed), tree)
    expected = model.apply(
        {**variables, "params": ssvq.decode(tree)}, images, train=False
    )
    result = ssvq_jax.linen.apply(model, compressed, images, train=False)
    np.testing.assert_array_equal(result, expected)
    with pytest.raises(ValueError, match="collection 'compressed'.*batch_stats"):
        ssvq_jax.linen.decode(variables)
    _, changed = ssvq_jax.linen.apply(
        model, compressed, images, mutable=["batch_stats"]
    )
    assert set(changed) == {"batch_stats"}


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        return nn.Dense(32, kernel_init=init)(x)


def test_names_of_axes_are_those_of_what_has_these_axes(tmp_path, key):
    """So sharding by metadata does not split codebooks; training goes on with it."""
    model, x = Named(), jnp.ones((2, 64))
    variables = model.init(key, x)
    compressed = ssvq_jax.linen.compress(variables, RULES, key=key)
    specs = nn.get_partition_spec(compressed)
    node = specs["params"]["Dense_0"]["kernel"]
    assert (node.latent, node.codebook) == (P("in", "out"), P())
    assert specs["compressed"]["Dense_0"]["kernel"].codes == P("in", "out")
    assert specs["params"]["Dense_0"]["bias"] == P()

    mesh = jax.make_mesh((2, 2), ("in", "out"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(compressed, nn.get_sharding(compressed, mesh))
    tx = optax.chain(optax.sgd(1e-2), ssvq.freeze_signs(interval=1, threshold=0.1))

    @jax.jit
    def step(variables, state):
        def loss(params):
            y = ssvq_jax.linen.apply(model, {**variables, "params": params}, x)
            return jnp.sum(jnp.square(y))

        value, grads = jax.value_and_grad(loss)(variables["params"])
        updates, state = tx.update(grads, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return value, {**variables, "params": params}, state

    losses = []
    for variables in (compressed, placed):
        _, trained, state = step(variables, tx.init(variables["params"]))
        losses.append(step(trained, state)[0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    latent = trained["params"]["Dense_0"]["kernel"].latent.value
    assert latent.addressable_shards[0].data.shape == (32, 16)

    params = ssvq_jax.linen.params(placed)
    kernel = params["Dense_0"]["kernel"]
    assert isinstance(kernel, nn.Partitioned) and kernel.names == ("in", "out")
    chex.assert_trees_all_equal(ssvq_jax.linen.split(params), placed)
    ssvq.save(tmp_path / "x", params)
    loaded = ssvq.load(tmp_path / "x")["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        ssvq.decode(loaded), ssvq.decode(ssvq.finalize(kernel.value))
    )


def test_trains_with_train_state(images, tmp_path, key):
    model = Net()
    variables = ssvq_jax.linen.compress(model.init(key, images), RULES, key=key)
    rest = {name: value for name, value in variables.items() if name != "params"}
    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.chain(
            optax.adamw(0.01), ssvq.freeze_signs(interval=2, threshold=0.001)
        ),
    )

    @jax.jit
    def step(state):
        def loss(params):
            y = ssvq_jax.linen.apply(
                model, {**rest, "params": params}, images, train=False
            )
            return jnp.mean(jnp.square(y - 1))

        value, gradient = jax.value_and_grad(loss)(state.params)
        return value, state.apply_gradients(grads=gradient)

    losses = []
    for _ in range(10):
        value, state = step(state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    frozen = jax.tree.leaves(state.opt_state[-1].frozen)
    assert sum(int(mask.sum()) for mask in frozen) > 0

    tuned = ssvq_jax.linen.params({**rest, "params": state.params})
    ssvq.save(tmp_path / "x", tuned)
    loaded = {**rest, **ssvq_jax.linen.split(ssvq.load(tmp_path / "x"))}
    final = {**rest, **ssvq_jax.linen.split(ssvq.finalize(tuned))}
    outputs = [
        ssvq_jax.linen.apply(model, v, images, train=False) for v in (loaded, final)
    ]
    np.testing.assert_array_equal(*outputs)
