"""VQ, the conventional baseline: k-means on signed blocks."""

import dataclasses
from typing import Any, ClassVar

import jax

from ssvq_jax.codecs.codebook import (
    cluster,
    codebook_fields,
    codebook_shapes,
    codes_field,
    codewords_as,
    lookup,
    require_codebook_dtype,
    restore_codebook,
    store_codebook,
    stored_codebook,
)
from ssvq_jax.codecs.codec import Codec, Compressed
from ssvq_jax.core.checks import require_integer


@dataclasses.dataclass(frozen=True)
class VQ(Codec):
    """Vector quantization: every block of weights is one of `k` codewords.

    `W_q = C[A]`. Stored: `ceil(log2 k) / d` bits per weight and the codebook.

    Attributes:
      codewords: Size of the codebook, `k`, at least 2.
      block: Weights per block, `d`, at least 1.
      codebook_dtype: As in `SSVQ`.

    Raises:
      TypeError, ValueError: An option of the wrong type, or out of range.
    """

    codewords: int
    block: int
    codebook_dtype: str = "float16"

    def __post_init__(self):
        require_integer("codewords", self.codewords, 2)
        require_integer("block", self.block, 1)
        require_codebook_dtype(self.codebook_dtype)

    def encode(self, weight, *, key, importance, axis):
        codebook, codes = cluster(
            weight,
            importance,
            codewords=self.codewords,
            block=self.block,
            axis=axis,
            key=key,
        )
        return VQWeight(
            codec=self,
            shape=weight.shape,
            dtype=weight.dtype,
            axis=axis,
            codebook=codebook,
            codes=codes,
        )

    def fields(self, shape, axis):
        return (
            *codebook_fields(self.codewords, self.block, self.codebook_dtype),
            codes_field(self.codewords, shape, self.block, axis),
        )

    def restore(self, shape, dtype, axis, stored):
        leaves = restore_codebook(
            stored, self.codewords, shape, self.block, axis, dtype
        )
        return VQWeight(codec=self, shape=shape, dtype=dtype, axis=axis, **leaves)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VQWeight(Compressed):
    """A weight compressed by `VQ`. See `Compressed`.

    Attributes:
      codebook: `(k, d)`; float32 in training, `codebook_dtype` at last.
      codes: Codeword of every block, unsigned integers in the shape of the grid.
      scale: float32 scalar of an int8 codebook.
    """

    codebook: Any
    codes: Any
    scale: Any = None

    bit_factors: ClassVar = (1.0,)

    @property
    def grid_leaf(self):
        return self.codes

    def shapes(self):
        return codebook_shapes(self)

    def values(self, dtype):
        return lookup(
            codewords_as(self.codebook, self.scale, dtype),
            self.codes,
            self.shape,
            self.axis,
        )

    def finalize(self):
        codebook, scale = store_codebook(
            self.codebook, self.scale, self.codec.codebook_dtype
        )
        return self.replace(codebook=codebook, scale=scale)

    def stored(self):
        return stored_codebook(self.codebook, self.scale, self.codes)
