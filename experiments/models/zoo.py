"""Networks by name, and what their images have to be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from experiments.models import deit, mobile


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and how its images are prepared.

    Attributes:
      name: Its name.
      make: Makes the module from the number of classes and `nnx.Rngs`.
      size: Height and width of its images.
      mean: Of its pixels, 0 to 255; a number or one per channel.
      std: Likewise.
      classes: Number of its outputs.
      channels: Of its images.
    """

    name: str
    make: Callable[[int, nnx.Rngs], Any]
    size: int
    mean: Any = 127.5
    std: Any = 127.5
    classes: int = 1000
    channels: int = 3

    def build(self, rngs: nnx.Rngs) -> Any:
        """The module, its weights at random."""
        return self.make(self.classes, rngs)

    def with_classes(self, classes: int) -> "Network":
        """The network with so many outputs, for another data set."""
        if classes == self.classes:
            return self
        name = f"{self.name}-{classes}"
        return dataclasses.replace(self, name=name, classes=classes)

    def require_classes(self, dataset: str, classes: int) -> None:
        """Raise `SystemExit` unless a data set has as many classes as the network."""
        if classes != self.classes:
            raise SystemExit(
                f"{dataset} has {classes:,} classes, {self.name} {self.classes:,}: "
                "choose another of the two, or in the config the network's "
                f".with_classes({classes})"
            )

    def normalize(self, images: jax.Array) -> jax.Array:
        """Pixels 0 to 255 to the network's inputs, float32; gray ones are repeated."""
        images = jnp.broadcast_to(images, (*images.shape[:-1], self.channels))
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (images.astype(np.float32) - mean) / std


_IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
_CIFAR10 = {
    "mean": 255 * np.array([0.4914, 0.4822, 0.4465]),
    "std": 255 * np.array([0.2470, 0.2435, 0.2616]),
    "classes": 10,
}
_LITE = {"mean": 127.0, "std": 128.0}


def _deit(name: str) -> Network:
    config = deit.CONFIGS[name]
    values: dict[str, Any] = _CIFAR10 if name.endswith("cifar10") else _IMAGENET

    def make(classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return deit.DeiT(config, classes, rngs=rngs)

    return Network(name, make, config.size, **values)


def _mobile(name: str) -> Network:
    architecture = mobile.ARCHITECTURES[name]
    values: dict[str, Any] = _LITE if name.startswith("efficientnet") else {}
    if architecture.padding == "symmetric":  # trained in PyTorch
        values = _IMAGENET

    def make(classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return mobile.InvertedResidualNet(architecture, classes, rngs=rngs)

    return Network(name, make, architecture.size, **values)


def _mobilenet_v1(classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return mobile.MobileNetV1(classes, rngs=rngs)


_NETWORKS = (
    *map(_deit, deit.CONFIGS),
    *map(_mobile, mobile.ARCHITECTURES),
    Network("mobilenet_v1_025", _mobilenet_v1, 224),
)
NETWORKS = {network.name: network for network in _NETWORKS}
"""Networks by name.

Checkpoints of timm's `deit_SIZE_patch16_224` are those of `deit_SIZE` here (at 384
pixels `deit_SIZE_384`), of `tf_efficientnet_liteN` those of `efficientnet_liteN`.
`efficientnet_lite0.ra_in1k` and `mobilenetv2_*` were trained in PyTorch and pad, shift
and scale otherwise, under the same names of parameters: which one a checkpoint is
cannot be told from the file. Images are prepared by `crop` for all of them; timm crops
less where networks are large, so its accuracies differ a little.
"""


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
