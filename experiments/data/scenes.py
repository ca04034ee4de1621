"""Images with a class for every pixel, of tensorflow-datasets, without TensorFlow."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.data.batches import Example, Split
from experiments.data.coco import CLASSES, segments
from experiments.data.images import builder_of_files, open_source

UNLABELLED = 255
"""The label of pixels that are left out."""

# Pascal VOC's classes 1 to 20 on COCO's labels; all else is background, 0.
_VOC = {
    4: 1,  # aeroplane
    1: 2,  # bicycle
    14: 3,  # bird
    8: 4,  # boat
    39: 5,  # bottle
    5: 6,  # bus
    2: 7,  # car
    15: 8,  # cat
    56: 9,  # chair
    19: 10,  # cow
    60: 11,  # dining table
    16: 12,  # dog
    17: 13,  # horse
    3: 14,  # motorbike
    0: 15,  # person
    58: 16,  # potted plant
    18: 17,  # sheep
    57: 18,  # sofa
    6: 19,  # train
    62: 20,  # tv monitor
}

_COCO_PANOPTIC = 133
"""Labels of COCO's panoptic sets, things and stuff."""

# Road, sidewalk, building, wall, fence, pole, traffic light and sign, vegetation,
# terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle.
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, *range(21, 29), 31, 32, 33)


def open_split(
    name: str, split: str | None, data_dir: pathlib.Path | None = None
) -> Split:
    """Open a split; images are decoded when they are asked for.

    Args:
      name: "camvid", "cityscapes/semantic_segmentation", or "coco/2017_panoptic" or
        "coco/2017_instances" with the 21 classes of Pascal VOC.
      split: As of `images.open_split`.
      data_dir: The folder of tensorflow-datasets; `None` for its default.

    Returns:
      Examples of `image`, uint8 `(height, width, 3)`, and `labels`, uint8
      `(height, width)`, `UNLABELLED` where there is no class.

    Raises:
      NotPreparedError: A set that is not there, with what to do.
      SystemExit: A set or split that is unknown.
    """
    if name not in _SETS:
        raise SystemExit(
            f"{name}: expected a set with classes of pixels, {' or '.join(_SETS)}"
        )
    classes, read = _SETS[name]
    builder = builder_of_files(name, data_dir)
    source, split = open_source(builder, name, split)
    title = f"{name} {split}"
    return Split(title, Scenes(title, source, read, classes), classes)


@dataclasses.dataclass(frozen=True)
class Scenes(Sequence[Example]):
    """Examples of a source, checked; see `open_split`.

    Attributes:
      name: For errors.
      source: Random access to a data set's own examples.
      read: Labels `(height, width)` of one of these.
      classes: How many there are.
    """

    name: str
    source: Any
    read: Callable[[Any], np.ndarray]
    classes: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        example = self.source[index]
        place = f"{self.name}: example {index}"
        image = colored(place, example.get("image", example.get("image_left")))
        try:
            labels = self.read(example)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"{place}: expected labels of the image's shape {image.shape[:2]}, "
                f"got {labels.shape}"
            )
        beyond = labels[(labels >= self.classes) & (labels != UNLABELLED)]
        if beyond.size:
            raise ValueError(
                f"{place}: expected labels below {self.classes}, or {UNLABELLED} for "
                f"none, got {beyond.max()}"
            )
        return {"image": image, "labels": labels.astype(np.uint8)}


def colored(place: str, image: np.ndarray) -> np.ndarray:
    """An image in three channels of 8 bits, from gray or colour of 8 or 16.

    Args:
      place: For errors.
      image: `(height, width)` or `(height, width, channels)`, one or three.

    Raises:
      ValueError: Another shape or dtype.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"{place}: expected one or three channels, got {image.shape}")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{place}: expected uint8 or uint16, got {image.dtype}")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _camvid(example: Any) -> np.ndarray:
    labels = example["segmentation_label"][..., 0]
    return np.where(labels == 11, UNLABELLED, labels)


def _cityscapes(example: Any) -> np.ndarray:
    """The classes that are evaluated, in their usual order."""
    table = np.full(256, UNLABELLED, np.uint8)
    table[list(_CITYSCAPES)] = range(len(_CITYSCAPES))
    return table[example["segmentation_label"][..., 0]]


def _panoptic(example: Any) -> np.ndarray:
    """The class of the object at every pixel."""
    found = segments(example["panoptic_image"])
    labels = np.full(found.shape, UNLABELLED, np.uint8)
    objects = example["panoptic_objects"]
    for identity, label in zip(objects["id"], objects["label"], strict=True):
        labels[found == identity] = _voc(label, _COCO_PANOPTIC)
    return labels


def _instances(example: Any) -> np.ndarray:
    """The class of the last object at every pixel; no pixel is without a label."""
    labels = np.zeros(example["image"].shape[:2], np.uint8)
    objects = example["objects"]
    for mask, label in zip(objects["mask"], objects["label"], strict=True):
        drawn = np.asarray(mask)[..., 0] > 0
        if drawn.shape != labels.shape:
            raise ValueError(
                f"expected a mask of the image's shape {labels.shape}, got "
                f"{drawn.shape}"
            )
        labels[drawn] = _voc(label, CLASSES)
    return labels


def _voc(label: Any, classes: int) -> int:
    """Pascal VOC's class for one of COCO's labels."""
    if not 0 <= label < classes:
        raise ValueError(f"expected labels of 0 to {classes - 1}, got {label}")
    return _VOC.get(int(label), 0)


_SETS: dict[str, tuple[int, Callable[[Any], np.ndarray]]] = {
    "camvid": (11, _camvid),
    "cityscapes/semantic_segmentation": (19, _cityscapes),
    "coco/2017_panoptic": (21, _panoptic),
    "coco/2017_instances": (21, _instances),
}
"""How many classes a set has, and what reads its labels."""
