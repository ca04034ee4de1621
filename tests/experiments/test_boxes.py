"""Boxes against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.tasks.boxes import assign, decode, encode, locations, overlap, suppress


def _boxes(rng, *shape, size=64.0):
    corner = rng.uniform(0, size, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, size, (*shape, 2))], -1)


def plain_overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def plain_suppress(boxes, scores, classes, threshold, least):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        alike = [j for j in kept if classes[j] == classes[i]]
        if scores[i] > least and all(
            plain_overlap(boxes[i], boxes[j]) <= threshold for j in alike
        ):
            kept.append(int(i))
    return kept


def plain_assign(found, objectness, classes, boxes, labels, places):
    """The original, object by object: target and overlap by location."""
    centres = (places[:, :2] + 0.5) * places[:, 2:]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = 1.5 * places[:, 2]
    near = np.array([np.abs(centres - m).max(1) < reach for m in middles])
    kept = np.flatnonzero(near.any(0))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    p = np.sqrt(sigmoid(classes[kept]) * sigmoid(objectness[kept])[:, None])
    wanted, cost, overlaps = [], [], []
    for box, label, close in zip(boxes, labels, near, strict=True):
        own = np.array([plain_overlap(box, found[i]) for i in kept])
        right = np.arange(classes.shape[1]) == label
        entropy = -np.where(right, np.log(p), np.log1p(-p)).sum(1)
        cost.append(entropy - 3 * np.log(own + 1e-8) + 1e6 * ~close[kept])
        overlaps.append(own)
        wanted.append(max(int(np.sort(own)[-10:].sum()), 1))
    taken = {}
    for t, (row, count) in enumerate(zip(cost, wanted, strict=True)):
        for i in np.argsort(row)[:count]:
            taken.setdefault(i, []).append(t)
    chosen = {
        i: ts[0] if len(ts) == 1 else int(np.argmin([row[i] for row in cost]))
        for i, ts in taken.items()
    }
    return {int(kept[i]): (t, overlaps[t][i]) for i, t in chosen.items()}


def test_overlaps_and_boxes_without_area(rng):
    a, b = _boxes(rng, 40), _boxes(rng, 40)
    b[:3] = a[:3]
    a[3, 2:] = a[3, :2]
    a[4, 2:] = b[4, 2:] = b[4, :2] = a[4, :2]
    found = overlap(jnp.asarray(a, "f4"), jnp.asarray(b, "f4"))
    expected = [plain_overlap(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == 1 and found[4] == 0


@pytest.mark.parametrize("size", [32, 64, 96])
def test_outputs_to_boxes_and_back(size, rng):
    places = locations(size)
    outputs = rng.normal(size=(2, len(places), 7)).astype("f4")
    boxes = decode(jnp.asarray(outputs), places)
    centre = (outputs[..., :2] + places[:, :2]) * places[:, 2:]
    np.testing.assert_allclose((boxes[..., :2] + boxes[..., 2:]) / 2, centre, atol=1e-4)
    sizes = np.exp(outputs[..., 2:4]) * places[:, 2:]
    np.testing.assert_allclose(boxes[..., 2:] - boxes[..., :2], sizes, rtol=1e-3)
    np.testing.assert_allclose(encode(boxes[1], places), outputs[1, :, :4], atol=1e-3)


@functools.partial(jax.jit, static_argnames="count")
def _suppress(boxes, scores, classes, count):
    return suppress(boxes, scores, classes, count=count, threshold=0.5, least=0.1)


@given(st.integers(0, 10**6), st.sampled_from([1, 7, 60]), st.sampled_from([1, 30]))
def test_suppression_is_the_plain_one(seed, n, count):
    rng = np.random.default_rng(seed)
    boxes = _boxes(rng, n).round().astype("f4")
    # Scores that are equal, and some too low; a class for two of three.
    scores = (rng.integers(0, 20, n) / 20).astype("f4")
    classes = rng.integers(0, 2, n).astype("i4")
    found = np.asarray(_suppress(boxes, scores, classes, count))
    expected = plain_suppress(boxes, scores, classes, 0.5, np.float32(0.1))[:count]
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert np.all(found[len(expected) :] == -1)


def test_nan_is_never_kept():
    boxes = jnp.array([[0, 0, 9, 9], [0, 0, 9, np.inf], [0, 0, 9, 9.5]])
    scores = jnp.array([np.nan, 0.9, 0.5])
    found = _suppress(boxes, scores, jnp.zeros(3, jnp.int32), 3)
    np.testing.assert_array_equal(found, [1, 2, -1])


@pytest.mark.parametrize("objects", [1, 2, 7])
def test_assignment_is_the_plain_one(objects, rng):
    places, classes = locations(64), 5
    for _ in range(5):
        boxes = _boxes(rng, objects, size=40.0).astype("f4")
        labels = rng.integers(0, classes, objects).astype("i4")
        # Some predictions near the objects, so that they take several.
        found = _boxes(rng, len(places)).astype("f4")
        owner = rng.integers(0, objects, len(places))
        close = rng.random(len(places)) < 0.7
        noise = rng.normal(0, 2, found.shape).astype("f4")
        found = np.where(close[:, None], boxes[owner] + noise, found)
        objectness = rng.normal(size=len(places)).astype("f4")
        logits = rng.normal(size=(len(places), classes)).astype("f4")
        expected = plain_assign(found, objectness, logits, boxes, labels, places)
        # Two that are not there change nothing.
        padded = np.concatenate([boxes, boxes[:1], np.zeros((1, 4), "f4")])
        own = np.concatenate([labels, labels[:1], [-1]]).astype("i4")
        valid = np.arange(objects + 2) < objects
        result = assign(
            *map(jnp.asarray, (found, objectness, logits, padded, own, valid)), places
        )
        taken = np.flatnonzero(result.taken)
        assert taken.tolist() == sorted(expected)
        targets, overlaps = zip(*(expected[i] for i in taken), strict=True)
        np.testing.assert_array_equal(np.asarray(result.target)[taken], targets)
        np.testing.assert_allclose(
            np.asarray(result.quality)[taken], overlaps, atol=1e-5
        )
        assert np.all(np.asarray(result.quality)[~np.asarray(result.taken)] == 0)


def test_nothing_to_assign():
    places = locations(32)
    n = len(places)
    arguments = [jnp.ones((n, 4)), jnp.zeros(n), jnp.zeros((n, 3)), jnp.ones((2, 4))]
    labels = jnp.zeros(2, jnp.int32)
    result = assign(*arguments, labels, jnp.zeros(2, bool), places)
    assert not result.taken.any() and not result.quality.any()
    # An object whose centre is outside the image has no location.
    far = arguments[:3] + [jnp.full((2, 4), 900.0)]
    assert not assign(*far, labels, jnp.ones(2, bool), places).taken.any()
