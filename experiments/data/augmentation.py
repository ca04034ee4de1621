"""Augmentation of training images: crops, shifts and flips."""

import dataclasses
import math

import numpy as np
from PIL import Image

from experiments.data.pixels import (
    crop,
    fit,
    fit_labels,
    from_pillow,
    placed,
    to_pillow,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images; nothing by default.

    Attributes:
      pad: Zeros around an image before a random crop of its size, for small images.
      scale: Shares of the area of a random crop, resized, `(least, most)`; aspect
        ratios from 3/4 to 4/3.
      flip: Whether half of the images are mirrored.
    """

    pad: int = 0
    scale: tuple[float, float] | None = None
    flip: bool = False

    def apply(
        self, image: np.ndarray, size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """An image uint8 `(height, width, channels)` to `(size, size, channels)`."""
        if self.scale is None:
            image = crop(image, size)
        else:
            image = _resized_crop(image, size, self.scale, rng)
        if self.pad:
            image = _shifted(image, self.pad, rng)
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return image


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneAugmentation:
    """What is done to a training image and its labels alike; nothing by default.

    Attributes:
      scale: Side of the whole image over that of the network's, `(least, most)`; what
        is larger is cropped at random, what is smaller put in a random place.
      flip: Whether half of the images are mirrored.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False

    def apply(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        size: int,
        rng: np.random.Generator,
        *,
        around: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The image and its labels, of the same pixels.

        Args:
          image: uint8 `(height, width, channels)`.
          labels: uint8 `(height, width)`.
          size: Height and width of the results.
          rng: Where the numbers are drawn from.
          around: The label around an image that is smaller; its pixels there are gray.
        """
        side = max(1, round(size * rng.uniform(*self.scale)))
        top, left = rng.integers(0, abs(side - size) + 1, 2).tolist()
        if side > size:
            top, left = -top, -left
        mirrored = self.flip and rng.random() < 0.5

        def moved(pixels, fill):
            found = placed(pixels, size, top, left, fill)
            return found[:, ::-1] if mirrored else found

        return moved(fit(image, side), 127), moved(fit_labels(labels, side), around)


def _shifted(image: np.ndarray, pad: int, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = rng.integers(0, 2 * pad + 1, 2)
    return padded[top : top + height, left : left + width]


def _resized_crop(
    image: np.ndarray, size: int, scale: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """A crop of random area and aspect ratio, resized; in the end the centre."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = rng.integers(0, width - across + 1)
            top = rng.integers(0, height - down + 1)
            break
    else:
        across = down = min(height, width)
        left, top = (width - across) // 2, (height - down) // 2
    box = (left, top, left + across, top + down)
    resized = to_pillow(image).resize((size, size), Image.Resampling.BICUBIC, box)
    return from_pillow(resized)
