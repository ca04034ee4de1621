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
import functools
import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import jax
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import Progress

from experiments import data
from experiments.models import checkpoint
from experiments.models.zoo import NETWORKS, Network
from experiments.training import evaluation
from experiments.training.devices import Devices

if TYPE_CHECKING:
    Name = str
else:
    Name = tyro.extras.literal_type_from_choices(NETWORKS)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and on what."""

    network: tyro.conf.Positional[Name]
    """Network, with as many outputs as the data set has classes; which one of timm's,
    see experiments/models/zoo.py."""
    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint, *.safetensors, packed or not."""
    dataset: str = "imagenet_sample"
    """Image-classification set of tensorflow-datasets, prepared as array_record."""
    split: str | None = None
    """Split, such as test[:1000]; validation or test where not given."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets."""
    batch: int = 50
    """Images at a time."""
    json: bool = False
    """Print JSON."""


def main(options: Options) -> int:
    """Evaluate and print; returns the exit status."""
    if options.batch < 1:
        raise SystemExit("--batch: expected at least 1")
    split = options.split
    if split is None:
        names = data.splits(options.dataset, options.data_dir)
        split = "validation" if "validation" in names else "test"
    images = data.open_split(options.dataset, split, options.data_dir)
    network = NETWORKS[options.network].with_classes(images.classes)
    model = load(network, options.weights)
    found = evaluate(model, network, images, options.batch, quiet=options.json)
    counts = found.counts()
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
    checkpoint.load(model, weights)
    model.eval()
    return model


def evaluate(
    model: Any, network: Network, split: data.Split, batch: int, quiet: bool = False
) -> evaluation.Prediction:
    """What a model makes of a split.

    Args:
      model: The network with its weights.
      network: How its images are prepared.
      split: Images and labels.
      batch: Images at a time.
      quiet: No progress bar.
    """
    devices = Devices.all("data")
    graphdef, state = nnx.split(model)
    state = jax.device_put(state, devices.replicated)

    @functools.partial(jax.jit, out_shardings=devices.replicated)
    def predict(state, arrays):
        model = nnx.merge(graphdef, state)
        logits = model(network.normalize(arrays["image"]))
        return evaluation.judge(logits, arrays["label"])

    with Progress(disable=quiet) as progress:
        task = progress.add_task("Evaluating", total=len(split))
        return evaluation.evaluate(
            functools.partial(predict, state),
            split,
            size=network.size,
            batch=batch,
            devices=devices,
            advance=lambda images: progress.advance(task, images),
        )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
