import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ssvq_jax as ssvq
from ssvq_jax import freeze
from tests import reference

pytestmark = pytest.mark.usefixtures("standard_promotion")


def _cosine(step):
    return 0.02 + 0.08 * 0.5 * (1 + np.cos(np.pi * min(step / 300, 1.0)))


def _jax_cosine(step):
    return 0.02 + 0.08 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / 300, 1.0)))


def _node(rng, key, shape=(16, 12)):
    weight = (0.1 * rng.normal(size=shape)).astype(np.float32)
    return ssvq.encode(ssvq.SSVQ(4, 4), weight, key=key)


def _trainable(rng, key, shape=(16, 12)):
    return ssvq.partition({"a": _node(rng, key, shape), "bias": jnp.ones(3)})[0]


@pytest.mark.parametrize("decide", ["majority", "average"])
@pytest.mark.parametrize(
    ("threshold", "jax_threshold", "momentum", "interval"),
    [(0.05, 0.05, 0.01, 50), (_cosine, _jax_cosine, 0.03, 7), (0.0, 0.0, 1.0, 1)],
)
def test_step_by_step_against_the_reference(
    decide, threshold, jax_threshold, momentum, interval, rng, key
):
    params = _trainable(rng, key)
    tx = ssvq.freeze_signs(
        interval=interval, threshold=jax_threshold, momentum=momentum, decide=decide
    )
    state, update = tx.init(params), jax.jit(tx.update)
    latent = np.asarray(params["a"].latent)
    expected = reference.FreezeSigns(
        latent.shape, interval, threshold, momentum, decide
    )
    frozen_once = 0
    for _ in range(400):
        # Noise around each weight's own bias: some signs flip often, some seldom.
        bias = np.linspace(-0.6, 0.6, latent.size).reshape(latent.shape)
        target = bias + 0.15 * rng.normal(size=latent.shape)
        proposed = (target - latent).astype(np.float32)
        updates = jax.tree.map(lambda x: jnp.full_like(x, 0.25), params)
        updates["a"] = updates["a"].replace(latent=jnp.asarray(proposed))
        out, state = update(updates, state, params)
        params = optax.apply_updates(params, out)
        was_frozen = expected.frozen.copy()
        latent = expected.update(latent, proposed)

        np.testing.assert_allclose(params["a"].latent, latent, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(params["a"].latent >= 0, latent >= 0)
        np.testing.assert_array_equal(state.frozen["a"].latent, expected.frozen)
        np.testing.assert_allclose(
            np.where(expected.frozen, 0, state.frequency["a"].latent),
            np.where(expected.frozen, 0, expected.frequency),
            rtol=1e-4 if decide == "majority" else 1e-2,
            atol=1e-7 if decide == "majority" else 1e-4,
        )
        np.testing.assert_array_equal(np.asarray(out["a"].latent)[was_frozen], 0.0)
        np.testing.assert_array_equal(out["bias"], 0.25)
        np.testing.assert_array_equal(out["a"].codebook, 0.25)
        frozen_once += int((expected.frozen & ~was_frozen).sum())
        latent = np.asarray(params["a"].latent)  # differences must not add up
    assert state.step == 400
    assert 0 < frozen_once == int(expected.frozen.sum())
    if interval > 1:
        assert frozen_once < latent.size


def _check_that_frozen_signs_stay(tx, select, rng, key):
    params = _trainable(rng, key)
    state = tx.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    frozen_latent, was_frozen = np.asarray(params["a"].latent), np.zeros((16, 12), bool)
    for _ in range(120):
        gradient = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params
        )
        previous = params
        params, state = step(params, state, gradient)
        frozen = np.asarray(select(state).frozen["a"].latent)
        latent = np.asarray(params["a"].latent)
        np.testing.assert_array_equal(latent[was_frozen], frozen_latent[was_frozen])
        assert (frozen >= was_frozen).all()
        assert not np.array_equal(params["a"].codebook, previous["a"].codebook)
        assert not np.array_equal(params["bias"], previous["bias"])
        frozen_latent, was_frozen = latent, frozen
    assert 0 < frozen.sum() < frozen.size
    assert not np.array_equal(
        latent[~frozen], np.asarray(previous["a"].latent)[~frozen]
    )


def test_frozen_signs_never_move_in_a_chain(rng, key):
    tx = optax.chain(
        optax.adamw(0.05, weight_decay=0.1),
        ssvq.freeze_signs(interval=10, threshold=0.04),
    )
    _check_that_frozen_signs_stay(tx, lambda state: state[-1], rng, key)


def test_frozen_signs_never_move_under_momentum(rng, key):
    tx = optax.chain(
        optax.sgd(0.02, momentum=0.9), ssvq.freeze_signs(interval=10, threshold=0.04)
    )
    _check_that_frozen_signs_stay(tx, lambda state: state[-1], rng, key)


def test_frozen_signs_never_move_in_a_partition(rng, key):
    signs = optax.chain(
        optax.adamw(0.05, weight_decay=0.1),
        ssvq.freeze_signs(interval=10, threshold=0.04),
    )
    tx = optax.partition(
        {"sign": signs, "codebook": optax.adam(1e-3), "other": optax.sgd(0.1)},
        ssvq.label_tree,
    )

    def select(state):
        return state.inner_states["sign"].inner_state[-1]

    _check_that_frozen_signs_stay(tx, select, rng, key)


def test_the_majority_decides_and_survives_rounding():
    """A sign that just swung far off is pulled back to what it mostly was."""
    node = ssvq.encode(
        ssvq.SSVQ(2, 2), np.array([[1.0], [2.0], [-1.0], [-3.0]], "f4"), key=_key()
    )
    params = {"a": ssvq.partition(node)[0]}
    tx = ssvq.freeze_signs(interval=3, threshold=0.001)
    state = tx.init(params)
    for step in range(3):
        # The last step moves every latent to exactly 0, or by far past it.
        move = 0.0 if step < 2 else -np.array([[1.0], [9.0], [-1.0], [-9.0]], "f4")
        latent = jnp.broadcast_to(jnp.asarray(move, jnp.float32), (4, 1))
        updates = {"a": params["a"].replace(codebook=None, latent=latent)}
        updates["a"] = updates["a"].replace(codebook=jnp.zeros_like(node.codebook))
        out, state = tx.update(updates, state, params)
        params = optax.apply_updates(params, out)
    flipped = np.array([[False], [True], [True], [True]])  # 0 counts as plus
    np.testing.assert_array_equal(state.frozen["a"].latent, flipped)
    signs = np.where(params["a"].latent >= 0, 1, -1)
    np.testing.assert_array_equal(signs, [[1], [1], [-1], [-1]])


def _key():
    return jax.random.key(0)


def test_four_bytes_per_sign(rng, key):
    params = _trainable(rng, key, (64, 32))
    state = ssvq.freeze_signs(interval=5, threshold=0.1).init(params)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == 4 * 64 * 32 + 8


@pytest.mark.parametrize("t", [0, 1, 511, 512, 16_000, 32_767, 600_000, 2**31 - 1])
def test_packing_is_exact_in_the_votes_and_close_in_the_frequency(t, rng):
    split = freeze._split(jnp.int32(t), majority=True)
    most = min(t, 2**15 - 1)
    votes = np.r_[rng.integers(-most, most + 1, 997), -most, 0, most]
    frequency = np.r_[0.0, 1.0, 10 ** -rng.uniform(0, 4, 998)].astype(np.float32)
    packed = freeze._pack(jnp.asarray(frequency), jnp.asarray(votes, "i4"), split)
    assert (np.asarray(packed) != freeze._FROZEN).all()
    unpacked, unpacked_votes = freeze._unpack(packed, split)
    np.testing.assert_array_equal(unpacked_votes, votes)
    step = 2.0 ** -(32 - int(split))
    bound = 2 * np.sqrt(frequency) * step + step**2 + 1e-7
    assert (np.abs(unpacked - frequency) <= bound).all()


@pytest.mark.parametrize(("start", "momentum"), [(0, 0.01), (10**6, 0.01), (0, 0.001)])
def test_the_frequency_stays_close_over_many_updates(start, momentum, rng):
    """Rounded at every update, it must not drift from the exact moving average."""
    rate = np.linspace(0.0, 0.5, 200)
    exact = np.zeros(200)
    split = freeze._split(jnp.int32(start), majority=True)
    packed = freeze._pack(jnp.zeros(200), jnp.zeros(200, jnp.int32), split)

    @jax.jit
    def update(packed, flipped, t, split):
        frequency, votes = freeze._unpack(packed, split)
        frequency = momentum * flipped + (1 - momentum) * frequency
        split = freeze._split(t, majority=True)
        return freeze._pack(frequency, votes, split), split

    for t in range(1, 3001):
        flipped = (rng.random(200) < rate).astype(np.float32)
        exact = momentum * flipped + (1 - momentum) * exact
        packed, split = update(packed, flipped, jnp.int32(start + t), split)
    frequency, _ = freeze._unpack(packed, split)
    np.testing.assert_allclose(frequency, exact, rtol=2e-3, atol=1e-5)


def test_a_negative_threshold_freezes_signs_that_never_flipped(rng, key):
    params = _trainable(rng, key)
    tx = ssvq.freeze_signs(interval=1, threshold=lambda t: 0.5 - t)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params)
    assert jnp.all(state.frozen["a"].latent)


@pytest.mark.parametrize("code", ["parity", "hamming"])
def test_words_of_frozen_latents_stay(code, rng, key):
    weight = rng.normal(size=(16, 12)).astype(np.float32)
    node = ssvq.encode(ssvq.SSVQ(4, 8, sign_code=code), weight, key=key)
    params, static = ssvq.partition({"a": node})
    tx = ssvq.freeze_signs(interval=2, threshold=lambda t: 0.5 - t)
    state, latents, decoded = tx.init(params), [], []
    for _ in range(4):
        noise = jnp.asarray(rng.normal(size=node.shape), jnp.float32)
        updates = jax.tree.map(jnp.zeros_like, params)
        updates["a"] = updates["a"].replace(latent=noise)
        updates, state = tx.update(updates, state, params)
        params = optax.apply_updates(params, updates)
        latents.append(params["a"].latent)
        decoded.append(ssvq.decode(ssvq.combine(params, static))["a"])
    assert not np.array_equal(decoded[0], decoded[1])
    for i in (2, 3):  # all froze at the second update
        np.testing.assert_array_equal(latents[i], latents[1])
        np.testing.assert_array_equal(decoded[i], decoded[1])


def test_trees_without_signs_pass_through(rng):
    params = {"w": jnp.ones((3, 2))}
    tx = ssvq.freeze_signs(interval=1, threshold=0.0)
    with pytest.warns(UserWarning, match="no sign latents among 1 parameters"):
        state = tx.init(params)
    updates, state = tx.update({"w": jnp.full((3, 2), 2.0)}, state, params)
    chex.assert_trees_all_equal(updates, {"w": jnp.full((3, 2), 2.0)})
    assert state.step == 1


def test_bfloat16_updates_and_static_halves_are_fine(rng, key):
    node = _node(rng, key)
    trainable, _ = ssvq.partition(node)
    tx = ssvq.freeze_signs(interval=1, threshold=0.5)
    low = jax.tree.map(lambda x: jnp.ones_like(x, dtype=jnp.bfloat16), trainable)
    updates, _ = tx.update(low, tx.init(trainable), trainable)
    assert updates.latent.dtype == jnp.float32
    # With the integer leaves still there, as `jax.grad(..., allow_int=True)` gives.
    gradient = jax.grad(lambda n: jnp.sum(ssvq.decode(n)), allow_int=True)(node)
    updates, _ = tx.update(gradient, tx.init(node), node)
    assert updates.codes.dtype == jax.dtypes.float0


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval.*got 0"),
        ({"interval": 2.5}, "interval.*got 2.5"),
        ({"momentum": 0.0}, "momentum.*got 0.0"),
        ({"momentum": 1.5}, "momentum.*got 1.5"),
        ({"decide": "vote"}, "decide.*'vote'"),
        ({"threshold": float("nan")}, "threshold.*nan"),
        ({"threshold": "high"}, "threshold.*'high'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ssvq.freeze_signs(**({"interval": 5, "threshold": 0.1} | options))


def test_trees_that_are_not_the_optimizers(rng, key):
    params = _trainable(rng, key)
    tx = ssvq.freeze_signs(interval=5, threshold=0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match="pass params"):
        tx.update(params, state)
    other = {"b": params["a"], "bias": params["bias"]}
    with pytest.raises(ValueError, match="a/latent.*missing in the optimizer state"):
        tx.update(params, tx.init(other), params)
    with pytest.raises(ValueError, match="a/codebook.*missing in the updates"):
        tx.update(other, state, params)
    wider = _trainable(rng, key, (16, 13))
    with pytest.raises(
        ValueError, match=r"a/latent.*\(16, 13\).*\(16, 12\) in the optimizer"
    ):
        tx.update(wider, state, wider)


def test_numbers_of_other_libraries_and_injected(rng, key):
    params = _trainable(rng, key)
    flips = jax.tree.map(lambda x: -2 * x, params)
    tx = optax.inject_hyperparams(
        ssvq.freeze_signs, static_args=("interval", "decide")
    )(interval=np.int64(1), threshold=0.001)
    state = tx.init(params)
    _, state = jax.jit(tx.update)(flips, state, params)
    assert np.asarray(state.inner_state.frozen["a"].latent).all()
    state.hyperparams["threshold"] = jnp.float32(1.0)
    _, state = tx.update(
        flips, tx.init(params)._replace(hyperparams=state.hyperparams), params
    )
    assert not np.asarray(state.inner_state.frozen["a"].latent).any()


@pytest.mark.parametrize("decide", ["majority", "average"])
def test_strict_promotion(decide, rng, key):
    params = ssvq.partition({"a": _node(rng, key)})[0]
    tx = ssvq.freeze_signs(
        interval=1, threshold=np.float64(0.0), momentum=np.float64(0.5), decide=decide
    )
    with jax.numpy_dtype_promotion("strict"):
        flips = jax.tree.map(lambda x: -2 * x, params)
        _, state = tx.update(flips, tx.init(params), params)
    assert np.asarray(state.frozen["a"].latent).all()


def test_flattened_trees_are_refused(rng, key):
    tx = ssvq.freeze_signs(interval=1, threshold=0.0)
    with pytest.raises(ValueError, match=r"got one array of shape"):
        optax.flatten(tx).init(_trainable(rng, key))
