"""Plots of the benchmarks: ratios to the peers as bars, and growth."""

from collections.abc import Callable

from matplotlib.figure import Figure

from experiments.report.plots.figures import legend, panels, plt
from experiments.report.results import Results

Load = Callable[[str], Results]


def ratios(load: Load) -> Figure:
    """A panel per subject with a bar per ratio, a line at 1 and a mark at the aim."""
    rows = [x for x in load("benchmarks").values() if x["ratio"] is not None]
    subjects = dict.fromkeys(x["subject"] for x in rows if x["subject"] != "growth")
    subjects = {name: [x for x in rows if x["subject"] == name] for name in subjects}
    heights = [len(shown) + 2 for shown in subjects.values()]
    figure, axes = plt.subplots(
        max(1, len(subjects)),
        figsize=(10, 0.22 * sum(heights) + 0.5),
        height_ratios=heights or None,
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axis, (subject, shown) in zip(axes[:, 0], subjects.items(), strict=False):
        for y, row in enumerate(shown):
            aim, ratio = row["aim"], row["ratio"]
            colour = "0.6" if aim is None else "C3" if ratio < aim else "C2"
            # Bars start at 1: to the right is better, to the left worse.
            axis.barh(y, ratio - 1, left=1, color=colour, height=0.7)
            if aim is not None:
                axis.plot(aim, y, "k|", markersize=10)
        axis.axvline(1, color="k", linewidth=0.8)
        labels = [f"{row['case']} / {row['peer_name']}" for row in shown]
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
    return figure


def growth(load: Load) -> Figure:
    """Seconds and MiB against weights, a line for what a case starts with."""
    rows = [x for x in load("benchmarks").values() if x["subject"] == "growth"]
    figure, (time, memory) = panels(2)
    for name in dict.fromkeys(row["case"].partition(",")[0] for row in rows):
        line = [row for row in rows if row["case"].startswith(f"{name},")]
        power = line[-1]["details"].get("exponent")
        time.plot(
            [row["details"]["weights"] for row in line],
            [row["ours"] for row in line],
            "o-",
            label=name if power is None else f"{name}: weights^{power:.2f}",
        )
    details = [row["details"] for row in rows]
    peaks = {x["weights"]: x["mebibytes"] for x in details if "mebibytes" in x}
    memory.plot(list(peaks), list(peaks.values()), "o-", label="encode and decode")
    time.set(xscale="log", yscale="log", xlabel="weights", ylabel="seconds")
    time.set_title("Time")
    memory.set(xscale="log", yscale="log", xlabel="weights", ylabel="MiB")
    memory.set_ylim(1, 10 * max(peaks.values(), default=1))
    memory.set_title("Peak memory of the loop over tensors")
    legend(time, memory)
    return figure
