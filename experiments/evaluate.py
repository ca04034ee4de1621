r"""Accuracy of a network with the weights of a checkpoint, packed or not.

    python -m experiments.evaluate efficientnet_lite0 \
        ../shared/models/efficientnet_lite0.safetensors --data-dir ../shared/tfds
    ssvq compress ../shared/models/deit_tiny_cifar10.safetensors deit.ssvq.safetensors
    python -m experiments.evaluate deit_tiny_cifar10 deit.ssvq.safetensors \
        --dataset cifar10 --data-dir ../shared/tfds

Checkpoints have timm's names and PyTorch's layout. 1,000 images of 224 pixels take
half a minute on 2 CPU cores.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import track

from experiments.models.checkpoint import load_timm
from experiments.models.zoo import NETWORKS, Network, crop

Name = Literal[
    "deit_tiny",
    "deit_small",
    "deit_base",
    "deit_tiny_cifar10",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "mobilenet_v2_100",
    "mobilenet_v1_025",
]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and on what."""

    network: tyro.conf.Positional[Name]
    """Network."""
    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint, *.safetensors, packed or not."""
    dataset: str = "imagenet_sample"
    """Image-classification set of tensorflow-datasets, prepared as array_record."""
    split: str | None = None
    """Split; validation or test where not given."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets."""
    limit: int | None = None
    """First so many images only."""
    batch: int = 50
    """Images at a time."""
    json: bool = False
    """Print JSON."""


def main(options: Options) -> int:
    """Evaluate and print; returns the exit status."""
    network = NETWORKS[options.network]
    model = load(network, options.weights)
    source = _source(options)
    counts = evaluate(model, network, source, options.batch, quiet=options.json)
    if options.json:
        print(json.dumps(counts))
        return 0
    images = counts["images"]
    Console().print(
        f"{options.network}, {images} images of {options.dataset}: top-1 "
        f"{counts['top1']} ({counts['top1'] / images:.1%}), top-5 {counts['top5']} "
        f"({counts['top5'] / images:.1%}), cross-entropy {counts['loss']:.3f}"
    )
    return 0


def load(network: Network, weights: pathlib.Path) -> Any:
    """A network with the weights of a checkpoint, for inference."""
    model = network.build(nnx.Rngs(0))
    load_timm(model, weights)
    model.eval()
    return model


def evaluate(
    model: Any, network: Network, source: Any, batch: int, quiet: bool = False
) -> dict[str, Any]:
    """Counts of right answers and mean cross-entropy over a data source.

    Args:
      model: The network.
      network: How its images are prepared.
      source: Sequence of examples with `image` and `label`.
      batch: Images at a time.
      quiet: No progress bar.
    """

    @nnx.jit
    def measure(model, images, labels):
        logits = model(network.normalize(images))
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)
        rank = jnp.sum(logits > chosen, axis=1)
        loss = jax.nn.logsumexp(logits, axis=1) - chosen[:, 0]
        return rank, loss

    ranks, losses = [], []
    count = -(-len(source) // batch)
    batches = track(
        _batches(source, network.size, batch), "Evaluating", count, disable=quiet
    )
    for images, labels in batches:
        valid = len(labels)  # the last batch is filled up: one shape, one program
        images, labels = (np.resize(x, (batch, *x.shape[1:])) for x in (images, labels))
        rank, loss = measure(model, images, labels)
        ranks.append(np.asarray(rank)[:valid])
        losses.append(np.asarray(loss)[:valid])
    rank, loss = np.concatenate(ranks), np.concatenate(losses)
    return {
        "images": len(rank),
        "top1": int(np.sum(rank < 1)),
        "top5": int(np.sum(rank < 5)),
        "loss": float(np.mean(loss)),
    }


def _batches(
    source: Any, size: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(source), batch):
        examples = [source[i] for i in range(start, min(start + batch, len(source)))]
        images = np.stack([crop(example["image"], size) for example in examples])
        yield images, np.array([example["label"] for example in examples], np.int32)


def _source(options: Options) -> Any:
    try:
        builder: Any = tfds.builder(options.dataset, data_dir=options.data_dir)
        splits = builder.info.splits
        split = options.split or ("validation" if "validation" in splits else "test")
        if options.limit is not None:
            split = f"{split}[:{options.limit}]"
        return builder.as_data_source(split=split)
    except Exception as error:
        raise SystemExit(
            f"cannot read the data set {options.dataset!r}: {error}\n"
            "Give the folder of prepared sets: --data-dir DIR"
        ) from error


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
