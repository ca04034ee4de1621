"""What a network makes of a whole split."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Split, evaluation_batches
from experiments.models.zoo import crop
from experiments.training.devices import Devices


class Prediction(NamedTuple):
    """What a network makes of images, `(images,)` each.

    Attributes:
      rank: How many classes come before the right one; of equal logits the first is
        first, and NaN comes before all.
      loss: Cross-entropy.
      predicted: The class that comes first.
    """

    rank: Any
    loss: Any
    predicted: Any

    def counts(self) -> dict[str, Any]:
        """Images, how many are right by their first class and by five, mean loss."""
        return {
            "images": len(self.rank),
            "top1": int(np.sum(self.rank < 1)),
            "top5": int(np.sum(self.rank < 5)),
            "loss": float(np.mean(self.loss)),
        }


def judge(logits: jax.Array, labels: jax.Array) -> Prediction:
    """Compare logits `(batch, classes)` with integer labels `(batch,)`."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    behind = (logits < chosen) | ((logits == chosen) & ~earlier)
    return Prediction(
        rank=jnp.sum(~behind, axis=1),
        loss=jax.nn.logsumexp(logits, axis=1) - chosen[:, 0],
        predicted=jnp.argmax(logits, axis=1),
    )


def evaluate(
    predict: Callable[[Any], Prediction],
    split: Split,
    *,
    size: int,
    batch: int,
    devices: Devices,
    advance: Callable[[int], object] = lambda images: None,
) -> Prediction:
    """Predict a whole split, on all devices of all processes.

    Args:
      predict: Jitted, from batches of `image` and `label`; its results lie on every
        device.
      split: Images and labels.
      size: Height and width of the network's images.
      batch: Images at a time, raised to a multiple of the devices.
      devices: The devices.
      advance: Called with the number of images after each batch.
    """
    batch = -(-batch // devices.mesh.size) * devices.mesh.size
    _, processes = devices.process
    batches = evaluation_batches(
        split,
        batch=batch,
        prepare=functools.partial(crop, size=size),
        process=devices.process,
    )
    parts = []
    for arrays in batches:
        parts.append(jax.tree.map(np.asarray, predict(devices.batch(arrays))))
        advance(batch)
    # Rows of a batch come process by process; each process has every n-th image.
    order = np.arange(batch).reshape(-1, processes).T.reshape(-1)
    order = (np.arange(len(parts))[:, None] * batch + order).reshape(-1)

    def in_order(*pieces):
        whole = np.concatenate(pieces)
        result = np.empty_like(whole)
        result[order] = whole
        return result[: len(split)]

    return jax.tree.map(in_order, *parts)
