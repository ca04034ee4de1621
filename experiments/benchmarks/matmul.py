"""Products: `ssvq_jax.matmul` with a compressed weight against dense products.

    python -m experiments.benchmarks.matmul

"In cache" multiplies by the same weight again and again. "From memory" goes round so
many weights that none stays in cache, as the layers of a model follow each other.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ssvq_jax as ssvq
from experiments.benchmarks import weights
from experiments.benchmarks.measure import Timing, median_seconds
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import seconds_text

CODEC = ssvq.SSVQ(codewords=16, block=8)
SHAPES = ((2048, 8192), (4096, 14336))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CALLS = 5
LEAST_BYTES = 512 * 2**20
DENSE_AIM = 1.5
DECODE_AIM = 1.0
REASON = (
    "the dense weight stays in a last-level cache that is larger than it, while the "
    "gather is a scalar loop of one thread in XLA, 0.75 ns per block"
)


def measure(options: Options) -> Iterator[Row]:
    """Two rows per shape and batch: against float32, against decoding first."""
    shapes = ((64, 128),) if options.quick else SHAPES
    batches = (1, 2) if options.quick else BATCHES
    for shape in shapes:
        count = 2 if options.quick else math.ceil(LEAST_BYTES / (4 * math.prod(shape)))
        keys = jax.random.split(jax.random.key(0), count)
        nodes = [weights.random_node(CODEC, shape, "float32", key) for key in keys]
        dense = [ssvq.decode(node) for node in nodes]
        half = [x.astype(jnp.bfloat16) for x in dense]
        for batch in batches:
            yield from _rows("in cache", batch, nodes[:1], dense[:1], half[:1], options)
        yield from _rows("from memory", 1, nodes, dense, half, options)


def _rows(
    place: str,
    batch: int,
    nodes: Sequence[Any],
    dense: Sequence[jax.Array],
    half: Sequence[jax.Array],
    options: Options,
) -> Iterator[Row]:
    inputs, outputs = dense[0].shape
    x = jax.random.normal(jax.random.key(batch), (batch, inputs))
    product = jax.jit(jnp.matmul)
    compressed = jax.jit(ssvq.matmul)
    decode_first = jax.jit(lambda x, node: x @ ssvq.decode(node))
    expected = np.asarray(product(x, dense[0]))
    error = float(np.max(np.abs(compressed(x, nodes[0]) - expected)))
    error /= float(np.max(np.abs(expected)))
    timings = median_seconds(
        {
            "ours": _round(compressed, x, nodes),
            "float32": _round(product, x, dense),
            "bfloat16": _round(product, x.astype(jnp.bfloat16), half),
            "decode first": _round(decode_first, x, nodes),
        },
        options.timed_runs,
        calls=1 if len(nodes) > 1 else CALLS,
    )
    seconds = {name: timing.median / len(nodes) for name, timing in timings.items()}
    spread = Timing(*(value / len(nodes) for value in timings["ours"])).spread()
    case = f"{inputs} x {outputs}, batch {batch}, {place}"
    bfloat16 = seconds["bfloat16"] / seconds["ours"]
    note = (
        f"dense bfloat16 {seconds_text(seconds['bfloat16'])} (ratio {bfloat16:.2f}); "
        f"differs by {error:.0e} of the largest output"
    )
    aims = {"float32": DENSE_AIM if batch == 1 else None, "decode first": DECODE_AIM}
    for peer, aim in aims.items():
        yield Row(
            case=case,
            ours=seconds["ours"],
            peer=seconds[peer],
            peer_name=peer,
            aim=aim,
            note=note if peer == "float32" else "",
            reason=REASON if peer == "float32" else "",
            details={"error": error, "bfloat16": seconds["bfloat16"], **spread},
        )


def _round(
    product: Callable[[jax.Array, Any], jax.Array],
    x: jax.Array,
    matrices: Sequence[Any],
) -> Callable[[], None]:
    """One product after the other: a model's next layer waits for the one before."""

    def multiply():
        for matrix in matrices:
            jax.block_until_ready(product(x, matrix))

    return multiply


if __name__ == "__main__":
    run("matmul", measure)
