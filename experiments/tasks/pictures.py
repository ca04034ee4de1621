"""Images beside what networks make of them."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image, ImageOps

from experiments.data.scenes import colored
from experiments.models.network import Network


def write(
    folder: pathlib.Path,
    examples: Sequence[Any],
    task: Any,
    network: Network,
    models: Sequence[nnx.Module],
) -> None:
    """Write a PNG for every example: the image, then the outputs of each model.

    Args:
      folder: Made where it is missing.
      examples: Not yet prepared.
      task: A `Task` that has `draw`.
      network: What the models are.
      models: For inference.

    Raises:
      SystemExit: A folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--show: {error}") from error
    predict = nnx.jit(lambda model, inputs: model(inputs))
    for index, example in enumerate(examples):
        prepared = task.prepare(example, size=network.size)
        inputs = network.inputs({name: x[None] for name, x in prepared.items()})
        outputs = [predict(model, inputs) for model in models]
        drawn = [
            task.draw(jax.tree.map(lambda x: np.asarray(x)[0], output), prepared)
            for output in outputs
        ]
        beside = np.concatenate([prepared["image"], *drawn], axis=1)
        Image.fromarray(beside).save(folder / f"{index}.png")


def read(path: pathlib.Path) -> np.ndarray:
    """An image file, gray or colour of 8 or 16 bits: uint8 `(height, width, 3)`.

    Raises:
      SystemExit: A file that is no image.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)  # as it was held
            deep = picture.mode.startswith("I")
            if picture.mode == "F":
                raise SystemExit(f"--images: {path}: expected 8 or 16 bits, got floats")
            plain = deep or picture.mode in ("L", "RGB")
            pixels = np.asarray(picture if plain else picture.convert("RGB"))
        if deep and pixels.size and not 0 <= pixels.min() <= pixels.max() < 1 << 16:
            raise SystemExit(f"--images: {path}: expected 8 or 16 bits")
        pixels = pixels.astype(np.uint16) if deep else pixels
    except OSError as error:
        raise SystemExit(f"--images: {path}: {error}") from error
    return colored(str(path), pixels)
