"""Compressing a whole model: `ssvq_jax.compress` against faiss in a loop.

    python -m experiments.benchmarks.compress

All kernels of at least 4,096 weights, 16 codewords of 8 magnitudes. Both do at most
the same number of iterations; ours stop once nothing changes, faiss's do not.
"""

import re
import statistics
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import rich

import ssvq_jax as ssvq
from experiments.benchmarks import peers, weights
from experiments.benchmarks.measure import (
    MEBIBYTE,
    in_fresh_process,
    median_seconds,
    once,
    peak_extra_bytes,
)
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import at_most, seconds_text
from ssvq_jax.core.blocks import contracted_axis, to_blocks
from ssvq_jax.core.kmeans import ITERATIONS

CODEC = ssvq.SSVQ(codewords=16, block=8)
LEAST_WEIGHTS = 4096
FRESH_PROCESSES = 3
MOST_SECONDS = 2.0
COMPILED = (
    "; two thirds of what is compiled are k-means, a program for each of a few sizes"
)
MOST_TENSORS = 2.0
KEPT = (
    "; small tensors: most of it is some 10 MiB that the allocator and the threads "
    "keep, whatever the size of the model"
)

Tree = dict[str, np.ndarray]


def measure(options: Options) -> Iterator[Row]:
    """Two rows per model: the first time in a process, and warm."""
    for name in ("efficientnet_lite0", "deit_tiny_cifar10"):
        there = weights.model_file(options.models, name).exists()
        if there or name == "deit_tiny_cifar10":
            yield from _rows(name if there else "random DeiT-Tiny", name, options)
        else:
            rich.print(f"compress: {name} skipped: not in {options.models}")


def _rows(title: str, name: str, options: Options) -> Iterator[Row]:
    repeats = 1 if options.quick else FRESH_PROCESSES
    ours, theirs = (
        statistics.median(
            in_fresh_process(first_seconds, name, options, peer) for _ in range(repeats)
        )
        for peer in (False, True)
    )
    tree = _load(name, options)
    total = sum(tree[path].size for path in _kernels(tree))
    case = f"{title}, {total:,} weights"
    yield Row(
        case=f"{case}, first time",
        ours=ours,
        peer=theirs,
        peer_name="faiss",
        note="compilation included; "
        + at_most(ours, MOST_SECONDS, seconds_text(MOST_SECONDS))
        + (COMPILED if ours > MOST_SECONDS else ""),
    )
    on_device = {path: jnp.asarray(x) for path, x in tree.items()}
    jax.block_until_ready(on_device)
    timings = median_seconds(
        {"ours": lambda: _compress(on_device), "faiss": lambda: _faiss(tree)},
        options.timed_runs,
    )
    extra = statistics.median(_extra_bytes(on_device) for _ in range(3))
    tensors = extra / max(x.nbytes for x in tree.values())
    yield Row(
        case=f"{case}, warm",
        ours=timings["ours"].median,
        peer=timings["faiss"].median,
        peer_name="faiss",
        note=f"peak memory {tensors:.1f} times the largest tensor "
        f"({at_most(tensors, MOST_TENSORS)}), "
        f"{extra / MEBIBYTE:.1f} MiB: resident memory above that before, less the "
        "bytes of the result" + (KEPT if tensors > MOST_TENSORS else ""),
        details={"peak_in_largest_tensors": tensors, **timings["ours"].spread()},
    )


def first_seconds(name: str, options: Options, peer: bool) -> float:
    """Seconds of the first call, with ours the start of JAX and compilation too."""
    jax.config.update("jax_enable_compilation_cache", False)
    tree = _load(name, options)
    seconds, _ = once(_faiss if peer else _compress, tree)
    return seconds


def _load(name: str, options: Options) -> Tree:
    if weights.model_file(options.models, name).exists():
        tree = weights.trained(options.models, name)
    else:
        tree = weights.random_deit_tiny()
    if options.quick:
        return {path: tree[path] for path in _kernels(tree)[:2]}
    return tree


def _kernels(tree: Tree | dict[str, jax.Array]) -> list[str]:
    """Paths of what is compressed."""
    return [
        path
        for path, x in tree.items()
        if path.endswith("weight") and x.ndim >= 2 and x.size >= LEAST_WEIGHTS
    ]


def _compress(tree: Tree | dict[str, jax.Array]) -> dict:
    pattern = "|".join(map(re.escape, _kernels(tree)))
    rules = [ssvq.Rule(pattern, CODEC)]
    return ssvq.compress(tree, rules, key=jax.random.key(0))


def _faiss(tree: Tree) -> list[tuple[np.ndarray, np.ndarray, float]]:
    clusterings = []
    for path in _kernels(tree):
        axis = contracted_axis(tree[path].shape)
        blocks = to_blocks(np.abs(tree[path]), CODEC.block, axis)
        points = np.ascontiguousarray(blocks).reshape(-1, CODEC.block)
        clusterings.append(peers.faiss_clustering(points, CODEC.codewords, ITERATIONS))
    return clusterings


def _extra_bytes(tree: dict[str, jax.Array]) -> int:
    """Peak memory of a warm call, its inputs and its result left out."""
    peak, result = peak_extra_bytes(_compress, tree)
    compressed = [result[path] for path in _kernels(tree)]
    return peak - sum(x.nbytes for x in jax.tree.leaves(compressed))


if __name__ == "__main__":
    run("compress", measure)
