"""What the codecs with a codebook share: options, leaves, lookup and stored form."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ssvq_jax.codecs.clustering import cluster
from ssvq_jax.codecs.codec import SCALE_DTYPES, Codec, Compressed, Field
from ssvq_jax.codecs.nearest import nearest, take
from ssvq_jax.core.blocks import channel_shape, from_blocks, grid_shape
from ssvq_jax.core.checks import (
    holding_dtype,
    out_of_range,
    require_finite,
    require_integer,
)
from ssvq_jax.core.kmeans import Key
from ssvq_jax.core.lloyd import code_dtype
from ssvq_jax.core.lookup import take_codewords

_CODEBOOK_DTYPES = (*SCALE_DTYPES, "int8")


class CodebookCodec(Codec):
    """Base of the codecs with a codebook.

    Their options are fields of the codecs themselves, each in an order of its own.
    """

    codewords: int
    block: int
    codebook_dtype: str
    channel_scale: str | None
    starts: int

    def __post_init__(self):
        require_integer("codewords", self.codewords, 2)
        require_integer("block", self.block, 1)
        require_integer("starts", self.starts, 1)
        if self.codebook_dtype not in _CODEBOOK_DTYPES:
            raise ValueError(
                f"codebook_dtype: expected one of {', '.join(_CODEBOOK_DTYPES)}, "
                f"got {self.codebook_dtype!r}"
            )
        if self.channel_scale not in (None, *SCALE_DTYPES):
            raise ValueError(
                f"channel_scale: expected None or one of {', '.join(SCALE_DTYPES)}, "
                f"got {self.channel_scale!r}"
            )

    @property
    def patterns(self) -> np.ndarray | None:
        """What a codeword's entries may be multiplied by: see `nearest`."""
        return None

    def clustered(
        self,
        weight: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        *,
        key: Key,
        axis: int,
        sign_code: str | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "*shape"] | None]:
        """What `CodebookWeight` holds of a weight; signs of words: see `cluster`."""
        codebook, codes, channel_scale, signs = cluster(
            weight,
            importance,
            sign_code=sign_code,
            channels=self.channel_scale is not None,
            codewords=self.codewords,
            block=self.block,
            starts=self.starts,
            axis=axis,
            key=key,
        )
        own: Any = self
        leaves = {
            "codec": dataclasses.replace(own, starts=1),
            "shape": weight.shape,
            "dtype": weight.dtype,
            "axis": axis,
            "codebook": codebook,
            "codes": codes,
            "channel_scale": channel_scale,
        }
        return leaves, signs

    def fields(self, shape, axis):
        """Codebook, scales where there are some, `ceil(log2 k)` bits for every code."""
        dtype = self.codebook_dtype
        count, bits = self.codewords * self.block, 8 * jnp.dtype(dtype).itemsize
        fields = [Field("codebook", count, bits, dtype, kind="codebooks")]
        if dtype == "int8":
            fields.append(Field("scale", 1, 32, "float32", kind="codebooks"))
        if self.channel_scale is not None:
            dtype, count = self.channel_scale, math.prod(channel_shape(shape, axis))
            bits = 8 * jnp.dtype(dtype).itemsize
            fields.append(Field("channel_scale", count, bits, dtype, kind="codebooks"))
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
          ValueError: A codebook or scale that is not finite, or weights that are not
            so in `dtype`.
        """
        codebook = jnp.asarray(stored["codebook"].reshape(self.codewords, self.block))
        values = codebook.astype(jnp.float32)
        scale = channel_scale = None
        if "scale" in stored:
            scale = jnp.asarray(stored["scale"].reshape(()))
            require_finite("scale", scale)
            values = values * scale
        if "channel_scale" in stored:
            channel_scale = jnp.asarray(stored["channel_scale"])
            _require_products(values, channel_scale, dtype)
        else:
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
            "channel_scale": channel_scale,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodebookWeight(Compressed):
    """Base of the nodes with a codebook. See `Compressed`.

    Attributes:
      codebook: `(k, d)`; float32 in training, `codebook_dtype` at last.
      codes: Codeword of every block, unsigned integers in the shape of the grid: the
        weight's shape with `axis` divided by `d`.
      scale: float32 scalar of an int8 codebook.
      channel_scale: Of every output channel (see `core.blocks.channel_axis`), with the
        option of this name: `(channels,)`; float32 in training, its dtype at last.
    """

    codebook: Any
    codes: Any
    scale: Any = None
    channel_scale: Any = None

    labels: ClassVar = {"codebook": "codebook", "channel_scale": "codebook"}
    separable: ClassVar = True

    @property
    def grid_leaf(self):
        return self.codes

    def shapes(self):
        """Those of `codebook`, `codes` and the scales that there are."""
        shapes = {
            "codebook": (self.codec.codewords, self.codec.block),
            "codes": grid_shape(self.shape, self.codec.block, self.axis),
        }
        if getattr(self.codebook, "dtype", None) == jnp.int8:
            shapes["scale"] = ()
        if self.codec.channel_scale is not None:
            channels = math.prod(channel_shape(self.shape, self.axis))
            shapes["channel_scale"] = (channels,)
        return shapes

    def codewords(self, dtype: Any) -> Num[Array, "k d"]:
        """The values to look up for a weight in `dtype`; int8 without scale.

        Scales of channels are not in them.

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
        """The codeword of every block in its place, padding dropped, in its channel.

        `C[A]`, times the scale of the output channel where there is one: in float32;
        int8 without scales.
        """
        scale = None if dtype == jnp.int8 else self.channel_scale
        codewords = self.codewords(dtype if scale is None else jnp.float32)
        blocks = take_codewords(codewords, self.codes)
        values = from_blocks(blocks, self.shape, self.axis)
        if scale is None:
            return values
        scale = scale.astype(jnp.float32)
        return values * scale.reshape(channel_shape(self.shape, self.axis))

    def holding_codec(self):
        held = {}
        for option, leaf in (
            ("codebook_dtype", self.codebook),
            ("channel_scale", self.channel_scale),
        ):
            dtype = getattr(self.codec, option)
            if dtype is not None:
                held[option] = holding_dtype(dtype, leaf, len(self.stack))
        return dataclasses.replace(self.codec, **held)

    @property
    def scales(self):
        """Those of the channels."""
        if self.channel_scale is None:
            return None
        scale = self.channel_scale.astype(jnp.float32)
        scale = jnp.where(scale == 0, 1.0, scale)
        return scale.reshape(channel_shape(self.shape, self.axis))

    def choose(self, targets, *, metric=None, importance=None, valid=None):
        """The nearest codewords, with the codec's patterns."""
        return nearest(
            targets,
            self.codewords(jnp.float32),
            self.codec.patterns,
            metric=metric,
            importance=importance,
            valid=valid,
        )

    def chosen(self, choice):
        """Codewords times factors."""
        blocks = take(self.codewords(jnp.float32), choice.codes)
        return blocks if choice.factors is None else choice.factors * blocks

    def put(self, codes, factors):
        """Codes in their smallest type."""
        return self.replace(codes=codes.astype(code_dtype(self.codec.codewords)))

    def finalize(self):
        """The codebook and the channels' scales cast to the dtypes of the options."""
        codebook, scale = _store_codebook(
            self.codebook, self.scale, self.codec.codebook_dtype
        )
        final: Any = self.replace(codebook=codebook, scale=scale)
        if self.channel_scale is None:
            return final
        channel_scale = _store_scale(self.channel_scale, self.codec.channel_scale)
        _require_products(final.codewords(jnp.float32), channel_scale, self.dtype)
        return final.replace(channel_scale=channel_scale)

    def stored(self):
        """Codebook, scales and codes."""
        stored = {"codebook": np.asarray(self.codebook).ravel()}
        if self.scale is not None:
            stored["scale"] = np.asarray(self.scale).reshape(1)
        if self.channel_scale is not None:
            stored["channel_scale"] = np.asarray(self.channel_scale)
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
    if dtype == "int8":
        largest = jnp.max(jnp.abs(codebook))
        # To 127 both ways, so that a sign can negate every int8: not so -128.
        scale = jnp.where(largest > 0, largest / 127, 1.0)
        return jnp.round(codebook / scale).astype(jnp.int8), scale
    _require_range("codebook", codebook, "codebook_dtype", dtype)
    return codebook.astype(dtype), None


def _store_scale(scale: Float[Array, " channels"], dtype: str) -> Array:
    """Cast the channels' scales to the dtype that is stored.

    Raises:
      ValueError: A scale that is not finite, or out of the range of `dtype`.
    """
    require_finite("channel_scale", scale)
    if scale.dtype == jnp.dtype(dtype):
        return scale
    # A dead channel may underflow: it decodes to what is nearly 0, as it is.
    _require_range("channel_scale", scale, "channel_scale", dtype)
    return scale.astype(dtype)


def _require_range(what: str, values: Array, option: str, dtype: str) -> None:
    """Raise `ValueError` if concrete values over- or underflow an option's dtype."""
    problem = out_of_range(values, dtype)
    if problem:
        largest = float(jnp.max(jnp.abs(values)))
        raise ValueError(
            f"{what}: its largest value, {largest:g}, {problem} {option}={dtype!r}; "
            "use 'bfloat16' or 'float32'"
        )


def _require_products(
    codewords: Float[Array, "k d"], scale: Float[Array, " channels"], dtype: Any
) -> None:
    """Raise `ValueError` unless all codewords, in all channels, are finite in `dtype`.

    Those that do not meet count, too: a bound that does not look at codes.
    """
    require_finite("codebook", codewords)
    largest = jnp.max(jnp.abs(codewords)) * scale.astype(jnp.float32)
    require_finite("channel_scale", largest.astype(dtype))
