"""Where compressed weights speed up an accelerator, and where they do not.

    python -m experiments.measurements.accelerator

Simulates DeiT-Tiny at 224 pixels (and three other models) with int8 weights, VQ, MVQ
and SSVQ; writes accelerator.jsonl, the page and the plots. A quarter of a minute.
"""

import dataclasses
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track

import ssvq_jax as ssvq
from experiments.report import pages
from experiments.training import records
from experiments.training.terminal import Flag
from ssvq_jax import accelerator as acc
from ssvq_jax.accelerator.report import CAUSES

METHODS: dict[str, Any] = {
    "int8": "int8",
    "VQ k=64 d=4": ssvq.VQ(64, 4, codebook_dtype="int8"),
    "VQ k=4096 d=8": ssvq.VQ(4096, 8, codebook_dtype="int8"),
    "MVQ k=64 d=8, 2:4": ssvq.MVQ(64, 8, (2, 4)),
    "SSVQ k=16 d=8": ssvq.SSVQ(16, 8, codebook_dtype="int8"),
}
OURS = "SSVQ k=16 d=8"
COMPRESSED = [name for name in METHODS if name != "int8"]
RATES = (0.8, 1.2, 1.6, 2.4, 3.2, 4.8, 6.4, 9.6, 12.8, 25.6)
ARRAYS = (16, 32, 64, 128)
DECODERS = (1, 2, 4, 8, 16, 32)
REFERENCE = {1.6: 4.89, 3.2: 4.55, 6.4: 2.74, 12.8: 1.48}
DRAM_PJ_PER_BIT = (4, 8, 14)

Workload = Sequence[acc.MatMul]
Records = dict[str, records.Record]


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the results go, and how much is simulated."""

    out: pathlib.Path = records.RESULTS
    """Folder of the results."""
    quick: Flag = False
    """Two blocks and few configurations: checks that everything works."""


def main(options: Options) -> int:
    """Simulate, and write the page; returns the exit status."""
    console = Console()
    workload = acc.workloads.vit(192, 2 if options.quick else 12, 3)
    start = time.perf_counter()
    acc.simulate(workload, acc.Config(), METHODS[OURS])
    single = time.perf_counter() - start
    rates, arrays = (RATES[::4], ARRAYS[2:3]) if options.quick else (RATES, ARRAYS)
    start = time.perf_counter()
    sweep = _sweep(workload, rates, arrays, console)
    found = {
        **sweep,
        "seconds": {"single": single, "sweep": time.perf_counter() - start},
        **{f"reference-{x:g}": _reference(workload, x) for x in REFERENCE},
        **{f"decoder-{width}": _decoder(workload, width) for width in DECODERS},
        **{f"bytes-{name}": _bytes(workload, name) for name in METHODS},
        **_energy(workload),
        **_models(workload),
        **{f"products-{name}": _products(workload, name) for name in ("int8", OURS)},
        "config": {"values": _described(acc.Config())},
    }
    records.write(options.out / "accelerator.jsonl", found)
    pages.build(options.out, ["accelerator"], console.print)
    console.print(f"Results: {options.out / 'accelerator.md'}")
    return 0


def _sweep(
    workload: Workload, rates: Sequence[float], arrays: Sequence[int], console: Console
) -> Records:
    rows = {}
    pairs = list(itertools.product(arrays, rates))
    for size, rate in track(pairs, "Simulating", console=console):
        config = _config(rate, size)
        cycles = {
            n: acc.simulate(workload, config, w).cycles for n, w in METHODS.items()
        }
        row = {"array": size, "rate": rate, "cycles": cycles}
        row["speedup"] = cycles["int8"] / cycles[OURS]
        rows[f"sweep-{size}-{rate:g}"] = row
    return rows


def _config(rate: float, size: int = 64, **values: Any) -> acc.Config:
    """The machine of the sweep: a decoder as fast as the array is loaded."""
    return acc.Config(
        rows=size,
        cols=size,
        dram_bytes_per_cycle=rate,
        decode_codewords_per_cycle=values.pop("decoder", size // 4),
        weight_buffer_bytes=2 * 128 * 128,
        **values,
    )


def _both(workload: Workload, config: acc.Config) -> tuple[acc.Report, acc.Report]:
    """int8 and SSVQ."""
    return (
        acc.simulate(workload, config, METHODS["int8"]),
        acc.simulate(workload, config, METHODS[OURS]),
    )


def _reference(workload: Workload, rate: float) -> records.Record:
    row: records.Record = {"rate": rate, "reference": REFERENCE[rate]}
    for name, values in (
        ("plain", {"dram_latency": 0, "burst_bytes": 1}),
        ("latency", {"dram_latency": 100, "burst_bytes": 32}),
        ("slow", {"dram_latency": 500, "burst_bytes": 32}),
        ("prefetch", {"prefetch": True}),
    ):
        config = _config(rate, **values)
        int8, ours = _both(workload, config)
        row[name] = int8.cycles / ours.cycles
        if name == "plain":
            row["roofline"] = int8.roofline_cycles / ours.roofline_cycles
            for key, report in (("int8", int8), ("ours", ours)):
                row[f"{key}_cycles"] = report.cycles
                row[f"{key}_roofline"] = report.roofline_cycles
    return row


def _decoder(workload: Workload, width: int) -> records.Record:
    config = _config(6.4, decoder=width)
    int8 = acc.simulate(workload, config, "int8").cycles
    reports = {n: acc.simulate(workload, config, METHODS[n]) for n in COMPRESSED}
    return {
        "width": width,
        "speedup": {name: int8 / report.cycles for name, report in reports.items()},
        "stalled": reports[OURS].stall_cycles["decoder"] / reports[OURS].cycles,
    }


def _bytes(workload: Workload, name: str) -> records.Record:
    report = acc.simulate(workload, _config(3.2, burst_bytes=1), METHODS[name])
    return {"weights": name, "traffic": report.traffic, "cycles": report.cycles}


def _energy(workload: Workload) -> Records:
    rows: Records = {}
    for name, report in zip(("int8", OURS), _both(workload, _config(6.4)), strict=True):
        rows[f"energy-{name}"] = {
            "weights": name,
            "components": report.energy_by_component,
        }
    for picojoule in DRAM_PJ_PER_BIT:
        energy = acc.Energy(dram=8 * picojoule)
        int8, ours = _both(workload, _config(6.4, energy=energy))
        ratio = int8.energy_pj / ours.energy_pj
        rows[f"dram-{picojoule}"] = {"picojoule": picojoule, "ratio": ratio}
    return rows


def _models(deit: Workload) -> Records:
    rows = {}
    workloads = {
        "DeiT-Tiny": deit,
        "EfficientNet-Lite0": acc.workloads.efficientnet_lite0(),
        "MobileNet-V2": acc.workloads.mobilenet_v2(),
        "Llama-like, 135 M, one token": acc.workloads.llama(),
    }
    for name, workload in workloads.items():
        int8, ours = _both(workload, _config(6.4))
        rows[f"model-{name}"] = {
            "model": name,
            "macs": sum(product.macs for product in workload),
            "weights": sum(product.weight_count for product in workload),
            "matrices": sum(product.weight_count > 0 for product in workload),
            "int8_cycles": int8.cycles,
            "cycles": ours.cycles,
            "speedup": int8.cycles / ours.cycles,
            "bytes": int8.dram_bytes / ours.dram_bytes,
            "energy": int8.energy_pj / ours.energy_pj,
            "utilization": ours.utilization,
        }
    return rows


def _products(workload: Workload, name: str) -> records.Record:
    """What every product takes, for the plots; vector operations are none of them."""
    layers = acc.simulate(workload, acc.Config(), METHODS[name]).layers
    return {
        "weights": name,
        "start": [layer.start for layer in layers],
        "cycles": [layer.cycles for layer in layers],
        "busy": [layer.compute_cycles for layer in layers],
        "stalls": {
            cause: [layer.stall_cycles[cause] for layer in layers]
            for cause in CAUSES
            if cause != "vector"
        },
        "macs": [layer.product.macs for layer in layers],
        "bytes": [layer.dram_bytes for layer in layers],
    }


def _described(config: acc.Config) -> list[list[Any]]:
    """Names, values and sources; JSON has no infinity."""
    return [
        [name, "inf" if value == math.inf else value, source]
        for name, value, source in config.described()
    ]


if __name__ == "__main__":
    sys.exit(
        main(
            tyro.cli(
                Options,
                prog="python -m experiments.measurements.accelerator",
                description=__doc__,
            )
        )
    )
