"""Augmentation of training images: the options of DeiT's recipe.

Touvron et al., "Training data-efficient image transformers", ICML 2021, table 9.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from experiments.data import Example
from experiments.models.zoo import crop, from_pillow, to_pillow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images; nothing by default.

    Attributes:
      pad: Zeros around an image before a random crop of its size, for small images.
      scale: Shares of the area of a random crop, resized, `(least, most)`; aspect
        ratios from 3/4 to 4/3.
      flip: Whether half of the images are mirrored.
      randaugment: Magnitude of RandAugment, 0 to 10, two operations per image; 0 for
        none.
      erase: Probability that a rectangle is replaced by noise.
      mixup: Parameter of the beta distribution of mixup's weight; 0 for none.
      cutmix: As `mixup`, of the area that CutMix replaces. Where both are given,
        every batch takes one of them.
      repeats: Differently augmented copies of an image in a batch.
    """

    pad: int = 0
    scale: tuple[float, float] | None = None
    flip: bool = False
    randaugment: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1


DEIT = Augmentation(
    scale=(0.08, 1.0),
    flip=True,
    randaugment=9,
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
    repeats=3,
)
"""The recipe of DeiT on ImageNet."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augments one example, for Grain's `random_map`.

    Attributes:
      options: What is done.
      size: Height and width of the results.
    """

    options: Augmentation
    size: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its image augmented, uint8 `(size, size, channels)`."""
        options, image = self.options, example["image"]
        if options.scale is None:
            image = crop(image, self.size)
        else:
            image = _resized_crop(image, self.size, options.scale, rng)
        if options.pad:
            image = _shifted(image, options.pad, rng)
        if options.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        if options.randaugment:
            image = _randaugment(image, options.randaugment, rng)
        if options.erase and rng.random() < options.erase:
            image = _erased(image, rng)
        return {**example, "image": image}


@dataclasses.dataclass(frozen=True)
class Mix:
    """Mixes a batch with itself in reverse order, for Grain's `random_map`.

    Attributes:
      options: What is done.
      classes: Number of classes.
    """

    options: Augmentation
    classes: int

    def __call__(self, batch: Example, rng: np.random.Generator) -> Example:
        """Images float32 or uint8, labels float32 `(batch, classes)`."""
        options, images = self.options, batch["image"]
        labels = np.eye(self.classes, dtype=np.float32)[batch["label"]]
        cut = options.cutmix > 0 and (not options.mixup or rng.random() < 0.5)
        parameter = options.cutmix if cut else options.mixup
        share = np.float32(rng.beta(parameter, parameter))  # of the image's own
        if cut:
            height, width = images.shape[1:3]
            rows = _side(height, math.sqrt(1 - share), rng)
            columns = _side(width, math.sqrt(1 - share), rng)
            images = images.copy()
            images[:, rows, columns] = batch["image"][::-1, rows, columns]
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            share = np.float32(1 - area / (height * width))
        else:
            images = share * images.astype(np.float32)
            images += (1 - share) * batch["image"][::-1]
        labels = share * labels + (1 - share) * labels[::-1]
        return {**batch, "image": images, "label": labels}


def mixing(options: Augmentation, classes: int) -> Mix | None:
    """The mixing of batches that the options ask for."""
    return Mix(options, classes) if options.mixup or options.cutmix else None


def _side(length: int, share: float, rng: np.random.Generator) -> slice:
    """A stretch around a random centre, cut off at the borders."""
    centre, half = rng.integers(length), round(length * share) // 2
    return slice(max(0, centre - half), min(length, centre + half))


def _shifted(image: np.ndarray, pad: int, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
    padded[pad : pad + height, pad : pad + width] = image
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


def _erased(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of 2 to 33 % of the area replaced by noise."""
    height, width, channels = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < down < height and 0 < across < width:
            top = rng.integers(0, height - down + 1)
            left = rng.integers(0, width - across + 1)
            noise = rng.integers(0, 256, (down, across, channels), np.uint8)
            image = image.copy()
            image[top : top + down, left : left + across] = noise
            break
    return image


def _randaugment(
    image: np.ndarray, magnitude: float, rng: np.random.Generator
) -> np.ndarray:
    """RandAugment (Cubuk et al., 2020) with timm's "increasing" magnitudes."""
    picture = to_pillow(np.ascontiguousarray(image))
    for name in rng.choice(_OPERATIONS, 2):
        if rng.random() < 0.5:
            continue
        level = float(np.clip(rng.normal(magnitude, 0.5), 0, 10)) / 10
        sign = 1 if rng.random() < 0.5 else -1
        picture = _operate(picture, str(name), level, sign)
    return from_pillow(picture)


_OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_ENHANCE: dict[str, Any] = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def _operate(picture: Image.Image, name: str, level: float, sign: int) -> Image.Image:
    """One operation at a level of 0 (nothing) to 1."""
    gray = (128,) * len(picture.getbands())
    if name == "autocontrast":
        return ImageOps.autocontrast(picture)
    if name == "equalize":
        return ImageOps.equalize(picture)
    if name == "invert":
        return ImageOps.invert(picture)
    if name == "posterize":
        return ImageOps.posterize(picture, 4 - int(4 * level) or 1)
    if name == "solarize":
        return ImageOps.solarize(picture, 256 - int(256 * level))
    if name == "solarize_add":
        table = [min(255, i + int(110 * level)) if i < 128 else i for i in range(256)]
        return picture.point(table * len(picture.getbands()))
    if name in _ENHANCE:
        return _ENHANCE[name](picture).enhance(max(0.1, 1 + sign * 0.9 * level))
    if name == "rotate":
        return picture.rotate(
            sign * 30 * level, Image.Resampling.BILINEAR, fillcolor=gray
        )
    direction, axis = name.split("_")
    shear, shift = 0.3 * sign * level, 0.45 * sign * level
    across = (1, shear, 0) if direction == "shear" else (1, 0, shift * picture.width)
    down = (shear, 1, 0) if direction == "shear" else (0, 1, shift * picture.height)
    if axis == "x":
        down = (0, 1, 0)
    else:
        across = (1, 0, 0)
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        (*across, *down),
        Image.Resampling.BILINEAR,
        fillcolor=gray,
    )
