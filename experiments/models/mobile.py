"""Networks of inverted residual blocks, and MobileNet-V1; attributes as in timm.

Tan and Le 2019 and its "lite" variants (no squeeze-excite, ReLU6), Sandler et al. 2018,
Howard et al. 2017.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.depthwise import DepthwiseConv, Padding


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
      repeats: Number of blocks.
      kernel: Height and width of the depthwise convolution.
      stride: Of the first block.
      expansion: Channels inside a block over those at its input.
      channels: Channels of its output.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of inverted residual blocks.

    Attributes:
      stages: Its stages.
      size: Height and width of its images.
      batch_norm: Its epsilon; `None` where it is folded into the convolutions.
      padding: Of convolutions, see `DepthwiseConv`.
      stem: Channels after the first convolution.
      head: Channels after the last.
    """

    stages: Sequence[Stage]
    size: int = 224
    batch_norm: float | None = 1e-3
    padding: Padding = "SAME"
    stem: int = 32
    head: int = 1280


_LITE = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80), Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)  # fmt: skip
MOBILENET_V2 = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(3, 3, 2, 6, 32),
    Stage(4, 3, 2, 6, 64), Stage(3, 3, 1, 6, 96), Stage(3, 3, 2, 6, 160),
    Stage(1, 3, 1, 6, 320),
)  # fmt: skip


def _scaled(
    stages: Sequence[Stage], width: float, depth: float = 1.0
) -> tuple[Stage, ...]:
    """Stages made wider and deeper; the first and the last not deeper."""
    last = len(stages) - 1
    return tuple(
        dataclasses.replace(
            stage,
            channels=_round_channels(width * stage.channels),
            repeats=stage.repeats
            if i in (0, last)
            else math.ceil(depth * stage.repeats),
        )
        for i, stage in enumerate(stages)
    )


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8, but not below nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


_PYTORCH: dict[str, Any] = {"batch_norm": 1e-5, "padding": "symmetric"}
ARCHITECTURES = {
    "efficientnet_lite0": Architecture(_LITE),
    "efficientnet_lite1": Architecture(_scaled(_LITE, 1.0, 1.1), 240),
    "efficientnet_lite2": Architecture(_scaled(_LITE, 1.1, 1.2), 260),
    "efficientnet_lite3": Architecture(_scaled(_LITE, 1.2, 1.4), 300),
    "efficientnet_lite4": Architecture(_scaled(_LITE, 1.4, 1.8), 380),
    "efficientnet_lite0.ra_in1k": Architecture(_LITE, **_PYTORCH),
    "mobilenet_v2_100": Architecture(MOBILENET_V2, batch_norm=None),
    "mobilenet_v2_100_unfolded": Architecture(MOBILENET_V2),
    "mobilenetv2_050": Architecture(_scaled(MOBILENET_V2, 0.5), stem=16, **_PYTORCH),
    "mobilenetv2_100": Architecture(MOBILENET_V2, **_PYTORCH),
    "mobilenetv2_110d": Architecture(_scaled(MOBILENET_V2, 1.1, 1.2), **_PYTORCH),
    "mobilenetv2_120d": Architecture(_scaled(MOBILENET_V2, 1.2, 1.4), **_PYTORCH),
    "mobilenetv2_140": Architecture(
        _scaled(MOBILENET_V2, 1.4), stem=48, head=1792, **_PYTORCH
    ),
}
"""By the names of the networks; those of MobileNet-V2 with a d are deeper."""


class PointwiseConv(nnx.Conv):
    """Convolution of 1x1 as a product: on CPUs its gradient is ten times faster."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        del out_sharding  # for convolutions on meshes of explicit axes
        x = inputs.reshape(-1, inputs.shape[-1]) @ self.kernel[0, 0]
        if self.bias is not None:
            x += self.bias[...]
        return x.reshape(*inputs.shape[:-1], -1)


def conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    rngs: nnx.Rngs,
    *,
    use_bias: bool,
    padding: Padding = "SAME",
) -> nnx.Conv:
    """A convolution of `size` by `size`."""
    kind = PointwiseConv if size == 1 else nnx.Conv
    return kind(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding="SAME" if padding == "SAME" else size // 2,
        use_bias=use_bias,
        rngs=rngs,
    )


def _norm(channels: int, epsilon: float | None, rngs: nnx.Rngs) -> nnx.BatchNorm | None:
    if epsilon is None:
        return None
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=epsilon, rngs=rngs)


def _apply(norm: nnx.BatchNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x).astype(x.dtype)  # statistics are float32


class InvertedResidual(nnx.Module):
    """Expand, convolve every channel, project; added to the input where it fits."""

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        stride: int,
        architecture: Architecture,
        rngs: nnx.Rngs,
        *,
        dilation: int = 1,
    ):
        epsilon, wide = architecture.batch_norm, inputs * stage.expansion
        use_bias = epsilon is None
        self.expands = stage.expansion > 1
        self.residual = stride == 1 and inputs == stage.channels
        depthwise = DepthwiseConv(
            wide,
            stage.kernel,
            stride=stride,
            padding=architecture.padding,
            dilation=dilation,
            use_bias=use_bias,
            rngs=rngs,
        )
        project = conv(wide, stage.channels, 1, 1, rngs, use_bias=use_bias)
        norms = [_norm(n, epsilon, rngs) for n in (wide, wide, stage.channels)]
        self.conv_dw = depthwise
        if self.expands:
            self.conv_pw = conv(inputs, wide, 1, 1, rngs, use_bias=use_bias)
            self.conv_pwl = project
            self.bn1, self.bn2, self.bn3 = norms
        else:
            self.conv_pw = project
            self.bn1, self.bn2 = norms[1:]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `(batch, height, width, channels)`."""
        shortcut = x
        if self.expands:
            x = nnx.relu6(_apply(self.bn1, self.conv_pw(x)))
            x = nnx.relu6(_apply(self.bn2, self.conv_dw(x)))
            x = _apply(self.bn3, self.conv_pwl(x))
        else:
            x = nnx.relu6(_apply(self.bn1, self.conv_dw(x)))
            x = _apply(self.bn2, self.conv_pw(x))
        return x + shortcut if self.residual else x


class Backbone(nnx.Module):
    """The stem and all blocks.

    Args:
      architecture: Their sizes.
      output_stride: Pixels of an image to one of the last stage; where strides would
        make it more, later kernels are dilated instead (Chen et al. 2017).
      rngs: For the weights.
    """

    def __init__(
        self, architecture: Architecture, *, output_stride: int = 32, rngs: nnx.Rngs
    ):
        epsilon, channels = architecture.batch_norm, architecture.stem
        self.conv_stem = conv(
            3,
            channels,
            3,
            2,
            rngs,
            use_bias=epsilon is None,
            padding=architecture.padding,
        )
        self.bn1 = _norm(channels, epsilon, rngs)
        stages, reached, dilation = [], 2, 1
        for stage in architecture.stages:
            blocks = []
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                dilates = reached * stride > output_stride
                blocks.append(
                    InvertedResidual(
                        channels,
                        stage,
                        1 if dilates else stride,
                        architecture,
                        rngs,
                        dilation=dilation,
                    )
                )
                # Only what follows is dilated: this kernel sees the input as it was.
                if dilates:
                    dilation *= stride
                else:
                    reached *= stride
                channels = stage.channels
            stages.append(nnx.List(blocks))
        self.blocks = nnx.List(stages)

    def stages(self, images: jax.Array) -> list[jax.Array]:
        """What every stage gives, `(batch, height, width, channels)`."""
        x = nnx.relu6(_apply(self.bn1, self.conv_stem(images)))
        found = []
        for stage in self.blocks:
            for block in stage:
                x = block(x)
            found.append(x)
        return found


class InvertedResidualNet(Backbone):
    """EfficientNet-Lite and MobileNet-V2: images to logits."""

    def __init__(self, architecture: Architecture, classes: int, *, rngs: nnx.Rngs):
        super().__init__(architecture, rngs=rngs)
        epsilon, head = architecture.batch_norm, architecture.head
        channels = architecture.stages[-1].channels
        self.conv_head = conv(channels, head, 1, 1, rngs, use_bias=epsilon is None)
        self.bn2 = _norm(head, epsilon, rngs)
        self.classifier = nnx.Linear(head, classes, rngs=rngs)

    def features(self, images: jax.Array) -> list[jax.Array]:
        """What every stage gives, and the head, `(batch, height, width, channels)`."""
        found = self.stages(images)
        return [*found, nnx.relu6(_apply(self.bn2, self.conv_head(found[-1])))]

    def outputs(self, feature: jax.Array) -> jax.Array:
        """The last of `features` to logits `(batch, classes)`."""
        return self.classifier(jnp.mean(feature, axis=(1, 2)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `(batch, size, size, 3)` to logits `(batch, classes)`."""
        return self.outputs(self.features(images)[-1])


class MobileNetV1(nnx.Module):
    """MobileNet-V1 of a quarter of the width, batch norm folded."""

    WIDTHS = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
    STRIDED = (2, 4, 6, 12)

    def __init__(self, classes: int, *, rngs: nnx.Rngs):
        channels = 8
        self.Conv2d_0 = conv(3, channels, 3, 2, rngs, use_bias=True)
        for i, width in enumerate(self.WIDTHS, start=1):
            stride = 2 if i in self.STRIDED else 1
            depthwise = DepthwiseConv(channels, 3, stride=stride, rngs=rngs)
            pointwise = conv(channels, width, 1, 1, rngs, use_bias=True)
            setattr(self, f"Conv2d_{i}_depthwise", depthwise)
            setattr(self, f"Conv2d_{i}_pointwise", pointwise)
            channels = width
        self.classifier = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `(batch, size, size, 3)` to logits `(batch, classes)`."""
        x = nnx.relu6(self.Conv2d_0(images))
        for i in range(1, len(self.WIDTHS) + 1):
            x = nnx.relu6(getattr(self, f"Conv2d_{i}_depthwise")(x))
            x = nnx.relu6(getattr(self, f"Conv2d_{i}_pointwise")(x))
        return self.classifier(jnp.mean(x, axis=(1, 2)))
