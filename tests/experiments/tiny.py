"""A tiny network on scikit-learn's digits, for the tests of training."""

import dataclasses
import pathlib

import jax
import numpy as np
from flax import nnx
from rich.progress import Progress

import ssvq_jax as ssvq
from experiments.data.augmentation import Augmentation
from experiments.models import checkpoint
from experiments.models.deit import DeiT, DeiTConfig
from experiments.models.network import ImageNetwork, Network
from experiments.tasks import Classification, pictures
from experiments.training.config import (
    Compression,
    Data,
    Experiment,
    Freezing,
    Optimization,
)
from experiments.training.devices import Devices
from experiments.training.log import read
from experiments.training.run import Execution, run
from ssvq_jax.checkpoint import Checkpoint

CONFIG = DeiTConfig(width=32, depth=1, heads=2, size=8, patch=4, channels=1)
NETWORK = ImageNetwork(
    name="tiny",
    make=lambda classes, rngs: DeiT(CONFIG, classes, rngs=rngs),
    size=8,
    classes=10,
    channels=1,
)
DIGITS = Data(name="digits", train="train[:960]", validation="train[1200:]")
TASK = Classification(augmentation=Augmentation(pad=1))
FLOAT = Experiment(
    task=TASK,
    network=NETWORK,
    data=DIGITS,
    optimization=Optimization(epochs=2, batch=48),
)
RULES = (ssvq.Rule("blocks/.*/kernel", ssvq.SSVQ(4, 8)),)
FROZEN = Compression(rules=RULES, freezing=Freezing(checks=10, threshold=(0.01, 0.001)))
SHORT = Optimization(epochs=3, batch=48, sign_rate=0.01)


class _Normed(nnx.Module):
    def __init__(self, classes: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 32, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.classifier = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, images):
        x = self.hidden(images.reshape(len(images), -1))
        return self.classifier(nnx.relu(self.norm(x)))


NORMED = dataclasses.replace(NETWORK, name="normed", make=_Normed)


def weights(folder: pathlib.Path, network: Network = NETWORK) -> str:
    """A checkpoint of random weights."""
    path = folder / "weights.safetensors"
    states = nnx.split(network.build(nnx.Rngs(1)), nnx.Param, nnx.BatchStat)[1:]
    checkpoint.save(path, *map(nnx.to_pure_dict, states))
    return str(path)


def compressed(folder: pathlib.Path, **changes) -> Experiment:
    """Fine-tuning of SSVQ with freezing."""
    start = weights(folder, changes.get("network", NETWORK))
    experiment = dataclasses.replace(FLOAT, weights=start, compression=FROZEN)
    return dataclasses.replace(experiment, **changes)


def execute(experiment, folder, devices=1, parallel="data", **options):
    """Run it on some of the devices; the results and the lines of the log."""
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        (jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    execution = Execution(
        devices=Devices(mesh, parallel), log_every=1, checkpoint_every=10, **options
    )
    with Progress(disable=True) as progress:
        return run(experiment, folder, execution, progress)


def losses(folder: pathlib.Path) -> list[float]:
    """The losses of a run's log."""
    return [line["loss"] for line in read(folder / "metrics.jsonl") if "loss" in line]


def pictures_beside(experiment: Experiment, folder: pathlib.Path, example) -> None:
    """Of an example, by the float network and by what a run in `folder` packed."""
    network, packed = experiment.network, folder / "model.ssvq.safetensors"
    models = [checkpoint.load_network(network, x) for x in (experiment.weights, packed)]
    shown = folder / "pictures"
    pictures.write(shown, [example], experiment.task, network, models)
    picture = pictures.read(shown / "0.png")
    image, *drawn = np.split(picture, 3, axis=1)
    assert all(x.shape == image.shape for x in drawn)
    expected = experiment.task.prepare(example, size=network.size)["image"]
    np.testing.assert_array_equal(image, expected)


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an exported model."""
    stored = Checkpoint(path)
    return {name: stored[name] for name in stored}
