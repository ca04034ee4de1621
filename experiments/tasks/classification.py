"""Images with a label each."""

import dataclasses
import pathlib
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import images
from experiments.data.augmentation import Augmentation
from experiments.data.batches import Example, Split
from experiments.data.pixels import crop
from experiments.models.network import ImageNetwork


class Ranks(NamedTuple):
    """How logits meet labels, `(images,)` each.

    Attributes:
      rank: How many classes come before the right one; of equal logits the first is
        first, and NaN comes before all.
      loss: Cross-entropy.
      predicted: The class that comes first.
    """

    rank: Any
    loss: Any
    predicted: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Softmax classification; methods as of `Task`.

    Examples are `image`, uint8 `(size, size, channels)`, and `label`, an integer;
    outputs are logits `(batch, classes)`.

    Attributes:
      augmentation: Of training images.
      label_smoothing: Share of a label given to all classes.
    """

    augmentation: Augmentation = Augmentation()
    label_smoothing: float = 0.0

    metric: ClassVar[str] = "top1"
    unit: ClassVar[str] = "images"
    logits: ClassVar[bool] = True

    def open(
        self, name: str, split: str | None, data_dir: pathlib.Path | None
    ) -> Split:
        """Labelled images of tensorflow-datasets, or "digits"."""
        return images.open_split(name, split, data_dir)

    def prepare(
        self, example: Example, rng: np.random.Generator | None = None, *, size: int
    ) -> Example:
        """Cut to the network's size."""
        image = example["image"]
        if rng is None:
            return {**example, "image": crop(image, size)}
        return {**example, "image": self.augmentation.apply(image, size, rng)}

    def shapes(self, network: ImageNetwork) -> dict[str, jax.ShapeDtypeStruct]:
        """Of an image and its label."""
        shape = (network.size, network.size, network.channels)
        return {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def loss(self, outputs: jax.Array, batch: Example) -> jax.Array:
        """Cross-entropy with smoothed labels."""
        labels = jax.nn.one_hot(batch["label"], outputs.shape[-1])
        labels = optax.smooth_labels(labels, self.label_smoothing)
        return optax.softmax_cross_entropy(outputs, labels).mean()

    def match(self, outputs: jax.Array, target: jax.Array) -> jax.Array:
        """Cross-entropy with the other's probabilities; no labels."""
        return optax.softmax_cross_entropy(outputs, jax.nn.softmax(target)).mean()

    def judge(self, outputs: jax.Array, batch: Example) -> Ranks:
        """Compare logits with labels."""
        label = batch["label"][:, None]
        chosen = jnp.take_along_axis(outputs, label, axis=1)
        earlier = jnp.arange(outputs.shape[1]) < label
        behind = (outputs < chosen) | ((outputs == chosen) & ~earlier)
        return Ranks(
            rank=jnp.sum(~behind, axis=1),
            loss=jax.nn.logsumexp(outputs, axis=1) - chosen[:, 0],
            predicted=jnp.argmax(outputs, axis=1),
        )

    def score(self, rows: Ranks, reference: Ranks | None = None) -> dict[str, float]:
        """Shares of the images that are right by the first class and by five, and loss.

        With a reference, `agreement`: the share with the same first class.
        """
        found = {
            "top1": float(np.mean(rows.rank < 1)),
            "top5": float(np.mean(rows.rank < 5)),
            "loss": float(np.mean(rows.loss)),
        }
        if reference is not None:
            same = rows.predicted == reference.predicted
            found["agreement"] = float(np.mean(same))
        return found

    def each(self, rows: Ranks) -> np.ndarray:
        """Whether the first class is right, booleans."""
        return rows.rank < 1
