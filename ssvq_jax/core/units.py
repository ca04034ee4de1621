"""Units in which points and their weights are about 1, and centred."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from ssvq_jax.core.blocks import AnyArray
from ssvq_jax.core.sharding import WHOLE, Shards

SMALL_CHUNK = 8192  # points, where there is one chunk, and for passes beside Lloyd's
FAR = 2.0**50  # its square, summed over coordinates, is finite


class Units(NamedTuple):
    """What points and weights are divided by, and the centre of the points.

    Scales are powers of two and lose nothing: no size or offset of the points matters.
    """

    scale: Float[Array, ""]
    mean: Float[Array, "1 d"]
    weight: Float[Array, ""]


def find_units(
    points: Num[Array, "n d"],
    weights: Num[Array, "n q"],
    shards: Shards = WHOLE,
) -> Units:
    """The units that make points and weights of about 1, of all parts together.

    Args:
      points: As `kept`.
      weights: As `kept`, one per point or coordinate.
      shards: As of `lloyd`.
    """

    def enlarge(largest, x, w):
        size = jnp.max(jnp.where(w > 0, jnp.abs(x), 0.0))
        return jnp.maximum(largest[0], size), jnp.maximum(largest[1], jnp.max(w))

    # Of their own arrays: in `jax.shard_map` these may vary over other axes.
    zeros = [jnp.zeros_like(x[0, 0], jnp.float32) for x in (points, weights)]
    largest = over_chunks(enlarge, tuple(zeros), points, weights)
    scale, weight = (_power_of_two(shards.max(x)) for x in largest)

    def add(sums, x, w):
        x, w = _scale(x, scale), w * (1 / weight)
        return sums[0] + w, sums[1] + x * w

    size = math.gcd(points.shape[0], SMALL_CHUNK)
    blank = (
        jnp.zeros_like(weights[:size], jnp.float32),
        jnp.zeros_like(points[:size], jnp.float32),
    )
    sums = over_chunks(add, blank, points, weights)
    mass, mean = (shards.sum(_sum_rows(x)) for x in sums)
    mean = jnp.where(mass > 0, mean / jnp.where(mass > 0, mass, 1.0), 0.0)
    return Units(scale, mean, weight)


def over_chunks(function: Callable[..., Any], start: Any, *arrays: Array) -> Any:
    """Fold a function over chunks of arrays: no temporary is larger than a chunk.

    Of what is `kept` they are `floats`.
    """
    count = arrays[0].shape[0]
    size = math.gcd(count, SMALL_CHUNK)

    def visit(i, state):
        return function(state, *(chunk(x, i, size) for x in arrays))

    return jax.lax.fori_loop(0, count // size, visit, start)


def chunk(x: Array, i: Int[Array, ""] | int, size: int) -> Array:
    """The `i`-th `size` rows, as `floats`."""
    return floats(jax.lax.dynamic_slice_in_dim(x, i * size, size))


def kept(x: AnyArray) -> AnyArray:
    """As float32, but bfloat16 as its bits, int16: see `floats`.

    Copies of large weights take room, and XLA's CPU backend slices bfloat16 by way of a
    float32 copy of all of it.
    """
    xp: Any = x.__array_namespace__()
    return x.view(xp.int16) if x.dtype == jnp.bfloat16 else x.astype(xp.float32)


def floats(x: Array) -> Array:
    """Float32 of what is `kept`; other integers, codes, stay."""
    if x.dtype != jnp.int16:
        return x
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)


def _sum_rows(x: Float[Array, "n c"]) -> Float[Array, "1 c"]:
    """Sum of the rows, added one after the other.

    The order of a compiler's own sum depends on the number of threads. 64 rows at a
    time, since loops are slow with short rows.
    """
    for rows in (math.gcd(x.shape[0], 64), 1):
        blank = jnp.zeros_like(x[:rows])
        add = functools.partial(_add_rows, x)
        x = jax.lax.fori_loop(0, x.shape[0] // rows, add, blank)
    return x


def _add_rows(
    x: Float[Array, "n c"], i: Int[Array, ""], total: Float[Array, "rows c"]
) -> Float[Array, "rows c"]:
    count = total.shape[0]
    return total + jax.lax.dynamic_slice_in_dim(x, i * count, count)


def normalize(
    points: Float[Array, "n d"], weights: Float[Array, "n q"], units: Units
) -> tuple[Float[Array, "n d"], Float[Array, "n q"]]:
    """Centred points and weights of about 1; coordinates of weight 0 become 0."""
    points = _scale(points, units.scale) - units.mean
    weights = weights * (1 / units.weight)
    if weights.shape == points.shape:
        points = jnp.where(weights > 0, points, 0.0)
    return points, weights


def _scale(points: Float[Array, "n d"], scale: Float[Array, ""]) -> Float[Array, "n d"]:
    """Points in units of `scale`; those without weight may be far off, not infinite."""
    return jnp.clip(points * (1 / scale), -FAR, FAR)


def _power_of_two(x: Float[Array, ""]) -> Float[Array, ""]:
    """The power of two above `x`, 1 for 0; its reciprocal is a normal number, too."""
    _, exponent = jnp.frexp(x)
    one = jnp.ones((), jnp.float32)
    return jnp.where(x > 0, jnp.ldexp(one, jnp.clip(exponent, -126, 126)), one)
