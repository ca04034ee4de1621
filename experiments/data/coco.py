"""Images with boxes: COCO in the forms that tensorflow-datasets has."""

import pathlib
from typing import Any

import numpy as np

from experiments.data.batches import Example, Mapped, Split
from experiments.data.images import builder_of_files, open_source

CLASSES = 80
"""Things of COCO; what has a larger label in panoptic sets is stuff, and left out."""


def open_split(
    name: str, split: str | None, data_dir: pathlib.Path | None = None
) -> Split:
    """Open a split; images are decoded when they are asked for.

    Args:
      name: A set of tensorflow-datasets with objects, prepared as array_record, such
        as "coco/2017", "coco/2017_panoptic" or "coco/2017_instances".
      split: As in tensorflow-datasets; `None` for "validation".
      data_dir: The folder of tensorflow-datasets; `None` for its default.

    Returns:
      Examples of `image`, uint8 `(height, width, channels)`, its `id`, and of its
      objects `boxes`, float32 `(n, 4)` of left, top, right and bottom in pixels,
      `labels`, int32 `(n,)` below 80, `crowd`, bool, and `area`, float32, in pixels
      of the image as it is stored: of the mask where there is one.

    Raises:
      NotPreparedError: A set that is not there, with what to do.
      SystemExit: A set or split that is unknown or of another kind.
    """
    builder = builder_of_files(name, data_dir)
    features = set(builder.info.features)
    if not features & {"objects", "panoptic_objects"}:
        raise SystemExit(
            f"{name}: expected images with objects, got {', '.join(sorted(features))}"
        )
    source, split = open_source(builder, name, split)
    return Split(f"{name} {split}", Mapped(source, _objects), CLASSES)


def segments(image: np.ndarray) -> np.ndarray:
    """Numbers of the segments that a panoptic image's colours stand for.

    Args:
      image: uint8 `(height, width, 3)`.

    Returns:
      int32 `(height, width)`.
    """
    return image.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def _objects(example: Any) -> Example:
    """Of an example with `objects` or `panoptic_objects`; see `open_split`."""
    image = example["image"]
    panoptic = "panoptic_objects" in example
    objects = example["panoptic_objects" if panoptic else "objects"]
    labels = np.asarray(objects["label"], np.int32).reshape(-1)
    kept = labels < CLASSES if panoptic else np.ones(len(labels), bool)
    if panoptic:
        area = _areas(example["panoptic_image"], objects["id"])
    elif "mask" in objects:
        area = [np.count_nonzero(mask) for mask in objects["mask"]]
    else:
        area = objects["area"]
    known = (labels >= 0) & (labels < CLASSES)
    if not np.all(known | ~kept):
        raise ValueError(
            f"image {example['image/id']}: label: expected 0 to {CLASSES - 1}, "
            f"got {labels[~known][0]}"
        )
    height, width = image.shape[:2]
    shares = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
    sides = np.array([width, height, width, height], np.float32)
    return {
        "image": image,
        "id": int(example["image/id"]),
        "boxes": (shares[:, [1, 0, 3, 2]] * sides)[kept],
        "labels": labels[kept],
        "crowd": np.asarray(objects["is_crowd"], bool).reshape(-1)[kept],
        "area": np.asarray(area, np.float32).reshape(-1)[kept],
    }


def _areas(mask: np.ndarray, ids: Any) -> list[int]:
    """Pixels of every segment of a panoptic image."""
    found, counts = np.unique(segments(mask), return_counts=True)
    pixels = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return [pixels.get(int(i), 0) for i in ids]
