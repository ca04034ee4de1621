"""Depthwise convolution."""

import functools
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Padding = Literal["SAME", "symmetric"]
Pads = tuple[tuple[int, int], ...]


class Steps(NamedTuple):
    """Pixels from place to place of the kernel, and from value to value in it."""

    stride: int = 1
    dilation: int = 1


class DepthwiseConv(nnx.Module):
    """Convolution of every channel with a kernel of its own.

    Attributes:
      kernel: `(size, size, 1, channels)`.
      padding: "SAME", as in TensorFlow, where stride 2 pads more at the bottom and on
        the right; "symmetric", as in PyTorch, `dilation * (size // 2)` on all sides.
      dilation: Steps between the pixels that neighbouring values of the kernel meet.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        dilation: int = 1,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, 1, channels)
        initial = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(initial(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(channels)) if use_bias else None
        self.stride = stride
        self.padding: Padding = padding
        self.dilation = dilation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        kernel, steps = self.kernel[...], Steps(self.stride, self.dilation)
        pads = pads_of(x.shape[1:3], kernel.shape[0], steps, self.padding)
        x = jax.lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _shifted_products(x, kernel, steps, pads),
            default=functools.partial(_grouped, steps=steps, pads=pads),
        )
        return x if self.bias is None else x + self.bias[...]


def pads_of(sides: Sequence[int], size: int, steps: Steps, padding: Padding) -> Pads:
    """Zeros before and after the rows and the columns."""
    stride, dilation = steps
    if padding == "symmetric":
        around = (dilation * (size // 2), dilation * (size // 2))
        return around, around
    reach = dilation * (size - 1) + 1
    pads = jax.lax.padtype_to_pads(sides, (reach, reach), (stride, stride), "SAME")
    return tuple((low, high) for low, high in pads)


def _grouped(x: jax.Array, kernel: jax.Array, steps: Steps, pads: Pads) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (steps.stride, steps.stride),
        pads,
        rhs_dilation=(steps.dilation, steps.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


# On CPUs XLA's grouped convolution is two orders slower than sums of shifted products,
# and what `jax.grad` makes of those three to five times slower than the sums below.
# The barriers keep XLA from computing what comes before once for every shift.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_products(
    x: jax.Array, kernel: jax.Array, steps: Steps, pads: Pads
) -> jax.Array:
    padded = jax.lax.optimization_barrier(_padded(x, pads))
    reach = steps.dilation * (kernel.shape[0] - 1)
    out = [(side - 1 - reach) // steps.stride + 1 for side in padded.shape[1:3]]
    return _correlate(padded, kernel, out, steps)


def _forward(
    x: jax.Array, kernel: jax.Array, steps: Steps, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_products(x, kernel, steps, pads), (x, kernel)


def _backward(
    steps: Steps, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    out = gradient.shape[1:3]
    # Of the images: the gradient, spread by the stride, meets the kernel reversed.
    spread = [(0, 0, 0)]
    for (before, _), side, count, taps in zip(
        pads, x.shape[1:3], out, kernel.shape[:2], strict=True
    ):
        reach = steps.dilation * (taps - 1)
        low = reach - before
        length = steps.stride * (count - 1) + 1
        spread.append((low, side + reach - low - length, steps.stride - 1))
    zero = jnp.zeros((), gradient.dtype)
    spread = jax.lax.pad(gradient, zero, [*spread, (0, 0, 0)])
    spread = jax.lax.optimization_barrier(spread)
    one = Steps(1, steps.dilation)
    of_images = _correlate(spread, kernel[::-1, ::-1], x.shape[1:3], one)

    # Of the kernel: image by image, so that what is added up stays in the cache.
    padded, gradient = jax.lax.optimization_barrier((_padded(x, pads), gradient))

    def add(total, pair):
        image, own = pair
        products = [
            jnp.sum(part * own, (0, 1)) for part in _shifts(image, kernel, out, steps)
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
    padded: jax.Array, kernel: jax.Array, out: Sequence[int], steps: Steps
) -> jax.Array:
    """The sum over the kernel of shifted images times its values."""
    values = kernel.reshape(-1, kernel.shape[-1])
    shifts = _shifts(padded, kernel, out, steps)
    products = [part * values[i] for i, part in enumerate(shifts)]
    return functools.reduce(operator.add, products)


def _shifts(
    padded: jax.Array, kernel: jax.Array, out: Sequence[int], steps: Steps
) -> list[jax.Array]:
    """What every value of the kernel meets; of one image or a batch."""
    stride, dilation = steps
    rows, columns = (stride * (n - 1) + 1 for n in out)
    return [
        padded[..., i : i + rows : stride, j : j + columns : stride, :]
        for i in range(0, dilation * kernel.shape[0], dilation)
        for j in range(0, dilation * kernel.shape[1], dilation)
    ]
