"""Networks by name, and what their images have to be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from experiments.models import deit, mobile


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and how its images are prepared.

    Attributes:
      name: Its name.
      build: Makes the module from `nnx.Rngs`.
      size: Height and width of its images.
      mean: Of its pixels, 0 to 255; a number or one per channel.
      std: Likewise.
    """

    name: str
    build: Callable[[nnx.Rngs], Any]
    size: int
    mean: Any = 127.5
    std: Any = 127.5

    def normalize(self, images: jax.Array) -> jax.Array:
        """Pixels 0 to 255 to the network's inputs, float32."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (images.astype(np.float32) - mean) / std


_IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
_CIFAR = {
    "mean": 255 * np.array([0.4914, 0.4822, 0.4465]),
    "std": 255 * np.array([0.2470, 0.2435, 0.2616]),
}


def _mobile(name: str, architecture: str, **values: Any) -> Network:
    chosen = mobile.ARCHITECTURES[architecture]

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return mobile.InvertedResidualNet(chosen, 1000, rngs=rngs)

    return Network(name, build, chosen.size, **values)


def _deit(name: str, **values: Any) -> Network:
    config = deit.CONFIGS[name]
    return Network(
        name, lambda rngs: deit.DeiT(config, rngs=rngs), config.size, **values
    )


_NETWORKS = (
    *(_deit(f"deit_{size}", **_IMAGENET) for size in ("tiny", "small", "base")),
    *(_deit(f"deit_{size}_cifar10", **_CIFAR) for size in ("tiny", "96")),
    *(
        _mobile(f"efficientnet_lite{i}", f"efficientnet_lite{i}", mean=127.0, std=128.0)
        for i in range(3)
    ),
    _mobile("mobilenet_v2_100", "mobilenet_v2"),
    _mobile("mobilenet_v2_100_unfolded", "mobilenet_v2_unfolded"),
    _mobile("mobilenetv2_100", "mobilenetv2_100", **_IMAGENET),  # timm's own
    Network("mobilenet_v1_025", lambda rngs: mobile.MobileNetV1(1000, rngs=rngs), 224),
)
NETWORKS = {network.name: network for network in _NETWORKS}
"""Networks by the names of their checkpoints."""


def crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image of which the short side is made 8/7 of `size`, bicubic.

    Args:
      image: uint8 `(height, width, channels)`, one or three.
      size: Height and width of the result; images of this size are left as they are.
    """
    if image.shape[:2] == (size, size):
        return image
    scale = size * 8 / 7 / min(image.shape[:2])
    height, width = (round(scale * n) for n in image.shape[:2])
    resized = to_pillow(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return from_pillow(resized.crop((left, top, left + size, top + size)))


def to_pillow(image: np.ndarray) -> Image.Image:
    """An image uint8 `(height, width, channels)` for Pillow, of one or three."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(picture: Image.Image) -> np.ndarray:
    """The inverse of `to_pillow`."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1)
