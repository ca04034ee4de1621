"""Weighted k-means: one mechanism for clustering, padding, masks and importance."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer, Num, PRNGKeyArray, UInt32

from ssvq_jax.core.blocks import AnyArray
from ssvq_jax.core.checks import (
    as_array,
    require_finite,
    require_floating,
    require_integer,
    require_nonnegative,
)
from ssvq_jax.core.lloyd import lloyd, padded_count
from ssvq_jax.core.sharding import (
    WHOLE,
    Shards,
    mesh_axes,
    place,
    replicate_key,
    replicated,
    sharding_of,
    split_sharding,
    vary_alike,
)
from ssvq_jax.core.units import find_units, floats, kept, normalize

ITERATIONS = 100
_SEEDING_POINTS_PER_CODEWORD = 16
_SEEDING_POINTS = 8192
_TRIAL_ITERATIONS = 10

Key = PRNGKeyArray | UInt32[Array, "2"]


def fit_codebook(
    points: ArrayLike,
    codewords: int,
    *,
    key: Key,
    importance: ArrayLike | None = None,
    iterations: int = ITERATIONS,
    init: str | ArrayLike = "k-means++",
    starts: int = 1,
    axis_name: str | tuple[str, ...] = (),
) -> tuple[Float[Array, "k d"], Int[Array, " n"], Float[Array, ""]]:
    """K-means: `k` codewords that minimise the weighted squared error of the points.

    Minimises `sum_ic importance_ic * (points_ic - codebook[codes_i]_c)^2` with Lloyd's
    algorithm. A codeword that no point chooses is reseeded at the point that is
    farthest from its own; a coordinate that no weight reaches keeps its value. The
    result is never NaN. Computed in float32; stops early once nothing changes.

    Points that are sharded are clustered where they lie, split evenly along `n`, and so
    are their codes: nothing but sums, samples and the candidates for reseeding passes
    between devices. Under `jax.vmap` over a sharded axis they are gathered.

    Args:
      points: `(n, d)`, any floating dtype.
      codewords: `k`, between 1 and `n`.
      key: JAX random key; the same key gives the same bytes.
      importance: `None`, or non-negative weights, one per point `(n,)` or one per
        coordinate `(n, d)`. Weights of 0 take a point or coordinate out.
      iterations: Upper limit of Lloyd iterations, 0 or more.
      init: `"k-means++"` (on a sample of the points where there are many), or the
        `(k, d)` codebook to start from.
      starts: How many times k-means++ is drawn. Each goes through ten iterations, or
        `iterations`, on the sample; the one with the least error there goes on with
        all points.
      axis_name: Inside of `jax.shard_map`, the mesh axes over which points are split,
        as many on every device: one codebook for the points of all devices. `key` and
        `init` have to be the same on all of them.

    Returns:
      `(codebook, codes, inertia)`: `(k, d)` float32; `(n,)` int32, the codeword of
      least weighted distance for every point; the weighted squared error, a float32
      scalar, of exactly these codes with exactly this codebook. With `axis_name` the
      codes are those of the device's own points.

    Raises:
      TypeError: Points that are not floating point; `starts` that is no integer.
      ValueError: Points that are not `(n, d)`, empty, NaN or infinite; `codewords`
        below 1 or above `n`; negative importance or one of another shape; `starts`
        below 1, or several with a codebook to start from.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> points = jnp.array([[0.0, 0.0], [0.0, 1.0], [8.0, 8.0]])
      >>> codebook, codes, inertia = fit_codebook(points, 2, key=jax.random.key(0))
      >>> sorted(codebook.tolist()), round(float(inertia), 3)
      ([[0.0, 0.5], [8.0, 8.0]], 0.5)

    References:
      Lloyd, "Least squares quantization in PCM", 1982. Arthur and Vassilvitskii,
      "k-means++: The Advantages of Careful Seeding", 2007.
    """
    points = as_array(points)
    require_floating("points", points)
    if points.ndim != 2 or points.size == 0:
        raise ValueError(
            f"points: expected shape (n, d), not empty, got {points.shape}"
        )
    count, dim = points.shape
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    total = count * (jax.lax.axis_size(names) if names else 1)
    if not 1 <= codewords <= total:
        raise ValueError(
            f"codewords: expected 1 to {total} (the number of points), got {codewords}"
        )
    if iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")
    require_finite("points", points)

    if importance is not None:
        importance = as_array(importance)
        if importance.shape not in ((count,), (count, dim)):
            raise ValueError(
                f"importance: expected shape {(count,)} or {(count, dim)}, "
                f"got {importance.shape}"
            )
        require_nonnegative("importance", importance)
    require_integer("starts", starts, 1)
    start = None
    if isinstance(init, str):
        if init != "k-means++":
            raise ValueError(f"init: expected 'k-means++' or a codebook, got {init!r}")
    else:
        start = as_array(init).astype(jnp.float32)
        if start.shape != (codewords, dim):
            raise ValueError(
                f"init: expected shape {(codewords, dim)}, got {start.shape}"
            )
        require_finite("init", start)
        if starts > 1:
            raise ValueError(f"starts: expected 1 with a codebook, got {starts}")
    if not names:
        split = split_sharding(points, (1, dim))
        split = split or replicated(sharding_of(points) or sharding_of(importance))
        if split is not None:
            options = _Options(codewords, iterations, starts)
            return _fit_parts(points, importance, start, key, options, split)
    padded, weights = jax.jit(pad_points)(points, importance)
    codebook, codes, inertia = fit_padded(
        padded,
        weights,
        count,
        codewords,
        key=key,
        iterations=iterations,
        start=start,
        starts=starts,
        shards=Shards((total,), (names,)) if names else WHOLE,
    )
    return codebook, codes[:count].astype(jnp.int32), inertia


class _Options(NamedTuple):
    """The arguments of `fit_codebook` that are known before there is a program."""

    codewords: int
    iterations: int
    starts: int


def _fit_parts(
    points: Array,
    importance: Any,
    start: Any,
    key: Key,
    options: _Options,
    split: NamedSharding,
) -> tuple[Array, Array, Array]:
    """`fit_codebook` where every device has the rows of `split`, or all of them."""
    rows = NamedSharding(split.mesh, PartitionSpec(_rows(split)))
    points = place(points, rows)
    if importance is not None:
        importance = place(jnp.asarray(importance), rows)
    if start is not None:
        start = place(jnp.asarray(start), replicated(split))
    key = replicate_key(key, split)
    return _of_parts(points, importance, start, key, options, split)


def _rows(split: NamedSharding) -> tuple[str, ...]:
    """The mesh axes that rows are split over."""
    return mesh_axes(split.spec[0]) if split.spec else ()


@functools.partial(jax.jit, static_argnums=(4, 5))
def _of_parts(points, importance, start, key, options, split):
    axes = _rows(split)
    rows, whole = PartitionSpec(axes), PartitionSpec()

    def fit(points, importance, start, key):
        return fit_codebook(
            points,
            options.codewords,
            key=key,
            importance=importance,
            iterations=options.iterations,
            init="k-means++" if start is None else start,
            starts=options.starts,
            axis_name=axes,
        )

    parts = jax.shard_map(
        fit,
        mesh=split.mesh,
        in_specs=(rows, rows, whole, whole),
        out_specs=(whole, rows, whole),
    )
    return parts(points, importance, start, key)


def pad_points(
    points: Float[AnyArray, "n d"], importance: Float[AnyArray, "n ..."] | None
) -> tuple[Num[AnyArray, "padded d"], Num[AnyArray, "padded q"]]:
    """Points and their weights as `kept`, padded to one of few sizes.

    Weights are one per point (`q` is 1) or one per coordinate (`q` is `d`); those of
    the padding are 0. NumPy arrays give NumPy arrays.
    """
    xp: Any = points.__array_namespace__()
    count, _ = points.shape
    weights = xp.ones_like(points[:, :1]) if importance is None else importance
    points, weights = kept(points), kept(weights.reshape(count, -1))
    padding = ((0, padded_count(count) - count), (0, 0))
    weights = xp.pad(weights, padding)
    return xp.pad(points, padding) if padding[0][1] else points, weights


def fit_padded(
    points: Num[Array, "padded d"],
    weights: Num[Array, "padded q"],
    count: int,
    codewords: int,
    *,
    key: Key,
    iterations: int = ITERATIONS,
    start: Float[Array, "k d"] | None = None,
    starts: int = 1,
    shards: Shards = WHOLE,
) -> tuple[Float[Array, "k d"], Integer[Array, " padded"], Float[Array, ""]]:
    """`fit_codebook` on what `pad_points` gives for `count` points, unchecked.

    With `shards` points, weights, count and codes are those of a part: see `lloyd`.
    """
    points, weights, start, key = vary_alike(
        shards.names(), points, weights, start, key
    )
    if start is None:
        size = max(_SEEDING_POINTS, _SEEDING_POINTS_PER_CODEWORD * codewords)
        total = math.prod(shards.shape) if shards.names() else count
        chosen, uniform = _draw(key, total, size, codewords, starts)
        sample = _take(points, chosen, shards), _take(weights, chosen, shards)
        if starts == 1:
            first = _seed(*sample, total, uniform[0])
        else:
            trial = min(iterations, _TRIAL_ITERATIONS)
            first = _best_start(*sample, total, uniform, trial)
    else:
        first = start
    return lloyd(points, weights, first, count, iterations=iterations, shards=shards)


@functools.partial(jax.jit, static_argnames=("size", "codewords", "starts"))
def _draw(
    key: Key, count: Int[Array, ""] | int, size: int, codewords: int, starts: int
) -> tuple[UInt32[Array, " s"], Float[Array, "starts k"]]:
    """What is random in `_seed`: the points to choose from, and a number per choice.

    Up to `size` points all are there to choose from (and then none), else a sample.
    """
    points_key, key = jax.random.split(key)
    count = jnp.asarray(count, jnp.uint32)
    # The remainder favours a point over another by a share of `count / 2^32` at most.
    sample = jax.random.bits(points_key, (size,), jnp.uint32) % count
    chosen = jnp.where(count > size, sample, jnp.arange(size, dtype=jnp.uint32))
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, starts))]
    draws = [jax.random.uniform(key, (codewords,), jnp.float32) for key in keys]
    return chosen, jnp.stack(draws)


@functools.partial(jax.jit, static_argnums=2)
def _take(
    x: Num[Array, "n c"], chosen: UInt32[Array, " s"], shards: Shards
) -> Float[Array, "s c"]:
    local, here = shards.locate(chosen)
    # Beyond the padded points there are zeros, whose weight is 0.
    taken = floats(jnp.take(x, local, axis=0, mode="fill", fill_value=0))
    return shards.sum(jnp.where(here[:, None], taken, 0.0))


@jax.jit
def _seed(
    points: Float[Array, "s d"],
    weights: Float[Array, "s q"],
    count: Int[Array, ""] | int,
    uniform: Float[Array, " k"],
) -> Float[Array, "k d"]:
    """k-means++: each next codeword is a point drawn by its weighted distance."""
    units = find_units(points, weights)
    points, weights = normalize(points, weights, units)
    last = jnp.minimum(count, points.shape[0]) - 1
    (codewords,) = uniform.shape

    def draw(j, mass):
        cumulative = jnp.cumsum(mass)
        below = cumulative <= uniform[j] * cumulative[-1]
        # Where all masses are 0, all sums are `below`: then the last point.
        return points[jnp.minimum(jnp.sum(below), last)]

    def add(j, state):
        codebook, nearest = state
        difference = points - codebook[j - 1][None]
        distance = jnp.sum(weights * jnp.square(difference), axis=1)
        nearest = jnp.minimum(nearest, distance)
        return codebook.at[j].set(draw(j, nearest)), nearest

    first = draw(0, jnp.sum(weights, axis=1))
    codebook = jnp.zeros_like(points, shape=(codewords, points.shape[1]))
    codebook = codebook.at[0].set(first)
    unreached = jnp.full_like(points[:, 0], jnp.inf)
    codebook, _ = jax.lax.fori_loop(1, codewords, add, (codebook, unreached))
    return (codebook + units.mean) * units.scale


@functools.partial(jax.jit, static_argnums=4)
def _best_start(
    points: Float[Array, "s d"],
    weights: Float[Array, "s q"],
    count: Int[Array, ""] | int,
    uniform: Float[Array, "starts k"],
    iterations: int,
) -> Float[Array, "k d"]:
    """Of several codebooks for a sample, the one with the least error there."""
    size = points.shape[0]
    units = find_units(points, weights)  # in others errors may overflow
    points, weights = normalize(points, weights, units)
    padded, masses = (jnp.asarray(x) for x in pad_points(points, weights))
    used = jnp.minimum(count, size)

    def attempt(uniform):
        start = _seed(points, weights, count, uniform)
        codebook, _, inertia = lloyd(padded, masses, start, used, iterations=iterations)
        return codebook, inertia

    codebooks, inertias = jax.lax.map(attempt, uniform)
    return (codebooks[jnp.argmin(inertias)] + units.mean) * units.scale
