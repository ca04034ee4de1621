"""Codes that the signs of a block are words of, so that some of them cost no bit.

- "free": any signs.
- "parity": the product of a block's signs is +1. The last sign follows.
- "hamming": eight consecutive signs are a word of the extended Hamming code [8, 4]. The
  last four follow: with 1 for minus, `s4 = s0 + s1 + s2`, `s5 = s0 + s1 + s3`,
  `s6 = s0 + s2 + s3`, `s7 = s1 + s2 + s3`, modulo 2.

Padding has any sign that makes a word.
"""

import functools
import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from ssvq_jax.core.blocks import grid_shape
from ssvq_jax.core.signs import sign_ste

SignCode = Literal["free", "parity", "hamming"]

_LARGEST_FREE_GROUP = 4  # weights whose signs are tried in all their patterns
_LARGEST_PARITY_BLOCK = 12  # 2,048 words
_CHECKS = ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))


def require_sign_code(code: str, block: int) -> None:
    """Raise `ValueError` for an unknown code, or a block that it does not fit."""
    if code not in get_args(SignCode):
        raise ValueError(
            f"sign_code: expected one of {', '.join(get_args(SignCode))}, got {code!r}"
        )
    if code == "parity" and not 2 <= block <= _LARGEST_PARITY_BLOCK:
        raise ValueError(
            f"block: expected 2 to {_LARGEST_PARITY_BLOCK} with sign_code='parity', "
            f"got {block}"
        )
    if code == "hamming" and block % 8:
        raise ValueError(
            f"block: expected a multiple of 8 with sign_code='hamming', got {block}"
        )


@functools.cache
def words(code: str, block: int) -> Float[np.ndarray, "p m"]:
    """What signs `m` consecutive weights may have; `m` divides the block.

    All words of a code, first that of + alone; of free signs as many weights as can be
    tried at once.
    """
    if code == "hamming":
        bits = np.arange(16)[:, None] >> np.arange(4) & 1
        return _signs(np.concatenate([bits, np.zeros_like(bits)], axis=1), code)
    size = block - 1
    if code == "free":
        size = max(m for m in range(1, _LARGEST_FREE_GROUP + 1) if block % m == 0)
    bits = np.array(list(itertools.product((0, 1), repeat=size)))
    if code == "parity":
        bits = np.pad(bits, ((0, 0), (0, 1)))
    return _signs(bits, code)


def stored_positions(code: str, block: int) -> Bool[np.ndarray, " d"]:
    """The positions of a block whose signs are stored; the others follow."""
    position = np.arange(block)
    if code == "parity":
        return position < block - 1
    return position % 8 < 4 if code == "hamming" else position >= 0


def stored_count(code: str, weights: int, block: int) -> int:
    """How many signs are stored of the first weights of a block.

    Without an array of the block's size: a file may claim any.
    """
    if code == "parity":
        return min(weights, block - 1)
    return weights // 8 * 4 + min(weights % 8, 4) if code == "hamming" else weights


def complete(bits: UInt8[np.ndarray, "*n d"], code: str) -> UInt8[np.ndarray, "*n d"]:
    """Bits of blocks, 1 for minus, with those that follow from the stored ones."""
    bits = bits.copy()
    if code == "parity":
        bits[..., -1] = bits[..., :-1].sum(axis=-1) % 2
    elif code == "hamming":
        groups = bits.reshape(*bits.shape[:-1], -1, 8)  # a view
        for i, check in enumerate(_CHECKS):
            groups[..., 4 + i] = groups[..., list(check)].sum(axis=-1) % 2
    return bits


def nearest_word(
    latent: Float[Array, "*shape"], code: str, block: int, axis: int
) -> Float[Array, "*shape"]:
    """Signs, +1 and -1, of the word that is nearest to the latents of every block.

    That of the largest sum of sign times latent: the latents' own signs where these are
    a word. Where they are not, for "parity" the sign of the smallest latent, the first
    of equal ones, is turned; for "hamming" all words are tried, of equally near ones
    the first of `words` is taken.

    Args:
      latent: Floating array of the weight's shape.
      code: What signs are words.
      block: Weights per block.
      axis: Non-negative axis along which blocks run.
    """
    if code == "free":
        return sign_ste(latent)
    size = block if code == "parity" else 8
    length, place = latent.shape[axis], axis + 1
    groups = grid_shape(latent.shape, size, axis)[axis]
    padding = [(0, 0)] * latent.ndim
    padding[axis] = (0, groups * size - length)
    parts = jnp.pad(latent, padding)
    parts = parts.reshape(*latent.shape[:axis], groups, size, *latent.shape[axis + 1 :])
    minus = _parity(parts, place) if code == "parity" else _hamming(parts, place)
    minus = minus.reshape(
        *latent.shape[:axis], groups * size, *latent.shape[axis + 1 :]
    )
    minus = jax.lax.slice_in_dim(minus, 0, length, axis=axis)
    one = jnp.ones((), latent.dtype)
    return jnp.where(minus, -one, one)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def word_ste(
    latent: Float[Array, "*shape"], code: str, block: int, axis: int
) -> Float[Array, "*shape"]:
    """`nearest_word`, with the identity as derivative: straight through."""
    return nearest_word(latent, code, block, axis)


@word_ste.defjvp
def _word_ste_jvp(code, block, axis, primals, tangents):
    return word_ste(*primals, code, block, axis), tangents[0]


def _parity(parts: Array, place: int) -> Array:
    """Whether signs are minus; where odd many are, the smallest latent's is turned."""
    minus = parts < 0
    odd = jnp.sum(minus, axis=place, keepdims=True, dtype=jnp.int32) % 2 == 1
    size = jnp.abs(parts)
    is_least = size == jnp.min(size, axis=place, keepdims=True)
    position = jax.lax.broadcasted_iota(jnp.int32, size.shape, place)
    position = jnp.where(is_least, position, size.shape[place])
    first = position == jnp.min(position, axis=place, keepdims=True)
    return minus ^ (odd & first)


def _hamming(parts: Array, place: int) -> Array:
    """Whether signs are minus in the word of the largest sum.

    Unrolled: one loop over all groups, without a matrix of sums.
    """
    table = words("hamming", 8)
    values = [jax.lax.index_in_dim(parts, j, place) for j in range(8)]
    sums = [
        sum(x if sign > 0 else -x for x, sign in zip(values, word, strict=True))
        for word in table
    ]
    largest, best = sums[0], jnp.zeros(jnp.shape(sums[0]), jnp.int32)
    for i, value in enumerate(sums[1:], start=1):
        is_larger = value > largest
        largest, best = jnp.maximum(largest, value), jnp.where(is_larger, i, best)
    # Bit `i` of the mask of a position says whether it is minus in word `i`.
    masks = ((table < 0).T * (1 << np.arange(len(table)))).sum(axis=1)
    masks = masks.astype(np.int32).reshape((8,) + (1,) * (parts.ndim - place - 1))
    masks = masks.reshape((1,) * place + masks.shape)
    return (jnp.right_shift(masks, best) & 1) == 1


def _signs(bits: np.ndarray, code: str) -> np.ndarray:
    return 1 - 2 * complete(bits.astype(np.uint8), code).astype(np.float32)
