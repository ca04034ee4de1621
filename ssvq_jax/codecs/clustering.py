"""Clustering of a weight's blocks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, UInt

from ssvq_jax.core.blocks import AnyArray, grid_shape, to_blocks
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
    codewords: int,
    block: int,
    axis: int,
    key: Key,
) -> tuple[Float[Array, "k d"], UInt[Array, "*grid"]]:
    """Fit a codebook to a weight's blocks, or to those of its magnitudes.

    Padded positions weigh nothing.

    Returns:
      `(codebook, codes)`: float32, and the smallest unsigned integers that hold `k`
      codes, in the shape of the grid of blocks and sharded as the weight is.
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
        points, weights = _points(*arrays, block, axis, magnitudes)
    else:
        arrays = (None if x is None else np.asarray(x) for x in arrays)
        points, weights = map(jnp.asarray, _cut(*arrays, block, axis, magnitudes))

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
    )


def _cut(
    weight: AnyArray,
    importance: AnyArray | None,
    block: int,
    axis: int,
    magnitudes: bool,
) -> tuple[AnyArray, AnyArray]:
    """Blocks as padded points, and their weights; with NumPy for NumPy arrays."""
    xp: Any = weight.__array_namespace__()
    if importance is None and weight.shape[axis] % block:
        importance = xp.ones(weight.shape, xp.float32)
    if importance is not None:
        importance = to_blocks(importance, block, axis).reshape(-1, block)
    points = to_blocks(abs(weight) if magnitudes else weight, block, axis)
    return pad_points(points.reshape(-1, block), importance)


_points = jax.jit(_cut, static_argnums=(2, 3, 4))


def code_dtype(codewords: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes below `codewords`."""
    return np.min_scalar_type(codewords - 1)
