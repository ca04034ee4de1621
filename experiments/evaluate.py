r"""Scores of a network with the weights of a checkpoint, packed or not.

    python -m experiments.evaluate efficientnet_lite0 \
        ../shared/models/efficientnet_lite0.safetensors --data-dir ../shared/tfds
    ssvq compress ../shared/models/deit_tiny_cifar10.safetensors deit.ssvq.safetensors
    python -m experiments.evaluate deit_tiny_cifar10 deit.ssvq.safetensors \
        --dataset cifar10 --data-dir ../shared/tfds
    python -m experiments.evaluate deeplabv3_mnv2_050 \
        ../shared/models/deeplabv3_mnv2_050.safetensors --task segmentation \
        --dataset coco/2017_panoptic --data-dir ../shared/tfds --show pictures
    python -m experiments.evaluate yolox_nano ../shared/models/yolox_nano.safetensors \
        --task detection --dataset coco/2017_panoptic --data-dir ../shared/tfds
    python -m experiments.evaluate yolox_nano_unfolded \
        runs/yolox_nano_unfolded.safetensors --task detection --show pictures \
        --beside runs/coco/bits/yolox_nano-calibrated-coded-2/model.ssvq.safetensors \
        --images photo.jpg

The last one shows an image of one's own, with what the float network finds and what a
compressed one does. Networks whose batch norms were unfolded, to calibrate them, have
"unfolded" in their names. Checkpoints have timm's names and PyTorch's layout, language
models Hugging Face's, see experiments/models/smollm2.py. 1,000 images of 224 pixels
take half a minute on 2 CPU cores.
"""

import dataclasses
import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from experiments.models.checkpoint import load_network
from experiments.models.zoo import NETWORKS
from experiments.tasks import TASKS, Language, pictures
from experiments.tasks.task import half_width
from experiments.training import evaluation
from experiments.training.terminal import Flag, parse

if TYPE_CHECKING:
    Network = str
    Task = str
else:
    Network = tyro.extras.literal_type_from_choices(NETWORKS)
    Task = tyro.extras.literal_type_from_choices(TASKS)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and on what."""

    network: tyro.conf.Positional[Network]
    """Network; it gets as many outputs as the data set has classes. Which one is which
    of timm's is told in experiments/models/zoo.py."""
    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint, *.safetensors, packed or not."""
    task: Task = "classification"
    """What is judged."""
    tokenizer: str = "bytes"
    """Of language: "bytes", or a file tokenizer.json."""
    dataset: str = "imagenet_sample"
    """Data set that the task can open; those of tensorflow-datasets are prepared as
    array_record."""
    split: str | None = None
    """Split, such as test[:1000]; validation or test where not given."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets."""
    batch: int | None = None
    """Examples at a time; 50, or 4 windows of text, where not given."""
    json: Flag = False
    """Print JSON."""
    show: pathlib.Path | None = None
    """Folder for pictures of the first eight examples and the network's outputs; for
    tasks that draw them."""
    beside: pathlib.Path | None = None
    """With --show: another checkpoint of the network, packed or not, whose outputs
    stand beside."""
    images: tuple[pathlib.Path, ...] = ()
    """With --show: image files to show instead; nothing is scored."""
    classes: int | None = None
    """With --images: how many the checkpoint tells apart, where it was trained for a
    data set other than the network's own, such as 11 for CamVid."""


def main(options: Options) -> int:
    """Evaluate and print; returns the exit status."""
    if options.batch is not None and options.batch < 1:
        raise SystemExit("--batch: expected at least 1")
    if options.show is None and (options.beside or options.images):
        raise SystemExit("--beside and --images: expected --show DIR with them")
    if options.classes is not None and (not options.images or options.classes < 1):
        raise SystemExit("--classes: expected a number above 0, and --images with it")
    network = NETWORKS[options.network]
    if options.classes is not None:
        network = network.with_classes(options.classes)
    task: Any = TASKS[options.task]()
    if options.show is not None and not hasattr(task, "draw"):
        raise SystemExit(f"--show: {options.task} draws no pictures")
    if options.show is not None and options.images:
        model = load_network(network, options.weights)
        examples = [task.blank(pictures.read(path)) for path in options.images]
        pictures.write(
            options.show, examples, task, network, [model, *_beside(options, network)]
        )
        return 0
    if isinstance(task, Language):
        task = Language(tokenizer=options.tokenizer, window=network.size)
    split = task.open(options.dataset, options.split, options.data_dir)
    if isinstance(task, Language):
        network.require_classes(options.tokenizer, split.classes)
    network = network.with_classes(split.classes)
    model = load_network(network, options.weights)
    batch = options.batch or (4 if isinstance(task, Language) else 50)
    rows = evaluation.judged(
        model, network, task, split, batch=batch, quiet=options.json
    )
    if options.show is not None:
        examples = [split[index] for index in range(min(8, len(split)))]
        models = [model, *_beside(options, network)]
        pictures.write(options.show, examples, task, network, models)
    scores = task.score(rows)
    if options.json:
        print(json.dumps({task.unit: len(split), **scores}))
        return 0
    spread = half_width(task.each(rows))
    text = ", ".join(
        f"{name} {value:.4g}" + (f" ± {spread:.2g}" if name == task.metric else "")
        for name, value in scores.items()
    )
    Console().print(
        f"{options.network}, {len(split):,} {task.unit} of {options.dataset}: {text}"
    )
    return 0


def _beside(options: Options, network: Any) -> list[Any]:
    return [] if options.beside is None else [load_network(network, options.beside)]


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
