"""What the codecs with a codebook share: options, leaves, lookup and stored form."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from ssvq_jax.codecs.clustering import cluster, code_dtype
from ssvq_jax.codecs.codec import Codec, Compressed, Field
from ssvq_jax.core.blocks import from_blocks, grid_shape
from ssvq_jax.core.checks import require_finite, require_integer
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.lookup import take_codewords

_CODEBOOK_DTYPES = ("float32", "float16", "bfloat16", "int8")


class CodebookCodec(Codec):
    """Base of the codecs with a codebook.

    Their options are fields of the codecs themselves, each in an order of its own.
    """

    codewords: int
    block: int
    codebook_dtype: str

    def __post_init__(self):
        require_integer("codewords", self.codewords, 2)
        require_integer("block", self.block, 1)
        if self.codebook_dtype not in _CODEBOOK_DTYPES:
            raise ValueError(
                f"codebook_dtype: expected one of {', '.join(_CODEBOOK_DTYPES)}, "
                f"got {self.codebook_dtype!r}"
            )

    def clustered(
        self,
        weight: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        *,
        key: Key,
        axis: int,
        magnitudes: bool = False,
    ) -> dict[str, Any]:
        """What `CodebookWeight` holds of a weight, or of its magnitudes."""
        codebook, codes = cluster(
            weight,
            importance,
            magnitudes=magnitudes,
            codewords=self.codewords,
            block=self.block,
            axis=axis,
            key=key,
        )
        return {
            "codec": self,
            "shape": weight.shape,
            "dtype": weight.dtype,
            "axis": axis,
            "codebook": codebook,
            "codes": codes,
        }

    def fields(self, shape, axis):
        """Codebook, its scale where it is int8, `ceil(log2 k)` bits for every code."""
        dtype = self.codebook_dtype
        count, bits = self.codewords * self.block, 8 * jnp.dtype(dtype).itemsize
        fields = [Field("codebook", count, bits, dtype, kind="codebooks")]
        if dtype == "int8":
            fields.append(Field("scale", 1, 32, "float32", kind="codebooks"))
        count = math.prod(grid_shape(shape, self.block, axis))
        bits = (self.codewords - 1).bit_length()
        codes = Field("codes", count, bits, limit=self.codewords, kind="codes")
        return (*fields, codes)

    def restored(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        axis: int,
        stored: Mapping[str, np.ndarray],
    ) -> dict[str, Any]:
        """What `CodebookWeight` holds, from stored arrays, checked.

        Raises:
          ValueError: A codebook or scale that is not finite, or not so in `dtype`.
        """
        codebook = jnp.asarray(stored["codebook"].reshape(self.codewords, self.block))
        values = codebook.astype(jnp.float32)
        scale = None
        if "scale" in stored:
            scale = jnp.asarray(stored["scale"].reshape(()))
            require_finite("scale", scale)
            values = values * scale
        require_finite("codebook", values.astype(dtype))
        codes = stored["codes"].astype(code_dtype(self.codewords))
        return {
            "codec": self,
            "shape": shape,
            "dtype": dtype,
            "axis": axis,
            "codebook": codebook,
            "codes": jnp.asarray(codes.reshape(grid_shape(shape, self.block, axis))),
            "scale": scale,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodebookWeight(Compressed):
    """Base of the nodes with a codebook. See `Compressed`.

    Attributes:
      codebook: `(k, d)`; float32 in training, `codebook_dtype` at last.
      codes: Codeword of every block, unsigned integers in the shape of the grid: the
        weight's shape with `axis` divided by `d`.
      scale: float32 scalar of an int8 codebook.
    """

    codebook: Any
    codes: Any
    scale: Any = None

    labels: ClassVar = {"codebook": "codebook"}

    @property
    def grid_leaf(self):
        return self.codes

    def shapes(self):
        """Those of `codebook`, `codes` and, for int8, `scale`."""
        shapes = {
            "codebook": (self.codec.codewords, self.codec.block),
            "codes": grid_shape(self.shape, self.codec.block, self.axis),
        }
        if getattr(self.codebook, "dtype", None) == jnp.int8:
            shapes["scale"] = ()
        return shapes

    def codewords(self, dtype: Any) -> Num[Array, "k d"]:
        """The values to look up for a weight in `dtype`; int8 without scale.

        A float32 codebook, as in training, stays float32, and so do sums of its
        gradient.

        Raises:
          ValueError: int8 of a codebook that is not stored in it.
        """
        if dtype == jnp.int8:
            if self.codebook.dtype != jnp.int8:
                raise ValueError(
                    "dtype: int8 needs a finalized codebook of codebook_dtype='int8', "
                    f"got {self.codebook.dtype}"
                )
            return self.codebook
        if self.codebook.dtype == jnp.float32:
            return self.codebook
        values = self.codebook.astype(jnp.float32)
        return (values if self.scale is None else values * self.scale).astype(dtype)

    def lookup(self, dtype: Any) -> Num[Array, "*shape"]:
        """The codeword of every block in its place: `C[A]`, padding dropped."""
        blocks = take_codewords(self.codewords(dtype), self.codes)
        return from_blocks(blocks, self.shape, self.axis)

    def finalize(self):
        """The codebook cast to its `codebook_dtype`."""
        codebook, scale = _store_codebook(
            self.codebook, self.scale, self.codec.codebook_dtype
        )
        return self.replace(codebook=codebook, scale=scale)

    def stored(self):
        """Codebook, scale and codes."""
        stored = {"codebook": np.asarray(self.codebook).ravel()}
        if self.scale is not None:
            stored["scale"] = np.asarray(self.scale).reshape(1)
        stored["codes"] = np.asarray(self.codes).ravel()
        return stored


def _store_codebook(
    codebook: Num[Array, "k d"], scale: Float[Array, ""] | None, dtype: str
) -> tuple[Num[Array, "k d"], Float[Array, ""] | None]:
    """Cast a codebook to the dtype that is stored; int8 with one scale.

    Raises:
      ValueError: A codebook that is not finite, or out of the range of `dtype`.
    """
    if codebook.dtype == jnp.int8:
        return codebook, scale
    require_finite("codebook", codebook)
    if codebook.dtype == jnp.dtype(dtype):
        return codebook, scale
    codebook = codebook.astype(jnp.float32)
    largest = jnp.max(jnp.abs(codebook))
    if dtype == "int8":
        # To 127 both ways, so that a sign can negate every int8: not so -128.
        scale = jnp.where(largest > 0, largest / 127, 1.0)
        return jnp.round(codebook / scale).astype(jnp.int8), scale
    _require_range(largest, dtype)
    return codebook.astype(dtype), None


def _require_range(largest: Float[Array, ""], dtype: str) -> None:
    """Raise `ValueError` if a concrete codebook over- or underflows `dtype`."""
    if isinstance(largest, Tracer) or largest == 0:
        return
    limits = jnp.finfo(dtype)
    problem = None
    if largest > float(limits.max):
        problem = "overflows"
    elif largest < float(limits.tiny):
        problem = "underflows"
    if problem:
        raise ValueError(
            f"codebook: its largest value, {float(largest):g}, {problem} "
            f"codebook_dtype={dtype!r}; use 'bfloat16' or 'float32'"
        )
