"""Plots of the comparison."""

import operator
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.comparison_numbers import accuracy, interval, seeds
from experiments.methods import BITS, TITLES

_METHODS = [method for method in TITLES if method != "float"]
_COLORS = dict(zip(_METHODS, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]


def pareto(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Test accuracy against the compression ratio, all methods fine-tuned alike."""
    runs = results["cifar10_bits"]
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for method in _METHODS:
        own = [runs[f"{method}-{b:g}"] for b in BITS if f"{method}-{b:g}" in runs]
        ratios = [run["ratio"] for run in own]
        found = [100 * accuracy(run["test"]) for run in own]
        spans = [100 * interval(run["test"]) for run in own]
        color = _COLORS[method]
        axis.errorbar(
            ratios, found, spans, color=color, marker="o", label=TITLES[method]
        )
        before = [100 * accuracy(run["before"]) for run in own]
        axis.plot(ratios, before, ":", color=color, marker=".", alpha=0.6)
    if "float" in runs:
        level = 100 * accuracy(runs["float"]["test"])
        axis.axhline(level, color="black", lw=1, label="float32 fine-tuned alike")
    axis.set(xlabel="compression ratio of the kernels", ylabel="test accuracy, %")
    axis.set_title("CIFAR-10, DeiT 96 wide: 3 epochs (dotted: before fine-tuning)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    _save(figure, path)


def curves(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Validation accuracy and the signs' shares over the epochs of the headline."""
    groups = seeds(results["cifar10_headline"])
    figure, (more, fewer, signs) = plt.subplots(1, 3, figsize=(14, 4.2))

    def draw(axis, own, value, style="-", **named):
        mean = 100 * np.mean([[value(x) for x in run["curve"]] for run in own], axis=0)
        axis.plot(np.arange(1, len(mean) + 1), mean, style, **named)

    def validated(line):
        return line["validation_top1"] / images

    for (method, bits), own in groups.items():
        color = _COLORS.get(method, "black")
        images = own[0]["validation"]["images"]
        for axis, shown in ((more, ("32", "2", "1.5")), (fewer, ("32", "1.25"))):
            if bits in shown:
                draw(axis, own, validated, color=color, label=TITLES[method])
        for name, style in (("flipped", "-"), ("frozen", "--")):
            if bits == "1.5" and name in own[0]["curve"][-1]:
                label = f"{TITLES[method]}: {name}"
                share = operator.itemgetter(name)
                draw(signs, own, share, style, color=color, label=label)
    more.set(title="1.5 bits (UQ: 2)", ylabel="validation accuracy, %")
    fewer.set(title="1.25 bits", ylabel="validation accuracy, %")
    signs.set(title="1.5 bits", ylabel="% of the signs")
    for axis in (more, fewer, signs):
        axis.set(xlabel="epoch")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
