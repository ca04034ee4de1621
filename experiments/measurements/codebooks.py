"""One codebook for all kernels of a network against one each, at equal stored bits.

    python -m experiments.measurements.codebooks

What is saved on codebooks pays for longer blocks and more codewords. Kernels that
share a codebook are clustered together, each in units of its root mean square, which
is stored in 16 bits. Writes codebooks.jsonl and the page. Two minutes.
"""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import ssvq_jax as ssvq
from experiments.report import pages
from experiments.training import records
from experiments.training.terminal import parse
from ssvq_jax.checkpoint import Checkpoint

NETWORKS = ("efficientnet_lite0", "deit_tiny_cifar10")
CODECS = {
    ssvq.VQ(64, 4, codebook_dtype="int8"): (ssvq.VQ(512, 6, codebook_dtype="int8"),),
    ssvq.SSVQ(16, 8): (ssvq.SSVQ(64, 12), ssvq.SSVQ(256, 16)),
    ssvq.SSVQ(32, 8, sign_code="parity", codebook_dtype="int8"): (
        ssvq.SSVQ(256, 8, sign_code="hamming", codebook_dtype="int8"),
    ),
}
"""At 1.5 bits with a codebook a kernel; for each, those with one for all kernels."""
_SMALLEST = 4096  # weights
_UNIT = 16  # bits


@dataclasses.dataclass(frozen=True)
class Options:
    """Which checkpoints, and where the results go."""

    models: pathlib.Path = pathlib.Path("../shared/models")
    """Folder of checkpoints, NETWORK.safetensors, in PyTorch's layout."""
    out: pathlib.Path = records.RESULTS
    """Folder of the results."""


def main(options: Options) -> int:
    """Measure and write the page; returns the exit status."""
    console = Console()
    files = [options.models / f"{network}.safetensors" for network in NETWORKS]
    if absent := [str(file) for file in files if not file.is_file()]:
        console.print(f"error: {', '.join(absent)} missing; give --models")
        return 2
    rows = {}
    cases = [(network, codec) for network in NETWORKS for codec in CODECS]
    for network, codec in track(cases, "Clustering", console=console):
        kernels = _kernels(options.models / f"{network}.safetensors")
        own = _own(codec, kernels)
        rows[f"{network}, own, {codec.describe()}"] = {
            "network": network,
            "kind": "own",
            **own,
        }
        for other in CODECS[codec]:
            found = _common(other, kernels)
            # Of a bit more a quarter of the error is left.
            worth = math.log2(own["error"] / found["error"]) / 2
            rows[f"{network}, common, {other.describe()}"] = {
                "network": network,
                "kind": "common",
                **found,
                "worth": worth + own["bits"] - found["bits"],
            }
    records.write(options.out / "codebooks.jsonl", rows)
    pages.build(options.out, ["codebooks"], console.print)
    return 0


def _kernels(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The matrices of a checkpoint, (in, out), those of 1x1 convolutions among them."""
    checkpoint, kernels = Checkpoint(file), {}
    for name in checkpoint:
        shape = checkpoint.shape(name)
        matrix = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
        if matrix and math.prod(shape) >= _SMALLEST:
            values = np.asarray(checkpoint[name], np.float32)
            kernels[name] = values.reshape(shape[:2]).T
    return kernels


def _own(codec: ssvq.Codec, kernels: Mapping[str, np.ndarray]) -> records.Record:
    """Mean relative squared error of the kernels, by weights, and stored bits."""
    rules = [ssvq.Rule(".*", codec, axis=0)]
    found = ssvq.report(
        ssvq.compress(kernels, rules, key=jax.random.key(0)), dict(kernels)
    )
    error = sum((row.error or 0.0) * row.weights for row in found.rows)
    return {
        "codec": codec.describe(),
        "error": error / found.compressed.weights,
        "bits": found.compressed.bits_per_weight,
    }


def _common(
    codec: ssvq.VQ | ssvq.SSVQ, kernels: Mapping[str, np.ndarray]
) -> records.Record:
    """The same with all blocks under one codebook, as the columns of one weight."""
    blocks = []
    for kernel in kernels.values():
        padded = np.pad(kernel, ((0, -len(kernel) % codec.block), (0, 0)))
        unit = np.sqrt(np.mean(np.square(kernel)))
        blocks.append(padded.T.reshape(-1, codec.block).T / unit)
    weight = np.concatenate(blocks, axis=1)
    node = ssvq.encode(codec, weight, key=jax.random.key(0), axis=0)
    decoded = np.asarray(ssvq.decode(node))
    weights = sum(kernel.size for kernel in kernels.values())
    # In these units a kernel's squares add up to its size: what is padded has no error.
    valid = weight != 0
    return {
        "codec": codec.describe(),
        "error": float(np.sum(np.square(weight - decoded)[valid])) / weights,
        "bits": (node.bits + _UNIT * len(kernels)) / weights,
    }


if __name__ == "__main__":
    sys.exit(main(parse(Options, __doc__)))
