"""Weighted k-means: one mechanism for clustering, padding, masks and importance.

Points are kept as the minor axis and visited in chunks, so that the scores of a chunk
stay in cache and memory is that of the points plus O(chunk x codewords). The sizes
that the compiled program depends on are few: the number of points is rounded up to
1, 1.5, 2, 3, 4, 6, ... chunks; the program visits only the chunks in use.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from ssvq_jax.core.checks import require_finite, require_floating, require_nonnegative

CHUNK = 1024
ITERATIONS = 100
_SEEDING_POINTS_PER_CODEWORD = 16
_SEEDING_POINTS = 8192
_EXACT = jax.lax.Precision.HIGHEST

Key = PRNGKeyArray | UInt32[Array, "2"]


def fit_codebook(
    points: ArrayLike,
    codewords: int,
    *,
    key: Key,
    importance: ArrayLike | None = None,
    iterations: int = ITERATIONS,
    init: str | ArrayLike = "k-means++",
) -> tuple[Float[Array, "k d"], Int[Array, " n"], Float[Array, ""]]:
    """K-means: `k` codewords that minimise the weighted squared error of the points.

    Minimises `sum_ic importance_ic * (points_ic - codebook[codes_i]_c)^2` with Lloyd's
    algorithm. A codeword that no point chooses is reseeded at the point that is
    farthest from its own; a coordinate that no weight reaches keeps its value. The
    result is never NaN. Computed in float32; stops early once nothing changes.

    Args:
      points: `(n, d)`, any floating dtype.
      codewords: `k`, between 1 and `n`.
      key: JAX random key; the same key gives the same bytes.
      importance: `None`, or non-negative weights, one per point `(n,)` or one per
        coordinate `(n, d)`. Weights of 0 take a point or coordinate out.
      iterations: Upper limit of Lloyd iterations, 0 or more.
      init: `"k-means++"` (on a sample of the points where there are many), or the
        `(k, d)` codebook to start from.

    Returns:
      `(codebook, codes, inertia)`: `(k, d)` float32; `(n,)` int32, the codeword of
      least weighted distance for every point; the weighted squared error, a float32
      scalar, of exactly these codes with exactly this codebook.

    Raises:
      TypeError: Points that are not floating point.
      ValueError: Points that are not `(n, d)`, empty, NaN or infinite; `codewords`
        below 1 or above `n`; negative importance or one of another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> points = jnp.array([[0.0, 0.0], [0.0, 1.0], [8.0, 8.0]])
      >>> codebook, codes, inertia = fit_codebook(points, 2, key=jax.random.key(0))
      >>> sorted(codebook.tolist()), round(float(inertia), 3)
      ([[0.0, 0.5], [8.0, 8.0]], 0.5)

    References:
      Lloyd, "Least squares quantization in PCM", 1982. Arthur and Vassilvitskii,
      "k-means++: The Advantages of Careful Seeding", 2007.
    """
    points = jnp.asarray(points)
    require_floating("points", points)
    if points.ndim != 2 or points.size == 0:
        raise ValueError(
            f"points: expected shape (n, d), not empty, got {points.shape}"
        )
    count, dim = points.shape
    if not 1 <= codewords <= count:
        raise ValueError(
            f"codewords: expected 1 to {count} (the number of points), got {codewords}"
        )
    if iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")
    require_finite("points", points)

    if importance is not None:
        importance = jnp.asarray(importance)
        if importance.shape not in ((count,), (count, dim)):
            raise ValueError(
                f"importance: expected shape {(count,)} or {(count, dim)}, "
                f"got {importance.shape}"
            )
        require_nonnegative("importance", importance)
    start = None
    if isinstance(init, str):
        if init != "k-means++":
            raise ValueError(f"init: expected 'k-means++' or a codebook, got {init!r}")
    else:
        start = jnp.asarray(init).astype(jnp.float32)
        if start.shape != (codewords, dim):
            raise ValueError(
                f"init: expected shape {(codewords, dim)}, got {start.shape}"
            )
        require_finite("init", start)
    padded, weights = pad_points(points, importance)
    codebook, codes, inertia = fit_padded(
        padded,
        weights,
        count,
        codewords,
        key=key,
        iterations=iterations,
        start=start,
    )
    return codebook, codes[:count], inertia


@jax.jit
def pad_points(
    points: Float[Array, "n d"], importance: Float[Array, "n ..."] | None
) -> tuple[Float[Array, "padded d"], Float[Array, "padded q"]]:
    """Points and their weights in float32, padded to one of few sizes.

    Weights are one per point (`q` is 1) or one per coordinate (`q` is `d`); those of
    the padding are 0.
    """
    count, _ = points.shape
    if importance is None:
        weights = jnp.ones((count, 1), jnp.float32)
    else:
        weights = importance.astype(jnp.float32).reshape(count, -1)
    padding = ((0, _padded_count(count) - count), (0, 0))
    return jnp.pad(points.astype(jnp.float32), padding), jnp.pad(weights, padding)


def fit_padded(
    points: Float[Array, "padded d"],
    weights: Float[Array, "padded q"],
    count: int,
    codewords: int,
    *,
    key: Key,
    iterations: int = ITERATIONS,
    start: Float[Array, "k d"] | None = None,
) -> tuple[Float[Array, "k d"], Int[Array, " padded"], Float[Array, ""]]:
    """`fit_codebook` on what `pad_points` gives for `count` points, unchecked."""
    if start is None:
        start = _seed(*_sample(points, weights, count, codewords, key))
    return _lloyd(points, weights, start, count, iterations=iterations)


def _padded_count(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, ... chunks."""
    chunks = math.ceil(count / CHUNK)
    power = 1 << (chunks - 1).bit_length()
    return CHUNK * (
        power * 3 // 4 if power >= 4 and chunks <= power * 3 // 4 else power
    )


def _sample(
    points: Float[Array, "n d"],
    weights: Float[Array, "n q"],
    count: int,
    codewords: int,
    key: Key,
) -> tuple[Float[Array, "s d"], Float[Array, "s q"], int, Float[Array, " k"]]:
    """What `_seed` works on: of one size however many points there are."""
    sample_key, key = jax.random.split(key)
    size = max(_SEEDING_POINTS, _SEEDING_POINTS_PER_CODEWORD * codewords)
    if size < count:
        chosen = jax.random.randint(sample_key, (size,), 0, count)
        points, weights, count = points[chosen], weights[chosen], size
    else:
        points, weights = (
            jnp.pad(x[:size], ((0, max(0, size - len(x))), (0, 0)))
            for x in (points, weights)
        )
    return points, weights, count, jax.random.uniform(key, (codewords,), jnp.float32)


@jax.jit
def _seed(
    points: Float[Array, "s d"],
    weights: Float[Array, "s q"],
    count: Int[Array, ""] | int,
    uniform: Float[Array, " k"],
) -> Float[Array, "k d"]:
    """k-means++: each next codeword is a point drawn by its weighted distance."""
    points, weights, units = _normalize(points, weights)
    (codewords,) = uniform.shape

    def draw(j, mass):
        cumulative = jnp.cumsum(mass)
        below = cumulative <= uniform[j] * cumulative[-1]
        return points[jnp.minimum(jnp.sum(below), count - 1)]

    def add(j, state):
        codebook, nearest = state
        difference = points - codebook[j - 1][None]
        distance = jnp.sum(weights * jnp.square(difference), axis=1)
        nearest = jnp.minimum(nearest, distance)
        return codebook.at[j].set(draw(j, nearest)), nearest

    first = draw(0, jnp.sum(weights, axis=1))
    codebook = jnp.zeros((codewords, points.shape[1]), jnp.float32).at[0].set(first)
    unreached = jnp.full(points.shape[:1], jnp.inf, jnp.float32)
    codebook, _ = jax.lax.fori_loop(1, codewords, add, (codebook, unreached))
    return (codebook + units.mean) * units.scale


@functools.partial(jax.jit, static_argnames=("iterations",))
def _lloyd(
    points: Float[Array, "n d"],
    weights: Float[Array, "n q"],
    start: Float[Array, "k d"],
    count: Int[Array, ""] | int,
    *,
    iterations: int,
) -> tuple[Float[Array, "k d"], Int[Array, " n"], Float[Array, ""]]:
    """Lloyd iterations on padded points; `q` is 1 (weights per point) or `d`."""
    points, weights, units = _normalize(points, weights)
    chunked = _to_chunks(points), _to_chunks(weights)
    used = (count + CHUNK - 1) // CHUNK

    def unsettled(state):
        step, changed, _ = state
        return (step < iterations) & changed

    def iterate(state):
        step, _, codebook = state
        updated = _update(chunked, used, codebook)
        return step + 1, jnp.any(updated != codebook), updated

    state = (0, True, start / units.scale - units.mean)
    _, _, codebook = jax.lax.while_loop(unsettled, iterate, state)
    codes, distances = _assign_all(chunked, used, codebook)
    inertia = jnp.sum(distances) * units.scale * units.scale * units.weight
    return (codebook + units.mean) * units.scale, codes, inertia


class _Units(NamedTuple):
    """What `_normalize` divided by and subtracted."""

    scale: Float[Array, ""]
    mean: Float[Array, "1 d"]
    weight: Float[Array, ""]


def _normalize(
    points: Float[Array, "n d"], weights: Float[Array, "n q"]
) -> tuple[Float[Array, "n d"], Float[Array, "n q"], _Units]:
    """Centred points and weights of about 1, so that no size or offset matters.

    Scales are powers of two and lose nothing. Coordinates of weight 0 become 0.
    """
    weight = _power_of_two(jnp.max(weights))
    weights = weights / weight
    scale = _power_of_two(jnp.max(jnp.where(weights > 0, jnp.abs(points), 0.0)))
    points = points / scale
    mass = jnp.sum(weights, axis=0, keepdims=True)
    mean = jnp.sum(points * weights, axis=0, keepdims=True)
    mean = jnp.where(mass > 0, mean / jnp.where(mass > 0, mass, 1.0), 0.0)
    points = points - mean
    if weights.shape == points.shape:
        points = jnp.where(weights > 0, points, 0.0)
    return points, weights, _Units(scale, mean, weight)


def _power_of_two(x: Float[Array, ""]) -> Float[Array, ""]:
    """The power of two at or above `x`; 1 for 0."""
    _, exponent = jnp.frexp(x)
    one = jnp.ones((), jnp.float32)
    return jnp.where(x > 0, jnp.ldexp(one, jnp.clip(exponent, -126, 127)), one)


def _to_chunks(x: Float[Array, "n c"]) -> Float[Array, "chunks c b"]:
    return x.reshape(-1, CHUNK, x.shape[1]).transpose(0, 2, 1)


def _assign(
    points: Float[Array, "d b"],
    weights: Float[Array, "q b"],
    codebook: Float[Array, "k d"],
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Nearest codeword of every point of a chunk, and the weighted distance to it.

    `sum_c w_c (x_c - y_c)^2 = sum_c w_c x_c^2 - 2 (sum_c w_c x_c y_c - w_c y_c^2 / 2)`:
    one matrix product scores all codewords. The best is found by a running maximum,
    which the CPU backend vectorises, unlike `argmax`.
    """
    dim, size = points.shape
    half_squares = jnp.square(codebook) / 2
    if weights.shape[0] == dim:
        inputs = jnp.concatenate([points * weights, weights])
        constant = jnp.sum(weights * jnp.square(points), axis=0)
        factor = jnp.ones((), jnp.float32)
    else:  # one weight per point does not change which codeword is the nearest
        inputs = jnp.concatenate([points, jnp.ones_like(points[:1])])
        half_squares = jnp.sum(half_squares, axis=1, keepdims=True)
        constant = jnp.sum(jnp.square(points), axis=0)
        factor = weights[0]
    outputs = jnp.concatenate([codebook, -half_squares], axis=1)
    scores = jnp.matmul(outputs, inputs, precision=_EXACT)

    def compare(j, state):
        best, code = state
        better = scores[j] > best
        return jnp.where(better, scores[j], best), jnp.where(better, j, code)

    unset = jnp.full((size,), -jnp.inf, jnp.float32), jnp.zeros((size,), jnp.int32)
    best, code = jax.lax.fori_loop(0, codebook.shape[0], compare, unset)
    distance = jnp.maximum(constant - 2 * best, 0.0) * factor
    return code, jnp.where(factor > 0, distance, 0.0)  # however far off the point


def _assign_all(
    chunked: tuple[Float[Array, "chunks d b"], Float[Array, "chunks q b"]],
    used: Int[Array, ""] | int,
    codebook: Float[Array, "k d"],
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Code of every point and its weighted distance; 0 in unused chunks."""
    points, weights = chunked

    def visit(i, state):
        codes, distances = state
        code, distance = _assign(points[i], weights[i], codebook)
        return codes.at[i].set(code), distances.at[i].set(distance)

    shape = (points.shape[0], CHUNK)
    blank = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    codes, distances = jax.lax.fori_loop(0, used, visit, blank)
    return codes.ravel(), distances.ravel()


def _update(
    chunked: tuple[Float[Array, "chunks d b"], Float[Array, "chunks q b"]],
    used: Int[Array, ""] | int,
    codebook: Float[Array, "k d"],
) -> Float[Array, "k d"]:
    """One Lloyd iteration: the weighted mean of the points of every codeword.

    The sums are a product with the matrix of comparisons `code == j`, since the CPU
    backend scatters one scalar at a time.
    """
    points, weights = chunked
    codewords, dim = codebook.shape
    numbers = jnp.arange(codewords, dtype=jnp.int32)[:, None]

    def visit(i, sums):
        code, _ = _assign(points[i], weights[i], codebook)
        members = (code[None] == numbers).astype(jnp.float32)
        summands = jnp.concatenate([points[i] * weights[i], weights[i]])
        return sums + jnp.matmul(members, summands.T, precision=_EXACT)

    blank = jnp.zeros((codewords, dim + weights.shape[1]), jnp.float32)
    sums = jax.lax.fori_loop(0, used, visit, blank)
    numerator, mass = sums[:, :dim], sums[:, dim:]
    means = numerator / jnp.where(mass > 0, mass, 1.0)
    updated = jnp.where(mass > 0, means, codebook)
    dead = jnp.sum(mass, axis=1) == 0
    return jax.lax.cond(
        jnp.any(dead),
        lambda: _reseed(chunked, used, codebook, updated, dead),
        lambda: updated,
    )


def _reseed(
    chunked: tuple[Float[Array, "chunks d b"], Float[Array, "chunks q b"]],
    used: Int[Array, ""] | int,
    codebook: Float[Array, "k d"],
    updated: Float[Array, "k d"],
    dead: Array,
) -> Float[Array, "k d"]:
    """Move dead codewords to the points that are worst served by their own."""
    points, _ = chunked
    _, distances = _assign_all(chunked, used, codebook)
    distance, worst = jax.lax.top_k(distances, codebook.shape[0])
    candidates = points[worst // CHUNK, :, worst % CHUNK]
    rank = jnp.cumsum(dead) - 1  # the r-th dead codeword takes the r-th worst point
    rank = jnp.clip(rank, 0)
    replace = dead & (distance[rank] > 0)
    return jnp.where(replace[:, None], candidates[rank], updated)
