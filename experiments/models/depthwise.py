"""Depthwise convolution."""

import functools
import operator
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Padding = Literal["SAME", "symmetric"]
Pads = tuple[tuple[int, int], ...]


class DepthwiseConv(nnx.Module):
    """Convolution of every channel with a kernel of its own.

    Attributes:
      kernel: `(size, size, 1, channels)`.
      padding: "SAME", as in TensorFlow, where stride 2 pads more at the bottom and on
        the right; "symmetric", as in PyTorch, `size // 2` on all sides.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, 1, channels)
        initial = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(initial(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(channels)) if use_bias else None
        self.stride = stride
        self.padding: Padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        kernel = self.kernel[...]
        pads = pads_of(x.shape[1:3], kernel.shape[0], self.stride, self.padding)
        x = jax.lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _shifted_products(x, kernel, self.stride, pads),
            default=functools.partial(_grouped, stride=self.stride, pads=pads),
        )
        return x if self.bias is None else x + self.bias[...]


def pads_of(sides: Sequence[int], size: int, stride: int, padding: Padding) -> Pads:
    """Zeros before and after the rows and the columns."""
    if padding == "symmetric":
        return ((size // 2, size // 2),) * 2
    pads = jax.lax.padtype_to_pads(sides, (size, size), (stride, stride), "SAME")
    return tuple((low, high) for low, high in pads)


def _grouped(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


# On CPUs XLA's grouped convolution is two orders slower than sums of shifted products,
# and what `jax.grad` makes of those three to five times slower than the sums below.
# The barriers keep XLA from computing what comes before once for every shift.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_products(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    padded = jax.lax.optimization_barrier(_padded(x, pads))
    size = kernel.shape[0]
    out = [(side - size) // stride + 1 for side in padded.shape[1:3]]
    return _correlate(padded, kernel, out, stride)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_products(x, kernel, stride, pads), (x, kernel)


def _backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    out = gradient.shape[1:3]
    # Of the images: the gradient, spread by the stride, meets the kernel reversed.
    spread = [(0, 0, 0)]
    for (before, _), side, steps, taps in zip(
        pads, x.shape[1:3], out, kernel.shape[:2], strict=True
    ):
        low = taps - 1 - before
        length = stride * (steps - 1) + 1
        spread.append((low, side + taps - 1 - low - length, stride - 1))
    zero = jnp.zeros((), gradient.dtype)
    spread = jax.lax.pad(gradient, zero, [*spread, (0, 0, 0)])
    spread = jax.lax.optimization_barrier(spread)
    of_images = _correlate(spread, kernel[::-1, ::-1], x.shape[1:3], 1)

    # Of the kernel: image by image, so that what is added up stays in the cache.
    padded, gradient = jax.lax.optimization_barrier((_padded(x, pads), gradient))

    def add(total, pair):
        image, own = pair
        products = [
            jnp.sum(part * own, (0, 1)) for part in _shifts(image, kernel, out, stride)
        ]
        return total + jnp.stack(products), None

    taps = kernel.shape[0] * kernel.shape[1]
    total = jnp.zeros((taps, x.shape[-1]), x.dtype)
    of_kernel, _ = jax.lax.scan(add, total, (padded, gradient))
    return of_images, of_kernel.reshape(kernel.shape)


_shifted_products.defvjp(_forward, _backward)


def _padded(x: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _correlate(
    padded: jax.Array, kernel: jax.Array, out: Sequence[int], stride: int
) -> jax.Array:
    """The sum over the kernel of shifted images times its values."""
    values = kernel.reshape(-1, kernel.shape[-1])
    shifts = _shifts(padded, kernel, out, stride)
    products = [part * values[i] for i, part in enumerate(shifts)]
    return functools.reduce(operator.add, products)


def _shifts(
    padded: jax.Array, kernel: jax.Array, out: Sequence[int], stride: int
) -> list[jax.Array]:
    """What every value of the kernel meets; of one image or a batch."""
    rows, columns = (stride * (n - 1) + 1 for n in out)
    return [
        padded[..., i : i + rows : stride, j : j + columns : stride, :]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
