"""Plots of the comparison."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.comparison_page import accuracy, interval
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
    runs = results["cifar10_headline"]
    figure, (epochs, signs) = plt.subplots(1, 2, figsize=(11, 4.2))
    for method in TITLES:
        own = [run for name, run in runs.items() if name.split("-")[0] == method]
        if not own:
            continue
        images = own[0]["validation"]["images"]
        found = [[x["validation_top1"] for x in run["curve"]] for run in own]
        mean = 100 * np.mean(found, axis=0) / images
        color = _COLORS.get(method, "black")
        epochs.plot(
            np.arange(1, len(mean) + 1), mean, color=color, label=TITLES[method]
        )
        for name, style in (("flipped", "-"), ("frozen", "--")):
            if name in own[0]["curve"][-1]:
                share = [[x[name] for x in run["curve"]] for run in own]
                mean = 100 * np.mean(share, axis=0)
                label = f"{TITLES[method]}: {name}"
                signs.plot(
                    np.arange(1, len(mean) + 1), mean, style, color=color, label=label
                )
    epochs.set(xlabel="epoch", ylabel="validation accuracy, %")
    signs.set(xlabel="epoch", ylabel="% of the signs")
    for axis in (epochs, signs):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
