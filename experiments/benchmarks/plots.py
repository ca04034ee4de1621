"""The plots: ratios to the peers as bars, and growth on logarithmic axes."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from experiments.benchmarks.rows import Row  # noqa: E402


def draw_ratios(path: pathlib.Path, rows: dict[str, list[Row]]) -> None:
    """A panel per subject with a bar per ratio, a line at 1 and a mark at the aim."""
    panels = {
        subject: [row for row in measured if row.ratio is not None]
        for subject, measured in rows.items()
        if subject != "growth"
    }
    panels = {subject: shown for subject, shown in panels.items() if shown}
    if not panels:
        return
    heights = [len(shown) + 2 for shown in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(10, 0.22 * sum(heights) + 0.5),
        height_ratios=heights,
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axis, (subject, shown) in zip(axes[:, 0], panels.items(), strict=True):
        for y, row in enumerate(shown):
            colour = "0.6" if row.aim is None else "C3" if row.missed else "C2"
            # Bars start at 1: to the right is better, to the left worse.
            axis.barh(y, (row.ratio or 1) - 1, left=1, color=colour, height=0.7)
            if row.aim is not None:
                axis.plot(row.aim, y, "k|", markersize=10)
        axis.axvline(1, color="k", linewidth=0.8)
        labels = [f"{row.case} / {row.peer_name}" for row in shown]
        axis.set_yticks(range(len(shown)), labels, fontsize=7)
        axis.set(xscale="log", title=subject)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="both", labelbottom=True, labelsize=7)
        axis.set_ylim(-0.7, len(shown) - 0.3)
        axis.invert_yaxis()
        axis.grid(axis="x", which="both", alpha=0.3)
    axes[-1, 0].set_xlabel(
        "times better than the peer; | the aim; green met, red missed, grey none"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_growth(path: pathlib.Path, rows: list[Row]) -> None:
    """Seconds and MiB against weights, a line for what a case starts with."""
    figure, (seconds, memory) = plt.subplots(
        1, 2, figsize=(11, 4.2), layout="constrained"
    )
    for name in dict.fromkeys(row.case.partition(",")[0] for row in rows):
        line = [row for row in rows if row.case.startswith(f"{name},")]
        weights = [row.details["weights"] for row in line]
        power = line[-1].details.get("exponent")
        label = name if power is None else f"{name}: weights^{power:.2f}"
        seconds.plot(weights, [row.ours for row in line], "o-", label=label)
    peaks = {
        row.details["weights"]: row.details["mebibytes"]
        for row in rows
        if "mebibytes" in row.details
    }
    memory.plot(list(peaks), list(peaks.values()), "o-", label="encode and decode")
    seconds.set(xscale="log", yscale="log", xlabel="weights", ylabel="seconds")
    seconds.set_title("Time")
    memory.set(xscale="log", yscale="log", xlabel="weights", ylabel="MiB")
    memory.set_ylim(1, 10 * max(peaks.values(), default=1))
    memory.set_title("Peak memory of the loop over tensors")
    for axis in (seconds, memory):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
