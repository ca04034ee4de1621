"""`nearest` against brute force in NumPy; the codes that `assign` chooses."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssvq_jax.codecs import nearest as module
from ssvq_jax.codecs.nearest import mask_patterns
from ssvq_jax.core.sign_codes import words

EXACT = {"rtol": 1e-4, "atol": 1e-4}
SIZES = [(40, 8, 16), (23, 7, 5), (17, 1, 4), (1, 6, 1)]  # n, d, k


def nearest(targets, codebook, patterns=None, **form):
    form = {name: jnp.asarray(x) for name, x in form.items()}
    found = jax.jit(functools.partial(module.nearest, patterns=patterns))
    return found(jnp.asarray(targets), jnp.asarray(codebook), **form)


def metric_of(rng, block):
    root = rng.normal(size=(2 * block, block))
    return (root.T @ root).astype("f4")


def data(rng, count, block, codewords):
    targets = rng.normal(size=(count, block)).astype("f4")
    codebook = np.abs(rng.normal(size=(codewords, block))).astype("f4")
    return targets, codebook


def cost(targets, values, *, metric=None, importance=None):
    """The quadratic form of every difference, over leading axes, in float64."""
    difference = np.asarray(targets, "f8") - np.asarray(values, "f8")
    if metric is not None:
        return np.einsum("...i,ij,...j->...", difference, metric, difference)
    importance = 1.0 if importance is None else np.asarray(importance, "f8")
    return np.sum(importance * difference**2, axis=-1)


def forms(rng, count, block):
    importance = rng.uniform(0, 2, (count, block)).astype("f4")
    return [{}, {"importance": importance}, {"metric": metric_of(rng, block)}]


def all_costs(targets, codebook, factors, form):
    """`(n, k)`: of every codeword for the factors that there are."""
    form = dict(form)
    if "importance" in form:
        form["importance"] = form["importance"][:, None]
    return cost(targets[:, None], factors[:, None] * codebook[None], **form)


@pytest.mark.parametrize("count, block, codewords", SIZES)
def test_without_patterns_the_nearest_codeword(count, block, codewords, rng):
    targets, codebook = data(rng, count, block, codewords)
    for form in forms(rng, count, block):
        codes, factors = nearest(targets, codebook, **form)
        assert factors is None and codes.dtype == jnp.int32
        costs = all_costs(targets, codebook, np.ones_like(targets), form)
        found = costs[np.arange(count), codes]
        np.testing.assert_allclose(found, costs.min(axis=1), **EXACT)


@pytest.mark.parametrize("joint", [0, 4096])
@pytest.mark.parametrize("count, block, codewords", SIZES)
def test_signs(joint, count, block, codewords, rng, monkeypatch):
    monkeypatch.setattr(module, "_JOINT", joint)
    targets, codebook = data(rng, count, block, codewords)
    patterns = words("free", block)
    assert (
        block % patterns.shape[1] == 0 and patterns.shape[0] == 2 ** patterns.shape[1]
    )
    signs = np.where(targets < 0, -1.0, 1.0)
    for form in forms(rng, count, block):
        choice = nearest(targets, codebook, patterns, **form)
        plain = all_costs(targets, codebook, signs, form).min(axis=1)
        assert_best(targets, codebook, patterns, choice, plain, form)


@pytest.mark.parametrize("joint", [0, 4096])
@pytest.mark.parametrize(
    "keep, block", [((2, 4), 8), ((1, 3), 3), ((1, 1), 1), ((3, 5), 5)]
)
def test_masks(joint, keep, block, rng, monkeypatch):
    monkeypatch.setattr(module, "_JOINT", joint)
    targets, codebook = data(rng, 29, block, 6)
    patterns = mask_patterns(*keep)
    for form in forms(rng, 29, block):
        weights = form.get("importance", 1.0)
        if "metric" in form:
            weights = np.diagonal(form["metric"])
        score = (weights * targets**2).reshape(29, -1, keep[1])
        order = np.argsort(np.argsort(-score, axis=-1), axis=-1)
        largest = (order < keep[0]).reshape(targets.shape).astype("f4")
        choice = nearest(targets, codebook, patterns, **form)
        ones = np.asarray(choice.factors).reshape(29, -1, keep[1]).sum(axis=-1)
        np.testing.assert_array_equal(ones, keep[0])
        plain = all_costs(targets, codebook, largest, form).min(axis=1)
        assert_best(targets, codebook, patterns, choice, plain, form)


@pytest.mark.parametrize(
    "patterns", [words("free", 8), words("free", 2), mask_patterns(2, 4)]
)
def test_where_there_are_few_all_factors_are_tried(patterns, rng):
    size = patterns.shape[1]
    targets, codebook = data(rng, 30, 8 if size == 4 else 6, 5)
    groups = targets.shape[1] // size
    words = np.array([np.ravel(x) for x in itertools.product(patterns, repeat=groups)])
    for form in forms(rng, *targets.shape):
        choice = nearest(targets, codebook, patterns, **form)
        best = np.min(
            [
                all_costs(targets, codebook, np.tile(word, (30, 1)), form).min(axis=1)
                for word in words
            ],
            axis=0,
        )
        codes, factors = np.asarray(choice.codes), np.asarray(choice.factors)
        found = cost(targets, factors * codebook[codes], **form)
        np.testing.assert_allclose(found, best, **EXACT)


def assert_best(targets, codebook, patterns, choice, plain, form):
    """Codes best for their factors; no group of factors better for most codewords."""
    codes, factors = np.asarray(choice.codes), np.asarray(choice.factors)
    found = cost(targets, factors * codebook[codes], **form)
    costs = all_costs(targets, codebook, factors, form)
    np.testing.assert_allclose(found, costs.min(axis=1), **EXACT)
    assert (found <= plain + 1e-4 * (1 + plain)).all()
    size, worse = patterns.shape[1], np.zeros(len(targets), bool)
    for start in range(0, targets.shape[1], size):
        for pattern in patterns:
            other = factors.copy()
            other[:, start : start + size] = pattern
            changed = cost(targets, other * codebook[codes], **form)
            worse |= changed < found - 1e-4 * (1 + found)
    assert worse.mean() <= 0.1


def test_after_many_rounds_nothing_alone_is_better(rng, monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", 30)
    monkeypatch.setattr(module, "_JOINT", 0)
    targets, codebook = data(rng, 200, 8, 16)
    form = {"metric": metric_of(rng, 8)}
    choice = nearest(targets, codebook, words("free", 8), **form)
    codes, factors = np.asarray(choice.codes), np.asarray(choice.factors)
    found = cost(targets, factors * codebook[codes], **form)
    for i in range(8):
        other = factors.copy()
        other[:, i] *= -1
        flipped = cost(targets, other * codebook[codes], **form)
        assert (flipped >= found - 1e-4 * (1 + found)).all()


@pytest.mark.parametrize("joint", [0, 4096])
@pytest.mark.parametrize("valid", range(5))
def test_ones_of_masks_are_on_weights_first(joint, valid, rng, monkeypatch):
    monkeypatch.setattr(module, "_JOINT", joint)
    targets, codebook = data(rng, 9, 4, 5)
    is_valid = np.broadcast_to(np.arange(4) < valid, (9, 4))
    targets = np.where(is_valid, targets, 0).astype("f4")
    metric = metric_of(rng, 4)
    metric = np.where(is_valid[0] & is_valid[0][:, None], metric, 0).astype("f4")
    importance = is_valid.astype("f4")
    for form in ({"metric": metric}, {"importance": importance}):
        choice = nearest(targets, codebook, mask_patterns(2, 4), valid=is_valid, **form)
        kept = np.where(is_valid, choice.factors, 0).sum(axis=1)
        np.testing.assert_array_equal(kept, min(2, valid))


@pytest.mark.parametrize("kind", ["metric", "importance"])
@pytest.mark.parametrize("patterns", [None, mask_patterns(2, 4)])
def test_what_is_the_same_for_all_blocks(patterns, kind, rng):
    """XLA's CPU backend has computed products wrongly whose columns are repeated, of
    256 columns and more, where a reduction follows."""
    targets, codebook = data(rng, 1024, 8, 16)
    valid = np.arange(8)[None] < 6
    form = {"metric": metric_of(rng, 8) * valid * valid.T}
    if kind == "importance":
        form = {"importance": rng.uniform(size=(1, 8)).astype("f4") * valid}

    @jax.jit
    def choose(form, valid):
        repeated = functools.partial(jnp.broadcast_to, shape=targets.shape)
        if kind == "importance":
            form = jax.tree.map(repeated, form)
        blocks = jnp.asarray(targets), jnp.asarray(codebook)
        return module.nearest(*blocks, patterns, **form, valid=repeated(valid))

    codes, factors = choose(form, valid)
    found = codebook[codes] * (1 if factors is None else np.asarray(factors))
    words = [np.ones(8)]
    if patterns is not None:
        words = [np.ravel(x) for x in itertools.product(patterns, repeat=2)]
        words = [x for x in words if not x[6:].any()]
    best = [all_costs(targets, codebook, x[None], form).min(axis=1) for x in words]
    np.testing.assert_allclose(cost(targets, found, **form), np.min(best, 0), **EXACT)


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("patterns", [None, words("free", 8), mask_patterns(2, 4)])
def test_in_chunks_the_same(patterns, rows, rng, monkeypatch):
    targets, codebook = data(rng, 50, 8, 16)
    columns = {"valid": np.broadcast_to(np.arange(8) < 7, (rows, 8))}
    for form in forms(rng, 50, 8):
        whole = nearest(targets, codebook, patterns, **form, **columns)
        monkeypatch.setattr(module, "_CPU_COSTS", 64 * 7)
        parts = nearest(targets, codebook, patterns, **form, **columns)
        monkeypatch.undo()
        chex.assert_trees_all_equal(whole, parts)
