"""Plots of the simulated accelerator."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from experiments.report.plots.figures import COLORS, panels, plt
from experiments.report.results import Results

Load = Callable[[str], Results]


def sweep(load: Load) -> Figure:
    """Speed-up over int8 by bandwidth and array, a panel per method, 3x as a line."""
    rows = load("accelerator").like("sweep")
    rates = sorted({row["rate"] for row in rows})
    arrays = sorted({row["array"] for row in rows})
    methods = [method for method in rows[0]["cycles"] if method != "int8"]
    figure, axes = plt.subplots(
        1,
        len(methods),
        figsize=(4 * len(methods), 3.6),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    image = None
    for axis, method in zip(axes[0], methods, strict=True):
        speedups = np.zeros((len(arrays), len(rates)))
        for row in rows:
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
    return figure


def timeline(load: Load) -> Figure:
    """Cycles of every product over time, by what they went into."""
    machines = load("accelerator").like("products")
    causes = ("busy", *machines[0]["stalls"])
    figure, axes = plt.subplots(
        len(machines),
        1,
        figsize=(12, 2.6 * len(machines)),
        sharex=True,
        layout="constrained",
    )
    longest = max(x["start"][-1] + x["cycles"][-1] for x in machines)
    for axis, machine in zip(axes, machines, strict=True):
        widths = np.array(machine["cycles"])
        bottom = np.zeros(len(widths))
        parts = (machine["busy"], *machine["stalls"].values())
        for color, cause, cycles in zip(COLORS, causes, parts, strict=False):
            share = np.array(cycles) / widths
            axis.bar(
                machine["start"],
                share,
                widths,
                bottom,
                align="edge",
                color=color,
                label=cause,
            )
            bottom += share
        axis.set(title=machine["weights"], ylabel="share of cycles")
        axis.set(xlim=(0, longest), ylim=(0, 1))
    axes[0].legend(loc="upper right", ncols=len(causes))
    axes[-1].set_xlabel("cycle; a bar is a product")
    return figure


def roofline(load: Load) -> Figure:
    """Multiply-adds per cycle over multiply-adds per byte, a point per product."""
    runs = load("accelerator")
    figure, (axis,) = panels(1, 4.5)
    for machine in runs.like("products"):
        read = np.array(machine["bytes"])
        macs, cycles = (np.array(machine[x])[read > 0] for x in ("macs", "cycles"))
        axis.scatter(
            macs / read[read > 0], macs / cycles, s=16, label=machine["weights"]
        )
    config = {name: value for name, value, _ in runs["config"]["values"]}
    rows, cols, rate = (config[x] for x in ("rows", "cols", "dram_bytes_per_cycle"))
    x = np.geomspace(0.5, 5000, 100)
    axis.plot(x, np.minimum(rows * cols, x * rate), color="black")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="multiply-adds per byte of main memory",
        ylabel="multiply-adds per cycle",
        title=f"{rows}x{cols}, {rate:g} B/cycle",
    )
    axis.legend()
    return figure
