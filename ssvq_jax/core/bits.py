"""One bit per weight, eight to a byte: how signs and masks are kept in memory."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from ssvq_jax.core.blocks import grid_shape, to_blocks, valid_positions
from ssvq_jax.core.sharding import compiler_sharded, fit_sharding, sharding_of


def pack_bits(bits: Bool[Array, "*grid d"]) -> UInt8[Array, "*grid bytes"]:
    """Pack the last axis into bytes, the first value in the lowest bit.

    Args:
      bits: Boolean array; a last axis that 8 does not divide is padded with 0.

    Returns:
      uint8 array with the last axis divided by 8, upwards.

    Examples:
      >>> import jax.numpy as jnp
      >>> pack_bits(jnp.array([True, False, True])).tolist()
      [5]
    """
    *grid, length = bits.shape
    size = math.ceil(length / 8)
    padding = [(0, 0)] * len(grid) + [(0, size * 8 - length)]
    bits = jnp.pad(bits, padding).reshape(*grid, size, 8)
    weights = np.left_shift(1, np.arange(8)).astype(np.uint8)
    # All axes are there: users may forbid that ranks are promoted.
    weights = weights.reshape((1,) * (len(grid) + 1) + (8,))
    return jnp.sum(bits.astype(jnp.uint8) * weights, axis=-1, dtype=jnp.uint8)


def unpack_bits(
    packed: UInt8[Array, "*grid bytes"], block: int, shape: tuple[int, ...], axis: int
) -> Bool[Array, "*shape"]:
    """The bits of packed blocks, each in the place of its weight; padding dropped.

    Args:
      packed: For a grid of blocks along `axis` (see `core.blocks`), the bits of every
        block as `pack_bits` packs them.
      block: Bits per block.
      shape: Shape of the weight.
      axis: Non-negative axis that was cut.

    Examples:
      >>> import jax.numpy as jnp
      >>> packed = jnp.array([[5]], jnp.uint8)  # one block, in one row
      >>> unpack_bits(packed, 4, (3,), 0).tolist()
      [True, False, True]
    """
    packed = jnp.moveaxis(packed, -1, axis + 1)
    if block > 8:  # a byte for every bit; else the only byte is broadcast
        packed = jnp.repeat(packed, 8, axis=axis + 1)
        packed = jax.lax.slice_in_dim(packed, 0, block, axis=axis + 1)
    position = (1,) * (axis + 1) + (block,) + (1,) * (len(shape) - axis - 1)
    shifts = (np.arange(block, dtype=np.uint8) % 8).reshape(position)
    packed = jax.lax.slice_in_dim(
        packed, 0, min(block, packed.shape[axis + 1]), axis=axis + 1
    )
    bits = jnp.right_shift(packed, shifts) & np.uint8(1)
    bits = bits.reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return jax.lax.slice_in_dim(bits, 0, shape[axis], axis=axis) == 1


@functools.partial(jax.jit, static_argnums=(1, 2))
def pack_blocks(
    bits: Bool[Array, "*shape"], block: int, axis: int
) -> UInt8[Array, "*grid bytes"]:
    """One bit per weight, packed block by block, sharded as `bits` are."""
    shape = (*grid_shape(bits.shape, block, axis), math.ceil(block / 8))
    pack = compiler_sharded(
        lambda bits: pack_bits(jnp.asarray(to_blocks(bits, block, axis))),
        fit_sharding(sharding_of(bits), shape),
    )
    return pack(bits)


def valid_bits(
    packed: Array,
    shape: tuple[int, ...],
    block: int,
    axis: int,
    positions: Bool[np.ndarray, " d"],
) -> np.ndarray:
    """The bits of a packed grid in its order, without those of padded positions.

    Args:
      packed: As `pack_blocks` gives it.
      shape: Shape of the weight.
      block: Bits per block.
      axis: Non-negative axis that was cut.
      positions: Those of a block whose bits are wanted.
    """
    bits = np.unpackbits(np.asarray(packed), axis=-1, count=block, bitorder="little")
    valid = valid_positions(shape, block, axis) & positions
    return bits[np.broadcast_to(valid, bits.shape)]


def from_valid_bits(
    bits: np.ndarray,
    shape: tuple[int, ...],
    block: int,
    axis: int,
    positions: Bool[np.ndarray, " d"],
    complete: Callable[[np.ndarray], np.ndarray],
) -> Array:
    """Inverse of `valid_bits`; padded positions get 0.

    Args:
      bits: From `valid_bits`.
      shape: Shape of the weight.
      block: Bits per block.
      axis: Non-negative axis that was cut.
      positions: As for `valid_bits`.
      complete: Gives blocks `(*grid, d)` the bits of the other positions.
    """
    grid = grid_shape(shape, block, axis)
    full = np.zeros((*grid, block), np.uint8)
    valid = np.broadcast_to(valid_positions(shape, block, axis), full.shape)
    full[valid & positions] = bits
    full = complete(full) & valid
    return jnp.asarray(np.packbits(full, axis=-1, bitorder="little"))
