"""Images with a class for every pixel."""

import dataclasses
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import scenes
from experiments.data.augmentation import SceneAugmentation
from experiments.data.batches import Example, Split, joined
from experiments.data.pixels import fit, fit_labels
from experiments.models.network import ImageNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Softmax classification of pixels; methods as of `Task`.

    Examples are `image`, uint8 `(size, size, channels)`, and `labels`, uint8
    `(size, size)`, `scenes.UNLABELLED` where a pixel counts for nothing; outputs are
    logits `(batch, size, size, classes)`. Rows are confusion matrices, int32
    `(batch, classes, classes)`: the pixels of a class, by what they are taken for.

    Attributes:
      augmentation: Of training images and their labels.
    """

    augmentation: SceneAugmentation = SceneAugmentation()

    metric: ClassVar[str] = "miou"
    unit: ClassVar[str] = "images"
    logits: ClassVar[bool] = True

    def open(
        self, name: str, split: str | None, data_dir: pathlib.Path | None
    ) -> Split:
        """Scenes of tensorflow-datasets; sets are joined by "+"."""
        return joined(scenes.open_split, name, split, data_dir)

    def prepare(
        self, example: Example, rng: np.random.Generator | None = None, *, size: int
    ) -> Example:
        """The whole image, in the network's square; augmented, what is left of it."""
        image, labels = example["image"], example["labels"]
        if rng is None:
            image, labels = fit(image, size), fit_labels(labels, size)
        else:
            image, labels = self.augmentation.apply(
                image, labels, size, rng, around=scenes.UNLABELLED
            )
        return {**example, "image": image, "labels": labels}

    def shapes(self, network: ImageNetwork) -> dict[str, jax.ShapeDtypeStruct]:
        """Of an image and its labels."""
        square = (network.size, network.size)
        return {
            "image": jax.ShapeDtypeStruct((*square, network.channels), jnp.uint8),
            "labels": jax.ShapeDtypeStruct(square, jnp.uint8),
        }

    def loss(self, outputs: jax.Array, batch: Example) -> jax.Array:
        """Mean cross-entropy of the labelled pixels of a batch; 0 without any."""
        labels = batch["labels"].astype(jnp.int32)
        labelled = labels != scenes.UNLABELLED
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs, jnp.where(labelled, labels, 0)
        )
        total = jnp.sum(jnp.where(labelled, losses, 0))
        return total / jnp.maximum(jnp.sum(labelled), 1).astype(total.dtype)

    def match(self, outputs: jax.Array, target: jax.Array) -> jax.Array:
        """Mean cross-entropy with the other's probabilities at all pixels."""
        return optax.softmax_cross_entropy(outputs, jax.nn.softmax(target)).mean()

    def judge(self, outputs: jax.Array, batch: Example) -> jax.Array:
        """Count the pixels of each class by what they are taken for."""
        images, classes = len(outputs), outputs.shape[-1]
        labels = batch["labels"].astype(jnp.int32)
        broken = jnp.any(jnp.isnan(outputs), axis=-1)  # NaN is never right
        taken = jnp.where(broken, (labels + 1) % classes, jnp.argmax(outputs, -1))
        truth, guess = (
            jax.nn.one_hot(x.reshape(images, -1), classes) for x in (labels, taken)
        )  # without a class: zeros
        # Whole numbers of pixels, exact in float32 up to 4,096 x 4,096.
        return jnp.einsum("npt,npg->ntg", truth, guess).astype(jnp.int32)

    def score(self, rows: Any, reference: Any = None) -> dict[str, float]:
        """From the pixels of all images: mean IoU, share that is right, IoU by class.

        Of classes that occur among the labels: all others have none.
        """
        del reference
        total = np.asarray(rows).sum(0, dtype=np.int64)
        shares = {
            f"iou_{index}": float(value)
            for index, value in enumerate(_intersection_over_union(total))
            if not np.isnan(value)
        }
        pixels = float(np.trace(total) / max(total.sum(), 1))
        return {"miou": float(_mean(total)), "pixels": pixels, **shares}

    def each(self, rows: Any) -> np.ndarray:
        """The jackknife's pseudo-values of the mean IoU."""
        rows = np.asarray(rows, np.int64)
        count, total = len(rows), rows.sum(0)
        return count * _mean(total) - (count - 1) * _mean(total - rows)

    def blank(self, image: np.ndarray) -> Example:
        """An image without a label."""
        return {
            "image": image,
            "labels": np.full(image.shape[:2], scenes.UNLABELLED, np.uint8),
        }

    def draw(self, outputs: np.ndarray, example: Example) -> np.ndarray:
        """The image, half covered by the colours of the classes; none for class 0."""
        taken = np.argmax(outputs, axis=-1)
        colors = _palette(outputs.shape[-1])[taken]
        image = example["image"]
        covered = (image.astype(np.uint16) + colors) // 2
        return np.where(taken[..., None] == 0, image, covered).astype(np.uint8)


def _intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Of matrices `(..., classes, classes)`, by class; NaN where no pixel has it."""
    own = np.diagonal(confusion, axis1=-2, axis2=-1)
    actual, taken = confusion.sum(-1), confusion.sum(-2)
    shares = own / np.maximum(actual + taken - own, 1)
    return np.where(actual > 0, shares, np.nan)


def _mean(confusion: np.ndarray) -> np.ndarray:
    """Of the classes that occur; 0 where none does."""
    shares = _intersection_over_union(confusion)
    occurring = np.sum(~np.isnan(shares), axis=-1)
    return np.nansum(shares, axis=-1) / np.maximum(occurring, 1)


def _palette(classes: int) -> np.ndarray:
    """Pascal VOC's colours, uint8 `(classes, 3)`: the bits of a class, spread."""
    bits = np.arange(classes)[:, None] >> np.arange(9) & 1
    weights = 1 << np.arange(7, 4, -1)
    return (bits.reshape(classes, 3, 3) * weights[:, None]).sum(1).astype(np.uint8)
