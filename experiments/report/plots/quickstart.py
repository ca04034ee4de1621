"""The plot of the quickstart: losses, signs over time, a magnitude codebook."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

import ssvq_jax as ssvq
from experiments.report.plots.figures import legend, panels
from experiments.training.log import read

CODEBOOK = "blocks.0.mlp.fc1.kernel"
"""Whose codebook is shown, of the last run."""


def quickstart(folders: Mapping[str, pathlib.Path]) -> Figure:
    """What runs have logged, and what the last has learned.

    Args:
      folders: Of the runs by their titles; the first, of float weights, is left out.
    """
    figure, (losses, signs, words) = panels(3)
    folder = pathlib.Path()
    for title, folder in list(folders.items())[1:]:
        lines = read(folder / "metrics.jsonl")
        shown = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        losses.plot(*zip(*shown, strict=True), label=title)
        for name, style in (("flipped", "-"), ("frozen", "--")):
            shares = [(x["step"], 100 * x[name]) for x in lines if name in x]
            if shares:
                signs.plot(*zip(*shares, strict=True), style, label=f"{title}: {name}")
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    losses.set_title("Fine-tuning on the same batches")
    signs.set(xlabel="step", ylabel="% of signs")
    signs.set_title("Signs unlike at the start, and frozen ones")
    legend(losses, signs)
    node = ssvq.load(folder / "model.ssvq.safetensors")[CODEBOOK]
    codebook = np.asarray(node.codebook)
    order = np.argsort(codebook.sum(axis=1))
    image = words.imshow(codebook[order], aspect="auto", cmap="viridis")
    words.set(xlabel="position in the block", ylabel="codeword, by magnitude")
    words.set_title("Magnitude codebook of blocks/0/mlp/fc1")
    figure.colorbar(image, ax=words)
    return figure
