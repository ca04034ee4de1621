"""Compress a small vision transformer to 1.5 bits per weight, and see what it costs.

Trains a ViT on real images, compresses it at one and the same number of stored bits
per weight with VQ and with SSVQ (fixed signs, learned signs, learned and frozen
signs), fine-tunes all of them on the same batches, writes the packed files, reads
them back and checks them.

    python -m experiments.quickstart
    python -m experiments.quickstart --dataset cifar10 --data-dir DIR

About two minutes on 2 CPU cores. Exit status 1 when a check fails.
"""

import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import ssvq_jax as ssvq
from experiments import data, quickstart_plot
from experiments.models.vit import ViT
from experiments.training import optimizer

STEPS_PER_CALL = 10
_Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
    """Quickstart: a small ViT at 1.5 bits per weight."""

    dataset: str = "digits"
    """"digits", or an image-classification set of tensorflow-datasets by name."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets; its default where none is given."""
    output: pathlib.Path = pathlib.Path("runs/quickstart")
    """Folder for quickstart.png and the packed files."""
    width: int = 192
    """Width of the ViT, a multiple of 64. The narrower, the more codebooks weigh."""
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


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: how to compress and how to fine-tune."""

    name: str
    codec: ssvq.Codec
    freeze: bool = False


# 16 codewords of 8 in float32 and 64 of 4 in float16 are 4096 bits of codebook each:
# VQ and SSVQ store exactly the same number of bits.
SIGNED = {"codewords": 16, "block": 8, "codebook_dtype": "float32"}
METHODS = (
    Method("UQ, 2 bits (its least)", ssvq.Uniform(2)),
    Method("VQ", ssvq.VQ(codewords=64, block=4, codebook_dtype="float16")),
    Method("SSVQ, fixed signs", ssvq.SSVQ(**SIGNED, learn_signs=False)),
    Method("SSVQ, learned signs", ssvq.SSVQ(**SIGNED)),
    Method("SSVQ, learned + frozen", ssvq.SSVQ(**SIGNED), freeze=True),
)


@dataclasses.dataclass
class Result:
    """What a row of the table and a line of the plot need."""

    name: str
    bits: float
    ratio: float
    before: float
    after: float
    file_bytes: int
    losses: np.ndarray
    flipped: np.ndarray | None = None
    frozen: np.ndarray | None = None


def main(options: Options) -> int:
    """Run the quickstart; returns the exit status."""
    if options.width < 64 or options.width % 64:
        raise SystemExit(f"--width: expected a multiple of 64, got {options.width}")
    start, console = time.perf_counter(), Console()
    options.output.mkdir(parents=True, exist_ok=True)
    name, folder = options.dataset, options.data_dir
    names = data.splits(name, folder)
    train = data.open_split(name, "train", folder)
    held_out = "test" if "test" in names else "validation"
    test = data.open_split(name, held_out, folder)
    train_set, test_set = train.arrays(), test.arrays()
    size = train_set[0].shape[1]
    model = ViT(
        size=size,
        channels=train_set[0].shape[3],
        patch=size // 4,
        width=options.width,
        depth=options.depth,
        heads=options.width // 64,
        classes=train.classes,
        rngs=nnx.Rngs(options.seed),
    )
    graphdef, params = nnx.split(model, nnx.Param)
    task = _Task(graphdef, train_set, test_set, options)
    failures: list[str] = []

    with Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
    ) as progress:
        tx = _adamw(1e-3, options.float_steps)
        params, history = task.train(progress, "float", params, tx, options.float_steps)
        accuracy = task.accuracy(params)
        file = options.output / "float.safetensors"
        ssvq.save(file, params)
        results = [
            Result(
                "float32",
                32.0,
                1.0,
                accuracy,
                accuracy,
                file.stat().st_size,
                history["loss"],
            )
        ]
        codebook = None
        for method in METHODS:
            result, tuned = _compress(task, progress, method, params, failures)
            results.append(result)
            if method.freeze:
                codebook = tuned["blocks"][0]["fc1"]["kernel"].codebook

    bits = {r.name: r.bits for r in results[2:]}
    if max(bits.values()) - min(bits.values()) > 1e-9:
        failures.append(f"the methods store different numbers of bits: {bits}")
    console.print(_table(results, options, len(test)))
    plot = options.output / "quickstart.png"
    quickstart_plot.draw(plot, results[1:], np.asarray(codebook))
    console.print(f"Plot: {plot}. {time.perf_counter() - start:.0f} s in all.")
    for failure in failures:
        console.print(f"[red]FAILED[/red] {failure}")
    if not failures:
        console.print(
            "Checks passed: every packed file gives back its model bit for bit."
        )
    return 1 if failures else 0


def _compress(
    task: "_Task", progress: Progress, method: Method, params: Any, failures: list[str]
) -> tuple[Result, Any]:
    """Compress, fine-tune, export, reload and check one method."""
    options = task.options
    rules = [ssvq.Rule(r"blocks/.*/kernel", method.codec)]
    compressed = ssvq.compress(params, rules, key=jax.random.key(options.seed))
    before = task.accuracy(compressed)
    tx = _fine_tuning(options.steps, method.freeze)
    tuned, history = task.train(progress, method.name, compressed, tx, options.steps)

    file = options.output / f"{_file_name(method.name)}.ssvq.safetensors"
    final = ssvq.finalize(tuned)
    ssvq.save(file, tuned, metadata={"method": method.name})
    loaded = ssvq.load(file)
    expected = jax.tree.leaves(ssvq.decode(final))
    same = [
        np.array_equal(a, b)
        for a, b in zip(expected, jax.tree.leaves(ssvq.decode(loaded)), strict=True)
    ]
    if not all(same):
        failures.append(f"{file}: {same.count(False)} parameters differ after loading")
    report = ssvq.report(final)
    description = file.stat().st_size - report.model.bits / 8
    if not 0 < description < 2**16:
        failures.append(f"{file}: {description:.0f} bytes more than reported")
    return (
        Result(
            method.name,
            report.compressed.bits_per_weight,
            report.compressed.ratio,
            before,
            task.accuracy(final),
            file.stat().st_size,
            history["loss"],
            history.get("flipped"),
            history.get("frozen") if method.freeze else None,
        ),
        nnx.to_pure_dict(tuned),
    )


class _Task:
    """Training and evaluation of one architecture on one data set."""

    def __init__(
        self, graphdef: Any, train_set: _Arrays, test_set: _Arrays, options: Options
    ):
        self.options = options
        images, labels = train_set
        mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
        std = images.std(axis=(0, 1, 2), dtype=np.float64)
        mean, std = jnp.asarray(mean, "f4"), jnp.asarray(std, "f4")
        self.train_set = jnp.asarray(images), jnp.asarray(labels)
        self.test_set = test_set

        def logits(tree: Any, images: jax.Array) -> jax.Array:
            model = nnx.merge(graphdef, ssvq.decode(tree))
            return model((images - mean) / std)

        def loss(trainable: Any, static: Any, images: Any, labels: Any) -> jax.Array:
            scores = logits(ssvq.combine(trainable, static), images)
            return optax.softmax_cross_entropy_with_integer_labels(
                scores, labels
            ).mean()

        self.loss = loss
        self.logits = jax.jit(logits)

    def accuracy(self, tree: Any) -> float:
        """Share of the test images whose class is found."""
        images, labels = self.test_set
        size, right = 500, 0
        for start in range(0, len(labels), size):
            scores = self.logits(tree, images[start : start + size])
            right += int(np.sum(np.argmax(scores, 1) == labels[start : start + size]))
        return right / len(labels)

    def train(
        self,
        progress: Progress,
        name: str,
        tree: Any,
        tx: optax.GradientTransformation,
        steps: int,
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Train what can be trained of a tree; returns it and its history."""
        trainable, static = ssvq.partition(tree)
        first_signs = optimizer.signs(trainable)
        state = tx.init(trainable)

        @jax.jit
        def run(trainable, state, images, labels, batches):
            def step(carry, batch):
                trainable, state = carry
                loss, gradient = jax.value_and_grad(self.loss)(
                    trainable, static, images[batch], labels[batch]
                )
                updates, state = tx.update(gradient, state, trainable)
                return (optax.apply_updates(trainable, updates), state), loss

            return jax.lax.scan(step, (trainable, state), batches)

        images, labels = self.train_set
        batches = batch_indices(
            len(labels), self.options.batch, steps, self.options.seed
        )
        history: dict[str, list[Any]] = {"loss": [], "flipped": [], "frozen": []}
        bar = progress.add_task(name, total=steps, loss="compiling")
        for start in range(0, steps, STEPS_PER_CALL):
            some = batches[start : start + STEPS_PER_CALL]
            (trainable, state), losses = run(trainable, state, images, labels, some)
            history["loss"].extend(np.asarray(losses))
            shares = optimizer.shares(first_signs, trainable, state)
            for share, value in shares.items():
                history[share].append(value)
            progress.update(bar, advance=len(some), loss=f"loss {losses[-1]:.3f}")
        kept = {name: np.array(values) for name, values in history.items() if values}
        return ssvq.combine(trainable, static), kept


def batch_indices(count: int, batch: int, steps: int, seed: int) -> np.ndarray:
    """Indices `(steps, batch)` of the batches: every epoch is a new permutation."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch)


def _adamw(rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))


def _fine_tuning(steps: int, freeze: bool) -> optax.GradientTransformation:
    """The same for all methods, but for the freezing; rates by kind of parameter."""
    signs = _adamw(1e-3, steps)
    if freeze:
        threshold = optax.cosine_decay_schedule(0.03, steps, alpha=0.3)
        interval = max(1, steps // 15)
        signs = optax.chain(
            signs, ssvq.freeze_signs(interval=interval, threshold=threshold)
        )
    return optax.partition(
        {"sign": signs, "codebook": _adamw(1e-3, steps), "other": _adamw(1e-3, steps)},
        ssvq.label_tree,
    )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")


def _table(results: list[Result], options: Options, images: int) -> Table:
    table = Table(
        title=f"ViT {options.width} wide, {options.depth} blocks, on "
        f"{options.dataset}: accuracy on {images:,} test images",
        caption="Bits: codes, signs, codebooks or steps of the compressed kernels. "
        "File: the whole model, what stays in float32 included.",
    )
    table.add_column("method")
    for header in ("bits/weight", "ratio", "compressed", "fine-tuned", "file"):
        table.add_column(header, justify="right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.bits:.3f}",
            f"{result.ratio:.1f}x",
            "" if result.ratio == 1 else f"{result.before:.1%}",
            f"{result.after:.1%}",
            f"{result.file_bytes / 1e3:,.0f} kB",
        )
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
