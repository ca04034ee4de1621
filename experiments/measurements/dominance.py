"""Gradient dominance: do blocks move where their own gradients say?

    python -m experiments.measurements.dominance --data-dir ../shared/tfds

Under VQ all blocks that share a codeword move together, and a few with large gradients
decide where. For the 5 % of a codeword's blocks with the largest gradients and the 60 %
with the smallest (of a kernel's blocks, for the float network), this gives the mean
cosine between the gradient of a block's own weights and

- its codeword's gradient as it reaches the block (for SSVQ times the block's signs),
  before fine-tuning, over one pass of some images;
- the same by chance: a codeword's gradient is the sum of those of its blocks, so even
  blocks that have nothing in common agree with it, the larger ones more;
- what an epoch of fine-tuning makes of the block, flipped signs included; there the
  gradient is the sum over the steps.

The paper has the first for MobileNet-V2 under VQ: 0.66 for the
largest, 0.26 for the smallest.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import ssvq_jax as ssvq
from experiments.configs.cifar10._cifar10 import fine_tuning
from experiments.data.batches import training_batches
from experiments.models import checkpoint
from experiments.training import records
from experiments.training.program import Program
from ssvq_jax.codecs import is_compressed
from ssvq_jax.core.blocks import to_blocks

METHODS = ("float", "vq", "fixed", "learned")
"""Methods of `experiments.configs._methods`, all at 1.5 bits but the float network."""
_BLOCK = 8  # of the float network: any does


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets."""
    images: int = 4096
    """Training images that the gradients are taken over."""
    steps: int = 352
    """Steps of training; 352 are an epoch."""
    results: pathlib.Path = records.RESULTS
    """Folder for cifar10/dominance.jsonl."""


def main(options: Options) -> int:
    """Measure, print and write; returns the exit status."""
    start = time.monotonic()
    found = {method: _measure(method, options) for method in METHODS}
    table = Table("method", *found["vq"])
    for method, row in found.items():
        table.add_row(
            method, *(f"{row[k]:.3f}" if k in row else "" for k in found["vq"])
        )
    Console().print(table)
    shared = {
        "minutes": (time.monotonic() - start) / 60,
        "command": "python -m experiments.measurements.dominance --data-dir DIR",
        "images": options.images,
        "steps": options.steps,
    }
    lines = {method: {"cosines": row, **shared} for method, row in found.items()}
    records.write(options.results / "cifar10" / "dominance.jsonl", lines)
    return 0


def cosines(
    own: np.ndarray, moved: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Mean cosine between what blocks want and where they are moved.

    Args:
      own: `(n, d)`, the gradients of the blocks' own weights.
      moved: `(n, d)`, where they are moved.
      groups: `(n,)`, integers: blocks are ranked among those of their group.

    Returns:
      Of the 5 % of the blocks with the largest gradients, one of every group at least,
      and of the 60 % with the smallest. Blocks that want nothing or are not moved do
      not count.
    """
    size = np.linalg.norm(own, axis=1)
    norms = size * np.linalg.norm(moved, axis=1)
    valid = norms > 0
    cosine = np.sum(own * moved, axis=1)[valid] / norms[valid]
    size, groups = size[valid], groups[valid]
    order = np.lexsort((-size, groups))
    cosine, groups = cosine[order], groups[order]
    _, first, group, counts = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    larger = (np.arange(len(groups)) - first[group]) / counts[group]  # share of them
    return float(np.mean(cosine[larger < 0.05])), float(np.mean(cosine[larger >= 0.4]))


def chance(own: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """`cosines` with a codeword's gradient if blocks had nothing in common.

    Args:
      own: `(n, d)`, the gradients of the blocks' own weights: they keep their sizes and
        get random signs.
      groups: `(n,)`, integers: the blocks' codewords.
    """
    signs = np.random.default_rng(0).integers(2, size=own.shape) * 2 - 1
    apart = own * signs
    sums = np.zeros((groups.max() + 1, own.shape[1]))
    np.add.at(sums, groups, apart)
    return cosines(apart, sums[groups], groups)


def _measure(method: str, options: Options) -> dict[str, float]:
    """Mean cosines of all compressed kernels of the network."""
    experiment = fine_tuning(method, 1.5, epochs=1)
    task, source = experiment.task, experiment.data
    split = task.open(source.name, source.train, options.data_dir).decoded()
    model = experiment.network.build(nnx.Rngs(0))
    checkpoint.load(model, experiment.weights or "")
    program = Program(experiment, model, options.steps)
    first = state = program.initial(program.compressed())
    batch = experiment.optimization.batch
    batches = training_batches(
        split,
        batch=batch,
        seed=experiment.seed,
        prepare=functools.partial(task.prepare, size=experiment.network.size),
    )

    @jax.jit
    def gradient(state, arrays):
        """Of the decoded weights."""
        weights = ssvq.decode(state.params)
        return jax.grad(program.loss, has_aux=True)(weights, state.statistics, arrays)[
            0
        ]

    def add(total, more):
        return more if total is None else jax.tree.map(jnp.add, total, more)

    count, total = -(-options.images // batch), None
    steps = zip(range(count), batches, strict=False)
    for _, arrays in track(steps, f"{method}: gradients", count):
        total = add(total, gradient(state, arrays))
    found = {}
    if experiment.compression is not None:
        _, pull_back = jax.vjp(
            lambda x: ssvq.decode(ssvq.combine(x, first.static)), first.trainable
        )
        trained = ssvq.combine(pull_back(total)[0], first.static)
        moved = ssvq.decode(_with_codebooks(first.params, trained))
        own, moved, groups = _blocks(first.params, total, moved)
        found |= _row("codeword's gradient", *cosines(own, moved, groups))
        found |= _row("by chance", *chance(own, groups))
    update, total = jax.jit(program.step), None
    steps = zip(range(options.steps), batches, strict=False)
    for _, arrays in track(steps, f"{method}: training", options.steps):
        total = add(total, gradient(state, arrays))
        state, _ = update(state, arrays, None)
    before, after = ssvq.decode(first.params), ssvq.decode(state.params)
    moved = jax.tree.map(jnp.subtract, before, after)  # down the gradient
    return found | _row("an epoch", *cosines(*_blocks(first.params, total, moved)))


def _with_codebooks(params: Any, gradients: Any) -> Any:
    """Nodes with their codebooks' gradients for codebooks."""
    return jax.tree.map(
        lambda node, gradient: (
            node.replace(codebook=gradient.codebook) if is_compressed(node) else node
        ),
        params,
        gradients,
        is_leaf=is_compressed,
    )


def _blocks(params: Any, own: Any, moved: Any) -> tuple[np.ndarray, ...]:
    """The arguments of `cosines` for all kernels that rules compress, together."""
    flat = [nnx.traversals.flatten_mapping(tree) for tree in (params, own, moved)]
    pieces, groups = [], 0
    for path, node in flat[0].items():
        if path[0] == "blocks" and path[-1] == "kernel":
            block = node.codec.block if is_compressed(node) else _BLOCK
            cut = [to_blocks(np.asarray(tree[path]), block, 0) for tree in flat[1:]]
            codes = np.zeros(cut[0].shape[:-1], int)
            if is_compressed(node):
                codes += node.codes
            group = groups + codes.reshape(-1)
            groups = group.max() + 1
            pieces.append([*(x.reshape(-1, block) for x in cut), group])
    return tuple(np.concatenate(x) for x in zip(*pieces, strict=True))


def _row(title: str, top: float, bottom: float) -> dict[str, float]:
    return {f"{title}: top 5 %": top, f"{title}: bottom 60 %": bottom}


if __name__ == "__main__":
    sys.exit(
        main(
            tyro.cli(
                Options,
                prog="python -m experiments.measurements.dominance",
                description=__doc__,
            )
        )
    )
