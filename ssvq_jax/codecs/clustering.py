"""Clustering of a weight's blocks."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, UInt

from ssvq_jax.codecs.nearest import nearest
from ssvq_jax.core.blocks import (
    AnyArray,
    channel_axis,
    from_blocks,
    grid_shape,
    to_blocks,
)
from ssvq_jax.core.kmeans import Key, fit_padded, pad_points
from ssvq_jax.core.sharding import (
    compiler_sharded,
    fit_sharding,
    place,
    replicate,
    replicated,
    sharding_of,
)
from ssvq_jax.core.sign_codes import nearest_word, words

_LARGE = 1 << 20  # weights
_ROUNDS = 2  # of words, and of k-means without their signs
_ITERATIONS = 4  # of k-means in a round


def cluster(
    weight: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    *,
    sign_code: str | None = None,
    channels: bool = False,
    codewords: int,
    block: int,
    axis: int,
    key: Key,
) -> tuple[
    Float[Array, "k d"],
    UInt[Array, "*grid"],
    Float[Array, " channels"] | None,
    Float[Array, "*shape"] | None,
]:
    """Fit a codebook to a weight's blocks, or to what is left of them without signs.

    Padded positions weigh nothing.

    Args:
      weight: To cut into blocks along `axis`.
      importance: Of every single weight; `None` for that of 1.
      sign_code: `None` to cluster the weights. "free": their magnitudes. Others:
        weights without the signs of a word, which is chosen together with the codeword.
      channels: Cluster weights in units of their output channel's root mean square,
        weighted so that what is minimised is the error of the weights all the same.
      codewords: `k`.
      block: `d`.
      axis: Non-negative.
      key: Of the clustering.

    Returns:
      `(codebook, codes, scale, signs)`: float32; the smallest unsigned integers that
      hold `k` codes, in the shape of the grid of blocks and sharded as the weight is;
      with `channels` float32 of every channel, else `None`; with words their signs,
      sharded like the weight, else `None`.
    """
    shape = weight.shape
    grid = grid_shape(shape, block, axis)
    blocks = math.prod(grid)
    if codewords > blocks:
        raise ValueError(
            f"codewords: expected at most {blocks} (the blocks of {block} in shape "
            f"{shape} along axis {axis}), got {codewords}"
        )
    magnitudes = sign_code == "free"
    traced = any(isinstance(x, Tracer) for x in (weight, importance, key))
    arrays = replicate(weight), None if importance is None else replicate(importance)
    xp: Any = jnp if traced else np
    # A program for every shape takes longer to compile than small weights to cut, and
    # sums over channels in an order that depends on the number of threads.
    large = weight.size > _LARGE and not channels
    if traced or (large and sharding_of(weight) is None):
        points, weights, scale = _points(*arrays, block, axis, magnitudes, channels)
    else:
        arrays = (None if x is None else np.asarray(x) for x in arrays)
        cut = _cut(*arrays, block, axis, magnitudes, channels)
        points, weights, scale = jax.tree.map(jnp.asarray, cut)

    def fit(points, weights):
        if sign_code is None or magnitudes:
            return fit_padded(points, weights, blocks, codewords, key=key)[:2]
        return _fit_coded(points, weights, blocks, codewords, sign_code, key)

    sharding = sharding_of(weight)
    if traced:
        fit = compiler_sharded(fit, replicated(sharding))
    codebook, codes, *found = fit(points, weights)
    codes = xp.asarray(codes)[:blocks].reshape(grid).astype(code_dtype(codewords))
    signs = None
    if found:
        parts = found[0][:blocks].reshape(*grid, block)
        signs = place(from_blocks(parts, shape, axis), sharding)
    return (
        place(codebook, replicated(sharding)),
        place(jnp.asarray(codes), fit_sharding(sharding, grid)),
        None if scale is None else place(scale, replicated(sharding)),
        signs,
    )


def _fit_coded(
    points: Float[Array, "padded d"],
    weights: Float[Array, "padded q"],
    count: int,
    codewords: int,
    sign_code: str,
    key: Key,
) -> tuple[Float[Array, "k d"], Int[Array, " padded"], Float[Array, "padded d"]]:
    """Codebook, codes and words: points without their words' signs are clustered.

    Then every point gets word and codeword anew, together, and so on in turn.
    """
    left = _without_signs(points, sign_code)
    codebook, *_ = fit_padded(left, weights, count, codewords, key=key)
    for _ in range(_ROUNDS):
        _, left, _ = _chosen(points, weights, codebook, sign_code)
        codebook, *_ = fit_padded(
            left,
            weights,
            count,
            codewords,
            key=key,
            iterations=_ITERATIONS,
            start=codebook,
        )
    codes, _, signs = _chosen(points, weights, codebook, sign_code)
    return codebook, codes, signs


@functools.partial(jax.jit, static_argnums=1)
def _without_signs(points, sign_code):
    return points * nearest_word(points, sign_code, points.shape[1], 1)


@functools.partial(jax.jit, static_argnums=3)
def _chosen(points, weights, codebook, sign_code):
    importance = jnp.broadcast_to(weights, points.shape)
    table = words(sign_code, points.shape[1])
    codes, signs = nearest(points, codebook, table, importance=importance)
    return codes, signs * points, signs


def _cut(
    weight: AnyArray,
    importance: AnyArray | None,
    block: int,
    axis: int,
    magnitudes: bool,
    channels: bool,
) -> tuple[AnyArray, AnyArray, AnyArray | None]:
    """Blocks as padded points, their weights and channels' scales.

    With NumPy for NumPy arrays.
    """
    xp: Any = weight.__array_namespace__()
    scale = None
    if channels:
        weight, importance, scale = _in_units(weight, importance, axis)
    if importance is None and weight.shape[axis] % block:
        importance = xp.ones(weight.shape, xp.float32)
    if importance is not None:
        importance = to_blocks(importance, block, axis).reshape(-1, block)
    points = to_blocks(abs(weight) if magnitudes else weight, block, axis)
    return *pad_points(points.reshape(-1, block), importance), scale


_points = jax.jit(_cut, static_argnums=(2, 3, 4, 5))


def _in_units(
    weight: AnyArray, importance: AnyArray | None, axis: int
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Weights in units of their channels' scales, importance to match, the scales."""
    xp: Any = weight.__array_namespace__()
    weight = weight.astype(xp.float32)
    channel = channel_axis(weight.shape, axis)
    others = tuple(i for i in range(weight.ndim) if i != channel)

    def largest_of(x):
        """Of every channel, 1 for 0: in units of it sums do not overflow."""
        largest = xp.max(x, axis=others, keepdims=True)
        return xp.where(largest > 0, largest, 1.0)

    def total(x):
        return xp.sum(x, axis=others, keepdims=True)

    unit = largest_of(abs(weight))
    square = xp.square(weight / unit)
    if importance is None:  # apart: a compiler takes seconds to sum a constant
        mean = xp.mean(square, axis=others, keepdims=True)
        counted = xp.ones(weight.shape, xp.float32)
    else:
        counted = importance
        share = importance / largest_of(importance)
        mass = total(share)
        mean = total(share * square) / xp.where(mass > 0, mass, 1.0)
        # What does not count keeps its size: codewords are about 1.
        mean = xp.where(mass > 0, mean, xp.mean(square, axis=others, keepdims=True))
    scale = unit * xp.sqrt(mean)
    scale = xp.where(scale >= float(xp.finfo(xp.float32).tiny), scale, 1.0)
    # The units of importance are free: squares of the scales' own may underflow.
    counted = counted * xp.square(scale / xp.max(scale))
    # What does not count may be too large in these units.
    weight = xp.where(counted > 0, weight, 0.0) / scale
    return weight, counted, scale.reshape(-1)


def code_dtype(codewords: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes below `codewords`."""
    return np.min_scalar_type(codewords - 1)
