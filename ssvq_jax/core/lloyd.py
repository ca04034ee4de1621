"""Lloyd iterations on padded points, in one form for CPUs and one for accelerators.

Every pass reads the points once, chunk by chunk: it finds the nearest codeword of
every point of the chunk and adds the points to the sums of their codewords. Memory is
that of the points, in 16 bits or 32, plus O(n + chunk).

On CPUs the distances are unrolled over a tile of codewords and all coordinates, which
becomes one vectorised loop over points without a matrix of distances; sums are a
scatter. Accelerators are faster with two matrix products, and their scatter adds in
no fixed order: there the sums are a product with the one-hot matrix of the codes.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer, Num

from ssvq_jax.core.lookup import sum_by_code
from ssvq_jax.core.sharding import WHOLE, Shards
from ssvq_jax.core.units import (
    FAR,
    SMALL_CHUNK,
    Units,
    chunk,
    find_units,
    floats,
    normalize,
    over_chunks,
)

CHUNK = 32768  # points; a few MiB, for the second-level cache
_SCORES = 1 << 25  # of a chunk in the product form, 128 MiB
_UNROLLED_OPERATIONS = 384  # per tile, about; more take long to compile
_MAX_UNROLLED_COORDINATES = 256
_EXACT = jax.lax.Precision.HIGHEST

Form = Literal["unrolled", "product"]


def padded_count(count: int) -> int:
    """Points after padding: 1, 2, 3, 4, 6, 8, 12, ... chunks; few programs do."""
    chunks = math.ceil(count / CHUNK)
    power = 1 << (chunks - 1).bit_length()
    three_quarters = power * 3 // 4
    return CHUNK * (
        three_quarters if power >= 4 and chunks <= three_quarters else power
    )


def lloyd(
    points: Num[Array, "n d"],
    weights: Num[Array, "n q"],
    start: Float[Array, "k d"],
    count: Int[Array, ""] | int,
    *,
    iterations: int,
    shards: Shards = WHOLE,
) -> tuple[Float[Array, "k d"], Integer[Array, " n"], Float[Array, ""]]:
    """Codebook, codes and inertia after Lloyd's algorithm from `start`.

    Codes are of `code_dtype`.

    Args:
      points: Of a padded count, as `kept`.
      weights: One per point (`q` is 1) or one per coordinate (`q` is `d`), as `kept`;
        those of the padding are 0.
      start: The first codebook.
      count: How many points are in use.
      iterations: Upper limit; ends early once nothing changes.
      shards: Of what these points are a part, in `jax.shard_map`: then points, weights,
        count and codes are a device's own, and all else is in common.
    """
    coordinates = points.shape[1] * (2 if weights.shape[1] > 1 else 1)
    form = _form(coordinates)
    arguments = (points, weights, start, count)
    if form == "unrolled" and not any(isinstance(x, Tracer) for x in arguments):
        return _wide_lloyd(*arguments, iterations=iterations, form=form)
    return _lloyd(*arguments, iterations=iterations, form=form, shards=shards)


def _form(coordinates: int) -> Form:
    """The one place that chooses the form of the computation."""
    if jax.default_backend() == "cpu" and coordinates <= _MAX_UNROLLED_COORDINATES:
        return "unrolled"
    return "product"


def _iterate(
    points: Num[Array, "n d"],
    weights: Num[Array, "n q"],
    start: Float[Array, "k d"],
    count: Int[Array, ""] | int,
    *,
    iterations: int,
    form: Form,
    shards: Shards = WHOLE,
) -> tuple[Float[Array, "k d"], Integer[Array, " n"], Float[Array, ""]]:
    units = find_units(points, weights, shards)

    def unsettled(state):
        step, changed, _, _ = state
        return (step <= iterations) & changed

    def iterate(state):
        step, _, codebook, _ = state
        codes, sums = _visit(points, weights, units, codebook, count, form)
        sums = shards.sum(sums)
        means = _means(sums, codebook)
        dead = jnp.sum(sums[:, codebook.shape[1] :], axis=1) == 0

        def reseed():
            distances = _distances(points, weights, units, codebook, codes)
            return _reseed(points, weights, units, distances, means, dead, shards)

        means = jax.lax.cond(jnp.any(dead), reseed, lambda: means)
        # A last pass keeps the codebook, so that the codes are those of this one.
        updated = jnp.where(step < iterations, means, codebook)
        changed = jnp.any(updated != codebook)
        return step + 1, changed, updated, codes

    start = start * (1 / units.scale) - units.mean
    unknown = jnp.ones_like(start[0, 0], bool)
    codes = jnp.zeros_like(points[:, 0], code_dtype(start.shape[0]))
    state = (0, unknown, start, codes)
    _, _, codebook, codes = jax.lax.while_loop(unsettled, iterate, state)

    distances = _distances(points, weights, units, codebook, codes)
    total = shards.sum(jnp.sum(distances))
    inertia = total * units.scale * units.scale * units.weight
    return (codebook + units.mean) * units.scale, codes, inertia


_lloyd = jax.jit(_iterate, static_argnames=("iterations", "form", "shards"))

# By itself XLA uses half of the width that AVX-512 has. The option is for a program
# of its own only: inside another `jax.jit` it is an error.
_wide_lloyd = jax.jit(
    _iterate,
    static_argnames=("iterations", "form"),
    compiler_options={"xla_cpu_prefer_vector_width": 512},
)


def _visit(
    points: Num[Array, "n d"],
    weights: Num[Array, "n q"],
    units: Units,
    codebook: Float[Array, "k d"],
    count: Int[Array, ""] | int,
    form: Form,
) -> tuple[Integer[Array, " n"], Float[Array, "k dq"]]:
    """One pass: codes, and the sums of their weighted points and of the weights.

    The nearest codeword has the largest score, since the distance is
    `sum_c w_c (x_c - y_c)^2 = sum_c w_c x_c^2 - 2 (sum_c w_c x_c y_c - w_c y_c^2 / 2)`
    and the score, in brackets, a linear function of `w x` and `w`. A weight per point
    does not change which codeword is the nearest and is left out.
    """
    codewords, dim = codebook.shape
    # Unlike points, a codebook to start from may be so far off that squares overflow.
    half_squares = jnp.minimum(jnp.square(codebook) / 2, FAR**2)
    if weights.shape[1] == 1:
        outputs, bias = codebook, -jnp.sum(half_squares, axis=1)
    else:
        outputs = jnp.concatenate([codebook, -half_squares], axis=1)
        bias = jnp.zeros((codewords,), jnp.float32)
    nearest = _nearest_unrolled if form == "unrolled" else _nearest_by_product
    size = _chunk(points.shape[0], codewords, form)

    def visit(i, state):
        codes, sums = state
        x, w = normalize(chunk(points, i, size), chunk(weights, i, size), units)
        inputs = x if w.shape[1] == 1 else jnp.concatenate([x * w, w], axis=1)
        code = nearest(inputs, outputs, bias)
        sums_form = "scatter" if form == "unrolled" else "product"
        parts = [sum_by_code(part, code, codewords, sums_form) for part in (x * w, w)]
        code = code.astype(codes.dtype)
        codes = jax.lax.dynamic_update_slice(codes, code, (i * size,))
        return codes, sums + jnp.concatenate(parts, axis=1)

    shape = (codewords, dim + weights.shape[1])
    sums = jnp.zeros_like(points, jnp.float32, shape=shape)
    blank = jnp.zeros_like(points[:, 0], code_dtype(codewords)), sums
    return jax.lax.fori_loop(0, (count + size - 1) // size, visit, blank)


def code_dtype(codewords: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes below `codewords`."""
    return np.min_scalar_type(codewords - 1)


def _chunk(count: int, codewords: int, form: Form) -> int:
    """Points per chunk; divides a padded count."""
    if form == "unrolled":
        return SMALL_CHUNK if count == CHUNK else CHUNK
    fitting = 1 << max(_SCORES // codewords, 1).bit_length() - 1
    return min(max(fitting, 1024), CHUNK)


def _nearest_by_product(
    inputs: Float[Array, "b r"], outputs: Float[Array, "k r"], bias: Float[Array, " k"]
) -> Int[Array, " b"]:
    """The first codeword of the largest score."""
    scores = jnp.matmul(inputs, outputs.T, precision=_EXACT) + bias[None]
    return jnp.argmax(scores, axis=1).astype(jnp.int32)


def _nearest_unrolled(
    inputs: Float[Array, "b r"], outputs: Float[Array, "k r"], bias: Float[Array, " k"]
) -> Int[Array, " b"]:
    """The same by a running maximum over codewords, unrolled tile by tile.

    The best score and its codeword are one complex number, so that XLA computes both
    in one loop, split over threads: it would compute the scores twice for two arrays.
    """
    size, coordinates = inputs.shape
    codewords = outputs.shape[0]
    tile = 1 << (_UNROLLED_OPERATIONS // (coordinates + 3)).bit_length() - 1
    tile = max(1, min(tile, 32, (codewords + 1) // 2))  # a loop, not to be fused
    padding = -codewords % tile
    outputs = jnp.pad(outputs, ((0, padding), (0, 0)))
    bias = jnp.pad(bias, (0, padding), constant_values=-jnp.inf)  # never the best
    columns = [inputs[:, c] for c in range(coordinates)]
    identity = jnp.eye(coordinates, dtype=jnp.float32)

    def visit(t, state):
        best, code = jnp.real(state), jnp.imag(state)
        tile_outputs = jax.lax.dynamic_slice_in_dim(outputs, t * tile, tile)
        tile_bias = jax.lax.dynamic_slice_in_dim(bias, t * tile, tile)
        # A matrix product in its body is what keeps XLA from compiling the whole
        # loop as one function for one thread.
        tile_outputs = jnp.matmul(tile_outputs, identity, precision=_EXACT)
        first = jnp.asarray(t * tile, jnp.float32)  # exact below 2^24 codewords
        for j in range(tile):
            score = jnp.broadcast_to(tile_bias[j], (size,))
            for c in range(coordinates):
                score = score + columns[c] * tile_outputs[j, c]
            better = score > best
            best = jnp.where(better, score, best)
            code = jnp.where(better, first + j, code)
        return jax.lax.complex(best, code)

    state = jax.lax.complex(
        jnp.full_like(columns[0], -jnp.inf), jnp.zeros_like(columns[0])
    )
    state = jax.lax.fori_loop(0, (codewords + padding) // tile, visit, state)
    return jnp.imag(state).astype(jnp.int32)


def _means(
    sums: Float[Array, "k dq"], codebook: Float[Array, "k d"]
) -> Float[Array, "k d"]:
    """The weighted means; a coordinate that no weight reaches keeps its value."""
    dim = codebook.shape[1]
    numerator, mass = sums[:, :dim], sums[:, dim:]
    means = numerator / jnp.where(mass > 0, mass, 1.0)
    return jnp.where(mass > 0, means, codebook)


def _distances(
    points: Num[Array, "n d"],
    weights: Num[Array, "n q"],
    units: Units,
    codebook: Float[Array, "k d"],
    codes: Integer[Array, " n"],
) -> Float[Array, " n"]:
    """Weighted squared distance of every point to its codeword; 0 without weight."""

    def visit(state, x, w, code):
        i, distances = state
        x, w = normalize(x, w, units)
        errors = jnp.where(w > 0, w * jnp.square(x - codebook[code]), 0.0)
        distance = jnp.sum(errors, axis=1)
        at = (i * distance.shape[0],)
        return i + 1, jax.lax.dynamic_update_slice(distances, distance, at)

    blank = 0, jnp.zeros_like(points[:, 0], jnp.float32)
    return over_chunks(visit, blank, points, weights, codes)[1]


def _reseed(
    points: Num[Array, "n d"],
    weights: Num[Array, "n q"],
    units: Units,
    distances: Float[Array, " n"],
    means: Float[Array, "k d"],
    dead: Bool[Array, " k"],
    shards: Shards,
) -> Float[Array, "k d"]:
    """Move dead codewords to the points that are worst served by their own."""
    count = min(means.shape[0], distances.shape[0])  # of every part's points
    distance, worst = jax.lax.top_k(distances, count)
    candidates, _ = normalize(floats(points[worst]), floats(weights[worst]), units)
    distance, candidates = shards.gather(distance), shards.gather(candidates)
    distance, worst = jax.lax.top_k(distance, means.shape[0])
    rank = jnp.cumsum(dead) - 1  # the r-th dead codeword takes the r-th worst point
    rank = jnp.clip(rank, 0)
    replace = dead & (distance[rank] > 0)
    return jnp.where(replace[:, None], candidates[worst[rank]], means)
