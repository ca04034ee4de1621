r"""YOLOX with masks, as YOLACT has them: prototypes, and how much of each.

    python -m experiments.models.yolact ../shared/models/yolox_nano.safetensors \
        runs/yolox_nano_masks.safetensors

writes a checkpoint of `yolox_nano_masks` that finds what YOLOX-Nano does, and whose
masks are to be learned: coefficients begin behind copies of the boxes' branches, all
else at random.

References:
  Bolya, Zhou, Xiao and Lee, "YOLACT: Real-time Instance Segmentation", 2019.
"""

import dataclasses
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from experiments.models import checkpoint
from experiments.models.darknet import Architecture, BaseConv, conv3, sequence
from experiments.models.mobile import PointwiseConv
from experiments.models.yolox import ARCHITECTURES, YOLOX, doubled, joined

_PROTOTYPES = 16


class Masked(NamedTuple):
    """What `YOLACT` gives for a batch of images.

    Attributes:
      found: As of `YOLOX`, `(batch, locations, 5 + classes)`.
      coefficients: `(batch, locations, prototypes)`, from -1 to 1.
      prototypes: `(batch, size / 4, size / 4, prototypes)`, not below 0. The mask of a
        location is where they, weighted by its coefficients, sum to more than 0.
    """

    found: Any
    coefficients: Any
    prototypes: Any


class MaskHead(nnx.Module):
    """Prototypes from the finest maps, coefficients from those of the head."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        fine, width = architecture.channels(128), architecture.channels(256)
        self.lateral = BaseConv(width, fine, 1, 1, architecture, rngs)
        self.proto_convs = nnx.List(
            [
                conv3(2 * fine, width, 1, architecture, rngs),
                conv3(width, width, 1, architecture, rngs),
            ]
        )
        self.proto_preds = PointwiseConv(width, _PROTOTYPES, (1, 1), rngs=rngs)
        self.coef_convs = nnx.List(
            [
                nnx.List([conv3(width, width, 1, architecture, rngs) for _ in range(2)])
                for _ in range(3)
            ]
        )
        self.coef_preds = nnx.List(
            [PointwiseConv(width, _PROTOTYPES, (1, 1), rngs=rngs) for _ in range(3)]
        )

    def prototypes(self, finest: jax.Array, fine: jax.Array) -> jax.Array:
        """From maps at a quarter and an eighth of the image's size."""
        both = joined(doubled(self.lateral(fine)), finest)
        return jax.nn.relu(self.proto_preds(sequence(both, self.proto_convs)))

    def coefficients(self, stems: list[jax.Array]) -> jax.Array:
        """Of all locations, map by map."""
        found = []
        for x, convs, preds in zip(
            stems, self.coef_convs, self.coef_preds, strict=True
        ):
            x = preds(sequence(x, convs))
            found.append(x.reshape(x.shape[0], -1, x.shape[-1]))
        return jnp.tanh(jnp.concatenate(found, axis=1))


class YOLACT(YOLOX):
    """Images, as of `YOLOX`, to `Masked`."""

    def __init__(self, architecture: Architecture, classes: int, *, rngs: nnx.Rngs):
        super().__init__(architecture, classes, rngs=rngs)
        self.mask_head = MaskHead(architecture, rngs)

    def features(self, images: jax.Array) -> list[Any]:
        """As of `YOLOX`; the finest map comes with the pyramid's."""
        finest, *others, maps = super().features(images)
        return [finest, *others, (finest, *maps)]

    def outputs(self, feature: tuple[jax.Array, ...]) -> Masked:
        """The last of `features` to outputs."""
        finest, *maps = feature
        stems = self.head.stemmed(maps)
        return Masked(
            self.head.found(stems),
            self.mask_head.coefficients(stems),
            self.mask_head.prototypes(finest, maps[0]),
        )


@dataclasses.dataclass(frozen=True)
class Options:
    """What to read and write."""

    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint of YOLOX-Nano."""
    output: tyro.conf.Positional[pathlib.Path]
    """Checkpoint to write, of yolox_nano_masks."""


def main(options: Options) -> int:
    """Add masks to a checkpoint; returns the exit status."""
    architecture, classes = ARCHITECTURES["yolox_nano"], 80
    known = YOLOX(architecture, classes, rngs=nnx.Rngs(0))
    checkpoint.load(known, options.weights)
    model = YOLACT(architecture, classes, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params |= nnx.to_pure_dict(nnx.state(known, nnx.Param))
    params["mask_head"]["coef_convs"] = params["head"]["reg_convs"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(options.output, params, {})
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
