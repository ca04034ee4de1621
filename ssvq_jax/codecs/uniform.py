"""Uniform quantization with learned step sizes, LSQ."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssvq_jax.codecs.codec import Codec, Compressed, Field
from ssvq_jax.core.blocks import channel_axis, channel_shape
from ssvq_jax.core.checks import require_finite, require_integer
from ssvq_jax.core.sharding import replicate

_SCALE_DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Uniform(Codec):
    """Uniform quantization to signed integers, one learned step per output channel.

    `W_q = step * round(clip(W / step, -2^(b-1), 2^(b-1) - 1))`; straight-through in
    the rounding, gradient of the step scaled by `1 / sqrt(n * q_max)` for the `n`
    weights that share it. Stored: `b` bits per weight and the steps.

    The output channel is the last axis of a kernel (so of a depthwise one, too), the
    row of an embedding.

    Attributes:
      bits: `b`, 2 to 8.
      scale_dtype: What steps are stored in: "float32", "float16" or "bfloat16". Its
        smallest normal number is the smallest step.

    Raises:
      TypeError, ValueError: An option of the wrong type, or out of range.

    References:
      Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153.
    """

    bits: int
    scale_dtype: str = "float16"

    def __post_init__(self):
        require_integer("bits", self.bits, 2, 8)
        if self.scale_dtype not in _SCALE_DTYPES:
            raise ValueError(
                f"scale_dtype: expected one of {', '.join(_SCALE_DTYPES)}, "
                f"got {self.scale_dtype!r}"
            )

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer, `(-2^(b-1), 2^(b-1) - 1)`."""
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def encode(self, weight, *, key, importance, axis):
        del key  # nothing is drawn
        latent = weight.astype(jnp.float32)
        magnitude = jnp.abs(replicate(latent))
        if importance is None:
            importance = jnp.ones_like(magnitude)
        importance = replicate(importance)
        others = _other_axes(weight.shape, axis)
        mass = jnp.sum(importance, axis=others)
        mean = jnp.sum(magnitude * importance, axis=others)
        mean = mean / jnp.where(mass > 0, mass, 1.0)
        _, largest = self.limits
        # LSQ's first step, `2 mean(|W|) / sqrt(q_max)`.
        scale = 2 * mean.reshape(-1) / math.sqrt(largest)
        return UniformWeight(
            codec=self,
            shape=weight.shape,
            dtype=weight.dtype,
            axis=axis,
            weight=latent,
            scale=jnp.where(scale > 0, scale, 1.0),
        )

    def fields(self, shape, axis):
        scale_bits = 8 * jnp.dtype(self.scale_dtype).itemsize
        channels, count = _channels(shape, axis), math.prod(shape)
        return (
            Field("scale", channels, scale_bits, self.scale_dtype, kind="codebooks"),
            Field("codes", count, self.bits, limit=1 << self.bits, kind="codes"),
        )

    def restore(self, shape, dtype, axis, stored):
        lowest, _ = self.limits
        scale = jnp.asarray(stored["scale"])
        # The largest weight that codes can give is that of `-2^(b-1)`.
        largest = scale.astype(jnp.float32) * -lowest
        require_finite("scale", largest.astype(dtype))
        codes = (stored["codes"].astype(np.int16) + lowest).astype(np.int8)
        return UniformWeight(
            codec=self,
            shape=shape,
            dtype=dtype,
            axis=axis,
            scale=scale,
            codes=jnp.asarray(codes.reshape(shape)),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UniformWeight(Compressed):
    """A weight compressed by `Uniform`. See `Compressed`.

    Attributes:
      scale: Step of every output channel, `(channels,)`; float32 in training.
      weight: float32 of the weight's shape, in training.
      codes: int8 of the weight's shape, in the inference form.
    """

    scale: Any
    weight: Any = None
    codes: Any = None

    @property
    def grid_leaf(self):
        return self.codes if self.weight is None else self.weight

    def shapes(self):
        leaf = "codes" if self.weight is None else "weight"
        return {"scale": (_channels(self.shape, self.axis),), leaf: self.shape}

    def values(self, dtype):
        if dtype == jnp.int8:
            if self.weight is not None:
                raise ValueError("dtype: int8 needs a finalized weight")
            return self.codes
        if self.weight is None:
            return self.codes.astype(jnp.float32) * self._broadcast(self.scale)
        step = self._step(self.scale)
        _, largest = self.codec.limits
        shared = self.size // _channels(self.shape, self.axis)
        factor = 1 / math.sqrt(shared * largest)
        step = _replace_value(factor * step, step)
        position = jnp.clip(self.weight / step, *self.codec.limits)
        return _replace_value(position, jnp.round(position)) * step

    def finalize(self):
        if self.weight is None:
            return self
        require_finite("weight", self.weight)
        require_finite("scale", self.scale)
        # Codes are chosen for the steps as they are read again, rounded to their dtype.
        step = self._step(self.scale.astype(self.codec.scale_dtype))
        codes = jnp.round(jnp.clip(self.weight / step, *self.codec.limits))
        stored = step.reshape(self.scale.shape).astype(self.codec.scale_dtype)
        require_finite("scale", stored.astype(jnp.float32))
        return self.replace(scale=stored, weight=None, codes=codes.astype(jnp.int8))

    def stored(self):
        lowest, _ = self.codec.limits
        codes = np.asarray(self.codes).ravel().astype(np.int16) - lowest
        return {"scale": np.asarray(self.scale), "codes": codes.astype(np.uint8)}

    def _step(self, scale):
        """Positive steps that broadcast against the weight, float32."""
        step = jnp.abs(self._broadcast(scale))
        return jnp.maximum(step, float(jnp.finfo(self.codec.scale_dtype).tiny))

    def _broadcast(self, scale):
        return scale.astype(jnp.float32).reshape(channel_shape(self.shape, self.axis))


def _replace_value(x, value):
    """Exactly `value`, with the derivative of `x`."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))


def _channels(shape, axis):
    return math.prod(channel_shape(shape, axis))


def _other_axes(shape, axis):
    channel = channel_axis(shape, axis)
    return tuple(i for i in range(len(shape)) if i != channel)
