"""MVQ, masked vector quantization: N:M pruning and k-means on what is kept."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssvq_jax.codecs.codebook import CodebookCodec, CodebookWeight
from ssvq_jax.codecs.codec import Field
from ssvq_jax.codecs.nearest import mask_patterns
from ssvq_jax.core.bits import pack_blocks, unpack_bits
from ssvq_jax.core.blocks import (
    block_units,
    from_blocks,
    grid_shape,
    to_blocks,
    valid_positions,
)
from ssvq_jax.core.checks import require_integer
from ssvq_jax.core.sharding import (
    fit_sharding,
    place,
    replicate,
    sharding_of,
    split_sharding,
)

_LARGEST_GROUP = 16


@dataclasses.dataclass(frozen=True)
class MVQ(CodebookCodec):
    """Masked vector quantization: `W_q = C[A] * mask`.

    Of each `M` consecutive weights of a block the `N` largest are kept; distances and
    centroids of the k-means count only kept positions. Stored: `ceil(log2 k) / d +
    ceil(log2 binomial(M, N)) / M` bits per weight and the codebook.

    Attributes:
      codewords: Size of the codebook, `k`, at least 2.
      block: Weights per block, `d`; a multiple of `M`.
      keep: `(N, M)` with `1 <= N <= M <= 16`.
      codebook_dtype: As in `SSVQ`.
      channel_scale: As in `SSVQ`; at first the root mean square of what is kept.
      starts: As in `SSVQ`.

    Raises:
      TypeError, ValueError: An option of the wrong type, or out of range.

    References:
      Li et al., "MVQ: Towards Efficient DNN Compression and Acceleration with Masked
      Vector Quantization", ASPLOS 2025, arXiv 2412.10261.
    """

    codewords: int
    block: int
    keep: Sequence[int]
    codebook_dtype: str = "int8"
    channel_scale: str | None = dataclasses.field(default=None, kw_only=True)
    starts: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.keep, Sequence) or len(self.keep) != 2:
            raise TypeError(f"keep: expected a pair (N, M), got {self.keep!r}")
        kept, group = self.keep
        require_integer("keep: M", group, 1, _LARGEST_GROUP)
        require_integer("keep: N", kept, 1, group)
        object.__setattr__(self, "keep", (kept, group))
        if self.block % group:
            raise ValueError(
                f"block: expected a multiple of M = {group}, got {self.block}"
            )

    @property
    def patterns(self):
        """All masks of a group."""
        return mask_patterns(*self.keep)

    def encode(self, weight, *, key, importance, axis):
        split = split_sharding(weight, block_units(weight.shape, self.block, axis))
        sharding = sharding_of(weight)
        whole = replicate(weight) if split is None else place(weight, split)
        kept, mask = _masks(whole, self, axis, split)
        kept = place(kept, sharding)
        kept = kept if importance is None else kept * place(importance, sharding)
        return MVQWeight(
            mask=place(mask, fit_sharding(sharding, mask.shape)),
            **self.clustered(weight, kept, key=key, axis=axis)[0],
        )

    def fields(self, shape, axis):
        kept, group = self.keep
        patterns = math.comb(group, kept)
        groups = math.prod(grid_shape(shape, group, axis))
        bits = (patterns - 1).bit_length()
        mask = Field("mask", groups, bits, limit=patterns, kind="masks")
        return (*super().fields(shape, axis), mask)

    def restore(self, shape, dtype, axis, stored):
        group = self.keep[1]
        patterns = np.array(_patterns(*self.keep), np.uint32)
        table = (patterns[:, None] >> np.arange(group, dtype=np.uint32)) & 1
        bits = table.astype(np.uint8)[stored["mask"]]
        full = np.zeros((*grid_shape(shape, self.block, axis), self.block), np.uint8)
        groups = full.reshape(-1, group)
        groups[_valid_groups(shape, self, axis)[:, 0]] = bits
        full &= valid_positions(shape, self.block, axis)
        mask = jnp.asarray(np.packbits(full, axis=-1, bitorder="little"))
        return MVQWeight(mask=mask, **self.restored(shape, dtype, axis, stored))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MVQWeight(CodebookWeight):
    """A weight compressed by `MVQ`. See `CodebookWeight` for the other leaves.

    Attributes:
      mask: uint8 `(*grid, ceil(d / 8))`: one bit per weight, 1 where it is kept, the
        block's first weight in the lowest bit.
    """

    mask: Any

    bit_leaf: ClassVar = "mask"
    bit_factors: ClassVar = (0.0, 1.0)

    def shapes(self):
        shapes = super().shapes()
        return {**shapes, "mask": (*shapes["codes"], math.ceil(self.codec.block / 8))}

    def values(self, dtype):
        kept = unpack_bits(self.mask, self.codec.block, self.shape, self.axis)
        values = self.lookup(dtype)
        return jnp.where(kept, values, jnp.zeros_like(values))

    def put(self, codes, factors):
        mask = pack_blocks(factors > 0, self.codec.block, self.axis)
        return super().put(codes, factors).replace(mask=mask)

    def stored(self):
        kept, group = self.codec.keep
        bits = np.unpackbits(
            np.asarray(self.mask), axis=-1, count=self.codec.block, bitorder="little"
        )
        groups = bits.reshape(-1, group)
        valid = _valid_groups(self.shape, self.codec, self.axis)
        # A pattern has N ones: padding gets, from its start, what a group lacks.
        cut = valid[:, 0] & ~valid[:, -1]
        padding = ~valid[cut]
        missing = kept - np.sum(groups[cut], axis=1, keepdims=True, dtype=np.int8)
        groups[cut] |= padding & (np.cumsum(padding, axis=1) <= missing)
        groups = groups[valid[:, 0]]
        pairs = np.packbits(groups, axis=-1, bitorder="little").astype(np.uint16)
        patterns = pairs[:, 0] if group <= 8 else pairs @ np.array([1, 256], np.uint16)
        ranks = np.searchsorted(_patterns(*self.codec.keep), np.arange(1 << group))
        return {**super().stored(), "mask": ranks.astype(np.uint16)[patterns]}


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _masks(weight, codec, axis, split):
    """Which weights are the N largest of each M, as float32 and packed in a grid.

    Padding is the last choice. Every device finds those of its part, where there are.
    """

    def find(weight):
        kept, group = codec.keep
        blocks = to_blocks(jnp.abs(weight), codec.block, axis)
        valid = valid_positions(weight.shape, codec.block, axis)
        blocks = jnp.where(valid, blocks, -1.0)
        groups = blocks.reshape(*blocks.shape[:-1], -1, group)
        order = jnp.argsort(groups, axis=-1, stable=True, descending=True)
        largest = (jnp.argsort(order, axis=-1) < kept).reshape(blocks.shape)
        mask = from_blocks(largest, weight.shape, axis)
        return mask.astype(jnp.float32), pack_blocks(mask, codec.block, axis)

    if split is None:
        return find(weight)
    return jax.shard_map(
        find, mesh=split.mesh, in_specs=split.spec, out_specs=split.spec
    )(weight)


def _valid_groups(shape, codec, axis):
    """Which positions of each M hold a weight, `(groups, M)`; none: not stored."""
    grid = grid_shape(shape, codec.block, axis)
    valid = np.broadcast_to(
        valid_positions(shape, codec.block, axis), (*grid, codec.block)
    )
    return valid.reshape(-1, codec.keep[1])


@functools.cache
def _patterns(kept: int, group: int) -> list[int]:
    """All masks of `group` bits with `kept` ones, in ascending order."""
    chosen = itertools.combinations(range(group), kept)
    return sorted(sum(1 << bit for bit in bits) for bits in chosen)
