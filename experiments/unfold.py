r"""Give a network whose batch norms are folded its batch norms back.

    python -m experiments.unfold ../shared/models/mobilenet_v2_100.safetensors \
        runs/mobilenet_v2_100_unfolded.safetensors --data-dir ../shared/tfds
    python -m experiments.unfold ../shared/models/yolox_nano.safetensors \
        runs/yolox_nano_unfolded.safetensors --network yolox_nano --task detection \
        --dataset coco/2017_panoptic --split train --data-dir ../shared/tfds

Batch norms that the images' means and variances make do nothing: the network's outputs
are the same. But they scale the outputs of every convolution back to those means and
variances when its weights are compressed; without them few bits leave no signal to
fine-tune. Reads images without their labels, 700 in a minute on 2 CPU cores; evaluate
the result as `NETWORK_unfolded`.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.progress import track

from experiments.data.batches import evaluation_batches
from experiments.models import checkpoint
from experiments.models.zoo import NETWORKS
from experiments.tasks import TASKS
from experiments.training.terminal import parse

# Convolutions that a batch norm follows in a module, and the names of these.
_ORDERS = (
    (("conv_pw", "conv_dw", "conv_pwl"), ("bn1", "bn2", "bn3")),
    (("conv_dw", "conv_pw"), ("bn1", "bn2")),
    (("conv_stem", "conv_head"), ("bn1", "bn2")),
    (("conv_stem",), ("bn1",)),
    (("conv",), ("bn",)),
)
_SUFFIX = "_unfolded"
EPSILON = 1e-3
"""That of the batch norms that networks get back."""

if TYPE_CHECKING:
    Folded = str
    Task = str
else:
    Folded = tyro.extras.literal_type_from_choices(
        [name for name in NETWORKS if name + _SUFFIX in NETWORKS]
    )
    Task = tyro.extras.literal_type_from_choices(TASKS)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to read and write."""

    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint of the network."""
    output: tyro.conf.Positional[pathlib.Path]
    """Checkpoint to write, of NETWORK_unfolded."""
    network: Folded = "mobilenet_v2_100"
    """Network with folded batch norms."""
    task: Task = "classification"
    """Task that opens the data set."""
    dataset: str = "imagenet_sample"
    """Data set of tensorflow-datasets, prepared as array_record."""
    split: str = "validation[:700]"
    """Split."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets."""
    batch: int = 50
    """Images at a time."""


def main(options: Options) -> int:
    """Unfold and write; returns the exit status."""
    network, task = NETWORKS[options.network], TASKS[options.task]()
    model = network.build(nnx.Rngs(0))
    checkpoint.load(model, options.weights)
    images = task.open(options.dataset, options.split, options.data_dir)
    prepare = functools.partial(task.prepare, size=network.size)
    batches = evaluation_batches(images, batch=options.batch, prepare=prepare)
    steps = -(-len(images) // options.batch)
    inputs = (
        network.inputs(batch) for batch in track(batches, "reading images", steps)
    )
    params, statistics = unfold(model, inputs, EPSILON)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(options.output, params, statistics)
    print(f"wrote {options.output}")
    return 0


def unfold(model: Any, batches: Any, epsilon: float) -> tuple[Any, Any]:
    """Parameters and statistics of a network that has batch norms and does the same.

    Every output channel of a convolution gets a kernel of the layer's mean norm; the
    batch norm's scale makes up for it.

    Args:
      model: A network whose batch norms are folded into its convolutions.
      batches: Its inputs, `(batch, height, width, 3)` each.
      epsilon: That of the batch norms to be.

    Returns:
      Nested dicts, as `nnx.to_pure_dict` gives them.
    """
    recording = nnx.clone(model)
    for _, module in list(nnx.iter_modules(recording)):
        attributes = vars(module)
        kernels = [x for x in attributes if hasattr(attributes[x], "kernel")]
        for conv, norm in _followed(kernels):
            channels = getattr(module, conv).kernel.shape[-1]
            setattr(module, norm, nnx.data(_Moments(channels)))
    graphdef, state = nnx.split(recording)

    @jax.jit
    def record(state, inputs):
        model = nnx.merge(graphdef, state)
        model(inputs)
        return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    found = [jax.tree.map(np.float64, record(state, inputs)) for inputs in batches]
    moments = jax.tree.map(lambda *x: np.mean(x, axis=0), *found)
    return _separated(nnx.to_pure_dict(nnx.state(model, nnx.Param)), moments, epsilon)


class _Moments(nnx.Module):
    """Stands where a batch norm was: changes nothing, and keeps the last moments."""

    def __init__(self, channels: int):
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.square = nnx.BatchStat(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = (0, 1, 2)
        self.mean[...] = jnp.mean(x, axes)
        self.square[...] = jnp.mean(x * x, axes)
        return x


def _followed(names: Sequence[str]) -> list[tuple[str, str]]:
    """The convolutions of a module that a batch norm follows, and its name."""
    for convolutions, norms in _ORDERS:
        if set(convolutions) <= set(names):
            return list(zip(convolutions, norms, strict=True))
    return []


def _separated(params: Any, moments: Any, epsilon: float) -> tuple[Any, Any]:
    """Kernels and batch norms of folded parameters, module by module."""
    if not isinstance(params, dict):
        return params, None
    children = {name: x for name, x in params.items() if isinstance(x, dict)}
    followed = _followed([name for name, x in children.items() if "kernel" in x])
    new, statistics = {}, {}
    for name, value in params.items():
        if name not in dict(followed):
            inner = moments.get(name, {})
            new[name], below = _separated(value, inner, epsilon)
            if below:
                statistics[name] = below
    for name, norm in followed:
        kernel = np.asarray(params[name]["kernel"])
        bias = np.asarray(params[name]["bias"])
        norms = np.sqrt(np.sum(np.square(kernel), axis=(0, 1, 2)))
        factor = np.where(norms > 0, norms / norms.mean(), 1)
        mean = moments[norm]["mean"]
        variance = np.maximum(moments[norm]["square"] - mean**2, 0) / factor**2
        scale = factor * np.sqrt(variance + epsilon)
        values = kernel / factor, scale, mean, (mean - bias) / factor, variance
        kernel, scale, shift, mean, variance = map(np.float32, values)
        new[name] = {"kernel": kernel}
        new[norm] = {"scale": scale, "bias": shift}
        statistics[norm] = {"mean": mean, "var": variance}
    return new, statistics


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
