"""Where compressed weights speed up an accelerator, and where they do not.

    python -m experiments.accelerator

Simulates DeiT-Tiny at 224 pixels (and three other models) with int8 weights, VQ, MVQ
and SSVQ; writes accelerator.md, accelerator.json and the plots. A quarter of a minute.
"""

import dataclasses
import itertools
import json
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
from experiments import accelerator_plots as plots
from experiments.accelerator_page import page
from ssvq_jax import accelerator as acc

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


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the results go, and how much is simulated."""

    out: pathlib.Path = pathlib.Path("experiments/results")
    """Folder of the results."""
    quick: bool = False
    """Two blocks and few configurations: checks that everything works."""


def main(options: Options) -> int:
    """Simulate, and write the page; returns the exit status."""
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    workload = acc.workloads.vit(192, 2 if options.quick else 12, 3)
    start = time.perf_counter()
    acc.simulate(workload, acc.Config(), METHODS[OURS])
    single = time.perf_counter() - start
    rates, arrays = (RATES[::4], ARRAYS[2:3]) if options.quick else (RATES, ARRAYS)
    start = time.perf_counter()
    sweep = _sweep(workload, rates, arrays, console)
    results = {
        "ours": OURS,
        "single_seconds": single,
        "sweep_seconds": time.perf_counter() - start,
        "sweep": sweep,
        "reference": [_reference(workload, *pair) for pair in REFERENCE.items()],
        "decoder": [_decoder(workload, width) for width in DECODERS],
        "bytes": {name: _bytes(workload, name) for name in METHODS},
        "energy": _energy(workload),
        "models": _models(workload),
        "config": acc.Config().described(),
    }
    (options.out / "accelerator.json").write_text(_json(results))
    (options.out / "accelerator.md").write_text(page(results))
    int8, ours = _both(workload, acc.Config())
    reports = {"int8": int8, OURS: ours}
    plots.contours(options.out / "accelerator_sweep.png", sweep, COMPRESSED)
    plots.timeline(options.out / "accelerator_timeline.png", reports)
    plots.roofline(options.out / "accelerator_roofline.png", reports)
    console.print(f"Results: {options.out / 'accelerator.md'}")
    return 0


def _sweep(
    workload: Sequence[acc.MatMul],
    rates: Sequence[float],
    arrays: Sequence[int],
    console: Console,
) -> list[dict[str, Any]]:
    rows = []
    pairs = list(itertools.product(arrays, rates))
    for size, rate in track(pairs, "Simulating", console=console):
        config = _config(rate, size)
        cycles = {
            n: acc.simulate(workload, config, w).cycles for n, w in METHODS.items()
        }
        rows.append({"array": size, "rate": rate, "cycles": cycles})
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


def _both(workload, config: acc.Config) -> tuple[acc.Report, acc.Report]:
    """int8 and SSVQ."""
    return (
        acc.simulate(workload, config, METHODS["int8"]),
        acc.simulate(workload, config, METHODS[OURS]),
    )


def _reference(workload, rate: float, bound: float) -> dict[str, Any]:
    row: dict[str, Any] = {"rate": rate, "reference": bound}
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


def _decoder(workload, width: int) -> dict[str, Any]:
    config = _config(6.4, decoder=width)
    int8 = acc.simulate(workload, config, "int8").cycles
    reports = {n: acc.simulate(workload, config, METHODS[n]) for n in COMPRESSED}
    return {
        "width": width,
        "speedup": {name: int8 / report.cycles for name, report in reports.items()},
        "stalled": reports[OURS].stall_cycles["decoder"] / reports[OURS].cycles,
    }


def _bytes(workload, name: str) -> dict[str, Any]:
    report = acc.simulate(workload, _config(3.2, burst_bytes=1), METHODS[name])
    return {"traffic": report.traffic, "cycles": report.cycles}


def _energy(workload) -> dict[str, Any]:
    int8, ours = _both(workload, _config(6.4))
    parts = {"int8": int8.energy_by_component, OURS: ours.energy_by_component}
    ratios = {}
    for picojoule in DRAM_PJ_PER_BIT:
        energy = acc.Energy(dram=8 * picojoule)
        config = _config(6.4, energy=energy)
        int8, ours = _both(workload, config)
        ratios[picojoule] = int8.energy_pj / ours.energy_pj
    return {"parts": parts, "ratios": ratios}


def _models(deit) -> list[dict[str, Any]]:
    rows = []
    workloads = {
        "DeiT-Tiny": deit,
        "EfficientNet-Lite0": acc.workloads.efficientnet_lite0(),
        "MobileNet-V2": acc.workloads.mobilenet_v2(),
        "Llama-like, 135 M, one token": acc.workloads.llama(),
    }
    for name, workload in workloads.items():
        config = _config(6.4)
        int8, ours = _both(workload, config)
        rows.append(
            {
                "model": name,
                "macs": sum(product.macs for product in workload),
                "weights": sum(product.weight_count for product in workload),
                "int8_cycles": int8.cycles,
                "cycles": ours.cycles,
                "speedup": int8.cycles / ours.cycles,
                "bytes": int8.dram_bytes / ours.dram_bytes,
                "energy": int8.energy_pj / ours.energy_pj,
                "utilization": ours.utilization,
            }
        )
    return rows


def _json(results: dict[str, Any]) -> str:
    config = [
        [name, "inf" if value == math.inf else value, source]
        for name, value, source in results["config"]
    ]
    return json.dumps({**results, "config": config}, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
