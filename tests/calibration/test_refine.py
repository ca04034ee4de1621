"""`refine`: any moments, nodes in training, least squares, errors."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssvq_jax as ssvq
import ssvq_jax.linen
import ssvq_jax.nnx
from ssvq_jax.calibration import Moment, Role
from ssvq_jax.calibration.feedback import CHUNK
from ssvq_jax.calibration.layout import Layout
from ssvq_jax.core.sign_codes import nearest_word

module = importlib.import_module("ssvq_jax.calibration.refine")


def floats(rng, *shape):
    """Inputs, or weights, of which the first axis but one is correlated."""
    mixing = rng.normal(size=(shape[-1], shape[-1]))
    return (rng.normal(size=shape) @ mixing).astype(np.float32)


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


@pytest.mark.parametrize("outputs", [1, 31, 80])
@pytest.mark.parametrize("scaled", [None, "float16"])
def test_outputs_that_count_together(outputs, scaled, rng, key, x):
    params = {"w": jnp.asarray(rng.normal(size=(27, outputs)), jnp.float32)}
    codec = ssvq.SSVQ(6, 4, channel_scale=scaled)
    plain = ssvq.compress(params, [ssvq.Rule("w", codec)], key=key)
    alike = moment(x.T @ x)
    y = rng.normal(size=(200, 1 + outputs // 8)) @ rng.normal(
        size=(1 + outputs // 8, outputs)
    )
    own = y.T @ y / outputs + 0.1 * np.eye(outputs)
    together = dataclasses.replace(alike, outputs=jnp.asarray(own, jnp.float32))
    costs = []
    for found in (alike, together):
        stored = ssvq.decode(ssvq.finalize(ssvq.refine(plain, params, {"w": found})))
        error = np.asarray(params["w"], "f8") - np.asarray(stored["w"], "f8")
        costs.append(np.einsum("io,ij,jp,po->", error, x.T @ x, error, own))
    # Up to a chunk they are chosen at once, each for itself: but fitted together.
    assert costs[1] < (0.7 if outputs > CHUNK else 1.001) * costs[0]


def test_outputs_that_are_not_finite(params, plain, x):
    broken = jnp.full((12, 12), jnp.nan)
    bad = dataclasses.replace(moment(x.T @ x), outputs=broken)
    with pytest.raises(ValueError, match="^w: moments of outputs: expected"):
        ssvq.refine(plain, params, {"w": bad})


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


@pytest.mark.parametrize("code", ["parity", "hamming"])
def test_signs_of_a_code_stay_words(code, params, x, key):
    rules = [ssvq.Rule("w", ssvq.SSVQ(4, 8, sign_code=code))]
    plain = ssvq.compress(params, rules, key=key)
    refined = ssvq.refine(plain, params, {"w": moment(x.T @ x)})
    latent = refined["w"].latent
    word = nearest_word(latent, code, 8, 0)
    np.testing.assert_array_equal(word, jnp.where(latent < 0, -1.0, 1.0))
    second = x.T @ x
    assert quadratic(refined, params, second) < 0.7 * quadratic(plain, params, second)


def test_compress_with_moments(params, x, key):
    moments = {"w": moment(x.T @ x)}
    rules = [ssvq.Rule("w", CODEC)]
    found = ssvq.compress(params, rules, key=key, moments=moments)
    importance = {"w": moments["w"].importance((27, 12))}
    tree = ssvq.compress(params, rules, key=key, importance=importance)
    chex.assert_trees_all_equal(found, ssvq.refine(tree, params, moments))
    big = {"w": np.asarray(params["w"]).astype(">f4")}
    again = ssvq.compress(big, rules, key=key, moments=moments)
    chex.assert_trees_all_equal(found, again)
    # Importance that is given goes before that of the moments.
    given = {"w": jnp.ones((27, 12))}
    found = ssvq.compress(params, rules, key=key, importance=given, moments=moments)
    tree = ssvq.compress(params, rules, key=key, importance=given)
    chex.assert_trees_all_equal(found, ssvq.refine(tree, params, moments))


@pytest.mark.parametrize("sides", [1, 2])
def test_codebook_and_scales_are_those_of_least_squares(sides, rng, key, monkeypatch):
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
    outputs, other = None, np.eye(6)
    if sides == 2:
        y = floats(rng, 40, 6)
        outputs = jnp.asarray(y.T @ y + np.eye(6, dtype="f4"))[None]
        other = np.linalg.cholesky(np.asarray(outputs[0], "f8"))

    def expected(node, name):
        """Of the error weighted with a root of the moments, all in float64."""
        values = jax.jacobian(
            lambda x: node.replace(**{name: x}).values(jnp.dtype("float32"))
        )
        basis = np.asarray(values(getattr(node, name)), "f8").reshape(14, 6, -1)
        basis = np.einsum("ij,iop,oq->jqp", root, basis, other).reshape(14 * 6, -1)
        target = (root.T @ np.asarray(weight, "f8") @ other).ravel()
        return np.linalg.lstsq(basis, target)[0]

    metric = module._Metric(layout.second(second), outputs)
    fitted = module._fit(node, error, metric)
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
