r"""Masks that nothing has to learn: what a head of masks is to beat.

    python -m experiments.models.yolact ../shared/models/yolox_nano.safetensors \
        runs/yolox_nano_masks.safetensors
    python -m experiments.measurements.masks runs/yolox_nano_masks.safetensors \
        --data-dir ../shared/tfds

The boxes that YOLOX-Nano finds in the images that test in configs/coco/instances.py,
filled, and ellipses in them; writes masks.jsonl and the page of instance masks.
Two minutes on 2 CPU cores.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from experiments.configs.coco._coco import DATA, TASKS
from experiments.models.checkpoint import load_network
from experiments.models.zoo import NETWORKS
from experiments.report import pages
from experiments.training import evaluation, records
from experiments.training.terminal import parse

SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "boxes": np.maximum,
    "ellipses": np.hypot,
}
"""What is below 1 inside, of distances to the middle, across and down, over half of the
box's sides."""
_NETWORK = "yolox_nano_masks"


@dataclasses.dataclass(frozen=True)
class Options:
    """Which checkpoint, and where the results go."""

    checkpoint: tyro.conf.Positional[pathlib.Path]
    """Of yolox_nano_masks; what its head has learned is of no meaning."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets."""
    out: pathlib.Path = records.RESULTS
    """Folder of the results."""


def main(options: Options) -> int:
    """Measure and write the page; returns the exit status."""
    console, network = Console(), NETWORKS[_NETWORK]
    task: Any = TASKS[_NETWORK]
    split = task.open(DATA.name, DATA.test, options.data_dir)
    model = load_network(network, options.checkpoint)
    rows = evaluation.judged(model, network, task, split, batch=20)
    scores = {}
    for name, distance in SHAPES.items():
        masks = drawn(rows.boxes.boxes, distance, task.canvas)
        scores[name] = task.score(rows._replace(masks=masks))
    records.write(options.out / "masks.jsonl", scores)
    pages.build(options.out, ["coco/instances"], console.print)
    return 0


def drawn(boxes: np.ndarray, distance: Callable[..., Any], canvas: int) -> np.ndarray:
    """Shapes that touch all sides of their boxes, as `Instances` has masks.

    Args:
      boxes: `(images, count, 4)`, left, top, right and bottom in pixels.
      distance: One of `SHAPES`.
      canvas: Height and width of the masks.

    Returns:
      Packed bits, uint8 `(images, count, canvas, canvas / 8)`.
    """
    pixels = np.arange(canvas) + 0.5
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):  # a box of no size is empty
        across, down = np.moveaxis(
            np.abs((2 * pixels[:, None] - low - high) / (high - low)), -1, 0
        )
    return np.stack(
        [
            np.packbits(distance(x[:, None, :], y[:, :, None]) < 1, axis=-1)
            for x, y in zip(across, down, strict=True)
        ]
    )


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
