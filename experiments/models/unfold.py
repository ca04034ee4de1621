r"""Give MobileNet-V2, whose batch norms are folded, its batch norms back.

    python -m experiments.models.unfold ../shared/models/mobilenet_v2_100.safetensors \
        runs/mobilenet_v2_100_unfolded.safetensors --data-dir ../shared/tfds

Batch norms that the images' means and variances make do nothing: the network's outputs
are the same. But they scale the outputs of every convolution back to those means and
variances when its weights are compressed; without them few bits leave no signal to
fine-tune. Reads 700 images without their labels, in a minute on 2 CPU cores; evaluate
the result as `mobilenet_v2_100_unfolded`.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.progress import track

from experiments.data.batches import evaluation_batches
from experiments.data.images import open_split
from experiments.data.pixels import crop
from experiments.models import checkpoint
from experiments.models.mobile import ARCHITECTURES
from experiments.models.zoo import NETWORKS

# Convolutions of a block, or around all of them, in the order of bn1, bn2 and bn3.
_ORDERS = (
    ("conv_pw", "conv_dw", "conv_pwl"),
    ("conv_dw", "conv_pw"),
    ("conv_stem", "conv_head"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to read and write."""

    weights: tyro.conf.Positional[pathlib.Path]
    """Checkpoint of mobilenet_v2_100."""
    output: tyro.conf.Positional[pathlib.Path]
    """Checkpoint to write, of mobilenet_v2_100_unfolded."""
    dataset: str = "imagenet_sample"
    """Image-classification set of tensorflow-datasets, prepared as array_record."""
    split: str = "validation[:700]"
    """Split."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets."""
    batch: int = 50
    """Images at a time."""


def main(options: Options) -> int:
    """Unfold and write; returns the exit status."""
    network = NETWORKS["mobilenet_v2_100"]
    model = network.build(nnx.Rngs(0))
    checkpoint.load(model, options.weights)
    images = open_split(options.dataset, options.split, options.data_dir)
    batches = evaluation_batches(
        images,
        batch=options.batch,
        prepare=lambda x: {**x, "image": crop(x["image"], network.size)},
    )
    steps = -(-len(images) // options.batch)
    inputs = (
        network.inputs(batch) for batch in track(batches, "reading images", steps)
    )
    epsilon = ARCHITECTURES["mobilenet_v2_100_unfolded"].batch_norm
    assert epsilon is not None
    params, statistics = unfold(model, inputs, epsilon)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(options.output, params, statistics)
    print(f"wrote {options.output}")
    return 0


def unfold(model: Any, batches: Any, epsilon: float) -> tuple[Any, Any]:
    """Parameters and statistics of a network that has batch norms and does the same.

    Every output channel of a convolution gets a kernel of the layer's mean norm; the
    batch norm's scale makes up for it.

    Args:
      model: `InvertedResidualNet` whose batch norms are folded into the convolutions.
      batches: Its inputs, `(batch, height, width, 3)` each.
      epsilon: That of the batch norms to be.

    Returns:
      Nested dicts, as `nnx.to_pure_dict` gives them.
    """
    recording = nnx.clone(model)
    for block in (recording, *(x for stage in recording.blocks for x in stage)):
        for i, conv in enumerate(_convolutions(vars(block)), 1):
            channels = getattr(block, conv).kernel.shape[-1]
            setattr(block, f"bn{i}", nnx.data(_Moments(channels)))
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


def _convolutions(names: Any) -> tuple[str, ...]:
    """Those with a batch norm among a module's attributes, in its order."""
    return next((order for order in _ORDERS if set(order) <= set(names)), ())


def _separated(params: Any, moments: Any, epsilon: float) -> tuple[Any, Any]:
    """Kernels and batch norms of folded parameters, module by module."""
    if not isinstance(params, dict):
        return params, None
    convolutions = _convolutions(params)
    new, statistics = {}, {}
    for name, value in params.items():
        if name not in convolutions:
            inner = moments.get(name, {})
            new[name], below = _separated(value, inner, epsilon)
            if below:
                statistics[name] = below
    for i, name in enumerate(convolutions, 1):
        kernel = np.asarray(params[name]["kernel"])
        bias = np.asarray(params[name]["bias"])
        norms = np.sqrt(np.sum(np.square(kernel), axis=(0, 1, 2)))
        factor = np.where(norms > 0, norms / norms.mean(), 1)
        mean = moments[f"bn{i}"]["mean"]
        variance = np.maximum(moments[f"bn{i}"]["square"] - mean**2, 0) / factor**2
        scale = factor * np.sqrt(variance + epsilon)
        values = kernel / factor, scale, mean, (mean - bias) / factor, variance
        kernel, scale, shift, mean, variance = map(np.float32, values)
        new[name] = {"kernel": kernel}
        new[f"bn{i}"] = {"scale": scale, "bias": shift}
        statistics[f"bn{i}"] = {"mean": mean, "var": variance}
    return new, statistics


if __name__ == "__main__":
    sys.exit(
        main(
            tyro.cli(
                Options, prog="python -m experiments.models.unfold", description=__doc__
            )
        )
    )
