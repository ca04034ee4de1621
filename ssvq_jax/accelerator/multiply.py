"""What the machine computes: int8 products, tile by tile, from stored weights."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32

from ssvq_jax.accelerator.config import Config
from ssvq_jax.codecs import Compressed
from ssvq_jax.tree import finalize


def multiply(
    x: Int8[np.ndarray, "... m k"], parameter: Compressed, config: Config
) -> Int32[np.ndarray, "... m n"]:
    """The integer outputs of a product, as the machine gets them.

    A tile of weights is decoded as the hardware does, a codeword looked up and each of
    its weights negated by its sign or cleared by its mask; its products with the
    activations are added to int32 sums, tile after tile.

    Args:
      x: Activations; for a depthwise weight `(..., channels, m, k)`.
      parameter: A compressed weight of integers: `codebook_dtype="int8"`, or `Uniform`.
        Its matrix is `(k, n)`: for a convolution, `k` runs as the weight's other axes
        do, `(height, width, in)` in Flax's layout and `(in, height, width)` in
        PyTorch's.
      config: The machine.

    Returns:
      `x @ W` of the integers: the weight's `scale` and `channel_scale` are left to the
      caller. That of a channel (see `core.blocks.channel_axis`) is a factor of an
      output, but for convolutions in PyTorch's layout: their last axis is summed over.

    Raises:
      TypeError: Activations that are not int8.
      ValueError: A weight without integers, or activations that do not fit it.
    """
    if x.dtype != np.int8:
        raise TypeError(f"x: expected int8, got {x.dtype}")
    decoder = _Decoder(finalize(parameter))
    count, k, n = decoder.indices.shape
    expected = (k,) if count == 1 else (count, k)
    if x.ndim < 2 or (*x.shape[:-2], x.shape[-1])[-len(expected) :] != expected:
        raise ValueError(f"x: expected (..., m, {k}), got {x.shape}")
    each = x[None] if count == 1 else np.moveaxis(x, -3, 0)
    rows = each.reshape(count, -1, k)
    # Products are 2^14 at most: sums of fewer than 2^17 fit, longer ones may not.
    sums = np.zeros((count, rows.shape[1], n), np.int32)
    for i in range(count):
        for col in range(0, n, config.cols):
            for row in range(0, k, config.rows):
                part = slice(row, row + config.rows), slice(col, col + config.cols)
                tile = decoder.tile(i, *part).astype(np.int32)
                sums[i, :, part[1]] += rows[i, :, part[0]].astype(np.int32) @ tile
    outputs = sums.reshape(*each.shape[:-1], n)
    return outputs[0] if count == 1 else np.moveaxis(outputs, 0, -3)


class _Decoder:
    """Addresses of a matrix's weights in the stored form, and their values.

    Attributes:
      indices: `(count, k, n)`, positions in the row-major weight.
    """

    def __init__(self, node: Any):
        self.node = node
        self.indices = _matrix(np.arange(node.size).reshape(node.shape), node.axis)
        if node.bit_factors is None:  # no codebook: weights pass the decoder by
            self._weights = np.asarray(node.decode("int8")).ravel()
            return
        codebook = np.asarray(node.codebook)
        if codebook.dtype != np.int8:
            raise ValueError(
                f"parameter: expected codebook_dtype='int8', got {codebook.dtype}"
            )
        self._codebook = codebook
        self._codes = np.asarray(node.codes)
        bits = None if node.bit_leaf is None else getattr(node, node.bit_leaf)
        self._bits = None if bits is None else np.asarray(bits)

    def tile(self, i: int, rows: slice, cols: slice) -> Int8[np.ndarray, "r c"]:
        places = self.indices[i, rows, cols]
        if self.node.bit_factors is None:
            return self._weights[places]
        index = list(np.unravel_index(places, self.node.shape))
        block = self.node.codec.block
        index[self.node.axis], position = np.divmod(index[self.node.axis], block)
        weights = self._codebook[self._codes[tuple(index)], position]
        if self._bits is None:
            return weights
        byte = self._bits[(*index, position // 8)]
        bit = (byte >> (position % 8).astype(np.uint8) & 1).astype(np.int8)
        if self.node.bit_factors == (1.0, -1.0):
            return (weights ^ -bit) + bit  # conditional negation
        return weights & -bit


def _matrix(weight: np.ndarray, axis: int) -> np.ndarray:
    """A weight as `(count, k, n)`, by the axis along which its inputs run."""
    shape = weight.shape
    if weight.ndim == 1:
        return weight.reshape(1, -1, 1)
    if weight.ndim > 2 and shape[-2] == 1 and axis == weight.ndim - 1:
        return weight.reshape(-1, 1, shape[-1]).transpose(2, 0, 1)  # depthwise, Flax
    if weight.ndim > 2 and shape[1] == 1 and axis == 0:
        return weight.reshape(shape[0], -1, 1)  # depthwise, PyTorch
    if axis == weight.ndim - 2:
        return weight.reshape(1, -1, shape[-1])
    return weight.reshape(1, shape[0], math.prod(shape[1:])).transpose(0, 2, 1)
