r"""Train a small vision transformer on real images and compress it in five ways.

Trains it, compresses it to 1.5 bits per weight (vector quantization, SSVQ with fixed,
learned, and learned and frozen signs; uniform quantization at 2 bits, its least),
fine-tunes all of them on the same batches, writes the packed files, reads them back and
checks that they give their models bit for bit.

    python -m experiments.quickstart
    python -m experiments.quickstart --dataset cifar10 --data-dir DIR

About two minutes on 2 CPU cores. A run that was interrupted goes on where it was.
"""

import dataclasses
import pathlib
import time

from flax import nnx
from rich.console import Console
from rich.table import Table

import ssvq_jax as ssvq
from experiments.models.deit import DeiT, DeiTConfig
from experiments.models.network import ImageNetwork
from experiments.report.plots.figures import save
from experiments.report.plots.quickstart import quickstart as quickstart_plot
from experiments.tasks import Classification
from experiments.training.config import (
    Compression,
    Data,
    Experiment,
    Freezing,
    Optimization,
)
from experiments.training.devices import Devices
from experiments.training.records import Record, unpack
from experiments.training.run import Execution, run
from experiments.training.terminal import bars, parse


@dataclasses.dataclass(frozen=True)
class Options:
    """Quickstart: a small vision transformer at 1.5 bits per weight."""

    dataset: str = "digits"
    """"digits", or an image-classification set of tensorflow-datasets by name."""
    test: str = "test"
    """Split to test on."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets; its default where none is given."""
    output: pathlib.Path = pathlib.Path("runs/quickstart")
    """Folder for quickstart.png and the runs: models, logs, checkpoints."""
    width: int = 192
    """Width of the transformer, a multiple of 64. The narrower, the more codebooks
    weigh."""
    depth: int = 2
    """Number of transformer blocks."""
    float_steps: int = 300
    """Training steps of the float model."""
    steps: int = 200
    """Fine-tuning steps of every compressed model."""
    batch: int = 64
    """Images per step."""
    seed: int = 0
    """Seed of initialisation, clustering and batches."""


# 16 codewords of 8 in float32 and 64 of 4 in float16 are 4096 bits of codebook each:
# VQ and SSVQ store exactly the same number of bits.
_SSVQ = ssvq.SSVQ(16, 8, codebook_dtype="float32")
_FIXED = dataclasses.replace(_SSVQ, learn_signs=False)
METHODS: dict[str, tuple[str, ssvq.Codec | None]] = {
    "float": ("float32", None),
    "uniform": ("UQ, 2 bits (its least)", ssvq.Uniform(2)),
    "vq": ("VQ", ssvq.VQ(64, 4, codebook_dtype="float16")),
    "fixed": ("SSVQ, fixed signs", _FIXED),
    "learned": ("SSVQ, learned signs", _SSVQ),
    "frozen": ("SSVQ, learned + frozen", _SSVQ),
}
"""Names of runs, and what tables call them; how they are compressed."""
_FREEZING = Freezing(checks=15, threshold=(0.03, 0.009))


def main(options: Options) -> None:
    """Train, compress, and show what came out."""
    if options.width < 64 or options.width % 64:
        raise SystemExit(f"--width: expected a multiple of 64, got {options.width}")
    if min(options.steps, options.float_steps, options.batch, options.depth) < 1:
        raise SystemExit("steps, batch and depth: expected at least 1")
    start, console = time.perf_counter(), Console()
    execution = Execution(
        devices=Devices.all("data"), data_dir=options.data_dir, log_every=10
    )
    results: dict[str, Record] = {}
    with bars(console) as progress:
        for name, experiment in _experiments(options).items():
            folder = options.output / name
            results[name] = run(experiment, folder, execution, progress)
    diverged = [name for name, result in results.items() if "diverged" in result]
    if diverged:
        raise SystemExit(f"Loss or parameters were not finite: {', '.join(diverged)}")
    console.print(_table(options, results))
    file = options.output / "quickstart.png"
    folders = {METHODS[name][0]: options.output / name for name in results}
    save(quickstart_plot(folders), file)
    console.print(
        f"Plot: {file}. {time.perf_counter() - start:.0f} s in all.\n"
        "Checks passed: every packed file gives back its model bit for bit."
    )


def _experiments(options: Options) -> dict[str, Experiment]:
    """The float network's training, and the others' fine-tuning from its end."""
    task = Classification()
    train = task.open(options.dataset, "train", options.data_dir)
    size, _, channels = train[0]["image"].shape
    config = DeiTConfig(
        width=options.width,
        depth=options.depth,
        heads=options.width // 64,
        size=size,
        patch=size // 4,
        channels=channels,
    )

    def make(classes: int, rngs: nnx.Rngs) -> DeiT:
        model = DeiT(config, classes, rngs=rngs)
        # As large as the patches' tokens: 300 steps are too few to grow positions.
        model.pos_embed[...] *= 25
        return model

    network = ImageNetwork(
        name=f"deit_{options.width}x{options.depth}",
        make=make,
        size=size,
        classes=train.classes,
        channels=channels,
    )
    found = {}
    for name, (_, codec) in METHODS.items():
        steps, weights, compression = options.float_steps, None, None
        if codec is not None:
            steps, weights = options.steps, options.output / "float/model.safetensors"
            compression = Compression(
                rules=(ssvq.Rule("blocks/.*/kernel", codec),),
                freezing=_FREEZING if name == "frozen" else None,
            )
        found[name] = Experiment(
            task=task,
            network=network,
            data=Data(name=options.dataset, test=options.test),
            optimization=Optimization(
                epochs=steps * options.batch / len(train),
                batch=options.batch,
                warmup=0.1,
                weight_decay=1e-4,
            ),
            weights=weights and str(weights),
            compression=compression,
            seed=options.seed,
        )
    return found


def _table(options: Options, results: dict[str, Record]) -> Table:
    images = len(unpack(results["float"]["each"]))
    table = Table(
        title=f"DeiT {options.width} wide, {options.depth} blocks, on "
        f"{options.dataset}: accuracy on {images:,} test images",
        caption="Bits: codes, signs, codebooks or steps of the compressed kernels. "
        "File: the whole model, what stays in float32 included.",
    )
    table.add_column("method")
    for header in ("bits/weight", "ratio", "compressed", "fine-tuned", "file"):
        table.add_column(header, justify="right")
    for name, result in results.items():
        before = result["before"]
        table.add_row(
            METHODS[name][0],
            f"{result.get('bits_per_weight', 32):.3f}",
            f"{result.get('ratio', 1):.1f}x",
            f"{before['top1']:.1%}" if before else "",
            f"{result['test']['top1']:.1%}",
            f"{result['bytes'] / 1e3:,.0f} kB",
        )
    return table


if __name__ == "__main__":
    main(parse(Options, __doc__))
