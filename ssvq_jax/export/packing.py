"""Integers of any width packed into bytes without gaps, and back."""

import math

import numpy as np
from jaxtyping import Integer, UInt8

_CHUNK = 1 << 18


def pack_integers(
    values: Integer[np.ndarray, " n"], bits: int
) -> UInt8[np.ndarray, " bytes"]:
    """Pack integers into a little-endian bit stream.

    Value `i` takes the bits `i * bits ... (i + 1) * bits - 1`, its lowest bit first;
    bit `j` of the stream is bit `j % 8` of byte `j // 8`. The last byte is filled up
    with zeros.

    Args:
      values: Non-negative integers below `2**bits`.
      bits: Width of a value, 0 to 32.

    Examples:
      >>> pack_integers(np.array([1, 2, 3]), 4).tolist()
      [33, 3]
    """
    shifts = np.arange(bits, dtype=np.uint32)
    parts = [np.zeros(0, np.uint8)]
    for start in range(0, values.size, _CHUNK):  # a multiple of 8: whole bytes
        chunk = values[start : start + _CHUNK].astype(np.uint32)
        stream = (chunk[:, None] >> shifts) & np.uint32(1)
        parts.append(np.packbits(stream.astype(np.uint8), bitorder="little"))
    return np.concatenate(parts)


def unpack_integers(
    data: UInt8[np.ndarray, " bytes"], count: int, bits: int
) -> Integer[np.ndarray, " n"]:
    """Inverse of `pack_integers`: `count` integers, uint8, uint16 or uint32.

    Args:
      data: `ceil(count * bits / 8)` bytes.
      count: Number of values.
      bits: Width of a value, 0 to 32.
    """
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    weights = np.left_shift(np.uint32(1), np.arange(bits, dtype=np.uint32))
    values = np.zeros(count, dtype)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = start * bits // 8
        chunk = data[first : first + math.ceil(size * bits / 8)]
        stream = np.unpackbits(chunk, count=size * bits, bitorder="little")
        matrix = stream.reshape(size, bits).astype(np.uint32)
        values[start : start + size] = matrix @ weights
    return values
