"""Cutting weights into blocks along the axis that a product contracts.

A weight of shape `s` with `block = d` along `axis` becomes a *grid* of blocks: the
shape `s` with its `axis` shortened to `ceil(s[axis] / d)`, and one trailing axis of
the `d` weights of a block. Keeping the other axes in place means that whatever is
sharded along them stays sharded, and that `codes[g]` of a dense kernel is the row of
codes that inputs `g * d ... g * d + d - 1` meet.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

AnyArray = Array | np.ndarray


def contracted_axis(shape: tuple[int, ...]) -> int:
    """The axis that is contracted in the product, told from a Flax kernel's shape.

    Input features of a dense kernel `(in, out)`, input channels of a convolution
    `(..., in, out)`, the channels of a depthwise one `(..., 1, channels)`; the only
    axis of a vector. An embedding `(rows, features)` looks like a dense kernel: its
    caller has to say that its last axis is meant.

    Args:
      shape: Shape of the weight, at least one axis.

    Returns:
      A non-negative axis number.

    Examples:
      >>> contracted_axis((192, 768)), contracted_axis((3, 3, 1, 32))
      (0, 3)
    """
    last = len(shape) - 1
    if len(shape) < 2 or shape[-2] == 1:
        return last
    return last - 1


def channel_axis(shape: tuple[int, ...], axis: int) -> int | None:
    """The axis of the output channels, which have a scale each where there are scales.

    The last axis of a kernel, so of a depthwise one, too; the rows of an embedding;
    `None` for a vector, which is one channel.

    Args:
      shape: Shape of the weight.
      axis: Non-negative axis along which blocks run.

    Examples:
      >>> channel_axis((192, 768), 0), channel_axis((1000, 64), 1)
      (1, 0)
    """
    last = len(shape) - 1
    is_embedding = axis == last and last > 0 and shape[-2] != 1
    return None if last == 0 else 0 if is_embedding else last


def channel_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Shape in which one value per output channel broadcasts against the weight.

    Examples:
      >>> channel_shape((3, 3, 16, 32), 2)
      (1, 1, 1, 32)
    """
    channel = channel_axis(shape, axis)
    return tuple(n if i == channel else 1 for i, n in enumerate(shape))


def grid_shape(shape: tuple[int, ...], block: int, axis: int) -> tuple[int, ...]:
    """Shape of the grid of blocks: `shape` with `axis` divided by `block`, upwards.

    Examples:
      >>> grid_shape((27, 16), 8, 0)
      (4, 16)
    """
    return (*shape[:axis], math.ceil(shape[axis] / block), *shape[axis + 1 :])


def block_units(shape: tuple[int, ...], block: int, axis: int) -> tuple[int, ...]:
    """Of every axis, how many weights in a row belong to one block.

    Examples:
      >>> block_units((27, 16), 8, 0)
      (8, 1)
    """
    return tuple(block if i == axis else 1 for i in range(len(shape)))


def to_blocks(
    x: Shaped[AnyArray, "*shape"], block: int, axis: int
) -> Shaped[AnyArray, "*grid d"]:
    """Cut `x` into blocks of `block` values along `axis`, padded with zeros.

    Args:
      x: JAX or NumPy array of any shape and dtype.
      block: Values per block, `d`.
      axis: Non-negative axis to cut.

    Returns:
      Array of the same kind, of shape `(*grid_shape(x.shape, block, axis), block)`.
    """
    xp = x.__array_namespace__()
    groups = math.ceil(x.shape[axis] / block)
    if x.shape[axis] % block:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, groups * block - x.shape[axis])
        x = xp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], groups, block, *x.shape[axis + 1 :])
    return xp.moveaxis(x, axis + 1, -1)


def from_blocks(
    blocks: Shaped[Array, "*grid d"], shape: tuple[int, ...], axis: int
) -> Shaped[Array, "*shape"]:
    """Inverse of `to_blocks`: puts the blocks back and drops the padding."""
    x = jnp.moveaxis(blocks, -1, axis + 1)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return x[(slice(None),) * axis + (slice(shape[axis]),)]


def valid_positions(shape: tuple[int, ...], block: int, axis: int) -> np.ndarray:
    """Which positions of a grid of blocks hold a weight, not padding.

    Returns:
      Boolean NumPy array that broadcasts against `(*grid, block)`.
    """
    groups = math.ceil(shape[axis] / block)
    position = np.arange(groups * block).reshape(groups, block)
    trailing = (1,) * (len(shape) - axis - 1)
    return (position < shape[axis]).reshape(groups, *trailing, block)


def valid_blocks(
    shape: tuple[int, ...], block: int, axis: int
) -> Bool[Array, "n d"] | None:
    """`valid_positions` of all blocks, one after the other; `None` where all hold."""
    if shape[axis] % block == 0:
        return None
    whole = (*grid_shape(shape, block, axis), block)
    valid = jnp.broadcast_to(valid_positions(shape, block, axis), whole)
    return valid.reshape(-1, block)
