"""Images with boxes, as YOLOX learns and finds them."""

import colorsys
import dataclasses
import pathlib
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import ImageDraw

from experiments.data import coco
from experiments.data.batches import Example, Split, joined
from experiments.data.pixels import from_pillow, letterbox, placed, to_pillow
from experiments.models.network import ImageNetwork
from experiments.tasks import boxes as geometry
from experiments.tasks.average_precision import AveragePrecision

_FOUND = 100
"""Detections of an image at most: COCO counts no more."""
SURE = 0.3
"""Score from which detections are drawn."""
_BOXES = 5.0
"""Weight of the boxes' loss."""


class Detections(NamedTuple):
    """What was found in images, and what is there; in pixels of the stored images.

    Attributes:
      boxes: `(images, 100, 4)`, left, top, right and bottom, best first.
      scores: `(images, 100)`; 0 behind the last.
      classes: `(images, 100)`; -1 behind the last.
      truth: `(images, targets, 4)`.
      labels: `(images, targets)`; -1 behind the last.
      crowd: `(images, targets)`.
      area: `(images, targets)`.
    """

    boxes: Any
    scores: Any
    classes: Any
    truth: Any
    labels: Any
    crowd: Any
    area: Any


class Placement(NamedTuple):
    """Where an image is put in the network's square.

    Attributes:
      side: Of the square that it is letterboxed to, in pixels.
      top: Row of that square's first pixel.
      left: Column of it.
      mirrored: Whether all is mirrored then.
    """

    side: int
    top: int = 0
    left: int = 0
    mirrored: bool = False

    def put(self, pixels: np.ndarray, size: int, fill: int) -> np.ndarray:
        """A letterboxed image `(side, side, ...)` in a square of `size`."""
        square = placed(pixels, size, self.top, self.left, fill)
        return square[:, ::-1] if self.mirrored else square


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """Detection with YOLOX's outputs and losses; methods as of `Task`.

    Examples are `image`, uint8 `(size, size, 3)`; of objects, padded to `targets`,
    `boxes` in its pixels, `labels` (-1 for none), `crowd` and `area`; `sides`, width
    and height of the stored image; and `scale`, its pixels over those of the stored
    image. Outputs are those of `YOLOX`.

    Attributes:
      targets: Most objects of an image.
      flip: Whether half of the training images are mirrored.
      zoom: Sizes of training images, `(least, most)` of the network's; placed at
        random, cut where they are larger.
      exact: Whether training has a loss of the boxes' coordinates, too, as YOLOX's
        last epochs.
      groups: Of images, for intervals.
    """

    targets: int = 120
    flip: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    exact: bool = False
    groups: int = 20

    metric: ClassVar[str] = "ap"
    unit: ClassVar[str] = "images"

    def open(
        self, name: str, split: str | None, data_dir: pathlib.Path | None
    ) -> Split:
        """Images with objects, such as "coco/2017"; sets are joined by "+"."""
        return joined(coco.open_split, name, split, data_dir)

    def prepare(
        self, example: Example, rng: np.random.Generator | None = None, *, size: int
    ) -> Example:
        """Letterboxed, objects padded.

        For training boxes are cut to the image; in scoring they are what they are, as
        for pycocotools.

        Raises:
          ValueError: Images that are not uint8, boxes that are not finite, more objects
            than `targets`; with the image's `id`.
        """
        return self._prepared(example, self._placement(rng, size), size)

    def _prepared(
        self, example: Example, placement: Placement | None, size: int
    ) -> Example:
        """As `prepare`; without a placement as for scoring."""
        name, boxes = f"image {example['id']}", example["boxes"]
        if len(boxes) > self.targets:
            raise ValueError(
                f"{name}: {len(boxes)} objects, expected at most {self.targets} "
                "(targets of Detection)"
            )
        if not np.all(np.isfinite(boxes)):
            raise ValueError(f"{name}: boxes: expected finite numbers, got {boxes}")
        side = size if placement is None else placement.side
        try:
            image, scale = letterbox(example["image"], side)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        boxes = boxes * np.float32(scale)
        sides = np.array(example["image"].shape[1::-1], np.float32)
        if placement is not None:
            boxes = np.clip(boxes, 0, np.tile(sides, 2) * np.float32(scale))
            image, boxes = _placed(image, boxes, size, placement)
        missing = self.targets - len(boxes)
        return {
            "image": image,
            "sides": sides,
            "scale": np.float32(scale),
            "boxes": np.pad(boxes, ((0, missing), (0, 0))),
            "labels": np.pad(example["labels"], (0, missing), constant_values=-1),
            "crowd": np.pad(example["crowd"], (0, missing)),
            "area": np.pad(example["area"], (0, missing)),
        }

    def _placement(
        self, rng: np.random.Generator | None, size: int
    ) -> Placement | None:
        """A square of any size somewhere in one of `size`, or the other way round."""
        if rng is None:
            return None
        side = round(size * rng.uniform(*self.zoom))
        room = size - side
        left, top = rng.integers(min(room, 0), max(room, 0) + 1, 2).tolist()
        return Placement(side, top, left, self.flip and rng.random() < 0.5)

    def shapes(self, network: ImageNetwork) -> dict[str, jax.ShapeDtypeStruct]:
        """Of an image and its objects."""
        n, struct = self.targets, jax.ShapeDtypeStruct
        return {
            "image": struct((network.size, network.size, 3), jnp.uint8),
            "sides": struct((2,), jnp.float32),
            "scale": struct((), jnp.float32),
            "boxes": struct((n, 4), jnp.float32),
            "labels": struct((n,), jnp.int32),
            "crowd": struct((n,), jnp.bool_),
            "area": struct((n,), jnp.float32),
        }

    def loss(self, outputs: Any, batch: Example) -> jax.Array:
        """YOLOX's: overlap, objectness and classes, over the locations with an object.

        Crowds and boxes without area are not learned.
        """
        boxes, labels = batch["boxes"], batch["labels"]
        places, found, assigned = self._assigned(outputs, batch)
        taken = assigned.taken.astype(jnp.float32)
        wanted = jnp.take_along_axis(boxes, assigned.target[..., None], axis=1)
        label = jnp.take_along_axis(labels, assigned.target, axis=1)
        classes = jax.nn.one_hot(label, outputs.shape[-1] - 5)
        losses = _boxes_loss(found, wanted) + _classes_loss(
            outputs[..., 5:], classes * assigned.quality[..., None]
        )
        if self.exact:
            # A location without an object has a box that none of these is about.
            own = jax.vmap(geometry.encode, in_axes=(0, None))(wanted, places)
            losses += jnp.sum(jnp.abs(outputs[..., :4] - own), axis=-1)
        objectness = optax.sigmoid_binary_cross_entropy(outputs[..., 4], taken)
        total = jnp.sum(jnp.where(assigned.taken, losses, 0)) + jnp.sum(objectness)
        return total / jnp.maximum(jnp.sum(taken), 1)

    def _assigned(
        self, outputs: jax.Array, batch: Example
    ) -> tuple[np.ndarray, jax.Array, geometry.Assignment]:
        """The locations, their boxes, and the objects that they are to learn."""
        places = geometry.locations(batch["image"].shape[1])
        found = geometry.decode(outputs, places)
        boxes, labels = batch["boxes"], batch["labels"]
        valid = (labels >= 0) & ~batch["crowd"]
        valid &= jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        assigned = jax.vmap(geometry.assign, in_axes=(0,) * 6 + (None,))(
            *jax.lax.stop_gradient((found, outputs[..., 4], outputs[..., 5:])),
            boxes,
            jnp.maximum(labels, 0),
            valid,
            places,
        )
        return places, found, assigned

    def match(self, outputs: Any, target: Any) -> jax.Array:
        """The same three against another's outputs, at all locations.

        Boxes and classes count where, and as much as, the other sees an object.
        """
        side = 32 * round((outputs.shape[1] / 21) ** 0.5)
        places = geometry.locations(side)
        weight = jax.nn.sigmoid(target[..., 4])
        found, wanted = (geometry.decode(x, places) for x in (outputs, target))
        losses = _boxes_loss(found, wanted) + _classes_loss(
            outputs[..., 5:], jax.nn.sigmoid(target[..., 5:])
        )
        objectness = optax.sigmoid_binary_cross_entropy(outputs[..., 4], weight)
        total = jnp.sum(weight * losses) + jnp.sum(objectness)
        return total / jnp.maximum(jnp.sum(weight), 1)

    def judge(self, outputs: Any, batch: Example) -> Any:
        """`Detections`: the best boxes that overlap none of their class; objects."""
        return self._best(outputs, batch)[1]

    def _best(self, outputs: jax.Array, batch: Example) -> tuple[jax.Array, Detections]:
        """Locations of the best boxes, `(images, 100)`, -1 behind the last; these."""
        scale = batch["scale"][:, None, None]
        places = geometry.locations(batch["image"].shape[1])
        boxes = geometry.decode(outputs, places) / scale
        shares = jax.nn.sigmoid(outputs[..., 4:])
        classes = jnp.argmax(outputs[..., 5:], axis=-1)
        scores = shares[..., 0] * jnp.max(shares[..., 1:], axis=-1)

        def best(boxes, scores, classes, sides):
            kept = geometry.suppress(boxes, scores, classes, count=_FOUND)
            there, limits = kept >= 0, jnp.tile(sides, 2)[None]
            return (
                kept,
                jnp.where(there[:, None], jnp.clip(boxes[kept], 0, limits), 0),
                jnp.where(there, scores[kept], 0),
                jnp.where(there, classes[kept], -1),
            )

        kept, *found = jax.vmap(best)(boxes, scores, classes, batch["sides"])
        return kept, Detections(
            *found,
            truth=batch["boxes"] / scale,
            labels=batch["labels"],
            crowd=batch["crowd"],
            area=batch["area"],
        )

    def score(self, rows: Any, reference: Any = None) -> dict[str, float]:
        """Average precision, see `AveragePrecision`; a reference changes nothing."""
        del reference
        return _judged(rows).scores()

    def each(self, rows: Any) -> np.ndarray:
        """Pseudo-values of the jackknife by groups of images, `(groups,)`."""
        return _judged(rows).jackknife(self.groups)

    def blank(self, image: np.ndarray) -> Example:
        """An image without objects."""
        return {
            "image": image,
            "id": 0,
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
            "crowd": np.zeros(0, bool),
            "area": np.zeros(0, np.float32),
        }

    def draw(self, outputs: Any, example: Example) -> np.ndarray:
        """The image with boxes surer than 0.3, in their classes' colours."""
        found = judged(self, outputs, example)
        return boxed(example["image"], found, float(example["scale"]))


def judged(task: Detection, outputs: Any, example: Example) -> Any:
    """The rows of one image."""
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], (outputs, example))
    return jax.tree.map(lambda x: np.asarray(x)[0], task.judge(*one))


def boxed(image: np.ndarray, found: Detections, scale: float) -> np.ndarray:
    """An image with what was found in it, surer than 0.3."""
    picture = to_pillow(image)
    pen = ImageDraw.Draw(picture)
    for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True):
        if score > SURE:
            pen.rectangle((box * scale).tolist(), outline=color(int(label)), width=2)
    return from_pillow(picture)


def color(label: int) -> tuple[int, int, int]:
    """Of a class: far from those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _placed(
    image: np.ndarray, boxes: np.ndarray, size: int, placement: Placement
) -> tuple[np.ndarray, np.ndarray]:
    """Image and boxes of a letterboxed square, where it is put."""
    shift = np.array([placement.left, placement.top] * 2, np.float32)
    boxes = np.clip(boxes + shift, 0, size)
    if placement.mirrored:
        boxes = np.stack(
            [size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1
        )
    return placement.put(image, size, 114), boxes


def _boxes_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    return _BOXES * (1 - geometry.overlap(found, wanted) ** 2)


def _classes_loss(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    losses = optax.sigmoid_binary_cross_entropy(logits, wanted)
    return jnp.sum(losses, axis=-1)


def _judged(rows: Detections) -> AveragePrecision:
    detections, objects = listed(rows)
    return AveragePrecision(len(rows.labels), coco.CLASSES, objects, detections)


def listed(rows: Detections) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detections and objects as `AveragePrecision` takes them, image by image."""
    detections = _listed(rows.boxes, rows.classes)
    for x, score in zip(detections, rows.scores[rows.classes >= 0], strict=True):
        x |= {"score": float(score), "area": x["bbox"][2] * x["bbox"][3]}
    objects = _listed(rows.truth, rows.labels)
    there = rows.labels >= 0
    for x, crowd, area in zip(
        objects, rows.crowd[there], rows.area[there], strict=True
    ):
        x |= {"iscrowd": int(crowd), "area": float(area)}
    return detections, objects


def _listed(boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Boxes that are there, image by image, as pycocotools has them."""
    images, places = np.nonzero(labels >= 0)
    kept = boxes[images, places].astype(np.float64)
    kept = np.concatenate([kept[:, :2], kept[:, 2:] - kept[:, :2]], axis=1)
    categories = labels[images, places]
    columns = (images.tolist(), categories.tolist(), kept.tolist())
    return [
        {"image": image, "category": category, "bbox": box}
        for image, category, box in zip(*columns, strict=True)
    ]
