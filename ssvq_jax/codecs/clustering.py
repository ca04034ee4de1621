"""Clustering of a weight's blocks."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, UInt

from ssvq_jax.codecs.nearest import nearest
from ssvq_jax.core.blocks import (
    AnyArray,
    block_units,
    channel_axis,
    from_blocks,
    grid_shape,
    to_blocks,
)
from ssvq_jax.core.kmeans import Key, fit_padded, pad_points
from ssvq_jax.core.lloyd import code_dtype
from ssvq_jax.core.sharding import (
    WHOLE,
    Shards,
    fit_sharding,
    place,
    replicate_key,
    replicated,
    sharding_of,
    split_sharding,
)
from ssvq_jax.core.sign_codes import nearest_word, words
from ssvq_jax.core.units import floats

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
    starts: int,
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
      starts: Of k-means: see `fit_codebook`.
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
    options = _Options(sign_code, channels, codewords, block, starts, axis)
    sharding = sharding_of(weight)
    split = split_sharding(weight, block_units(shape, block, axis))
    target = replicated(sharding) if split is None else split
    weight = place(weight, target)
    importance = None if importance is None else place(importance, target)
    if split is None:
        found = _fit(weight, importance, key, options)
    else:
        key = replicate_key(key, split)
        found = _fit_parts(weight, importance, key, options, split)
    codebook, codes, scale, signs = found
    return (
        place(codebook, replicated(sharding)),
        place(codes, fit_sharding(sharding, grid)),
        None if scale is None else place(scale, replicated(sharding)),
        None if signs is None else place(signs, sharding),
    )


@dataclasses.dataclass(frozen=True)
class _Options:
    """The arguments of `cluster` that are known before there is a program."""

    sign_code: str | None
    channels: bool
    codewords: int
    block: int
    starts: int
    axis: int

    @property
    def magnitudes(self) -> bool:
        """Whether points are free of signs before they are clustered."""
        return self.sign_code == "free"


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fit_parts(weight, importance, key, options, sharding):
    """`_fit` where every device has blocks of its own."""
    spec, axis = sharding.spec, channel_axis(weight.shape, options.axis)
    shards = Shards.of(sharding, grid_shape(weight.shape, options.block, options.axis))
    channels = PartitionSpec() if axis is None else PartitionSpec(spec[axis])
    fit = jax.shard_map(
        functools.partial(_fit, options=options, shards=shards),
        mesh=sharding.mesh,
        in_specs=(spec, spec, PartitionSpec()),
        out_specs=(PartitionSpec(), spec, channels, spec),
    )
    return fit(weight, importance, key)


def _fit(
    weight: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    key: Key,
    options: _Options,
    shards: Shards = WHOLE,
) -> tuple[Array, Array, Array | None, Array | None]:
    """`cluster`, of a weight on one device, or of a part."""
    traced = any(isinstance(x, Tracer) for x in (weight, importance, key))
    # A program for every shape takes longer to compile than small weights to cut, and
    # sums over channels in an order that depends on the number of threads.
    large = weight.size > _LARGE and not options.channels
    if traced or large:
        points, weights, scale = _points(weight, importance, options, shards)
    else:
        # In float32, whatever they are: one program less.
        counted = None if importance is None else np.asarray(importance, np.float32)
        cut = _cut(np.asarray(weight, np.float32), counted, options)
        points, weights, scale = jax.tree.map(jnp.asarray, cut)
    grid = grid_shape(weight.shape, options.block, options.axis)
    count, codewords = math.prod(grid), options.codewords
    signs = None
    if options.sign_code is None or options.magnitudes:
        codebook, codes, _ = fit_padded(
            points,
            weights,
            count,
            codewords,
            key=key,
            starts=options.starts,
            shards=shards,
        )
    else:
        points, weights = floats(points), floats(weights)
        codebook, codes, signs = _fit_coded(
            points, weights, count, options, key, shards
        )
        signs = signs[:count].reshape(*grid, options.block)
        signs = from_blocks(signs, weight.shape, options.axis)
    xp: Any = jnp if traced else np
    codes = xp.asarray(codes)[:count].reshape(grid).astype(code_dtype(codewords))
    return codebook, jnp.asarray(codes), scale, signs


def _fit_coded(
    points: Float[Array, "padded d"],
    weights: Float[Array, "padded q"],
    count: int,
    options: _Options,
    key: Key,
    shards: Shards,
) -> tuple[Float[Array, "k d"], Int[Array, " padded"], Float[Array, "padded d"]]:
    """Codebook, codes and words: points without their words' signs are clustered.

    Then every point gets word and codeword anew, together, and so on in turn.
    """
    sign_code, codewords = options.sign_code, options.codewords
    left = _without_signs(points, sign_code)
    fit = functools.partial(fit_padded, key=key, shards=shards)
    codebook, *_ = fit(left, weights, count, codewords, starts=options.starts)
    for _ in range(_ROUNDS):
        left = _without_chosen(points, weights, codebook, sign_code)
        codebook, *_ = fit(
            left, weights, count, codewords, iterations=_ITERATIONS, start=codebook
        )
    codes, signs = _chosen(points, weights, codebook, sign_code)
    return codebook, codes, signs


@functools.partial(jax.jit, static_argnums=1)
def _without_signs(points, sign_code):
    return points * nearest_word(points, sign_code, points.shape[1], 1)


@functools.partial(jax.jit, static_argnums=3)
def _without_chosen(points, weights, codebook, sign_code):
    return points * _chosen(points, weights, codebook, sign_code).factors


@functools.partial(jax.jit, static_argnums=3)
def _chosen(points, weights, codebook, sign_code):
    # One weight for all of a point changes nothing.
    importance = weights if weights.shape == points.shape else None
    table = words(sign_code, points.shape[1])
    return nearest(points, codebook, table, importance=importance)


def _cut(
    weight: AnyArray,
    importance: AnyArray | None,
    options: _Options,
    shards: Shards = WHOLE,
) -> tuple[AnyArray, AnyArray, AnyArray | None]:
    """Blocks as padded points, their weights and channels' scales.

    With NumPy for NumPy arrays.
    """
    xp: Any = weight.__array_namespace__()
    block, axis = options.block, options.axis
    scale = None
    if options.channels:
        weight, importance, scale = _in_units(weight, importance, axis, shards)
    if importance is None and weight.shape[axis] % block:
        importance = xp.ones_like(weight, xp.float32)
    if importance is not None:
        importance = to_blocks(importance, block, axis).reshape(-1, block)
    points = to_blocks(abs(weight) if options.magnitudes else weight, block, axis)
    return *pad_points(points.reshape(-1, block), importance), scale


_points = jax.jit(_cut, static_argnums=(2, 3))


def _in_units(
    weight: AnyArray, importance: AnyArray | None, axis: int, shards: Shards
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Weights in units of their channels' scales, importance to match, the scales."""
    xp: Any = weight.__array_namespace__()
    weight = weight.astype(xp.float32, copy=False)
    channel = channel_axis(weight.shape, axis)
    others = tuple(i for i in range(weight.ndim) if i != channel)

    def largest_of(x):
        """Of every channel, 1 for 0: in units of it sums do not overflow."""
        largest = shards.max(xp.max(x, axis=others, keepdims=True), others)
        return xp.where(largest > 0, largest, 1.0)

    def total(x):
        return shards.sum(xp.sum(x, axis=others, keepdims=True), others)

    def mean_of(x):
        mean = xp.mean(x, axis=others, keepdims=True)
        return shards.sum(mean, others) / shards.count(others)

    unit = largest_of(abs(weight))
    square = xp.square(weight / unit)
    if importance is None:  # apart: a compiler takes seconds to sum a constant
        mean = mean_of(square)
        counted = xp.ones_like(weight)
    else:
        counted = importance
        share = importance / largest_of(importance)
        mass = total(share)
        mean = total(share * square) / xp.where(mass > 0, mass, 1.0)
        # What does not count keeps its size: codewords are about 1.
        mean = xp.where(mass > 0, mean, mean_of(square))
    scale = unit * xp.sqrt(mean)
    scale = xp.where(scale >= float(xp.finfo(xp.float32).tiny), scale, 1.0)
    # The units of importance are free: squares of the scales' own may underflow.
    channels = () if channel is None else (channel,)
    largest = shards.max(xp.max(scale, keepdims=True), channels)
    counted = counted * xp.square(scale / largest)
    # What does not count may be too large in these units.
    weight = xp.where(counted > 0, weight, 0.0) / scale
    return weight, counted, scale.reshape(-1)
