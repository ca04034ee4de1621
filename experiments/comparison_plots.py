"""Plots of the comparison."""

import operator
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.comparison_numbers import (
    FEW_METHODS,
    FEW_NETWORKS,
    accuracy,
    difference,
    interval,
    seeds,
)
from experiments.methods import BITS, TITLES

_METHODS = [method for method in TITLES if method != "float"]
_COLORS = dict(zip(_METHODS, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]


def pareto(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Points lost against the compression ratio, fine-tuned alike and before.

    The float networks, each 0, are not the same for all bits.
    """
    configs = [results.get(name, {}) for name in ("cifar10_bits", "cifar10_3_bits")]
    figure, (tuned, before) = plt.subplots(1, 2, figsize=(12, 4.5))
    for method in _METHODS:
        own = [
            (runs[f"{method}-{bits:g}"], runs["float"])
            for bits in BITS
            for runs in configs
            if f"{method}-{bits:g}" in runs
        ]
        ratios = [run["ratio"] for run, _ in own]
        shown = {"color": _COLORS[method], "marker": "o", "label": TITLES[method]}
        gaps = np.array([difference([run], [dense]) for run, dense in own])
        tuned.errorbar(ratios, *100 * gaps.reshape(-1, 2).T, capsize=3, **shown)
        untuned = [
            accuracy(run["before"]) - accuracy(dense["before"]) for run, dense in own
        ]
        before.plot(ratios, 100 * np.array(untuned), **shown)
    for axis in (tuned, before):
        axis.axhline(0, color="black", lw=1, label="float32")
        axis.set(xlabel="compression ratio of the kernels")
        axis.set(ylabel="test accuracy minus float32's, points")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    tuned.set_title("three epochs of fine-tuning")
    before.set_title("before fine-tuning")
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


def few_images(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Test accuracy against the bits of the compressed weights, for each network."""
    runs = results["few_images"]
    figure, axes = plt.subplots(1, len(FEW_NETWORKS), figsize=(12, 4.2))
    for axis, (network, name) in zip(axes, FEW_NETWORKS.items(), strict=True):
        for method, title in FEW_METHODS.items():
            prefix = f"{network}-{method}-"
            own = [run for key, run in runs.items() if key.startswith(prefix)]
            axis.errorbar(
                [run["bits_per_weight"] for run in own],
                [100 * accuracy(run["test"]) for run in own],
                [100 * interval(run["test"]) for run in own],
                color=_COLORS.get(method, _COLORS["frozen"]),
                marker="o",
                capsize=3,
                label=title,
            )
        axis.set(xlabel="bits per compressed weight", ylabel="top-1 of 300 images, %")
        axis.set_title(name)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
