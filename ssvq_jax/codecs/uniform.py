"""Uniform quantization with learned step sizes, LSQ."""

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ssvq_jax.codecs.codec import SCALE_DTYPES, Codec, Compressed, Field
from ssvq_jax.codecs.nearest import Choice
from ssvq_jax.core.blocks import channel_axis, channel_shape
from ssvq_jax.core.checks import (
    as_array,
    holding_dtype,
    largest_of,
    require_finite,
    require_integer,
)
from ssvq_jax.core.sharding import (
    compiler_sharded,
    place,
    replicated,
    sharding_of,
    split_sharding,
)

_SLAB = 1 << 18  # weights, 1 MiB
# Steps that are tried, in units of the one whose largest code is the largest weight. 0
# is the step that fits best to the best codes so far; before there are any, LSQ's.
_RATIOS = (0.0, 1.0, *np.linspace(1.04, 0.01, 96), 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Uniform(Codec):
    """Uniform quantization to signed integers, one learned step per output channel.

    `W_q = step * round(clip(W / step, -2^(b-1), 2^(b-1) - 1))`; straight-through in
    the rounding, gradient of the step scaled by `1 / sqrt(n * q_max)` for the `n`
    weights that share it. Stored: `b` bits per weight and the steps.

    The first step is, of about a hundred, the one of least importance-weighted squared
    error of its channel, rounded as it is stored: a start for training, and good for
    trained weights without any. It is never worse than LSQ's own start,
    `2 mean(|W|) / sqrt(q_max)`, which is far off at many bits, nor than
    `max(|W|) / q_max`.

    The output channel is the last axis of a kernel (so of a depthwise one, too), the
    row of an embedding.

    Attributes:
      bits: `b`, 2 to 8.
      scale_dtype: What steps are stored in: "float32", "float16" or "bfloat16". Its
        smallest normal number is the smallest step. Where float16 cannot hold a
        weight's steps it is bfloat16 for that weight, as `codebook_dtype` of `SSVQ`.

    Raises:
      TypeError, ValueError: An option of the wrong type, or out of range.

    References:
      Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv 1902.08153.
    """

    bits: int
    scale_dtype: str = "float16"

    def __post_init__(self):
        require_integer("bits", self.bits, 2, 8)
        if self.scale_dtype not in SCALE_DTYPES:
            raise ValueError(
                f"scale_dtype: expected one of {', '.join(SCALE_DTYPES)}, "
                f"got {self.scale_dtype!r}"
            )

    @property
    def block(self) -> int:
        """Weights that share a code."""
        return 1

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer, `(-2^(b-1), 2^(b-1) - 1)`."""
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def encode(self, weight, *, key, importance, axis):
        del key  # nothing is drawn
        latent = jnp.array(weight, jnp.float32, copy=True)  # steps may donate it
        # Channels lie whole on a device, where they can: no sum depends on devices.
        channels = channel_shape(weight.shape, axis)
        units = (
            1 if n > 1 else size for n, size in zip(channels, weight.shape, strict=True)
        )
        split = split_sharding(latent, tuple(units))
        codec = self.holding(latent)
        placed = place(latent, split)
        importance = None if importance is None else place(importance, split)
        channel, others = (
            channel_axis(weight.shape, axis),
            _other_axes(weight.shape, axis),
        )
        # Under `jit` only the compiler may know the devices.
        alone = not isinstance(latent, Tracer) and len(latent.devices()) == 1
        if alone and channel is not None and jax.default_backend() == "cpu":
            find = functools.partial(_least_error_in_slabs, codec, others, channel)
        else:
            find = compiler_sharded(
                functools.partial(_least_error, codec, others),
                replicated(sharding_of(placed)),
            )
        scale = place(find(placed, importance), replicated(sharding_of(latent)))
        return UniformWeight(
            codec=codec,
            shape=weight.shape,
            dtype=weight.dtype,
            axis=axis,
            weight=latent,
            scale=scale,
        )

    def holding(self, weight, stack=0):
        if self.scale_dtype != "float16":
            return self
        widest = largest_of(as_array(weight), stack) / self.limits[1]
        dtype = holding_dtype(self.scale_dtype, widest, stack)
        return dataclasses.replace(self, scale_dtype=dtype)

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

    linear_leaves: ClassVar = ("scale",)
    separable: ClassVar = True

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

    @property
    def scales(self):
        return self._step(self.scale)

    def choose(self, targets, *, metric=None, importance=None, valid=None):
        del metric, importance, valid  # every weight has the best code of its own
        codes = jnp.round(jnp.clip(targets[:, 0], *self.codec.limits))
        return Choice(codes.astype(jnp.int32), None)

    def chosen(self, choice):
        return choice.codes.astype(jnp.float32)[..., None]

    def put(self, codes, factors):
        # Steps that training took below 0 are used by their magnitude.
        scale = self.scales.reshape(self.scale.shape).astype(self.scale.dtype)
        return self.replace(scale=scale, weight=None, codes=codes.astype(jnp.int8))

    def like(self, node, weight):
        if node.weight is None:
            return self
        latent = self.codes.astype(jnp.float32) * self.scales
        return self.replace(weight=latent, codes=None)

    def finalize(self):
        if self.weight is None:
            return self
        require_finite("weight", self.weight)
        require_finite("scale", self.scale)
        # Codes are chosen for the steps as they are read again, rounded to their dtype.
        step = self._step(self.scale.astype(self.codec.scale_dtype))
        stored = step.reshape(self.scale.shape).astype(self.codec.scale_dtype)
        require_finite("scale", stored.astype(jnp.float32))
        codes = _codes(self.weight, step, self.codec.limits)
        return self.replace(scale=stored, weight=None, codes=codes)

    def stored(self):
        lowest, _ = self.codec.limits
        codes = np.asarray(self.codes).ravel().astype(np.int16) - lowest
        return {"scale": np.asarray(self.scale), "codes": codes.astype(np.uint8)}

    def _step(self, scale):
        """Positive steps that broadcast against the weight, float32."""
        return _at_least_tiny(self.codec, jnp.abs(self._broadcast(scale)))

    def _broadcast(self, scale):
        return scale.astype(jnp.float32).reshape(channel_shape(self.shape, self.axis))


@functools.partial(jax.jit, static_argnums=2)
def _codes(weight, step, limits):
    """In one loop: the steps between would each be as large as the weight."""
    return jnp.round(jnp.clip(weight / step, *limits)).astype(jnp.int8)


class _Best(NamedTuple):
    """The best step of every channel so far.

    Attributes:
      step: The step; it broadcasts against the weight.
      error: Its squared error.
      refit: The step that fits best to the codes that it gives.
    """

    step: Float[Array, "..."]
    error: Float[Array, "..."]
    refit: Float[Array, "..."]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _least_error_in_slabs(
    codec: Uniform,
    others: tuple[int, ...],
    channel: int,
    weight: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
) -> Float[Array, " channels"]:
    """`_least_error` of some channels at a time, while they are in cache."""
    count = weight.shape[channel]
    size = min(count, max(1, _SLAB * count // weight.size))

    def visit(i, steps):
        start = jnp.minimum(i * size, count - size)

        def some(x):
            return jax.lax.dynamic_slice_in_dim(x, start, size, channel)

        found = _least_error(codec, others, *jax.tree.map(some, (weight, importance)))
        return jax.lax.dynamic_update_slice(steps, found, (start,))

    blank = jnp.zeros_like(weight, shape=(count,))
    return jax.lax.fori_loop(0, -(-count // size), visit, blank)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _least_error(
    codec: Uniform,
    others: tuple[int, ...],
    weight: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
) -> Float[Array, " channels"]:
    """The step of least weighted squared error of every channel, as it is stored.

    Steps are tried one after the other, in the memory of one. A channel without
    importance has its plain error; the step of one of zeros is 1.
    """
    lowest, highest = codec.limits
    total = functools.partial(jnp.sum, axis=others, keepdims=True)
    most = functools.partial(jnp.max, axis=others, keepdims=True)
    if importance is None:  # not a constant: compilers take seconds to sum those
        importance = jnp.isfinite(weight).astype(jnp.float32)
    # Sums of large importance overflow, and squares of large weights.
    heaviest = most(importance)
    importance = importance / jnp.where(heaviest > 0, heaviest, 1.0)
    importance = jnp.where(heaviest > 0, importance, 1.0)
    weight = jnp.where(importance > 0, weight, 0.0)
    largest = most(jnp.abs(weight))
    unit = jnp.where(largest > 0, largest, 1.0)

    def stored(step):
        rounded = step.astype(codec.scale_dtype).astype(jnp.float32)
        # What overflows its dtype is an error where it is stored, not in training.
        return _at_least_tiny(codec, jnp.where(jnp.isfinite(rounded), rounded, step))

    def attempt(best, ratio):
        step = stored(jnp.where(ratio > 0, ratio * largest / highest, best.refit))
        codes = jnp.round(jnp.clip(weight / step, lowest, highest))
        error = total(importance * jnp.square((weight - codes * step) / unit))
        norm = total(importance * jnp.square(codes))
        fitted = total(importance * codes * (weight / unit)) * unit
        refit = jnp.where(norm > 0, fitted / jnp.where(norm > 0, norm, 1.0), step)
        better = error < best.error
        new = _Best(step, error, refit)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best), None

    mean = total(importance * (jnp.abs(weight) / unit)) * unit / total(importance)
    first = stored(2 * mean / math.sqrt(highest))  # that of LSQ
    best = _Best(first, jnp.full_like(first, jnp.inf), first)
    best, _ = jax.lax.scan(attempt, best, jnp.array(_RATIOS, jnp.float32))
    return jnp.where(largest > 0, best.step, 1.0).reshape(-1)


def _at_least_tiny(codec, step):
    """Steps below the smallest normal number of their dtype are that number."""
    return jnp.maximum(step, float(jnp.finfo(codec.scale_dtype).tiny))


def _replace_value(x, value):
    """Exactly `value`, with the derivative of `x`."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))


def _channels(shape, axis):
    return math.prod(channel_shape(shape, axis))


def _other_axes(shape, axis):
    channel = channel_axis(shape, axis)
    return tuple(i for i in range(len(shape)) if i != channel)
