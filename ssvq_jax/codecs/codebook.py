"""What the codecs with a codebook share: clustering, lookup and the stored form."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Num, UInt, UInt8

from ssvq_jax.codecs.codec import Field
from ssvq_jax.core.bits import pack_bits
from ssvq_jax.core.blocks import (
    AnyArray,
    from_blocks,
    grid_shape,
    to_blocks,
    valid_positions,
)
from ssvq_jax.core.checks import require_finite
from ssvq_jax.core.kmeans import Key, fit_padded, pad_points
from ssvq_jax.core.lookup import take_codewords
from ssvq_jax.core.sharding import (
    compiler_sharded,
    fit_sharding,
    place,
    replicate,
    replicated,
    sharding_of,
)

_LARGE = 1 << 20  # weights

CODEBOOK_DTYPES = ("float32", "float16", "bfloat16", "int8")


def require_codebook_dtype(dtype: str) -> None:
    """Raise `ValueError` unless `dtype` is one that codebooks are stored in."""
    if dtype not in CODEBOOK_DTYPES:
        raise ValueError(
            f"codebook_dtype: expected one of {', '.join(CODEBOOK_DTYPES)}, "
            f"got {dtype!r}"
        )


def cluster(
    weight: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
    *,
    magnitudes: bool = False,
    codewords: int,
    block: int,
    axis: int,
    key: Key,
) -> tuple[Float[Array, "k d"], UInt[Array, "*grid"]]:
    """Fit a codebook to a weight's blocks, or to those of its magnitudes.

    Padded positions weigh nothing.

    Returns:
      `(codebook, codes)`: float32, and the smallest unsigned integers that hold `k`
      codes, in the shape of the grid of blocks and sharded as the weight is.
    """
    shape = weight.shape
    grid = grid_shape(shape, block, axis)
    blocks = math.prod(grid)
    if codewords > blocks:
        raise ValueError(
            f"codewords: expected at most {blocks} (the blocks of {block} in shape "
            f"{shape} along axis {axis}), got {codewords}"
        )
    traced = any(isinstance(x, Tracer) for x in (weight, importance, key))
    arrays = replicate(weight), None if importance is None else replicate(importance)
    xp: Any = jnp if traced else np
    # A program for every shape takes longer to compile than small weights to cut.
    if traced or (weight.size > _LARGE and sharding_of(weight) is None):
        points, weights = _points(*arrays, block, axis, magnitudes)
    else:
        arrays = (None if x is None else np.asarray(x) for x in arrays)
        points, weights = map(jnp.asarray, _cut(*arrays, block, axis, magnitudes))

    def fit(points, weights):
        return fit_padded(points, weights, blocks, codewords, key=key)[:2]

    sharding = sharding_of(weight)
    if traced:
        fit = compiler_sharded(fit, replicated(sharding))
    codebook, codes = fit(points, weights)
    codes = xp.asarray(codes)[:blocks].reshape(grid).astype(code_dtype(codewords))
    return (
        place(codebook, replicated(sharding)),
        place(jnp.asarray(codes), fit_sharding(sharding, grid)),
    )


def _cut(
    weight: AnyArray,
    importance: AnyArray | None,
    block: int,
    axis: int,
    magnitudes: bool,
) -> tuple[AnyArray, AnyArray]:
    """Blocks as padded points, and their weights; with NumPy for NumPy arrays."""
    xp: Any = weight.__array_namespace__()
    if importance is None and weight.shape[axis] % block:
        importance = xp.ones(weight.shape, xp.float32)
    if importance is not None:
        importance = to_blocks(importance, block, axis).reshape(-1, block)
    points = to_blocks(abs(weight) if magnitudes else weight, block, axis)
    return pad_points(points.reshape(-1, block), importance)


_points = jax.jit(_cut, static_argnums=(2, 3, 4))


def code_dtype(codewords: int) -> np.dtype:
    """The smallest unsigned integer type that holds codes below `codewords`."""
    return np.min_scalar_type(codewords - 1)


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


def codewords_as(
    codebook: Num[Array, "k d"], scale: Float[Array, ""] | None, dtype: Any
) -> Num[Array, "k d"]:
    """The codebook's values to look up for a weight in `dtype`; int8 without scale.

    A float32 codebook, as in training, stays float32, and so do sums of its gradient.

    Raises:
      ValueError: int8 of a codebook that is not stored in it.
    """
    if dtype == jnp.int8:
        if codebook.dtype != jnp.int8:
            raise ValueError(
                "dtype: int8 needs a finalized codebook of codebook_dtype='int8', "
                f"got {codebook.dtype}"
            )
        return codebook
    if codebook.dtype == jnp.float32:
        return codebook
    values = codebook.astype(jnp.float32)
    return (values if scale is None else values * scale).astype(dtype)


def lookup(
    values: Num[Array, "k d"],
    codes: UInt[Array, "*grid"],
    shape: tuple[int, ...],
    axis: int,
) -> Num[Array, "*shape"]:
    """The codeword of every block in its place: `C[A]`, padding dropped."""
    return from_blocks(take_codewords(values, codes), shape, axis)


def store_codebook(
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


def codebook_shapes(node: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the leaves `codebook`, `codes` and, for int8, `scale`."""
    codewords, block = node.codec.codewords, node.codec.block
    shapes = {
        "codebook": (codewords, block),
        "codes": grid_shape(node.shape, block, node.axis),
    }
    if getattr(node.codebook, "dtype", None) == jnp.int8:
        shapes["scale"] = ()
    return shapes


def codebook_fields(codewords: int, block: int, dtype: str) -> tuple[Field, ...]:
    """The stored form of a codebook: its values and, for int8, one float32 scale."""
    bits = 8 * jnp.dtype(dtype).itemsize
    codebook = Field("codebook", codewords * block, bits, dtype, kind="codebooks")
    if dtype == "int8":
        return codebook, Field("scale", 1, 32, "float32", kind="codebooks")
    return (codebook,)


def codes_field(codewords: int, shape: tuple[int, ...], block: int, axis: int) -> Field:
    """The stored form of the codes: `ceil(log2 k)` bits each, in the grid's order."""
    count = math.prod(grid_shape(shape, block, axis))
    bits = (codewords - 1).bit_length()
    return Field("codes", count, bits, limit=codewords, kind="codes")


def stored_codebook(
    codebook: Array, scale: Array | None, codes: Array
) -> dict[str, np.ndarray]:
    """Flat NumPy arrays of a finalized codebook and its codes."""
    stored = {"codebook": np.asarray(codebook).ravel()}
    if scale is not None:
        stored["scale"] = np.asarray(scale).reshape(1)
    stored["codes"] = np.asarray(codes).ravel()
    return stored


def restore_codebook(
    stored: Mapping[str, np.ndarray],
    codewords: int,
    shape: tuple[int, ...],
    block: int,
    axis: int,
    dtype: Any,
) -> dict[str, Array | None]:
    """The leaves `codebook`, `codes` and `scale` from stored arrays, checked.

    Raises:
      ValueError: A codebook or scale that is not finite, or not so in `dtype`.
    """
    codebook = jnp.asarray(stored["codebook"].reshape(codewords, block))
    values = codebook.astype(jnp.float32)
    scale = None
    if "scale" in stored:
        scale = jnp.asarray(stored["scale"].reshape(()))
        require_finite("scale", scale)
        values = values * scale
    require_finite("codebook", values.astype(dtype))
    codes = stored["codes"].astype(code_dtype(codewords))
    codes = jnp.asarray(codes.reshape(grid_shape(shape, block, axis)))
    return {"codebook": codebook, "codes": codes, "scale": scale}


def valid_bits(
    packed: Array, shape: tuple[int, ...], block: int, axis: int
) -> np.ndarray:
    """The bits of a packed grid in its order, without those of padded positions."""
    bits = np.unpackbits(np.asarray(packed), axis=-1, count=block, bitorder="little")
    valid = np.broadcast_to(valid_positions(shape, block, axis), bits.shape)
    return bits[valid]


def from_valid_bits(
    bits: np.ndarray, shape: tuple[int, ...], block: int, axis: int
) -> Array:
    """Inverse of `valid_bits`; padded positions get 0."""
    grid = grid_shape(shape, block, axis)
    full = np.zeros((*grid, block), np.uint8)
    full[np.broadcast_to(valid_positions(shape, block, axis), full.shape)] = bits
    return jnp.asarray(np.packbits(full, axis=-1, bitorder="little"))
