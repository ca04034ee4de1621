"""Images with boxes: COCO in the forms that tensorflow-datasets has."""

import functools
import pathlib
from typing import Any

import numpy as np

from experiments.data.batches import Example, Mapped, Split
from experiments.data.images import builder_of_files, open_source

CLASSES = 80
"""Things of COCO; what has a larger label in panoptic sets is stuff, and left out."""
_WITH_STUFF = 133
"""Things and stuff."""


def open_split(
    name: str,
    split: str | None,
    data_dir: pathlib.Path | None = None,
    *,
    masks: bool = False,
) -> Split:
    """Open a split; images are decoded when they are asked for.

    Args:
      name: A set of tensorflow-datasets with objects, prepared as array_record, such
        as "coco/2017", "coco/2017_panoptic" or "coco/2017_instances".
      split: As in tensorflow-datasets; `None` for "validation".
      data_dir: The folder of tensorflow-datasets; `None` for its default.
      masks: Whether objects come with their masks.

    Returns:
      Examples of `image`, uint8 `(height, width, channels)`, its `id`, and of its
      objects `boxes`, float32 `(n, 4)` of left, top, right and bottom in pixels,
      `labels`, int32 `(n,)` below 80, `crowd`, bool, and `area`, float32, in pixels
      of the image as it is stored: of the mask where there is one. With `masks` also
      `masks`, bool `(n, height, width)`.

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
    lacking = {"image", "image/id"} - features
    if "objects" in features:
        own = set(builder.info.features["objects"].feature)
        lacking |= {"bbox", "label", "is_crowd"} - own
        lacking |= set() if own & {"area", "mask"} else {"area"}
    if lacking:  # Pascal VOC's objects, say
        raise SystemExit(
            f"{name}: expected COCO's features, it lacks {', '.join(sorted(lacking))}"
        )
    if masks and not features & {"panoptic_objects"} and not _has_masks(builder):
        raise SystemExit(f"{name}: expected objects with masks")
    source, split = open_source(builder, name, split)
    read = functools.partial(_objects, masks=masks)
    return Split(f"{name} {split}", Mapped(source, read), CLASSES)


def _has_masks(builder: Any) -> bool:
    return "mask" in builder.info.features["objects"].feature


def segments(image: np.ndarray) -> np.ndarray:
    """Numbers of the segments that a panoptic image's colours stand for.

    Args:
      image: uint8 `(height, width, 3)`.

    Returns:
      int32 `(height, width)`.
    """
    return image.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def _objects(example: Any, *, masks: bool = False) -> Example:
    """Of an example with `objects` or `panoptic_objects`; see `open_split`."""
    image = example["image"]
    panoptic = "panoptic_objects" in example
    objects = example["panoptic_objects" if panoptic else "objects"]
    labels = np.asarray(objects["label"], np.int32).reshape(-1)
    kept = labels < CLASSES if panoptic else np.ones(len(labels), bool)
    drawn = []
    if panoptic:
        numbers = segments(example["panoptic_image"])
        if numbers.shape != image.shape[:2]:
            raise ValueError(
                f"image {example['image/id']}: panoptic image: expected the image's "
                f"{image.shape[:2]} pixels, got {numbers.shape}"
            )
        area = _areas(numbers, objects["id"])
        if masks:
            drawn = [numbers == int(i) for i in objects["id"]]
    elif "mask" in objects:
        drawn = [np.asarray(mask)[..., 0] > 0 for mask in objects["mask"]]
        wrong = [mask.shape for mask in drawn if mask.shape != image.shape[:2]]
        if wrong:
            raise ValueError(
                f"image {example['image/id']}: mask: expected the image's "
                f"{image.shape[:2]} pixels, got {wrong[0]}"
            )
        area = [np.count_nonzero(mask) for mask in drawn]
    else:
        area = objects["area"]
    most = _WITH_STUFF if panoptic else CLASSES
    known = (labels >= 0) & (labels < most)
    if not np.all(known):
        raise ValueError(
            f"image {example['image/id']}: label: expected 0 to {most - 1}, "
            f"got {labels[~known][0]}"
        )
    height, width = image.shape[:2]
    shares = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
    sides = np.array([width, height, width, height], np.float32)
    found = {
        "image": image,
        "id": int(example["image/id"]),
        "boxes": (shares[:, [1, 0, 3, 2]] * sides)[kept],
        "labels": labels[kept],
        "crowd": np.asarray(objects["is_crowd"], bool).reshape(-1)[kept],
        "area": np.asarray(area, np.float32).reshape(-1)[kept],
    }
    if masks:
        own = [mask for mask, keep in zip(drawn, kept, strict=True) if keep]
        found["masks"] = np.array(own, bool).reshape(-1, height, width)
    return found


def _areas(numbers: np.ndarray, ids: Any) -> list[int]:
    """Pixels of every segment, of a panoptic image's numbers."""
    found, counts = np.unique(numbers, return_counts=True)
    pixels = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return [pixels.get(int(i), 0) for i in ids]
