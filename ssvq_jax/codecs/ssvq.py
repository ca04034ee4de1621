"""SSVQ: a codebook of magnitudes, and a sign for every weight."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ssvq_jax.codecs.codebook import CodebookCodec, CodebookWeight
from ssvq_jax.codecs.codec import Compressed, Field
from ssvq_jax.core.bits import from_valid_bits, pack_blocks, unpack_bits, valid_bits
from ssvq_jax.core.checks import require_finite
from ssvq_jax.core.sharding import compiler_sharded, place, sharding_of
from ssvq_jax.core.sign_codes import (
    complete,
    nearest_word,
    require_sign_code,
    stored_count,
    stored_positions,
    word_ste,
    words,
)
from ssvq_jax.core.signs import split_signs


@dataclasses.dataclass(frozen=True)
class SSVQ(CodebookCodec):
    """Sign-splitting vector quantization.

    `W_q = C[A] * sign(L)`: k-means on the blocks of `|W|` gives the codebook `C` and
    the codes `A`; the signs are learned through the latent `L = latent_scale * W`.
    Stored: `ceil(log2 k) / d + 1` bits per weight and the codebook. With
    `channel_scale` k-means is of the blocks in units of their output channels' scales
    `s`, and `W_q = s * C[A] * sign(L)`.

    With a `sign_code` the signs of a block are the word of the code that is nearest to
    its latents, in training, too: `W_q = C[A] * word(L)`, and the gradient of `L` is
    that of free signs. Codewords and words are found together; entries of `C` may be
    negative. "parity" stores `(d - 1) / d` bits a sign, "hamming" half a bit.

    Attributes:
      codewords: Size of the codebook, `k`, at least 2.
      block: Weights per block, `d`, at least 1.
      learn_signs: Train the signs; otherwise they are kept as bits from the start.
      latent_scale: `alpha`; the larger, the seldomer signs flip.
      codebook_dtype: What is stored and counted: "float32", "float16", "bfloat16" or
        "int8" with one scale. Training keeps float32. A weight whose codebook float16
        cannot hold when it is encoded, outside of `jit`, gets bfloat16, of as many
        bits; so with `channel_scale`. The node's own `codec` says so.
      channel_scale: `None`, or what one scale an output channel is stored and counted
        in: "float32", "float16" or "bfloat16". Trained in float32 like the codebook;
        at first the channel's root mean square, by importance where that is given.
        The output channel is the last axis of a kernel, the row of an embedding.
      sign_code: What the signs of a block may be: "free", any; "parity", an even number
        of minuses, for blocks of 2 to 12; "hamming", words of the [8, 4] code, for
        blocks of a multiple of 8.
      starts: Of k-means, of which the best goes on: see `fit_codebook`. It tells how a
        weight is encoded, not what is stored: a node's `codec` has 1, and so a file.

    Raises:
      TypeError, ValueError: An option of the wrong type, or out of range.

    Examples:
      >>> SSVQ(codewords=16, block=8).describe()
      'SSVQ(16, 8)'

    References:
      Li et al., "SSVQ: Unleashing the Potential of Vector Quantization with
      Sign-Splitting", ICCV 2025, arXiv 2503.08668.
    """

    codewords: int = 16
    block: int = 8
    learn_signs: bool = True
    latent_scale: float = 1.0
    codebook_dtype: str = "float16"
    channel_scale: str | None = dataclasses.field(default=None, kw_only=True)
    sign_code: str = dataclasses.field(default="free", kw_only=True)
    starts: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        require_sign_code(self.sign_code, self.block)
        if not isinstance(self.learn_signs, bool):
            raise TypeError(
                f"learn_signs: expected True or False, got {self.learn_signs!r}"
            )
        try:
            object.__setattr__(self, "latent_scale", float(self.latent_scale))
        except (TypeError, ValueError, OverflowError):
            raise TypeError(
                f"latent_scale: expected a number, got {self.latent_scale!r}"
            ) from None
        if not 0 < self.latent_scale < math.inf:
            raise ValueError(
                f"latent_scale: expected a number above 0, got {self.latent_scale}"
            )

    @property
    def patterns(self):
        """The words of the code, or all signs of a few weights."""
        return words(self.sign_code, self.block)

    def encode(self, weight, *, key, importance, axis):
        leaves, signs = self.clustered(
            weight, importance, key=key, axis=axis, sign_code=self.sign_code
        )
        if self.sign_code == "free":
            # k-means works on centred points: means of magnitudes may be below 0.
            leaves["codebook"] = jnp.maximum(leaves["codebook"], 0.0)
        if self.learn_signs and self.sign_code == "free":
            # A buffer of its own: a step that donates it leaves the weight alone.
            latent = jnp.array(weight, jnp.float32, copy=True)
            if self.latent_scale != 1:
                latent = latent * self.latent_scale
            return SSVQWeight(latent=latent, **leaves)
        minus = _pack_minus(weight if signs is None else signs, self.block, axis)
        node = SSVQWeight(signs=minus, **leaves)
        return node.with_latent(weight) if self.learn_signs else node

    def fields(self, shape, axis):
        others = math.prod(shape) // shape[axis]
        whole, rest = divmod(shape[axis], self.block)
        count = functools.partial(stored_count, self.sign_code, block=self.block)
        stored = others * (whole * count(self.block) + count(rest))
        signs = Field("signs", stored, 1, limit=2, kind="signs")
        return (*super().fields(shape, axis), signs)

    def restore(self, shape, dtype, axis, stored):
        signs = from_valid_bits(
            stored["signs"],
            shape,
            self.block,
            axis,
            stored_positions(self.sign_code, self.block),
            functools.partial(complete, code=self.sign_code),
        )
        return SSVQWeight(signs=signs, **self.restored(shape, dtype, axis, stored))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SSVQWeight(CodebookWeight):
    """A weight compressed by `SSVQ`. See `CodebookWeight` for the other leaves.

    Attributes:
      latent: float32 of the weight's shape, where signs are learned.
      signs: uint8 `(*grid, ceil(d / 8))`, where they are not: one bit per weight, 1
        for minus, the block's first weight in the lowest bit.
    """

    latent: Any = None
    signs: Any = None

    labels: ClassVar = {**CodebookWeight.labels, "latent": "sign"}
    bit_leaf: ClassVar = "signs"
    bit_factors: ClassVar = (1.0, -1.0)

    def shapes(self):
        shapes = super().shapes()
        if self.latent is not None:
            return {**shapes, "latent": self.shape}
        return {**shapes, "signs": (*shapes["codes"], math.ceil(self.codec.block / 8))}

    def values(self, dtype):
        magnitude = self.lookup(dtype)
        if self.latent is not None:
            codec = self.codec
            return magnitude * word_ste(
                self.latent, codec.sign_code, codec.block, self.axis
            )
        minus = unpack_bits(self.signs, self.codec.block, self.shape, self.axis)
        return jnp.where(minus, -magnitude, magnitude)

    def put(self, codes, factors):
        signs = _pack_minus(factors, self.codec.block, self.axis)
        return super().put(codes, factors).replace(latent=None, signs=signs)

    def like(self, node, weight):
        return self if node.latent is None else self.with_latent(weight)

    def with_latent(self, weight: Array) -> Compressed:
        """The signs as latents, as far from changing as the weight is large."""
        minus = unpack_bits(self.signs, self.codec.block, self.shape, self.axis)
        minus = place(minus, sharding_of(weight))
        magnitude = self.codec.latent_scale * jnp.abs(weight).astype(jnp.float32)
        # -0 would be a plus.
        magnitude = jnp.maximum(magnitude, float(jnp.finfo(jnp.float32).tiny))
        latent = jnp.where(minus, -magnitude, magnitude)
        return self.replace(latent=latent, signs=None)

    def fitted(self, name, value):
        if name == "codebook" and self.codec.sign_code == "free":  # of magnitudes
            value = jnp.maximum(value, 0.0)
        return super().fitted(name, value)

    def finalize(self):
        signs = self.signs
        if self.latent is not None:
            require_finite("latent", self.latent)
            codec = self.codec
            word = _word(self.latent, codec.sign_code, codec.block, self.axis)
            signs = _pack_minus(word, codec.block, self.axis)
        return super().finalize().replace(latent=None, signs=signs)

    def stored(self):
        codec = self.codec
        positions = stored_positions(codec.sign_code, codec.block)
        signs = valid_bits(self.signs, self.shape, codec.block, self.axis, positions)
        return {**super().stored(), "signs": signs}


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _word(latent, code, block, axis):
    find = compiler_sharded(
        lambda latent: nearest_word(latent, code, block, axis), sharding_of(latent)
    )
    return find(latent)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pack_minus(x, block, axis):
    _, sign = split_signs(x)
    return pack_blocks(sign < 0, block, axis)
