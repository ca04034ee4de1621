"""The plot of the quickstart: losses, signs over time, a magnitude codebook."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402


def draw(path: pathlib.Path, results: list[Any], codebook: np.ndarray) -> None:
    """Draw the compressed models' results into a PNG file."""
    figure, (losses, signs, words) = plt.subplots(1, 3, figsize=(15, 4.2))
    for result in results:
        window = max(1, len(result.losses) // 30)
        smooth = np.convolve(result.losses, np.ones(window) / window, "valid")
        losses.plot(np.arange(len(smooth)) + window, smooth, label=result.name)
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    losses.set_title("Fine-tuning on the same batches")
    losses.legend(fontsize=8)

    for result in results:
        for name, share in (("flipped", result.flipped), ("frozen", result.frozen)):
            if share is None:
                continue
            step = np.linspace(0, len(result.losses), len(share) + 1)[1:]
            style = "--" if name == "frozen" else "-"
            signs.plot(step, 100 * share, style, label=f"{result.name}: {name}")
    signs.set(xlabel="step", ylabel="% of signs")
    signs.set_title("Signs unlike at the start, and frozen ones")
    signs.legend(fontsize=8)

    order = np.argsort(codebook.sum(axis=1))
    image = words.imshow(codebook[order], aspect="auto", cmap="viridis")
    words.set(xlabel="position in the block", ylabel="codeword, by magnitude")
    words.set_title("Magnitude codebook of blocks/0/fc1")
    figure.colorbar(image, ax=words)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
