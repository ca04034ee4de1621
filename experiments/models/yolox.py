"""YOLOX; attributes as in the original.

References:
  Ge, Liu, Wang, Li and Sun, "YOLOX: Exceeding YOLO Series in 2021", 2021.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.darknet import (
    Architecture,
    BaseConv,
    CSPDarknet,
    CSPLayer,
    conv3,
    sequence,
)
from experiments.models.mobile import PointwiseConv

_NANO = Architecture(0.33, 0.25, 416, depthwise=True)
ARCHITECTURES = {
    "yolox_nano": dataclasses.replace(_NANO, batch_norm=None),
    "yolox_nano_unfolded": _NANO,
    "yolox_tiny": Architecture(0.33, 0.375, 416),
    "yolox_s": Architecture(0.33, 0.5),
    "yolox_m": Architecture(0.67, 0.75),
    "yolox_l": Architecture(1.0, 1.0),
    "yolox_x": Architecture(1.33, 1.25),
}
"""By name; the originals have batch norms, as all but `yolox_nano` here."""


class YOLOPAFPN(nnx.Module):
    """The backbone, and a pyramid of its maps down and up again."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        p3, p4, p5 = (architecture.channels(n) for n in (256, 512, 1024))
        n = architecture.blocks()

        def mixed(inputs: int, outputs: int) -> CSPLayer:
            return CSPLayer(inputs, outputs, n, architecture, rngs)

        self.backbone = CSPDarknet(architecture, rngs)
        self.lateral_conv0 = BaseConv(p5, p4, 1, 1, architecture, rngs)
        self.C3_p4 = mixed(2 * p4, p4)
        self.reduce_conv1 = BaseConv(p4, p3, 1, 1, architecture, rngs)
        self.C3_p3 = mixed(2 * p3, p3)
        self.bu_conv2 = conv3(p3, p3, 2, architecture, rngs)
        self.C3_n3 = mixed(2 * p3, p4)
        self.bu_conv1 = conv3(p4, p4, 2, architecture, rngs)
        self.C3_n4 = mixed(2 * p4, p5)

    def __call__(self, images: jax.Array) -> list[Any]:
        """Images `(batch, size, size, 3)` to the backbone's maps and the pyramid's."""
        dark2, dark3, dark4, dark5 = self.backbone(images)
        lateral = self.lateral_conv0(dark5)
        reduced = self.reduce_conv1(self.C3_p4(joined(doubled(lateral), dark4)))
        fine = self.C3_p3(joined(doubled(reduced), dark3))
        middle = self.C3_n3(joined(self.bu_conv2(fine), reduced))
        coarse = self.C3_n4(joined(self.bu_conv1(middle), lateral))
        return [dark2, dark3, dark4, dark5, (fine, middle, coarse)]


def doubled(x: jax.Array) -> jax.Array:
    """Every pixel of maps four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def joined(x: jax.Array, y: jax.Array) -> jax.Array:
    """Channels of two maps."""
    return jnp.concatenate([x, y], axis=-1)


class YOLOXHead(nnx.Module):
    """Boxes, objectness and classes at every location of three maps."""

    def __init__(self, architecture: Architecture, classes: int, rngs: nnx.Rngs):
        width = architecture.channels(256)
        levels = [architecture.channels(n) for n in (256, 512, 1024)]

        def convs() -> nnx.List:
            return nnx.List(
                [
                    nnx.List(
                        [conv3(width, width, 1, architecture, rngs) for _ in range(2)]
                    )
                    for _ in levels
                ]
            )

        def preds(outputs: int, share: float = 0.5) -> nnx.List:
            bias = nnx.initializers.constant(math.log(share / (1 - share)))
            return nnx.List(
                [
                    PointwiseConv(width, outputs, (1, 1), bias_init=bias, rngs=rngs)
                    for _ in levels
                ]
            )

        self.stems = nnx.List(
            [BaseConv(n, width, 1, 1, architecture, rngs) for n in levels]
        )
        self.cls_convs, self.reg_convs = convs(), convs()
        self.cls_preds, self.obj_preds = preds(classes, 0.01), preds(1, 0.01)
        self.reg_preds = preds(4)

    def stemmed(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps `(batch, height, width, channels)` in the head's width."""
        return [stem(x) for stem, x in zip(self.stems, maps, strict=True)]

    def found(self, stems: Sequence[jax.Array]) -> jax.Array:
        """What `stemmed` gives to outputs, see `YOLOX`."""
        found = []
        for i, x in enumerate(stems):
            boxes = sequence(x, self.reg_convs[i])
            classes = self.cls_preds[i](sequence(x, self.cls_convs[i]))
            parts = [self.reg_preds[i](boxes), self.obj_preds[i](boxes), classes]
            joined = jnp.concatenate(parts, axis=-1)
            found.append(joined.reshape(joined.shape[0], -1, joined.shape[-1]))
        return jnp.concatenate(found, axis=1)


class YOLOX(nnx.Module):
    """Images to what is found at every location, map by map and row by row.

    Images are `(batch, size, size, 3)`, RGB from 0 to 255, the size a multiple of 32;
    outputs `(batch, locations, 5 + classes)`: the box's centre, from its location's
    and in strides, the logarithms of its width and height in strides, the logits of
    objectness and of the classes.
    """

    def __init__(self, architecture: Architecture, classes: int, *, rngs: nnx.Rngs):
        self.backbone = YOLOPAFPN(architecture, rngs)
        self.head = YOLOXHead(architecture, classes, rngs)

    def features(self, images: jax.Array) -> list[Any]:
        """What every stage of the backbone gives; last, a tuple, the pyramid's maps."""
        return self.backbone(images[..., ::-1])  # it was trained on BGR

    def outputs(self, feature: tuple[jax.Array, ...]) -> Any:
        """The last of `features` to outputs."""
        return self.head.found(self.head.stemmed(feature))

    def __call__(self, images: jax.Array) -> Any:
        """Images to outputs."""
        return self.outputs(self.features(images)[-1])
