"""CSPDarknet, YOLOX's backbone, and what it is made of; attributes as there.

References:
  Ge, Liu, Wang, Li and Sun, "YOLOX: Exceeding YOLO Series in 2021", 2021.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.depthwise import DepthwiseConv
from experiments.models.mobile import conv


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A YOLOX.

    Attributes:
      depth: Factor of the numbers of blocks.
      width: Factor of the numbers of channels.
      size: Height and width of its images.
      depthwise: Whether convolutions of 3x3 are depthwise ones and 1x1 behind.
      batch_norm: Its epsilon; `None` where it is folded into the convolutions.
    """

    depth: float
    width: float
    size: int = 640
    depthwise: bool = False
    batch_norm: float | None = 1e-3

    def channels(self, full: int) -> int:
        """Channels, of so many in full width."""
        return int(full * self.width)

    def blocks(self, full: int = 3) -> int:
        """Blocks, of so many in full depth; a multiple of those of three."""
        return full // 3 * max(round(3 * self.depth), 1)


class BaseConv(nnx.Module):
    """Convolution, batch norm unless it is folded, SiLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        architecture: Architecture,
        rngs: nnx.Rngs,
        *,
        depthwise: bool = False,
    ):
        epsilon = architecture.batch_norm
        use_bias = epsilon is None
        if depthwise:
            self.conv = DepthwiseConv(
                inputs,
                size,
                stride=stride,
                padding="symmetric",
                use_bias=use_bias,
                rngs=rngs,
            )
        else:
            self.conv = conv(
                inputs,
                outputs,
                size,
                stride,
                rngs,
                use_bias=use_bias,
                padding="symmetric",
            )
        if epsilon is not None:
            self.bn = nnx.BatchNorm(outputs, momentum=0.97, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        x = self.conv(x)
        if hasattr(self, "bn"):
            x = self.bn(x).astype(x.dtype)  # statistics are float32
        return nnx.silu(x)


class DWConv(nnx.Module):
    """A depthwise convolution of 3x3 and a pointwise one; arguments as of `conv3`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        architecture: Architecture,
        rngs: nnx.Rngs,
    ):
        self.dconv = BaseConv(
            inputs, inputs, 3, stride, architecture, rngs, depthwise=True
        )
        self.pconv = BaseConv(inputs, outputs, 1, 1, architecture, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        return self.pconv(self.dconv(x))


def conv3(
    inputs: int, outputs: int, stride: int, architecture: Architecture, rngs: nnx.Rngs
) -> nnx.Module:
    """Convolution of 3x3, depthwise and pointwise where the architecture says so."""
    if architecture.depthwise:
        return DWConv(inputs, outputs, stride, architecture, rngs)
    return BaseConv(inputs, outputs, 3, stride, architecture, rngs)


def sequence(x: jax.Array, modules: Any) -> jax.Array:
    """One module after the other."""
    for module in modules:
        x = module(x)
    return x


class Bottleneck(nnx.Module):
    """1x1 and 3x3, added to the input where there is a shortcut."""

    def __init__(
        self,
        channels: int,
        architecture: Architecture,
        rngs: nnx.Rngs,
        *,
        shortcut: bool,
    ):
        self.conv1 = BaseConv(channels, channels, 1, 1, architecture, rngs)
        self.conv2 = conv3(channels, channels, 1, architecture, rngs)
        self.shortcut = shortcut

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPLayer(nnx.Module):
    """Bottlenecks on one half of the channels, nothing on the other (C3)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        architecture: Architecture,
        rngs: nnx.Rngs,
        *,
        shortcut: bool = False,
    ):
        hidden = outputs // 2
        self.conv1 = BaseConv(inputs, hidden, 1, 1, architecture, rngs)
        self.conv2 = BaseConv(inputs, hidden, 1, 1, architecture, rngs)
        self.conv3 = BaseConv(2 * hidden, outputs, 1, 1, architecture, rngs)
        self.m = nnx.List(
            [
                Bottleneck(hidden, architecture, rngs, shortcut=shortcut)
                for _ in range(blocks)
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        halves = [sequence(self.conv1(x), self.m), self.conv2(x)]
        return self.conv3(jnp.concatenate(halves, axis=-1))


class Focus(nnx.Module):
    """Four pixels become the channels of one, then a convolution."""

    def __init__(self, outputs: int, architecture: Architecture, rngs: nnx.Rngs):
        self.conv = BaseConv(12, outputs, 3, 1, architecture, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, 3)`, sides even."""
        offsets = ((0, 0), (1, 0), (0, 1), (1, 1))
        parts = [x[:, row::2, column::2] for row, column in offsets]
        return self.conv(jnp.concatenate(parts, axis=-1))


class SPPBottleneck(nnx.Module):
    """Maxima over windows of 5, 9 and 13 beside the input."""

    def __init__(self, channels: int, architecture: Architecture, rngs: nnx.Rngs):
        hidden = channels // 2
        self.conv1 = BaseConv(channels, hidden, 1, 1, architecture, rngs)
        self.conv2 = BaseConv(4 * hidden, channels, 1, 1, architecture, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        x = self.conv1(x)
        pools = [nnx.max_pool(x, (n, n), padding="SAME") for n in (5, 9, 13)]
        return self.conv2(jnp.concatenate([x, *pools], axis=-1))


class CSPDarknet(nnx.Module):
    """Images to maps of strides 8, 16 and 32."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        widths = [architecture.channels(n) for n in (64, 128, 256, 512, 1024)]

        def down(stage: int) -> nnx.Module:
            inputs, outputs = widths[stage - 2 : stage]
            return conv3(inputs, outputs, 2, architecture, rngs)

        def mixed(stage: int, blocks: int, *, shortcut: bool = True) -> CSPLayer:
            n, channels = architecture.blocks(blocks), widths[stage - 1]
            return CSPLayer(
                channels, channels, n, architecture, rngs, shortcut=shortcut
            )

        self.stem = Focus(widths[0], architecture, rngs)
        self.dark2 = nnx.List([down(2), mixed(2, 3)])
        self.dark3 = nnx.List([down(3), mixed(3, 9)])
        self.dark4 = nnx.List([down(4), mixed(4, 9)])
        pooled = SPPBottleneck(widths[4], architecture, rngs)
        self.dark5 = nnx.List([down(5), pooled, mixed(5, 3, shortcut=False)])

    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Images `(batch, size, size, 3)` to what every stage gives."""
        x, found = self.stem(images), []
        for stage in (self.dark2, self.dark3, self.dark4, self.dark5):
            x = sequence(x, stage)
            found.append(x)
        return found
