"""One bit per weight, eight to a byte: how signs and masks are kept in memory."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8


def pack_bits(bits: Bool[Array, "*grid d"]) -> UInt8[Array, "*grid bytes"]:
    """Pack the last axis into bytes, the first value in the lowest bit.

    Args:
      bits: Boolean array; a last axis that 8 does not divide is padded with 0.

    Returns:
      uint8 array with the last axis divided by 8, upwards.

    Example:
      >>> import jax.numpy as jnp
      >>> pack_bits(jnp.array([True, False, True])).tolist()
      [5]
    """
    *grid, length = bits.shape
    size = math.ceil(length / 8)
    padding = [(0, 0)] * len(grid) + [(0, size * 8 - length)]
    bits = jnp.pad(bits, padding).reshape(*grid, size, 8)
    weights = np.left_shift(1, np.arange(8)).astype(np.uint8)
    weights = weights.reshape((1,) * (len(grid) + 1) + (8,))
    return jnp.sum(bits.astype(jnp.uint8) * weights, axis=-1, dtype=jnp.uint8)


def unpack_bits(
    packed: UInt8[Array, "*grid bytes"], length: int
) -> Bool[Array, "*grid d"]:
    """Inverse of `pack_bits`: the first `length` bits of the last axis."""
    shifts = np.arange(8, dtype=np.uint8).reshape((1,) * packed.ndim + (8,))
    bits = jnp.right_shift(packed[..., None], shifts) & np.uint8(1)
    bits = bits.reshape(*packed.shape[:-1], packed.shape[-1] * 8)
    return bits[..., :length] == 1
