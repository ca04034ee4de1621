"""Depthwise convolution."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


class DepthwiseConv(nnx.Module):
    """Convolution of every channel with a kernel of its own, padded as `SAME`.

    Attributes:
      kernel: `(height, width, 1, channels)`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, 1, channels)
        initial = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(initial(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(channels)) if use_bias else None
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        x = jax.lax.platform_dependent(
            x,
            self.kernel[...],
            cpu=functools.partial(_shifted_products, stride=self.stride),
            default=functools.partial(_grouped, stride=self.stride),
        )
        return x if self.bias is None else x + self.bias[...]


def _grouped(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifted_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same numbers: XLA's grouped convolution is two orders slower on CPUs."""
    height, width = kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(
        x.shape[1:3], (height, width), (stride, stride), "SAME"
    )
    out = [-(-n // stride) for n in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total = None
    for i in range(height):
        for j in range(width):
            rows = slice(i, i + stride * (out[0] - 1) + 1, stride)
            columns = slice(j, j + stride * (out[1] - 1) + 1, stride)
            product = x[:, rows, columns] * kernel[i, j, 0]
            total = product if total is None else total + product
    assert total is not None
    return total
