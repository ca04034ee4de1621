"""DeepLab-V3 on MobileNet-V2: a class for every pixel.

Chen et al. 2017, section 3.3, in the form for small devices: of the pyramid there are
the 1x1 convolution and the pooled image. Their batch norms are folded.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models import mobile
from experiments.models.checkpoint import timm_name

_CHANNELS = 256
"""Of the pyramid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepLabConfig:
    """Sizes of a DeepLab-V3.

    Attributes:
      width: Channels of the backbone over those of MobileNet-V2.
      output_stride: Pixels of an image to one of the features: 8, 16 or 32.
      size: Height and width of its images.
      batch_norm: Epsilon of the backbone's; `None` where it is folded.
    """

    width: float = 1.0
    output_stride: int = 8
    size: int = 257
    batch_norm: float | None = None


CONFIGS = {
    "deeplabv3_mnv2_050": DeepLabConfig(width=0.5),
    "deeplabv3_mnv2_050_unfolded": DeepLabConfig(width=0.5, batch_norm=1e-3),
    "deeplabv3_mnv2_100": DeepLabConfig(output_stride=16, size=513),
}
"""By the names of the networks."""


class DeepLab(mobile.Backbone):
    """Images to logits for every pixel; attributes of the backbone as in timm."""

    def __init__(self, config: DeepLabConfig, classes: int, *, rngs: nnx.Rngs):
        stages = tuple(
            dataclasses.replace(stage, channels=round(config.width * stage.channels))
            for stage in mobile.MOBILENET_V2
        )
        architecture = mobile.Architecture(
            stages, batch_norm=config.batch_norm, stem=round(config.width * 32)
        )
        super().__init__(architecture, output_stride=config.output_stride, rngs=rngs)
        inputs, channels = stages[-1].channels, _CHANNELS
        self.size = config.size
        self.image_pooling = mobile.conv(inputs, channels, 1, 1, rngs, use_bias=True)
        self.aspp0 = mobile.conv(inputs, channels, 1, 1, rngs, use_bias=True)
        self.concat_projection = mobile.conv(
            2 * channels, channels, 1, 1, rngs, use_bias=True
        )
        self.logits_semantic = mobile.conv(channels, classes, 1, 1, rngs, use_bias=True)

    def features(self, images: jax.Array) -> list[jax.Array]:
        """What every stage gives, and the head, `(batch, height, width, channels)`."""
        found = self.stages(images)
        last = found[-1]
        pooled = nnx.relu(self.image_pooling(jnp.mean(last, (1, 2), keepdims=True)))
        pyramid = nnx.relu(self.aspp0(last))
        both = [jnp.broadcast_to(pooled, pyramid.shape), pyramid]
        return [*found, nnx.relu(self.concat_projection(jnp.concatenate(both, -1)))]

    def outputs(self, feature: jax.Array) -> jax.Array:
        """The last of `features` to logits `(batch, size, size, classes)`."""
        return resize(self.logits_semantic(feature), self.size)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `(batch, size, size, 3)` to logits `(batch, size, size, classes)`."""
        return self.outputs(self.features(images)[-1])

    def stored_name(self, keys: tuple) -> str:
        """The name of a leaf in checkpoints: TensorFlow's scopes, joined by dots."""
        first, *rest = timm_name(keys).split(".")
        if first == "conv_stem":
            return ".".join(["MobilenetV2.Conv", *rest])
        if first == "logits_semantic":
            return ".".join(["logits.semantic", *rest])
        if first != "blocks":
            return ".".join([first, *rest])
        stage, place, layer, leaf = rest
        index = sum(map(len, self.blocks[: int(stage)])) + int(place)
        kinds = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
        if index == 0:  # it does not expand
            kinds["conv_pw"] = "project"
        block = "expanded_conv" + (f"_{index}" if index else "")
        return f"MobilenetV2.{block}.{kinds.get(layer, layer)}.{leaf}"


def resize(images: jax.Array, size: int) -> jax.Array:
    """Bilinear, the corners' centres on each other (`align_corners` of TensorFlow).

    Args:
      images: `(batch, height, width, channels)`.
      size: Height and width of the result.
    """
    rows, columns = (_interpolation(side, size) for side in images.shape[1:3])
    rows, columns = (jnp.asarray(x, images.dtype) for x in (rows, columns))
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, images)


def _interpolation(side: int, size: int) -> np.ndarray:
    """Weights `(size, side)` of the old pixels in each new one."""
    places = np.linspace(0, side - 1, size)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))
