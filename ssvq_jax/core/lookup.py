"""Codewords by code, and the sums by code that are the gradient of that."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt

_ONE_HOT = 1 << 25  # entries of a one-hot matrix, 128 MiB
_EXACT = jax.lax.Precision.HIGHEST  # else GPUs and TPUs round factors to TF32, bfloat16

SumForm = Literal["scatter", "product"]


def take_codewords(
    codebook: Num[Array, "k d"], codes: UInt[Array, "*grid"]
) -> Num[Array, "*grid d"]:
    """`codebook[codes]`.

    The gradient of the codebook is a sum over the blocks of every code. On CPUs it is
    the scatter that autodiff makes of the gather, which XLA vectorises over `d`. On
    accelerators, where a scatter into few rows waits for itself and adds in no fixed
    order, it is a product with the one-hot matrix of the codes, which `jax.jvp` does
    not go through.
    """
    is_floating = jnp.issubdtype(codebook.dtype, jnp.floating)
    if is_floating and jax.default_backend() != "cpu":
        return _take_with_product(codebook, codes)
    return _take(codebook, codes)


def _take(codebook: Array, codes: Array) -> Array:
    # Codes are in bounds: the default mode, "fill", would compare every one.
    return jnp.take(codebook, codes.astype(jnp.int32), axis=0, mode="clip")


@jax.custom_vjp
def _take_with_product(codebook: Array, codes: Array) -> Array:
    return _take(codebook, codes)


def _forward(codebook: Array, codes: Array) -> tuple[Array, tuple[Array, Array]]:
    return _take(codebook, codes), (codebook, codes)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    codebook, codes = residuals
    codewords, dim = codebook.shape
    blocks = gradient.reshape(-1, dim).astype(jnp.float32)
    sums = sum_by_code(blocks, codes.reshape(-1), codewords, "product")
    return sums.astype(codebook.dtype), None


_take_with_product.defvjp(_forward, _backward)


def sum_by_code(
    summands: Float[Array, "n c"],
    codes: Int[Array, " n"] | UInt[Array, " n"],
    codewords: int,
    form: SumForm,
) -> Float[Array, "k c"]:
    """Sum of the summands of every code, float32; of codes in `[0, codewords)`."""
    if form == "scatter":
        return jax.ops.segment_sum(
            summands, codes.astype(jnp.int32), codewords, mode="clip"
        )

    def add(sums, chunk):
        codes, summands = chunk
        members = jax.nn.one_hot(codes, codewords, dtype=jnp.float32)
        return sums + jnp.matmul(members.T, summands, precision=_EXACT), None

    count, columns = summands.shape
    size = max(1, min(count, _ONE_HOT // codewords))
    padding = -count % size
    summands = jnp.pad(summands, ((0, padding), (0, 0))).reshape(-1, size, columns)
    codes = jnp.pad(codes.astype(jnp.int32), (0, padding)).reshape(-1, size)
    sums = jnp.zeros((codewords, columns), jnp.float32)
    return jax.lax.scan(add, sums, (codes, summands))[0]
