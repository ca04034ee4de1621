"""Plots of the comparison between methods."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.configs._methods import BITS, TITLES, at
from experiments.report.numbers import gap, half
from experiments.report.plots.figures import COLORS, legend, panels
from experiments.report.results import NETWORKS, Results, Run

_METHODS = [method for method in TITLES if method != "float"]
_COLORS = {"float": "black", **dict(zip(_METHODS, COLORS, strict=False))}

Load = Callable[[str], Results]


def pareto(load: Load) -> Figure:
    """Points lost against the compression ratio, fine-tuned alike and before.

    The float networks, each 0, are not the same for all bits.
    """
    few, more = load("cifar10/bits"), load("cifar10/three_bits")
    return _pareto([more if bits > 2 else few for bits in BITS], BITS)


def hundred(load: Load) -> Figure:
    """The same with a hundred classes."""
    bits = (1, 1.25, 1.5, 2)
    return _pareto([load("cifar100/bits")] * len(bits), bits)


def _pareto(sources: Sequence[Results], bits: Sequence[float]) -> Figure:
    """Runs METHOD-BITS of one source for every number of bits, and its "float"."""
    figure, (tuned, before) = panels(2, 4.5)
    for method in _METHODS:
        own = [
            (runs[f"{method}-{x:g}"], runs["float"])
            for x, runs in zip(bits, sources, strict=True)
            if f"{method}-{x:g}" in runs
        ]
        if not own:
            continue
        ratios = [run.ratio for run, _ in own]
        shown = {"color": _COLORS[method], "marker": "o", "label": TITLES[method]}
        gaps = np.array([gap(run, dense) for run, dense in own])
        tuned.errorbar(ratios, *100 * gaps.T, capsize=3, **shown)
        untuned = [x["before"]["top1"] - dense["before"]["top1"] for x, dense in own]
        before.plot(ratios, 100 * np.array(untuned), **shown)
    for axis in (tuned, before):
        axis.axhline(0, color="black", lw=1, label="float32")
        axis.set(xlabel="compression ratio of the kernels")
        axis.set(ylabel="test accuracy minus float32's, points")
    tuned.set_title("three epochs of fine-tuning")
    before.set_title("before fine-tuning")
    legend(tuned, before)
    return figure


def curves(load: Load) -> Figure:
    """Validation accuracy and the signs' shares over the epochs of the headline."""
    runs = load("cifar10/headline")
    figure, (more, fewer, signs) = panels(3)

    def draw(axis: Any, own: Sequence[Run], name: str, label: str, style: str = "-"):
        lines = [[line[name] for line in run["curve"]] for run in own]
        mean = 100 * np.mean(lines, axis=0)
        color = _COLORS[own[0].method]
        axis.plot(np.arange(1, len(mean) + 1), mean, style, color=color, label=label)

    for axis, bits, beside in ((more, 1.5, [("uniform", 2)]), (fewer, 1.25, [])):
        for method, own in [("float", 32), *beside, *((x, bits) for x in at(bits))]:
            title = TITLES[method]
            draw(axis, runs.of(method, own), "validation/top1", title)
    for method, names in (("learned", ("flipped",)), ("frozen", ("flipped", "frozen"))):
        for name, style in zip(names, ("-", "--"), strict=False):
            label = f"{TITLES[method]}: {name}"
            draw(signs, runs.of(method, 1.5), name, label, style)
    more.set(title="1.5 bits (UQ: 2)", ylabel="validation accuracy, %")
    fewer.set(title="1.25 bits", ylabel="validation accuracy, %")
    signs.set(title="1.5 bits", ylabel="% of the signs")
    for axis in (more, fewer, signs):
        axis.set(xlabel="epoch")
    legend(more, fewer, signs)
    return figure


def few_images(load: Load) -> Figure:
    """Test accuracy against the bits of the compressed weights, for each network."""
    return _by_network(load("few_images/bits"), ("uniform", "vq", "mvq", "ssvq"))


def calibrated(load: Load) -> Figure:
    """The same without training."""
    return _by_network(
        load("calibrated/bits"),
        ("uniform", "vq", "mvq", "ssvq", "coded"),
    )


def allocation(load: Load) -> Figure:
    """Bits a weight of every kernel of EfficientNet-Lite0, in order."""
    runs = load("calibrated/bits")
    figure, axes = panels(2)
    for axis, method in zip(axes, ("vq", "coded"), strict=True):
        run = runs[f"efficientnet_lite0-{method}-1.5"]
        layers = sorted(run["layers"], key=lambda layer: _depth(layer[0]))
        bits = [bits / weights for _, _, weights, bits in layers]
        share = [weights for _, _, weights, _ in layers]
        ends = np.cumsum(share) / sum(share)
        axis.bar(range(len(bits)), bits, color=_COLORS[run.method], label=run.title)
        axis.plot(
            range(len(bits)), 10 * ends, color="0.4", label="weights so far, tenths"
        )
        axis.set(xlabel="kernel, from the stem on", ylabel="bits per weight")
    legend(*axes)
    return figure


def _depth(path: str) -> tuple[int, ...]:
    """Where a kernel stands in a network of blocks."""
    part, *rest = path.split("/")
    order = {"conv_stem": 0, "blocks": 1, "conv_head": 2, "classifier": 3}
    inside = ("conv_pw", "conv_dw", "conv_pwl")
    numbers = [int(x) if x.isdigit() else inside.index(x) for x in rest[:-1]]
    return (order[part], *numbers)


def _by_network(
    runs: Results,
    methods: Sequence[str],
) -> Figure:
    figure, axes = panels(len(NETWORKS))
    for axis, (network, name) in zip(axes, NETWORKS.items(), strict=True):
        for method in methods:
            own = runs.like(f"{network}-{method}")
            axis.errorbar(
                [run.bits for run in own],
                [100 * run.accuracy for run in own],
                [100 * half(run) for run in own],
                color=_COLORS[own[0].method],
                marker="o",
                capsize=3,
                label=own[0].title,
            )
        axis.set(xlabel="bits per compressed weight")
        images = len(next(iter(runs.values())).each)
        axis.set(ylabel=f"top-1 of {images} images, %", title=name)
    legend(*axes)
    return figure
