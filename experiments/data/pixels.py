"""Images to the size of a network, and to Pillow and back."""

import numpy as np
from PIL import Image


def crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image of which the short side is made 8/7 of `size`, bicubic.

    Args:
      image: uint8 `(height, width, channels)`, one or three.
      size: Height and width of the result; images of this size are left as they are.
    """
    if image.shape[:2] == (size, size):
        return image
    scale = size * 8 / 7 / min(image.shape[:2])
    height, width = (round(scale * n) for n in image.shape[:2])
    resized = to_pillow(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return from_pillow(resized.crop((left, top, left + size, top + size)))


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """A whole image in a square, its shape not kept, bicubic.

    Args:
      image: uint8 `(height, width, channels)`, one or three.
      size: Height and width of the result.
    """
    if image.shape[:2] == (size, size):
        return image
    return from_pillow(to_pillow(image).resize((size, size), Image.Resampling.BICUBIC))


def fit_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Labels `(height, width)` likewise, those of the nearest pixels."""
    picture = Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(picture)


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """A whole image at the top left of a square, bilinear; the rest is 114, as YOLOX's.

    Args:
      image: uint8 `(height, width, channels)`, one or three.
      size: Height and width of the result, of three channels.

    Returns:
      The square, and how many of its pixels are one of the image.

    Raises:
      ValueError: Images of another dtype or other channels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            "image: expected uint8 (height, width, 1 or 3), "
            f"got {image.dtype} {image.shape}"
        )
    height, width = image.shape[:2]
    scale = size / max(height, width)
    inside = max(1, int(width * scale)), max(1, int(height * scale))
    picture = to_pillow(image).convert("RGB")
    resized = np.asarray(picture.resize(inside, Image.Resampling.BILINEAR))
    return placed(resized, size, 0, 0, 114), scale


def placed(pixels: np.ndarray, size: int, top: int, left: int, fill: int) -> np.ndarray:
    """Pixels somewhere in a square; what is outside of it is cut.

    Args:
      pixels: `(height, width, ...)`.
      size: Height and width of the square.
      top: Row of the first pixel, negative above the square.
      left: Column of it.
      fill: Of the rest of the square.
    """
    square = np.full((size, size, *pixels.shape[2:]), fill, pixels.dtype)
    part = pixels[max(-top, 0) :, max(-left, 0) :][:size, :size]
    rows, columns = part.shape[:2]
    square[max(top, 0) :, max(left, 0) :][:rows, :columns] = part
    return square


def to_pillow(image: np.ndarray) -> Image.Image:
    """An image uint8 `(height, width, channels)` for Pillow, of one or three."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(picture: Image.Image) -> np.ndarray:
    """The inverse of `to_pillow`."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1)
