import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from ssvq_jax import fit_codebook
from ssvq_jax.core import kmeans, lloyd
from tests import reference


def _points(rng, n, d):
    return np.abs(rng.normal(size=(n, d))).astype(np.float32)


def _weights(importance, n, d):
    if importance is None:
        return np.ones((n, d))
    return np.broadcast_to(importance.reshape(n, -1), (n, d))


def _importance(kind, rng, n, d):
    if kind == "none":
        return None
    if kind == "point":
        return rng.random(n).astype(np.float32)
    if kind == "coordinate":
        return rng.random((n, d)).astype(np.float32)
    return (rng.random((n, d)) < 0.6).astype(np.float32)


@pytest.mark.parametrize("kind", ["none", "point", "coordinate", "mask"])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(1, 1, 1), (7, 3, 2), (1024, 4, 16), (1031, 5, 13), (4099, 8, 64)]
)
def test_matches_the_reference_from_the_same_start(kind, n, d, k, rng, key):
    points, importance = _points(rng, n, d), _importance(kind, rng, n, d)
    weights = _weights(importance, n, d)
    codebook, codes, inertia = fit_codebook(
        points, k, key=key, importance=importance, iterations=3, init=points[:k]
    )
    chex.assert_shape([codebook, codes, inertia], [(k, d), (n,), ()])
    chex.assert_type([codebook, codes, inertia], [jnp.float32, jnp.int32, jnp.float32])
    expected, _, expected_inertia = reference.lloyd(points, points[:k], weights, 3)
    np.testing.assert_allclose(codebook, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(inertia, expected_inertia, rtol=1e-3, atol=1e-6)
    # Whatever the codebook: its codes are the nearest, its inertia is theirs.
    distance = reference.distances(points, codebook, weights)
    chosen = distance[np.arange(n), codes]
    np.testing.assert_allclose(chosen, distance.min(axis=1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(inertia, chosen.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "d", "k"), [(20_000, 4, 64), (10_000, 8, 16)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_inertia_is_that_of_scikit_learn(n, d, k, offset, rng, key):
    points = _points(rng, n, d) + np.float32(offset)
    start = points[:k]
    codebook, codes, inertia = fit_codebook(
        points, k, key=key, iterations=20, init=start
    )
    peer = KMeans(k, init=start, n_init=1, max_iter=20, tol=0, algorithm="lloyd")
    peer.fit(points)
    np.testing.assert_allclose(inertia, peer.inertia_, rtol=0.01)
    exact = np.sum((points - np.asarray(codebook)[codes]) ** 2)
    np.testing.assert_allclose(inertia, exact, rtol=1e-3)


def test_weighted_inertia_is_that_of_scikit_learn(rng, key):
    points, importance = _points(rng, 5000, 4), rng.random(5000).astype(np.float32)
    _, _, inertia = fit_codebook(
        points, 16, key=key, importance=importance, iterations=20, init=points[:16]
    )
    peer = KMeans(16, init=points[:16], n_init=1, max_iter=20, tol=0)
    peer.fit(points, sample_weight=importance)
    np.testing.assert_allclose(inertia, peer.inertia_, rtol=0.01)


def test_plus_plus_start_is_as_good_as_that_of_scikit_learn(rng, key):
    points = _points(rng, 10_000, 8)
    ours = [
        float(fit_codebook(points, 32, key=jax.random.fold_in(key, i))[2])
        for i in range(4)
    ]
    peers = [
        KMeans(32, n_init=1, max_iter=25, tol=0, random_state=i).fit(points).inertia_
        for i in range(4)
    ]
    assert np.mean(ours) <= 1.01 * np.mean(peers)


def test_separated_clusters_are_found(rng, key):
    centres = 10 * rng.normal(size=(50, 3)).astype(np.float32)
    member = np.arange(3000) % 50
    noise = 1e-3 * rng.normal(size=(3000, 3)).astype(np.float32)
    _, codes, _ = fit_codebook(centres[member] + noise, 50, key=key)
    pairs = set(zip(member.tolist(), codes.tolist(), strict=True))
    assert len(pairs) == 50


def test_weight_zero_takes_points_and_coordinates_out(rng, key):
    points = _points(rng, 600, 4)
    importance = np.ones_like(points)
    importance[300:] = 0
    importance[:, 3] = 0
    disturbed = np.where(importance == 0, 1e6, points).astype(np.float32)
    for some in (points, disturbed):
        codebook, codes, inertia = fit_codebook(
            some, 8, key=key, importance=importance, init=points[:8]
        )
        alone = fit_codebook(points[:300, :3], 8, key=key, init=points[:8, :3])
        np.testing.assert_allclose(codebook[:, :3], alone[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(codes[:300], alone[1])
        np.testing.assert_allclose(inertia, alone[2], rtol=1e-4)


def test_far_points_without_weight_do_not_spoil_the_inertia(key):
    points = np.array([[1e30, 1], [1, 1], [2, 2]], np.float32)
    importance = np.array([0, 1, 1], np.float32)
    codebook, _, inertia = fit_codebook(points, 2, key=key, importance=importance)
    chex.assert_tree_all_finite((codebook, inertia))


@pytest.mark.parametrize("far", [1e19, 3.4e38])
@pytest.mark.parametrize("columns", [1, 3])
def test_points_without_weight_may_be_as_far_as_can_be(far, columns, key):
    points = np.linspace(0.01, 0.05, 15, dtype=np.float32).reshape(5, 3)
    importance = np.ones((5, columns), np.float32)
    importance[2] = 0
    disturbed = points.copy()
    disturbed[2] = far
    importance = importance.squeeze()
    plain = fit_codebook(points, 2, key=key, importance=importance)
    result = fit_codebook(disturbed, 2, key=key, importance=importance)
    chex.assert_tree_all_finite((result[0], result[2]))
    np.testing.assert_allclose(result[0], plain[0], rtol=1e-4)
    np.testing.assert_allclose(result[2], plain[2], rtol=1e-4)


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_default_iterations_reach_what_scikit_learn_reaches(kind, rng, key):
    points = np.abs(getattr(rng, kind)(size=(2000, 8))).astype(np.float32)
    _, _, inertia = fit_codebook(points, 16, key=key, init=points[:16])
    peer = KMeans(16, init=points[:16], n_init=1, max_iter=300, tol=0).fit(points)
    np.testing.assert_allclose(inertia, peer.inertia_, rtol=0.01)


def test_dead_codewords_are_reseeded(rng, key):
    points = _points(rng, 2000, 4)
    start = np.concatenate([points[:4], np.full((4, 4), 1e3, np.float32)])
    _, codes, inertia = fit_codebook(points, 8, key=key, init=start)
    assert len(np.unique(codes)) == 8
    good = fit_codebook(points, 8, key=key, init=points[:8])[2]
    assert float(inertia) < 1.1 * float(good)


@pytest.mark.parametrize("importance", [None, np.zeros((40, 2), np.float32)])
def test_fewer_distinct_points_than_codewords(importance, key):
    points = np.repeat(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), 20, axis=0)
    codebook, _, inertia = fit_codebook(points, 5, key=key, importance=importance)
    chex.assert_tree_all_finite(codebook)
    np.testing.assert_allclose(inertia, 0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_scale_of_the_points_does_not_matter(scale, rng, key):
    points = _points(rng, 500, 4)
    plain = fit_codebook(points, 8, key=key)
    scaled = fit_codebook(points * np.float32(scale), 8, key=key)
    np.testing.assert_array_equal(plain[1], scaled[1])
    np.testing.assert_allclose(scaled[0] / np.float32(scale), plain[0], rtol=1e-5)


def test_as_many_codewords_as_points_gives_the_points(rng, key):
    points = _points(rng, 50, 3)
    codebook, codes, inertia = fit_codebook(points, 50, key=key)
    assert len(np.unique(codes)) == 50
    np.testing.assert_allclose(np.asarray(codebook)[codes], points, atol=1e-6)
    np.testing.assert_allclose(inertia, 0.0, atol=1e-6)


@given(
    n=st.sampled_from([1, 2, 7, 40]),
    d=st.sampled_from([1, 3]),
    k=st.sampled_from([1, 2, 7, 40]),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_never_nan_and_always_the_nearest(n, d, k, levels, seed):
    k = min(k, n)
    points = np.random.default_rng(seed).integers(levels, size=(n, d)) / np.float32(7)
    points = points.astype(np.float32)
    codebook, codes, inertia = fit_codebook(points, k, key=jax.random.key(seed))
    chex.assert_tree_all_finite((codebook, inertia))
    distance = reference.distances(points, codebook, np.ones_like(points))
    chosen = distance[np.arange(n), codes]
    np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-5)
    assert inertia >= 0


def test_same_key_same_bytes_and_jit_and_vmap_agree(rng, key):
    points = _points(rng, 1500, 4)
    first = fit_codebook(points, 16, key=key)
    chex.assert_trees_all_equal(first, fit_codebook(points, 16, key=key))
    other = fit_codebook(points, 16, key=jax.random.key(1))
    assert not np.array_equal(first[0], other[0])
    jitted = jax.jit(lambda x, key: fit_codebook(x, 16, key=key))(points, key)
    chex.assert_trees_all_close(first, jitted, rtol=1e-5)
    stack = np.stack([points, points[::-1]])
    keys = jnp.stack([key, key])
    mapped = jax.vmap(lambda x, key: fit_codebook(x, 16, key=key))(stack, keys)
    chex.assert_trees_all_close(first, jax.tree.map(lambda x: x[0], mapped), rtol=1e-5)


@pytest.mark.parametrize("count", [30, 1000])  # all of them, and a sample
def test_of_several_starts_the_best_goes_on(count, rng):
    centers = rng.uniform(-100, 100, size=(12, 2))
    points = (centers[:, None] + rng.normal(size=(12, count, 2))).astype("f4")
    points = points.reshape(-1, 2)

    def mean_errors(starts):
        """Of six keys; 2 where all clusters are found."""
        found = [
            fit_codebook(points, 12, key=jax.random.key(i), starts=starts)[2]
            for i in range(6)
        ]
        return np.array(found) / len(points)

    assert mean_errors(1).max() > 4
    assert mean_errors(10).max() < 2.2
    _, _, best = fit_codebook(points, 12, key=jax.random.key(0), starts=10)
    for scale in (2.0**-70, 2.0**60):  # squares of which overflow, or are 0
        _, codes, _ = fit_codebook(
            points * np.float32(scale), 12, key=jax.random.key(0), starts=10
        )
        means = [points[codes == i].mean(0) for i in range(12)]
        error = np.sum((points - np.array(means)[codes]) ** 2)
        np.testing.assert_allclose(error, best, rtol=1e-3)
    several = fit_codebook(points, 12, key=jax.random.key(0), starts=3)
    jitted = jax.jit(lambda x: fit_codebook(x, 12, key=jax.random.key(0), starts=3))
    chex.assert_trees_all_close(several, jitted(points), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_points_are_clustered_in_float32(dtype, rng, key):
    points = jnp.asarray(_points(rng, 500, 4), dtype)
    low = fit_codebook(points, 8, key=key)
    full = fit_codebook(points.astype(jnp.float32), 8, key=key)
    chex.assert_trees_all_equal(low, full)


def test_few_programs_for_many_sizes(key):
    sizes = np.unique(np.geomspace(64, 1e6, 50).astype(int))
    assert len({lloyd.padded_count(int(size)) for size in sizes}) <= 10
    for size in range(1, 1_000_000, 7777):
        padded = lloyd.padded_count(size)
        assert size <= padded <= max(1.5 * size + lloyd.CHUNK, lloyd.CHUNK)
        assert padded % lloyd.CHUNK == 0
    before = lloyd._wide_lloyd._cache_size()
    for n in (100, 333, 900, 20_000):
        fit_codebook(np.ones((n, 2), np.float32), 3, key=key, iterations=1)
    assert lloyd._wide_lloyd._cache_size() == before + 1


@pytest.mark.parametrize("form", ["unrolled", "product"])
@pytest.mark.parametrize(
    ("dtype", "n", "d", "k"),
    [
        ("float32", 1 << 20, 4, 64),
        ("float32", 1 << 17, 8, 4096),
        ("int16", 1 << 21, 32, 16),  # the bits of bfloat16; in float32 256 MiB
    ],
)
def test_memory_is_at_most_64_mib_above_the_points(dtype, n, d, k, form):
    points, weights = (jax.ShapeDtypeStruct((n, columns), dtype) for columns in (d, 1))
    start = jax.ShapeDtypeStruct((k, d), jnp.float32)
    program = lloyd._lloyd.lower(points, weights, start, n, iterations=5, form=form)
    used = program.compile().memory_analysis()
    extra = used.temp_size_in_bytes + used.output_size_in_bytes
    limit = 64 if form == "unrolled" else 512  # accelerators hold a chunk's scores
    assert extra <= limit * 2**20


@pytest.mark.parametrize("q", ["point", "coordinate"])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (700, 3, 37), (40_000, 8, 16)])
def test_both_forms_agree(q, n, d, k, rng):
    points = _points(rng, n, d)
    importance = rng.random((n, 1 if q == "point" else d)).astype(np.float32)
    padded = kmeans.pad_points(points, importance)
    results = [
        lloyd._lloyd(*padded, points[:k], n, iterations=2, form=form)
        for form in ("unrolled", "product")
    ]
    (codebook, codes, inertia), (other, other_codes, other_inertia) = results
    np.testing.assert_allclose(codebook, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(inertia, other_inertia, rtol=1e-4, atol=1e-6)
    assert np.mean(codes[:n] != other_codes[:n]) < 1e-3  # but for ties within rounding


def test_wide_blocks_and_many_codewords(rng, key):
    for d, k in [(300, 4), (64, 3), (1, 257)]:
        points = _points(rng, 600, d)
        codebook, codes, _ = fit_codebook(points, k, key=key, iterations=2)
        distance = reference.distances(points, codebook, np.ones_like(points))
        chosen = distance[np.arange(600), codes]
        np.testing.assert_allclose(chosen, distance.min(axis=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"points": np.ones((4, 2), np.int32)}, TypeError, "points.*floating.*int32"),
        ({"points": np.ones(4, np.float32)}, ValueError, r"points.*\(n, d\).*\(4,\)"),
        ({"points": np.ones((0, 2), np.float32)}, ValueError, "points.*not empty"),
        ({"points": np.full((4, 2), np.nan, np.float32)}, ValueError, "8 NaN"),
        ({"codewords": 5}, ValueError, "codewords.*1 to 4.*got 5"),
        ({"codewords": 0}, ValueError, "codewords.*1 to 4.*got 0"),
        ({"iterations": -1}, ValueError, "iterations.*-1"),
        ({"importance": np.ones(3, np.float32)}, ValueError, "importance.*shape"),
        ({"importance": -np.ones(4, np.float32)}, ValueError, "importance.*>= 0"),
        ({"init": "random"}, ValueError, "init.*'random'"),
        ({"init": np.ones((3, 2), np.float32)}, ValueError, r"init.*\(2, 2\)"),
        ({"starts": 0}, ValueError, "starts.*at least 1, got 0"),
        ({"starts": 2, "init": np.ones((2, 2), np.float32)}, ValueError, "starts.*2"),
    ],
)
def test_bad_input(arguments, error, message, key):
    good = {"points": np.ones((4, 2), np.float32), "codewords": 2}
    with pytest.raises(error, match=message):
        fit_codebook(key=key, **(good | arguments))
