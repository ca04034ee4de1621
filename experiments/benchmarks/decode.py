"""Decoding: `ssvq_jax.decode` of finalized weights against copying and NumPy.

    python -m experiments.benchmarks.decode

A copy of the decoded array writes what decoding has to write: it is the limit.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import ssvq_jax as ssvq
from experiments.benchmarks import peers, weights
from experiments.benchmarks.measure import median_seconds
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import seconds_text, verdict

SHAPES = ((1024, 4096), (2048, 8192))
BLOCKS = (4, 8, 16)
CODEWORDS = (16, 64, 256)
CALLS = 5
LEAST_BILLIONS = 2.0
REASON = (
    "the gather, a scalar loop of about 1 ns per weight and thread in XLA, is what "
    "takes the time; for 64 MiB it hides behind the page faults of the result"
)


def measure(options: Options) -> Iterator[Row]:
    """A row per shape, dtype, block and number of codewords."""
    shapes = ((64, 128),) if options.quick else SHAPES
    blocks, codewords = ((8,), (16,)) if options.quick else (BLOCKS, CODEWORDS)
    sizes = list(itertools.product(shapes, blocks, codewords))
    for dtype, (shape, d, k) in itertools.product(("float32", "bfloat16"), sizes):
        codec = ssvq.SSVQ(codewords=k, block=d)
        yield _row(codec, shape, dtype, dtype, options)
    for shape, d, k in sizes:
        codec = ssvq.SSVQ(codewords=k, block=d, codebook_dtype="int8")
        yield _row(codec, shape, "float32", "int8", options)


def _row(
    codec: ssvq.SSVQ, shape: tuple[int, int], weight: str, result: str, options: Options
) -> Row:
    """Decode a weight of dtype `weight` to an array of dtype `result`."""
    case = f"{shape[0]} x {shape[1]} {result}, k={codec.codewords} d={codec.block}"
    node = weights.random_node(codec, shape, weight, jax.random.key(0))
    dtype = jnp.dtype(result)
    codebook, codes, signs = map(np.asarray, (node.codebook, node.codes, node.signs))
    copy = jax.jit(jnp.copy)

    def decode():
        return ssvq.decode(node, dtype=None if result == weight else dtype)

    def by_numpy():
        return peers.numpy_decode(codebook, codes, signs, dtype)

    decoded = decode()
    if decoded.dtype != dtype or not np.array_equal(np.asarray(decoded), by_numpy()):
        raise ValueError(f"{case}: decoded to other values than by NumPy")
    # NumPy is slow: in turn with it, caches and threads would be cold for the others.
    by_numpy_timing = median_seconds({"NumPy": by_numpy}, options.timed_runs)["NumPy"]
    timings = median_seconds(
        {"ours": decode, "copy": lambda: copy(decoded)},
        options.timed_runs,
        calls=CALLS,
    )
    ours = timings["ours"].median
    ratio = by_numpy_timing.median / ours
    billions = node.size / ours / 1e9
    notes = [
        f"NumPy {seconds_text(by_numpy_timing.median)} (ratio {ratio:.1f})",
        f"{billions:.2f} G weights/s",
    ]
    if result == "int8":
        met = verdict(billions >= LEAST_BILLIONS)
        notes.append(f"{met}: at least {LEAST_BILLIONS:g} G weights/s")
    return Row(
        case=case,
        ours=ours,
        peer=timings["copy"].median,
        peer_name="copy",
        aim=0.9 if result == "float32" else None,
        note="; ".join(notes),
        reason=REASON,
        details={
            "billions_per_second": billions,
            "numpy_seconds": by_numpy_timing.median,
            **timings["ours"].spread(),
        },
    )


if __name__ == "__main__":
    run("decode", measure)
