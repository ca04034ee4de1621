"""Growth of time and memory with the number of weights.

    python -m experiments.benchmarks.growth --largest 1e8

Compresses and decodes random weights tensor by tensor, as a model that does not fit
into memory would be; and times training steps of ever deeper transformers.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import ssvq_jax as ssvq
from experiments.benchmarks import training
from experiments.benchmarks.measure import (
    MEBIBYTE,
    exponent,
    median_seconds,
    once,
    peak_extra_bytes,
)
from experiments.benchmarks.rows import Row
from experiments.benchmarks.subject import Options, run
from experiments.report.numbers import at_most

CODEC = ssvq.SSVQ(codewords=16, block=8)
TENSOR = (1024, 4096)
SMALL_TENSOR = (256, 4096)
SMALLEST = 10**6
COMPILING = 2  # numbers of weights so small that compiling takes longer
MOST_GROWTH = 1.5  # of the peak: what the allocator keeps varies
QUICK_LARGEST = 4 * 10**6
DEPTHS = (3, 6, 12, 24)
METHODS = (
    training.DENSE,
    training.Method("SSVQ", CODEC),
)


def measure(options: Options) -> Iterator[Row]:
    """Rows of encoding and decoding per number of weights, of steps per depth."""
    yield from _streams(options)
    yield from _steps(options)


@dataclasses.dataclass
class _Stream:
    """What a loop over tensors took."""

    weights: int
    encode: float = 0.0
    decode: float = 0.0
    mebibytes: float = 0.0


def _streams(options: Options) -> Iterator[Row]:
    largest = min(options.largest, QUICK_LARGEST if options.quick else math.inf)
    streams: list[_Stream] = []
    for total in _totals(largest):
        shape = TENSOR if total > 2 * SMALLEST else SMALL_TENSOR
        count = max(1, round(total / math.prod(shape)))
        peak, stream = peak_extra_bytes(_stream, shape, count)
        stream.mebibytes = peak / MEBIBYTE
        streams.append(stream)
        for name in ("encode", "decode"):
            warm = streams[COMPILING:]
            fitted = _fitted(
                [stream.weights for stream in warm],
                [getattr(stream, name) for stream in warm],
            )
            notes = [_memory_note(streams), _fitted_note(fitted)]
            if fitted:
                notes.append(f"the first {COMPILING} left out: they mostly compile")
            yield Row(
                case=f"{name}, {stream.weights:,} weights",
                ours=getattr(stream, name),
                note="; ".join(filter(None, notes)),
                details={
                    "weights": stream.weights,
                    "mebibytes": stream.mebibytes,
                    **fitted,
                },
            )


def _stream(shape: tuple[int, int], count: int) -> _Stream:
    """Generate, encode, decode and drop one tensor after the other."""
    stream = _Stream(count * math.prod(shape))
    rng = np.random.default_rng(0)
    for i in track(range(count), f"growth: {stream.weights:,} weights"):
        weight = jnp.asarray(rng.standard_normal(shape, np.float32))
        seconds, node = once(_encode, weight, jax.random.key(i))
        stream.encode += seconds
        seconds, _ = once(ssvq.decode, node)
        stream.decode += seconds
        del weight, node  # before the next is made
    return stream


def _encode(weight: jax.Array, key: jax.Array) -> Any:
    return ssvq.finalize(ssvq.encode(CODEC, weight, key=key))


def _memory_note(streams: list[_Stream]) -> str:
    """The peak, judged against that of the fewest tensors once all is compiled."""
    note = f"{streams[-1].mebibytes:.0f} MiB at the peak of encoding and decoding"
    if len(streams) <= COMPILING + 1:
        return note
    first = streams[COMPILING]
    growth = streams[-1].mebibytes / first.mebibytes
    return (
        f"{note}, {growth:.2f} times that of {first.weights:,} weights "
        f"({at_most(growth, MOST_GROWTH)})"
    )


def _totals(largest: float) -> list[int]:
    totals = [SMALLEST]
    while totals[-1] < largest:
        totals.append(int(min(4 * totals[-1], largest)))
    return totals


def _fitted(weights: list[int], seconds: list[float]) -> dict[str, float]:
    """The exponent of growth, as details of a row; nothing of a single point."""
    if len(weights) < 2:
        return {}
    return {"exponent": exponent(weights, seconds)}


def _fitted_note(fitted: dict[str, float]) -> str:
    return "".join(f"seconds grow as weights^{power:.2f}" for power in fitted.values())


def _steps(options: Options) -> Iterator[Row]:
    size = training.QUICK_SIZE if options.quick else training.Size(batch=32)
    weights: list[int] = []
    seconds: dict[str, list[float]] = {method.name: [] for method in METHODS}
    for depth in (1, 2) if options.quick else DEPTHS:
        size = dataclasses.replace(size, depth=depth)
        weights.append(12 * size.width**2 * depth)  # kernels of the blocks
        steps = {
            method.name: training.training_step(size, method)[0] for method in METHODS
        }
        timings = median_seconds(steps, options.timed_runs)
        for name, timing in timings.items():
            seconds[name].append(timing.median)
            fitted = _fitted(weights, seconds[name])
            dense = None if name == "dense" else timings["dense"].median
            yield Row(
                case=f"{name} training step, {weights[-1]:,} weights",
                ours=timing.median,
                peer=dense,
                peer_name="" if dense is None else "dense",
                note=_fitted_note(fitted),
                details={"weights": weights[-1], **timing.spread(), **fitted},
            )


if __name__ == "__main__":
    run("growth", measure)
