"""Images with objects and their masks, as YOLACT learns and finds them."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pycocotools import mask as run_length

from experiments.data import coco
from experiments.data.batches import Example, Split, joined
from experiments.data.pixels import from_pillow, letterbox, to_pillow
from experiments.models.network import ImageNetwork
from experiments.models.yolact import Masked
from experiments.tasks import detection
from experiments.tasks.average_precision import AveragePrecision
from experiments.tasks.boxes import Assignment
from experiments.tasks.detection import Detection, Detections

_LEARNED = 50
"""Locations of an image, at most, whose masks are learned."""
_STRIDE = 4
"""Pixels of the network's image, to one of its masks."""


class Instances(NamedTuple):
    """What was found in images, and what is there.

    Attributes:
      boxes: As of `Detection`.
      masks: `(images, 100, canvas, canvas / 8)`, packed bits, in stored pixels.
      truth: `(images, targets, canvas, canvas / 8)`.
    """

    boxes: Detections
    masks: Any
    truth: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceSegmentation(Detection):
    """Detection with masks, with `YOLACT`'s outputs; methods as of `Task`.

    Examples are those of `Detection`, and `masks`, packed bits, uint8 `(targets,
    canvas, canvas / 8)`: of stored pixels, for training of the network's. Outputs are
    `Masked`, rows `Instances`.

    Attributes:
      targets: Most objects of an image.
      canvas: Height and width of no image is larger; a multiple of 8. What is kept of
        an image grows as its square, 5 MB for 512: sets of hundreds of images fit.

    Raises:
      ValueError: Another canvas.
    """

    targets: int = 64
    canvas: int = 640

    def __post_init__(self):
        if self.canvas < 8 or self.canvas % 8:
            raise ValueError(f"canvas: expected a multiple of 8, got {self.canvas}")

    def open(
        self, name: str, split: str | None, data_dir: pathlib.Path | None
    ) -> Split:
        """Images with masks, such as "coco/2017_instances"; sets are joined by "+"."""

        def opened(*arguments: Any) -> Split:
            return coco.open_split(*arguments, masks=True)

        return joined(opened, name, split, data_dir)

    def prepare(
        self, example: Example, rng: np.random.Generator | None = None, *, size: int
    ) -> Example:
        """Letterboxed, objects padded, masks drawn.

        Raises:
          ValueError: As of `Detection`; images larger than `canvas`, masks of another
            size than their image.
        """
        if size > self.canvas:
            raise SystemExit(
                f"canvas: expected at least the network's {size} pixels, "
                f"got {self.canvas}"
            )
        masks, shape = example["masks"], example["image"].shape[:2]
        if max(shape) > self.canvas:
            raise ValueError(
                f"image {example['id']}: {max(shape)} pixels, expected at most "
                f"{self.canvas} (canvas of InstanceSegmentation)"
            )
        wanted = (len(example["boxes"]), *shape)
        if masks.shape != wanted or masks.dtype != bool:
            raise ValueError(
                f"image {example['id']}: masks: expected bool {wanted}, got "
                f"{masks.dtype} {masks.shape}"
            )
        placement = self._placement(rng, size)
        prepared = self._prepared(example, placement, size)
        drawn = np.zeros((self.targets, self.canvas, self.canvas), bool)
        for mask, square in zip(masks, drawn, strict=False):
            if placement is not None:
                mask = np.uint8(255) * mask[..., None].astype(np.uint8)
                mask, _ = letterbox(mask, placement.side)
                # What the letterbox fills is 114: below half.
                mask = placement.put(mask[..., 0], size, 0) > 127
            square[: mask.shape[0], : mask.shape[1]] = mask
        return {**prepared, "masks": np.packbits(drawn, axis=-1)}

    def shapes(self, network: ImageNetwork) -> dict[str, jax.ShapeDtypeStruct]:
        """Of an image, its objects and their masks."""
        packed = (self.targets, self.canvas, self.canvas // 8)
        masks = jax.ShapeDtypeStruct(packed, jnp.uint8)
        return {**super().shapes(network), "masks": masks}

    def loss(self, outputs: Any, batch: Example) -> jax.Array:
        """That of `Detection`, and of masks in their boxes: cross-entropy and dice."""
        _require_masked(outputs)
        _, _, assigned = self._assigned(outputs.found, batch)
        # One image after the other: unpacked masks take room.
        given = (assigned, *outputs[1:], batch["boxes"], batch["masks"])
        losses, counts = jax.lax.map(lambda image: _masks_loss(*image), given)
        own = jnp.sum(losses) / jnp.maximum(jnp.sum(counts), 1)
        return super().loss(outputs.found, batch) + own

    def match(self, outputs: Any, target: Any) -> jax.Array:
        """That of `Detection`, and of masks where the other is surest of objects.

        Masks at all locations would be millions of pixels an image.
        """
        _require_masked(outputs)
        score = target.found[..., 4]
        _, places = jax.lax.top_k(score, min(_LEARNED, score.shape[1]))

        def masks(x: Masked) -> jax.Array:
            own = jnp.take_along_axis(x.coefficients, places[..., None], axis=1)
            return jnp.einsum("bhwp,bnp->bnhw", x.prototypes, own)

        wanted = jax.nn.sigmoid(masks(target))
        losses = optax.sigmoid_binary_cross_entropy(masks(outputs), wanted)
        weight = jax.nn.sigmoid(jnp.take_along_axis(score, places, axis=1))
        own = jnp.sum(weight * jnp.mean(losses, axis=(2, 3)))
        own = own / jnp.maximum(jnp.sum(weight), 1)
        return super().match(outputs.found, target.found) + own

    def judge(self, outputs: Any, batch: Example) -> Any:
        """Detections, and their masks in pixels of the stored images."""
        _require_masked(outputs)
        kept, found = self._best(outputs.found, batch)

        def draw(arguments):
            return jnp.packbits(self._drawn(*arguments), axis=-1)

        own = jnp.take_along_axis(
            outputs.coefficients, jnp.maximum(kept, 0)[..., None], axis=1
        )
        given = (own, outputs.prototypes, found.boxes, batch["scale"])
        return Instances(found, jax.lax.map(draw, given), batch["masks"])

    def _drawn(
        self, coefficients: jax.Array, prototypes: jax.Array, boxes: jax.Array, scale
    ) -> jax.Array:
        """Masks of one image on the canvas, cut to their boxes, bool."""
        pixels = jnp.arange(self.canvas) + 0.5
        # Bilinear: how much of every prototype's rows, and columns, is in a pixel's.
        rows = prototypes.shape[0]
        at = jnp.clip(pixels * scale / _STRIDE - 0.5, 0, rows - 1)
        weights = jnp.maximum(1 - jnp.abs(at[:, None] - jnp.arange(rows)[None]), 0)
        low = jnp.einsum("hwp,np->nhw", prototypes, coefficients)
        full = jnp.einsum("yh,nhw,xw->nyx", weights, low, weights)
        left, top, right, bottom = (boxes[:, i, None] for i in range(4))
        across = (pixels[None] > left) & (pixels[None] < right)
        down = (pixels[None] > top) & (pixels[None] < bottom)
        return (full > 0) & down[:, :, None] & across[:, None, :]

    def score(self, rows: Any, reference: Any = None) -> dict[str, float]:
        """Average precision of masks; `box_ap`, that of their boxes."""
        boxes = super().score(rows.boxes)
        return {**_judged(rows).scores(), "box_ap": boxes["ap"]}

    def each(self, rows: Any) -> np.ndarray:
        """Pseudo-values of the jackknife by groups of images, `(groups,)`."""
        return _judged(rows).jackknife(self.groups)

    def blank(self, image: np.ndarray) -> Example:
        """An image without objects, on the canvas: larger ones are made smaller."""
        picture = to_pillow(image)
        picture.thumbnail((self.canvas, self.canvas))
        image = from_pillow(picture)
        return {**super().blank(image), "masks": np.zeros((0, *image.shape[:2]), bool)}

    def draw(self, outputs: Any, example: Example) -> np.ndarray:
        """The image, its masks half covered by their classes' colours, and boxes."""
        rows = detection.judged(self, outputs, example)
        image, scale = example["image"].copy(), float(example["scale"])
        masks = np.unpackbits(rows.masks, axis=-1).astype(bool)
        # Stored pixels, looked up for those of the network's image.
        at = np.minimum((np.arange(len(image)) / scale).astype(int), self.canvas - 1)
        for mask, score, label in zip(
            masks, rows.boxes.scores, rows.boxes.classes, strict=True
        ):
            if score > detection.SURE:
                shown = mask[at][:, at]
                own = np.array(detection.color(int(label)), np.uint16)
                image[shown] = ((image[shown] + own) // 2).astype(np.uint8)
        return detection.boxed(image, rows.boxes, scale)


def _require_masked(outputs: Any) -> None:
    if not isinstance(outputs, Masked):
        raise SystemExit(
            "instances: expected a network with masks, such as yolox_nano_masks"
        )


def _masks_loss(
    assigned: Assignment,
    coefficients: jax.Array,
    prototypes: jax.Array,
    boxes: jax.Array,
    packed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Of one image: the sum over locations that learn an object, and their number."""
    ranks = jnp.where(assigned.taken, assigned.quality, -1.0)
    best, places = jax.lax.top_k(ranks, min(_LEARNED, len(ranks)))
    learns, target = best >= 0, assigned.target[places]
    rows, columns, _ = prototypes.shape
    masks = jnp.unpackbits(packed, axis=-1)
    masks = masks[:, : rows * _STRIDE, : columns * _STRIDE]
    cells = masks.reshape(len(boxes), rows, _STRIDE, columns, _STRIDE)
    wanted = jnp.mean(cells, axis=(2, 4), dtype=jnp.float32)[target]
    logits = jnp.einsum("hwp,np->nhw", prototypes, coefficients[places])
    left, top, right, bottom = (boxes[target, i, None] for i in range(4))
    down, across = (
        (_STRIDE * (jnp.arange(n) + 1)[None] > low)
        & (_STRIDE * jnp.arange(n)[None] < high)
        for n, low, high in ((rows, top, bottom), (columns, left, right))
    )
    inside = (down[:, :, None] & across[:, None, :]).astype(jnp.float32)

    def total(x):
        return jnp.sum(inside * x, axis=(1, 2))

    entropy = optax.sigmoid_binary_cross_entropy(logits, wanted)
    entropy = total(entropy) / jnp.maximum(jnp.sum(inside, axis=(1, 2)), 1)
    share = jax.nn.sigmoid(logits)
    dice = 1 - (2 * total(share * wanted) + 1) / (total(share) + total(wanted) + 1)
    return jnp.sum(jnp.where(learns, entropy + dice, 0)), jnp.sum(learns)


def _judged(rows: Instances) -> AveragePrecision:
    found, truth = (
        [
            run_length.encode(np.asfortranarray(np.unpackbits(mask, axis=-1)))
            for mask in masks[labels >= 0]
        ]
        for masks, labels in (
            (rows.masks, rows.boxes.classes),
            (rows.truth, rows.boxes.labels),
        )
    )
    detections, objects = detection.listed(rows.boxes)
    for x, code in zip(detections, found, strict=True):
        x |= {"segmentation": code, "area": float(run_length.area(code))}
    for x, code in zip(objects, truth, strict=True):
        x |= {"segmentation": code}
    images = len(rows.truth)
    return AveragePrecision(images, coco.CLASSES, objects, detections, "segm")
