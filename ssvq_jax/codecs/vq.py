"""VQ, the conventional baseline: k-means on signed blocks."""

import dataclasses
from typing import ClassVar

import jax

from ssvq_jax.codecs.codebook import CodebookCodec, CodebookWeight


@dataclasses.dataclass(frozen=True)
class VQ(CodebookCodec):
    """Vector quantization: every block of weights is one of `k` codewords.

    `W_q = C[A]`. Stored: `ceil(log2 k) / d` bits per weight and the codebook.

    Attributes:
      codewords: Size of the codebook, `k`, at least 2.
      block: Weights per block, `d`, at least 1.
      codebook_dtype: As in `SSVQ`.
      channel_scale: As in `SSVQ`.
      starts: As in `SSVQ`.

    Raises:
      TypeError, ValueError: An option of the wrong type, or out of range.
    """

    codewords: int
    block: int
    codebook_dtype: str = "float16"
    channel_scale: str | None = dataclasses.field(default=None, kw_only=True)
    starts: int = dataclasses.field(default=1, kw_only=True)

    def encode(self, weight, *, key, importance, axis):
        return VQWeight(**self.clustered(weight, importance, key=key, axis=axis)[0])

    def restore(self, shape, dtype, axis, stored):
        return VQWeight(**self.restored(shape, dtype, axis, stored))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VQWeight(CodebookWeight):
    """A weight compressed by `VQ`. See `CodebookWeight` for its leaves."""

    bit_factors: ClassVar = (1.0,)

    def values(self, dtype):
        return self.lookup(dtype)
