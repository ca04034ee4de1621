"""Clustering of a weight's blocks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, UInt

from ssvq_jax.core.blocks import AnyArray, channel_axis, grid_shape, to_blocks
from ssvq_jax.core.kmeans import Key, fit_padded, pad_points
from ssvq_jax.core.sharding import (
    compiler_sharded,
    fit_sharding,
    place,
    replicate,
    replicated,
    sharding_of,
)

_LARGE = 1 << 20  # weights


def cluster(
    weight: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    *,
    magnitudes: bool = False,
    channels: bool = False,
    codewords: int,
    block: int,
    axis: int,
    key: Key,
) -> tuple[Float[Array, "k d"], UInt[Array, "*grid"], Float[Array, " channels"] | None]:
    """Fit a codebook to a weight's blocks, or to those of its magnitudes.

    Padded positions weigh nothing.

    Args:
      weight: To cut into blocks along `axis`.
      importance: Of every single weight; `None` for that of 1.
      magnitudes: Cluster `|weight|`.
      channels: Cluster weights in units of their output channel's root mean square,
        weighted so that what is minimised is the error of the weights all the same.
      codewords: `k`.
      block: `d`.
      axis: Non-negative.
      key: Of the clustering.

    Returns:
      `(codebook, codes, scale)`: float32; the smallest unsigned integers that hold `k`
      codes, in the shape of the grid of blocks and sharded as the weight is; with
      `channels` float32 of every channel, else `None`.
    """
    shape = weight.shape
    grid = grid_shape(shape, block, axis)
    blocks = math.prod(grid)
    if codewords > blocks:
        raise ValueError(
            f"codewords: expected at most {blocks} (the blocks of {block} in shape "
            f"{shape} along axis {axis}), got {codewords}"
        )
    traced = any(isinstance(x, Tracer) for x in (weight, importance, key))
    arrays = replicate(weight), None if importance is None else replicate(importance)
    xp: Any = jnp if traced else np
    # A program for every shape takes longer to compile than small weights to cut.
    if traced or (weight.size > _LARGE and sharding_of(weight) is None):
        points, weights, scale = _points(*arrays, block, axis, magnitudes, channels)
    else:
        arrays = (None if x is None else np.asarray(x) for x in arrays)
        cut = _cut(*arrays, block, axis, magnitudes, channels)
        points, weights, scale = jax.tree.map(jnp.asarray, cut)

    def fit(points, weights):
        return fit_padded(points, weights, blocks, codewords, key=key)[:2]

    sharding = sharding_of(weight)
    if traced:
        fit = compiler_sharded(fit, replicated(sharding))
    codebook, codes = fit(points, weights)
    codes = xp.asarray(codes)[:blocks].reshape(grid).astype(code_dtype(codewords))
    return (
        place(codebook, replicated(sharding)),
        place(jnp.asarray(codes), fit_sharding(sharding, grid)),
        None if scale is None else place(scale, replicated(sharding)),
    )


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
