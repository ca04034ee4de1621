"""Plots of the accelerator's report."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ssvq_jax import accelerator as acc
from ssvq_jax.accelerator.report import CAUSES


def contours(
    path: pathlib.Path, sweep: Sequence[Mapping[str, Any]], methods: Sequence[str]
) -> None:
    """Speed-up over int8 by bandwidth and array, a panel per method, 3x as a line."""
    rates = sorted({row["rate"] for row in sweep})
    arrays = sorted({row["array"] for row in sweep})
    figure, axes = plt.subplots(
        1, len(methods), figsize=(4 * len(methods), 3.6), sharey=True
    )
    image = None
    for axis, method in zip(np.atleast_1d(axes), methods, strict=True):
        speedups = np.zeros((len(arrays), len(rates)))
        for row in sweep:
            i, j = arrays.index(row["array"]), rates.index(row["rate"])
            speedups[i, j] = row["cycles"]["int8"] / row["cycles"][method]
        image = axis.pcolormesh(
            rates, arrays, speedups, vmin=0.8, vmax=5.3, shading="nearest"
        )
        if min(speedups.shape) > 1 and speedups.min() < 3 < speedups.max():
            lines = axis.contour(rates, arrays, speedups, [3.0], colors="white")
            axis.clabel(lines, fmt="3x")
        axis.set(xscale="log", yscale="log", title=method, xlabel="bytes per cycle")
        axis.set_yticks(arrays, [f"{n}x{n}" for n in arrays])
        axis.minorticks_off()
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=60)
    if image is not None:
        figure.colorbar(image, ax=axes, label="speed-up over int8")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def timeline(path: pathlib.Path, reports: Mapping[str, acc.Report]) -> None:
    """Cycles of every product over time, by what they went into."""
    longest = max(report.cycles for report in reports.values())
    figure, axes = plt.subplots(
        len(reports), 1, figsize=(12, 2.6 * len(reports)), sharex=True
    )
    causes = ("busy", *CAUSES[:-1])
    colors = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, (name, report) in zip(np.atleast_1d(axes), reports.items(), strict=True):
        starts = [layer.start for layer in report.layers]
        widths = [layer.cycles for layer in report.layers]
        bottom = np.zeros(len(starts))
        for color, cause in zip(colors, causes, strict=False):
            cycles = [
                layer.compute_cycles if cause == "busy" else layer.stall_cycles[cause]
                for layer in report.layers
            ]
            share = np.array(cycles) / widths
            axis.bar(
                starts, share, widths, bottom, align="edge", color=color, label=cause
            )
            bottom += share
        axis.set(title=name, ylabel="share of cycles", xlim=(0, longest), ylim=(0, 1))
    np.atleast_1d(axes)[0].legend(loc="upper right", ncols=len(causes))
    np.atleast_1d(axes)[-1].set_xlabel("cycle; a bar is a product")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def roofline(path: pathlib.Path, reports: Mapping[str, acc.Report]) -> None:
    """Multiply-adds per cycle over multiply-adds per byte, a point per product."""
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    for name, report in reports.items():
        layers = [layer for layer in report.layers if layer.dram_bytes]
        intensity = [layer.product.macs / layer.dram_bytes for layer in layers]
        rate = [layer.product.macs / layer.cycles for layer in layers]
        axis.scatter(intensity, rate, s=16, label=name)
    config = next(iter(reports.values())).config
    x = np.geomspace(0.5, 5000, 100)
    peak = config.rows * config.cols
    axis.plot(x, np.minimum(peak, x * config.dram_bytes_per_cycle), color="black")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="multiply-adds per byte of main memory",
        ylabel="multiply-adds per cycle",
        title=f"{config.rows}x{config.cols}, {config.dram_bytes_per_cycle:g} B/cycle",
    )
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
